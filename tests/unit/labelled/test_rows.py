"""Labelled sets in other projects' formats: what they say comes through, and what cannot be used is said."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3emb.config.catalogue import chosen_datasets, read_catalogue
from qwen3emb.config.labelled import LabelledConfig, LabelledDatasetConfig
from qwen3emb.core.errors import NotThere, UserError
from qwen3emb.labelled.formats import detect
from qwen3emb.labelled.rows import LabelledRow, read_labelled
from qwen3emb.text.files import reached
from tests.unit.labelled.labelled_datasets import read, written

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


FORMS: dict[str, tuple[dict[str, Any], LabelledRow]] = {
    "triplet": (
        {"anchor": "q", "positive": "p", "negative": "n"},
        LabelledRow("s/1", "q", "p", ("n",)),
    ),
    "numbered negatives": (
        {"query": "q", "positive": "p", "negative_1": "a", "negative_2": "b", "neg-3": "c"},
        LabelledRow("s/1", "q", "p", ("a", "b", "c")),
    ),
    "pair": ({"question": "q", "answer": "p"}, LabelledRow("s/1", "q", "p")),
    "sts": ({"sentence1": "q", "sentence2": "p", "score": "3.5"}, LabelledRow("s/1", "q", "p", (), 3.5)),
    "flagembedding": (
        {"query": "q", "pos": ["p"], "neg": ["n", "p", "n"], "prompt": "Do it"},
        LabelledRow("s/1", "q", "p", ("n",)),
    ),
    "tevatron": (
        {
            "query_id": "7",
            "query": "q",
            "positive_passages": [{"docid": "1", "title": "T", "text": "p"}],
            "negative_passages": [{"docid": "2", "text": "n"}],
        },
        LabelledRow("s/1", "q", "T p", ("n",)),
    ),
    "swift": (
        {
            "messages": [{"role": "system", "content": "find"}, {"role": "user", "content": "q"}],
            "positive_messages": [[{"role": "user", "content": "p"}]],
            "negative_messages": [[{"role": "user", "content": "n"}]],
        },
        LabelledRow("s/1", "q", "p", ("n",)),
    ),
    "swift 3.5": (
        {"query": "q", "response": "p", "rejected_response": ["n"]},
        LabelledRow("s/1", "q", "p", ("n",)),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_format_says_the_same_thing(tmp_path: Path, form: str) -> None:
    record, wanted = FORMS[form]
    rows, rejects = read(written(tmp_path, [record]))
    assert (rows, rejects) == ([wanted], [])


def test_rejects_name_row_and_field_and_the_others_go_on(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        [
            {"anchor": "q1", "positive": "p1"},
            {"anchor": "", "positive": "p2"},
            {"anchor": "q3"},
            {"anchor": "q4", "positive": ["p4", None, ""]},
            {"anchor": 5, "positive": "p5"},
            {"anchor": "bell\x07", "positive": "p6"},
            ["a", "b"],
            {"anchor": "q8", "positive": []},
        ],
    )
    with path.open("ab") as file:
        file.write(b'{"anchor": "\xff"}\n{broken\n')
    rows, rejects = read(path)
    assert [(r.query, r.positive) for r in rows] == [("q1", "p1"), ("q4", "p4")]
    assert [(r.row, r.code) for r in rejects] == [
        (2, "empty_field"),
        (3, "missing_field"),
        (5, "not_a_string"),
        (6, "control_character"),
        (7, "invalid_json"),
        (8, "no_positive"),
        (9, "invalid_utf8"),
        (10, "invalid_json"),
    ]
    assert all(r.source == str(path) and r.id == f"s/{r.row}" for r in rejects)


BLANKS: dict[str, tuple[dict[str, Any], LabelledRow]] = {
    "columns": (
        {"anchor": "q", "positive": ["\u3000", "p", None], "negative": ["n", " \n", None, ""], "negative_2": "  "},
        LabelledRow("s/1", "q", "p", ("n",)),
    ),
    "flagembedding": (
        {"query": "q", "pos": ["p", "\t"], "neg": [" ", None, "n"]},
        LabelledRow("s/1", "q", "p", ("n",)),
    ),
    "tevatron": (
        {
            "query": "q",
            "positive_passages": [{"title": "T", "text": " "}, None, {"title": None, "text": "p"}],
            "negative_passages": [{"text": None}, {"docid": "2"}, {"text": "n"}, {}],
        },
        LabelledRow("s/1", "q", "p", ("n",)),
    ),
    "swift": (
        {
            "messages": [None, {"role": "user", "content": " "}, {"role": "user", "content": "q"}],
            "positive_messages": [[{"role": "user", "content": ""}], None, [{"role": "user", "content": "p"}]],
            "negative_messages": [[], [{"role": "user", "content": None}], [None, {"role": "user", "content": "n"}]],
        },
        LabelledRow("s/1", "q", "p", ("n",)),
    ),
    "swift 3.5": (
        {"query": "q", "response": ["p", " "], "rejected_response": ["", None, "\r\n", "n"]},
        LabelledRow("s/1", "q", "p", ("n",)),
    ),
    "answers of SQuAD": (
        {"question": "q", "answers": {"text": ["", None, "p"]}},
        LabelledRow("s/1", "q", "p"),
    ),
}


@pytest.mark.parametrize("form", BLANKS)
def test_a_blank_or_null_entry_of_a_list_loses_only_itself(tmp_path: Path, form: str) -> None:
    record, wanted = BLANKS[form]
    assert read(written(tmp_path, [record])) == ([wanted], [])


def test_a_record_whose_positives_are_all_blank_is_a_reject(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"query": "q", "pos": [" ", None], "neg": ["n"]},
        {"query": "q", "positive_passages": [{"text": ""}], "negative_passages": []},
        {"query": "q", "positive_passages": [], "negative_passages": []},
        {"query": "q", "positive_passages": None},
        {"messages": [{"role": "user", "content": "q"}], "positive_messages": [[{"role": "user", "content": " "}]]},
        {"messages": [{"role": "user", "content": " "}], "positive_messages": [[{"role": "user", "content": "p"}]]},
    ]
    codes = ["no_positive", "no_positive", "no_positive", "missing_field", "no_positive", "empty_field"]
    for record, code in zip(records, codes, strict=True):
        rows, rejects = read(written(tmp_path, [record]))
        assert (rows, [r.code for r in rejects]) == ([], [code]), record


def texts_of(values: list[list[bytes]], kind: str) -> pa.Array:
    """A column of lists of texts that are these bytes, UTF-8 or not."""
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    raw = pa.array([one for value in values for one in value], pa.binary())
    if kind == "binary":
        return pa.ListArray.from_arrays(offsets, raw)
    flat = raw.view(pa.string())
    if kind == "dictionary":
        flat = pa.DictionaryArray.from_arrays(pa.array(range(len(flat)), pa.int32()), flat)
    elif kind == "large":
        return pa.LargeListArray.from_arrays(offsets.astype(np.int64), flat.cast(pa.large_string()))
    elif kind == "struct":
        flat = pa.StructArray.from_arrays([flat], ["text"])
    return pa.ListArray.from_arrays(offsets, flat)


@pytest.mark.parametrize("kind", ["string", "large", "dictionary", "binary", "struct"])
def test_bytes_in_a_list_that_are_not_utf8_are_a_reject_of_their_row(tmp_path: Path, kind: str) -> None:
    values = [[b"p1"], [b"fine", b"caf\xe9"], ["p3 \u00fc".encode()]]
    names = ["query", "positive_passages"] if kind == "struct" else ["query", "pos"]
    table = pa.table([pa.array(["q1", "q2", "q3"]), texts_of(values, kind)], names=names)
    pq.write_table(table, tmp_path / "x.parquet")
    rows, rejects = read(tmp_path / "x.parquet")
    assert [(r.query, r.positive) for r in rows] == [("q1", "p1"), ("q3", "p3 \u00fc")]
    assert [(r.row, r.code) for r in rejects] == [(2, "invalid_utf8")] and "byte 3" in rejects[0].reason


def test_several_positives_are_rows_of_their_own_and_never_negatives(tmp_path: Path) -> None:
    path = written(tmp_path, [{"query": "q", "pos": ["a", "b", "c"], "neg": ["b", "n", "q"]}])
    rows, _ = read(path, max_positives=2)
    assert rows == [LabelledRow("s/1#0", "q", "a", ("n",)), LabelledRow("s/1#1", "q", "b", ("n",))]


def test_a_class_set_asks_for_the_label_among_others(tmp_path: Path) -> None:
    records = [{"text": f"t{i}", "label": label} for i, label in enumerate(["red", "blue", "green", "red"])]
    rows, _ = read(written(tmp_path, records), task="classification", max_negatives=1)
    assert [(r.query, r.positive) for r in rows] == [("t0", "red"), ("t1", "blue"), ("t2", "green"), ("t3", "red")]
    assert all(len(r.negatives) == 1 and r.negatives[0] in {"red", "blue", "green"} - {r.positive} for r in rows)
    assert rows == read(written(tmp_path, records), task="classification", max_negatives=1)[0]
    with pytest.raises(UserError, match="one class"):
        read(written(tmp_path, records[:1]), task="classification")


def test_graded_pairs_need_a_score_or_a_threshold(tmp_path: Path) -> None:
    path = written(tmp_path, [{"sentence1": "a", "sentence2": "b", "score": s} for s in (4.5, 1.0, "high", None)])
    rows, rejects = read(path, task="sts")
    assert [r.grade for r in rows] == [4.5, 1.0]
    assert [r.code for r in rejects] == ["bad_grade", "missing_grade"]
    rows, rejects = read(path, min_grade=4)
    assert [r.grade for r in rows] == [4.5]
    assert [r.code for r in rejects] == ["below_min_grade", "bad_grade", "below_min_grade"]


def test_tables_compressed_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    pq.write_table(pa.table({"title": ["T"], "body": ["p"]}), tmp_path / "parts" / "a.parquet")
    pq.write_table(pa.table({"title": ["U"], "body": ["r"]}), tmp_path / "parts" / "b.parquet")
    rows, _ = read(tmp_path / "parts", kind="parquet", columns={"query": "title", "positive": "body"})
    assert rows == [LabelledRow("s/a/1", "T", "p"), LabelledRow("s/b/1", "U", "r")]
    (tmp_path / "x.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t2\n")
    assert read(tmp_path / "x.tsv")[0] == [LabelledRow("s/1", "a", "b", (), 2.0)]
    with gzip.open(tmp_path / "y.jsonl.gz", "wt") as file:
        file.write('{"anchor": "q", "positive": "p"}\n')
    assert read(tmp_path / "y.jsonl.gz")[0] == [LabelledRow("s/1", "q", "p")]


def test_a_beir_folder_gives_judged_pairs_and_judged_negatives(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    documents = {"d1": "one", "d2": "two", "d3": ""}
    written(tmp_path, [{"_id": i, "title": "T", "text": t} for i, t in documents.items() if t], "corpus.jsonl")
    (tmp_path / "queries.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "q1", "text": "ask"}\n'))
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq1\td3\t1\n")
    rows, rejects = read(tmp_path, format="beir")
    assert rows == [LabelledRow("s/q1/d1", "ask", "T one", ("T two",))]
    assert [r.code for r in rejects] == ["missing_document"]


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no known format.*columns"):
        read(written(tmp_path, [{"foo": "q", "bar": "p"}]))
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(NotThere, match=r"hf://"):
        read("hf://datasets/no-such-organisation-q3e/none/train.parquet")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="what kind of file"):
        read(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read"):
        (tmp_path / "bad.parquet").write_bytes(b"not parquet")
        read(tmp_path / "bad.parquet")


def raised(error: Exception) -> Iterator[LabelledRow]:
    yield LabelledRow("s/1", "q", "p")
    raise error


def unreachable() -> list[Exception]:
    import httpx
    from huggingface_hub import errors

    offline = errors.OfflineModeIsEnabled("offline")
    plain = [FileNotFoundError("gone"), PermissionError("no"), ConnectionResetError("cut"), TimeoutError("slow")]
    return [*plain, OSError("AWS Error"), offline, httpx.ConnectError("no name"), httpx.ReadTimeout("slow")]


@pytest.mark.parametrize("error", unreachable(), ids=lambda error: type(error).__name__)
def test_what_a_remote_file_system_raises_is_not_there(error: Exception) -> None:
    with pytest.raises(NotThere, match=r"s3://b/x cannot be reached \(" + type(error).__name__):
        list(reached(raised(error), "s3://b/x"))
    with pytest.raises(type(error)):
        list(reached(raised(error), "local/x"))


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), ValueError("x"), AssertionError(), IndexError("x")])
def test_a_mistake_of_ours_stays_one(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        list(reached(raised(error), "hf://datasets/o/n/x.parquet"))
    assert caught.value is error


def test_a_mistake_of_ours_on_a_remote_file_is_not_skipped(tmp_path: Path) -> None:
    path = written(tmp_path, [{"anchor": "q", "positive": "p"}])
    cfg = LabelledDatasetConfig(path=f"file://{path}")
    assert [row.query for row in read_labelled("s", cfg, 0) if isinstance(row, LabelledRow)] == ["q"]
    broken = cfg.model_copy(update={"max_positives": "4"})  # as a bug of ours would have it
    with pytest.raises(TypeError):
        list(read_labelled("s", broken, 0))
    with pytest.raises(NotThere):
        list(read_labelled("s", LabelledDatasetConfig(path=f"file://{path}.gone.jsonl"), 0))
    with pytest.raises(UserError, match=r"hf://bad") as caught:
        list(read_labelled("s", LabelledDatasetConfig(path="hf://bad", kind="jsonl"), 0))
    assert not isinstance(caught.value, NotThere)


def test_the_catalogue_names_the_papers_sets(tmp_path: Path) -> None:
    sets = read_catalogue("examples/datasets.yaml")
    wanted = "msmarco nq hotpotqa nli dureader t2ranking simclue miracl mldr mrtydi codesearchnet squad"
    assert set(wanted.split()) <= sets.keys()
    assert any(name.startswith("multi_cpr") for name in sets)
    assert all(s.instruction and s.licence and s.homepage and s.languages for s in sets.values())
    cfg = LabelledConfig(catalogue="examples/datasets.yaml", use=["nq"])
    assert chosen_datasets(cfg) == {"nq": sets["nq"]}
    for wrong, said in ((["hotpot"], "nearest is 'hotpotqa'"), (["synthetic"], "no set")):
        with pytest.raises(UserError, match=said):
            chosen_datasets(cfg.model_copy(update={"use": wrong}))
    taken = LabelledConfig(sets={"synthetic": LabelledDatasetConfig(path="x.jsonl")})
    with pytest.raises(UserError, match="another name"):
        chosen_datasets(taken)
    (tmp_path / "c.yaml").write_text("a: {path: x.jsonl, tsak: sts}\n")
    with pytest.raises(UserError, match=r"a\.tsak"):
        read_catalogue(str(tmp_path / "c.yaml"))


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/flagembedding_examples")
def test_all_flagembedding_examples_are_read() -> None:
    files = sorted((DATA / "flagembedding_examples").rglob("*.jsonl*"))
    assert len(files) >= 8
    for file in files:
        rows, rejects = read(file, max_positives=100)
        assert rows and not rejects, (file, rejects[:1])
        assert {r.id.partition("#")[0] for r in rows} == {f"s/{n}" for n in range(1, 11)}, file


@pytest.mark.parametrize("task", ["retrieval", "bitext", "sts"])
def test_classes_are_no_documents_of_another_task(tmp_path: Path, task: str) -> None:
    path = written(tmp_path, [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    for columns in ({}, {"label": "label"}, {"grade": "label"}):
        with pytest.raises(UserError, match=r"looks like classification.*task: classification"):
            read(path, task=task, columns=columns)


def test_text_and_text_pair_are_a_pair_with_a_label(tmp_path: Path) -> None:
    path = written(tmp_path, [{"text": "a", "text_pair": "b", "label": label} for label in (1, 0)])
    assert [(r.query, r.positive) for r in read(path, min_grade=1)[0]] == [("a", "b")]
    assert [r.grade for r in read(path, task="sts")[0]] == [1.0, 0.0]


@pytest.mark.parametrize("which", ["query", "positive", "negatives", "grade", "label"])
def test_a_configured_column_that_no_record_has_is_told(tmp_path: Path, which: str) -> None:
    record = {"query": "q", "positive": "p", "text": "t", "label": 1}
    settings: dict[str, Any] = {"columns": {which: ["Lbl"] if which == "negatives" else "Lbl"}}
    with pytest.raises(UserError, match=r"no record has the field 'Lbl'.*query, positive, text, label"):
        read(written(tmp_path, [record]), **settings | ({"task": "classification"} if which == "label" else {}))


def test_a_class_has_one_name_however_it_is_written(tmp_path: Path) -> None:
    labels: list[Any] = [1, 1.0, "1", "1.0", True, "true", "True", "TRUE", "01", "1e3", "Ja"]
    path = written(tmp_path, [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)])
    rows, _ = read(path, task="classification")
    assert [r.positive for r in rows] == ["1"] * 4 + ["true"] * 4 + ["01", "1e3", "Ja"]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_blank_lines_and_blanks_in_the_header_do_not_matter(tmp_path: Path, suffix: str) -> None:
    sep = {"csv": ",", "tsv": "\t"}[suffix]
    path = tmp_path / f"x.{suffix}"
    path.write_text(f"\ufeff\n  \n query {sep} positive\n\nq{sep}p\n   \r\nr{sep}s\n \n")
    rows, rejects = read(path)
    assert ([(r.query, r.positive) for r in rows], rejects) == ([("q", "p"), ("r", "s")], [])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz"])
@pytest.mark.parametrize("second", ["query", " query"])
def test_a_column_twice_in_a_header_is_told(tmp_path: Path, suffix: str, second: str) -> None:
    sep = "\t" if suffix == "tsv" else ","
    text = f"query{sep}positive{sep}{second}\na{sep}b{sep}c\n".encode()
    (tmp_path / f"x.{suffix}").write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    with pytest.raises(UserError, match=r"x\..*column 'query' twice"):
        read(tmp_path / f"x.{suffix}")


def test_detection_prefers_the_more_special_format() -> None:
    assert detect({"query": "", "positive_passages": [], "pos": []}) == "tevatron"
    assert detect({"query": "", "response": "", "label": 1}) == "swift"
    assert detect({"query": "", "response": "", "score": 1}) == "columns"
    assert detect({"query": "", "pos": [], "neg": []}) == "flagembedding"
    assert detect({"text": "", "label": 1}) == "classification"
    assert detect({"text": ""}) is None
