"""The stage `corpus` on a real local Ray: a small source tree and files with broken rows."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.corpus import run
from jobs.entry import command_line, run_stage
from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.artifact import read_record
from qwen3emb.core.context import StageContext
from qwen3emb.core.errors import UserError
from qwen3emb.core.exits import guarded
from qwen3emb.core.records import PAIR, PASSAGE, REJECT
from qwen3emb.core.storage import Storage
from qwen3emb.corpus.python_source import split_of
from qwen3emb.corpus.stage import build_corpus
from qwen3emb.pipeline.stages import stage_folder
from qwen3emb.text.retrieval_set import read_retrieval_set

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
THINGS = [
    "harbour",
    "lantern",
    "orchard",
    "violin",
    "glacier",
    "pigeon",
    "anchor",
    "saddle",
    "copper",
    "meadow",
]
WORDS = ["able", "brisk", "calm", "dense", "eager", "faint", "gaunt", "hazy", "icy", "jolly", "keen", "loud"]


def prose(seed: int) -> str:
    """A sentence of its own for every seed below 120."""
    thing, word = THINGS[seed % 10], WORDS[seed // 10]
    return f"The {word} {thing} stands where every {word} traveller of {thing} {seed} rests at night."


def module(number: int) -> str:
    thing, word = THINGS[number % 10], WORDS[number // 10]
    functions = [
        f"def {verb}_{word}_{thing}({thing}, {word}=None):\n"
        f'    """{verb.title()} the {word} {thing} of {number}."""\n'
        f"    {thing}.{verb}({word}, {number})\n    return {thing}.{word}.{verb}ed\n"
        for verb in ("paint", "visit")
    ]
    return f'"""{prose(number)}"""\n\n\n' + "\n\n".join(functions)


def overrides(folder: Path, model: Path, sources: list[dict[str, Any]], **corpus: Any) -> list[str]:
    section = {"sources": sources, "min_words": 12, "max_tokens": 256} | corpus
    models = {"generator": str(model), "base": str(model), "retrieval": str(model)}
    return [
        f"storage={folder}/run",
        f"models={json.dumps(models)}",
        f"corpus={json.dumps(section)}",
    ]


def context(settings: list[str], run: str = "") -> StageContext[RunConfig]:
    cfg = load_config(ROOT / "examples/demo.yaml", [*settings, *([f"storage={run}"] if run else [])])
    return StageContext(cfg, "corpus", stage_folder(cfg, "corpus"), {})


@pytest.fixture
def mixed(tmp_path: Path, tiny_qwen3: Path) -> list[str]:
    """40 modules, and one file of each other kind, each with something wrong in it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(40):
        (tree / f"m{number}.py").write_text(module(number))
    (tree / "copy_of_m1.py").write_text(module(1))
    (tree / "broken.py").write_text("def f(:\n")
    (tree / "latin.py").write_bytes(b'"""Caf\xe9."""\n')
    lines = [json.dumps({"text": prose(60 + i), "title": f"T{i}"}).encode() for i in range(4)]
    lines += [b"{not json", b'{"text": 5}', b'{"text": "\xff"}', b'{"title": "no text"}', lines[0]]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    (tmp_path / "table.csv").write_bytes(f'text,title\n"{prose(70)}",A\n"{prose(71)}"\n\xff,B\n'.encode("latin-1"))
    (tmp_path / "doc.md").write_text("# Heading\n\n" + "\n\n".join(prose(80 + i) for i in range(12)))
    (tmp_path / "bad.txt").write_bytes(b"text \xff\xfe")
    table = pa.table({"body": [prose(95), None, prose(96)], "key": ["x", "y", "x"]})
    Storage(str(tmp_path)).write_table("keyed.parquet", table)
    sources = [
        {"kind": "python", "path": str(tree)},
        {"kind": "jsonl", "path": f"{tmp_path}/rows.jsonl.gz"},
        {"kind": "csv", "path": f"{tmp_path}/*.csv", "language": "de"},
        {"kind": "markdown", "path": f"{tmp_path}/doc.md"},
        {"kind": "text", "path": f"{tmp_path}/bad.txt"},
        {"kind": "parquet", "path": f"{tmp_path}/keyed.parquet"}
        | {"text_field": "body", "title_field": None, "id_field": "key"},
    ]
    shares = {"dev_share": 0.2, "heldout_share": 0.3}
    return overrides(tmp_path, tiny_qwen3, sources, **shares)


