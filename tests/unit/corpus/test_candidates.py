from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qwen3emb.config.data import CorpusConfig
from qwen3emb.core.errors import UserError
from qwen3emb.corpus.candidates import CANDIDATE, file_rows
from qwen3emb.corpus.python_source import split_of
from qwen3emb.corpus.sources import corpus_files
from qwen3emb.text.identity import content_hash
from qwen3emb.text.near_duplicates import minhash

LONG = " ".join(f"{word} tells the reader something useful." for word in ("This", "That", "Another"))
MODULE = f'''"""{LONG}"""


class Box:
    """Too short."""

    def put(self, thing):
        """Put a thing into the box.

        {LONG}
        """
        self.things.append(thing)
        return self

    def empty(self):
        """Empty."""
        self.things = []


def undocumented():
    return 1
'''


def config(path: Path, **options: Any) -> CorpusConfig:
    source = {"kind": "python", "path": str(path)} | options.pop("source", {})
    defaults = {"dev_share": 0, "heldout_share": 0, "min_words": 12}
    return CorpusConfig(sources=[source], **(defaults | options))


def whole(text: str) -> list[str]:
    return [text]


def rows(path: Path, cfg: CorpusConfig, chunk: Any = whole) -> list[dict[str, Any]]:
    [file] = corpus_files(cfg.sources, 0)
    found = list(file_rows(file, cfg, 0, chunk))
    pa.Table.from_pylist(found, schema=CANDIDATE)  # every row has the right types
    assert all(row.keys() == set(CANDIDATE.names) and row["source"] == str(path) for row in found)
    return found


def test_training_module_gives_passages_and_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pkg.py"
    path.write_text(MODULE)
    module, put, pair = rows(path, config(path))
    assert (module["role"], module["id"], module["title"], module["text"]) == ("passage", "pkg", "pkg", LONG)
    assert (put["role"], put["id"], put["split"]) == ("passage", "pkg.Box.put", "train")
    assert put["text"].startswith("Put a thing into the box.\n\nThis tells") and put["language"] == "en"
    assert (pair["role"], pair["id"], pair["title"]) == ("pair", "docstrings:pkg.Box.put", "pkg.Box.put")
    assert pair["query"] == "Put a thing into the box."
    assert pair["text"] == "def put(self, thing):\n    self.things.append(thing)\n    return self"


def test_signatures_and_hashes_are_of_text_and_query(tmp_path: Path) -> None:
    path = tmp_path / "pkg.py"
    path.write_text(MODULE)
    for row in rows(path, config(path)):
        for name in ("text", "query"):
            signature = np.frombuffer(row[f"{name}_signature"], dtype=np.uint64)
            expected = minhash(row[name]) if row[name] else np.zeros(64)
            assert np.array_equal(signature, expected)
            assert row[f"{name}_hash"] == (content_hash(row[name]) if row[name] else "")


def test_heldout_module_gives_functions_and_shadows_but_nothing_to_train_on(tmp_path: Path) -> None:
    path = tmp_path / "pkg.py"
    path.write_text(MODULE)
    found = rows(path, config(path, heldout_share=0.999999, min_words=0))
    assert {row["split"] for row in found} == {"heldout"}
    assert Counter(row["role"] for row in found) == {"shadow": 4, "function": 2}
    put, empty = (row for row in found if row["role"] == "function")
    assert (put["id"], put["query"]) == ("pkg.Box.put", "Put a thing into the box.")
    assert (empty["id"], empty["query"]) == ("pkg.Box.empty", "")  # searched, but too vague to be asked for
    shadow = next(row for row in found if row["role"] == "shadow" and row["id"] == "pkg")
    assert shadow["text_signature"] == minhash(LONG).tobytes() and shadow["text"] == ""


def test_long_docstrings_are_chunked_and_short_ends_left_out(tmp_path: Path) -> None:
    path = tmp_path / "pkg.py"
    path.write_text(f'"""{LONG}\n\n{LONG} Second.\n\nA short end."""\n')
    found = rows(path, config(path), chunk=lambda text: text.split("\n\n"))
    assert [(row["id"], row["title"], row["text"]) for row in found] == [
        ("pkg/1", "pkg", LONG),
        ("pkg/2", "pkg", LONG + " Second."),
    ]


@pytest.mark.parametrize(
    ("raw", "reason", "row"),
    [
        (b"def f(:\n", "invalid_python", 1),
        (b"x = 1\n\n\ny = (\n", "invalid_python", 4),
        (b"x = '\xff'\n", "invalid_utf8", -1),
        (b"# coding: klingon\n", "invalid_python", -1),
        (b"x = 1\x00\n", "invalid_python", None),
        (b"x = " + b"(" * 5000 + b")" * 5000, "invalid_python", None),
    ],
)
def test_a_file_that_is_no_python_is_one_reject(tmp_path: Path, raw: bytes, reason: str, row: int | None) -> None:
    path = tmp_path / "bad.py"
    path.write_bytes(raw)
    [found] = rows(path, config(path))
    assert (found["role"], found["id"], found["reason"].partition(":")[0]) == ("reject", "bad", reason)
    assert found["text"] and (row is None or found["row"] == row)