def arguments(settings: list[str]) -> list[str]:
    flags = [flag for setting in settings for flag in ("--set", setting)]
    return ["--config", str(ROOT / "examples/demo.yaml"), *flags]


def test_the_command_reads_every_kind_and_a_second_run_reuses_it(
    mixed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "jobs.corpus", *arguments(mixed)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert first.returncode == 0, first.stderr
    out = Storage(f"{tmp_path}/run/corpus")
    record = read_record(out)
    check_other_kinds(out)
    check_splits(out)
    rejects = out.read_table("rejects")
    assert rejects.schema == REJECT
    assert Counter(r.partition(":")[0] for r in rejects.column("reason").to_pylist()) == record["rejected"]
    assert sum(record["rejected"].values()) + record["rows_out"] == record["rows_in"]
    assert not out.exists("candidates")
    assert run_stage("corpus", run, command_line("").parse_args(arguments(mixed))) == 0
    assert "corpus: reused" in capsys.readouterr().err


def check_other_kinds(out: Storage) -> None:
    table = out.read_table("passages")
    assert table.schema == PASSAGE
    passages = {row["id"]: row for row in table.to_pylist()}
    assert passages["rows:9"]["text"] == prose(60) and passages["rows:9"]["title"] == "T0"
    assert "rows:1" not in passages  # the same text: of a training row and a dev row the latter stays
    for name, document in (
        ("rows:9", "rows:9"),
        ("x", "x"),
        ("table:1", "table:1"),
        ("doc:1/1", "doc"),
        ("doc:1/3", "doc"),
    ):
        assert passages[name]["split"] == split_of(document, 0.2, 0.3, 0), name
    csv_row = next(row for row in passages.values() if row["text"] == prose(70))
    assert (csv_row["language"], csv_row["title"]) == ("de", "A")
    chunks = [row for row in passages.values() if row["source"].endswith("doc.md")]
    assert len(chunks) > 1 and all(row["title"] == "Heading" for row in chunks)
    joined = " ".join(row["text"] for row in chunks).split()
    assert joined == " ".join(prose(80 + i) for i in range(12)).split()
    assert passages["x"]["text"] == prose(95)
    reasons = Counter(
        (Path(row["source"]).name, row["reason"].partition(":")[0])
        for row in out.read_table("rejects").to_pylist()
        if not row["source"].endswith(".py")
    )
    assert reasons == {
        ("rows.jsonl.gz", "invalid_json"): 1,
        ("rows.jsonl.gz", "not_a_string"): 1,
        ("rows.jsonl.gz", "invalid_utf8"): 1,
        ("rows.jsonl.gz", "missing_field"): 1,
        ("rows.jsonl.gz", "heldout_overlap"): 1,
        ("table.csv", "invalid_csv"): 1,
        ("table.csv", "invalid_utf8"): 1,
        ("bad.txt", "invalid_utf8"): 1,
        ("keyed.parquet", "missing_field"): 1,
        ("keyed.parquet", "duplicate_id"): 1,
    }


def check_splits(out: Storage) -> None:
    modules = {split: set() for split in ("train", "dev", "heldout")}
    for number in range(40):
        modules[split_of(f"m{number}", 0.2, 0.3, 0)].add(f"m{number}")
    assert all(modules.values())
    pairs = out.read_table("pairs")
    assert pairs.schema == PAIR
    trained = {row["document_id"].split(".")[0].removeprefix("code:") for row in pairs.to_pylist()}
    copies = {"m1", "copy_of_m1"}
    assert trained - copies == modules["train"] - copies
    titles = {row["title"] for row in out.read_table("passages").to_pylist() if row["source"].endswith(".py")}
    assert titles - copies == modules["train"] - copies
    for split in ("dev", "heldout"):
        found = read_retrieval_set(out / split)
        assert {name.split(".")[0] for name in found.corpus} - copies == modules[split] - copies
        assert len(found.queries) == len(found.corpus) > 0
        assert found.languages == dict.fromkeys(found.queries, "en")
        for query, grades in found.qrels.items():
            [(document, grade)] = grades.items()
            verb, word, thing = document.split(".")[1].split("_")
            assert grade == 1 and found.queries[query].startswith(f"{verb.title()} the {word} {thing}")
            title, code = found.corpus[document]
            assert title == "" and code.startswith(f"def {verb}_{word}_{thing}") and '"""' not in code
    kept = [row["document"] for row in pairs.to_pylist()]
    kept += [code for split in ("dev", "heldout") for _, code in read_retrieval_set(out / split).corpus.values()]
    assert len(kept) == len(set(kept)) == 80  # the copy of m1 is nowhere a second time


def test_a_broken_off_run_goes_on_and_gives_what_one_run_gives(tmp_path: Path, tiny_qwen3: Path) -> None:
    for number in range(6):
        lines = [json.dumps({"text": prose(10 * number + i)}) for i in range(9)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
    settings = overrides(tmp_path, tiny_qwen3, [{"kind": "jsonl", "path": f"{tmp_path}/*.jsonl"}], workers=1)
    whole, broken = context(settings), context(settings, f"{tmp_path}/broken")
    build_corpus(whole)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus(broken, stop)
    finished = broken.out.names("candidates", "/done")
    assert 1 <= len(finished) < 6
    kept = {name: broken.out.read_bytes(name) for name in broken.out.names("candidates", ".parquet")}
    assert kept and "0.jsonl" in broken.out.read_table(min(kept)).column("source")[0].as_py()
    (tmp_path / "0.jsonl").write_text("not read again")
    seen: list[tuple[int, int]] = []
    build_corpus(broken, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6) and len(seen) <= 6 - len(finished)
    for name in ("passages", "pairs", "rejects"):
        assert broken.out.read_table(name).equals(whole.out.read_table(name)), name
    assert broken.out.read_table("passages").num_rows == 54
    assert broken.out.read_table("pairs").num_rows == 0
    assert read_retrieval_set(broken.out / "heldout").corpus == {}


def test_users_mistakes_are_one_sentence_and_exit_code_2(
    tmp_path: Path, tiny_qwen3: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.jsonl").write_text('{"text": "A text."}\n')
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\nnot json\n')
    (tmp_path / "text.parquet").write_text("no Parquet")
    cases = [
        ("jsonl", "empty.jsonl", {}, "1 files give no passage (2 rows, 1 empty_field"),
        ("parquet", "text.parquet", {}, "text.parquet cannot be read"),
        ("jsonl", "nowhere.jsonl", {}, "nowhere.jsonl does not exist"),
        ("jsonl", "good.jsonl", {"language": "klingon"}, "unknown language 'klingon'"),
        ("jsonl", "good.jsonl", {"tokenizer": f"{tmp_path}/no-model"}, "no-model': no such directory"),
    ]
    for number, (kind, name, more, sentence) in enumerate(cases):
        source = {"kind": kind, "path": f"{tmp_path}/{name}", "language": more.pop("language", "en")}
        ctx = context(overrides(tmp_path, tiny_qwen3, [source], **more), f"{tmp_path}/run{number}")
        capfd.readouterr()
        assert guarded(lambda ctx=ctx: build_corpus(ctx), debug=False) == UserError.exit_code
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and sentence in errors[0]