def test_the_coding_line_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "latin.py"
    path.write_bytes(f'# -*- coding: latin-1 -*-\n"""{LONG} Caf\u00e9."""\n'.encode("latin-1"))
    [found] = rows(path, config(path))
    assert found["role"] == "passage" and found["text"].endswith("Caf\u00e9.")


def test_text_that_cannot_be_trained_on_is_rejected_alone(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text(MODULE.replace("Too short.", "A bell \\x07 rings."))
    found = rows(path, config(path))
    assert [row["id"] for row in found if row["role"] == "reject"] == ["odd.Box"]
    assert Counter(row["role"] for row in found) == {"reject": 1, "passage": 2, "pair": 1}
    assert found[1]["reason"].startswith("control_character")


def test_generated_code_is_too_long_for_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "table.py"
    lines = "".join(f"    x{i} = {i}\n" for i in range(3000))
    path.write_text(f'def table():\n    """Fill a table of numbers."""\n{lines}')
    [found] = rows(path, config(path))
    assert found["role"] == "reject" and found["reason"].startswith("code_too_long")


def test_chunks_of_other_files_are_numbered_and_rejects_pass_through(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one|two", "title": "T"}\nnot json\n{"text": "three"}\n')
    cfg = config(path, source={"kind": "jsonl", "language": "de"})
    first, second, bad, third = rows(path, cfg, chunk=lambda text: text.split("|"))
    assert [(r["id"], r["text"], r["title"]) for r in (first, second)] == [
        ("a:1/1", "one", "T"),
        ("a:1/2", "two", "T"),
    ]
    assert (bad["role"], bad["row"], bad["text"]) == ("reject", 2, "not json")
    assert (third["id"], third["language"]) == ("a:3", "de")


def test_a_text_that_cannot_be_chunked_is_rejected(tmp_path: Path) -> None:
    def impossible(text: str) -> list[str]:
        raise UserError(f"cannot hold {text!r}")

    path = tmp_path / "a.txt"
    path.write_text("some text")
    [found] = rows(path, config(path, source={"kind": "text"}), chunk=impossible)
    assert (found["role"], found["reason"]) == ("reject", "cannot_chunk: cannot hold 'some text'")


def test_a_file_that_is_gone_is_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "gone.py"
    path.write_text("")
    cfg = config(path)
    [file] = corpus_files(cfg.sources, 0)
    path.unlink()
    with pytest.raises(UserError, match=r"gone\.py cannot be read"):
        list(file_rows(file, cfg, 0, whole))


def test_a_docstring_that_cannot_be_chunked_still_leaves_its_pair(tmp_path: Path) -> None:
    def impossible(text: str) -> list[str]:
        raise UserError("no room")

    path = tmp_path / "pkg.py"
    path.write_text(MODULE)
    found = rows(path, config(path), chunk=impossible)
    assert [(row["role"], row["id"]) for row in found] == [
        ("reject", "pkg"),
        ("reject", "pkg.Box.put"),
        ("pair", "docstrings:pkg.Box.put"),
    ]


def test_all_chunks_of_a_document_have_the_split_of_its_name(tmp_path: Path) -> None:
    """A Markdown or text file is a document, of a table each row."""
    shares = {"dev_share": 0.3, "heldout_share": 0.3}
    splits = Counter()
    for number in range(30):
        path = tmp_path / f"page{number}.md"
        path.write_text(f"# Title\n\nOne of {number}.\n\n## Two\n\nTwo of {number}.\n")
        cfg = config(path, source={"kind": "markdown"}, **shares)
        found = rows(path, cfg, lambda text: [text[:5], text[5:]])
        assert len(found) >= 2
        assert {row["split"] for row in found} == {split_of(f"page{number}", 0.3, 0.3, 0)}
        splits[found[0]["split"]] += 1
    assert min(splits["train"], splits["dev"], splits["heldout"]) > 3

    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps({"text": f"text of {n}", "key": f"k{n}"}) + "\n" for n in range(30)))
    cfg = config(table, source={"kind": "jsonl", "id_field": "key"}, **shares)
    found = rows(table, cfg, lambda text: [text[:4], text[4:]])
    assert [row["split"] for row in found] == [split_of(f"k{n}", 0.3, 0.3, 0) for n in range(30) for _ in range(2)]
