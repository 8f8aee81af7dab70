"""BEIR folders as people write them: what is right is read in every form, what is wrong is said, never guessed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3emb.config.labelled import LabelledDatasetConfig
from qwen3emb.core.errors import NotThere, UserError
from qwen3emb.core.rejects import Reject
from qwen3emb.core.storage import Storage
from qwen3emb.labelled.rows import LabelledRow, read_labelled
from qwen3emb.text.retrieval_set import RetrievalSet, read_beir

CORPUS: list[dict[str, Any]] = [{"_id": "d1", "title": "", "text": "A bread knife."}]
CORPUS += [{"_id": "d2", "title": "Spoon", "text": "For soup."}]
QUERIES: list[dict[str, Any]] = [
    {"_id": "q1", "text": "knife for bread"},
    {"_id": "q2", "text": "what to eat soup with"},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\nq2\td1\t0\n"
WANTED = RetrievalSet(
    {"q1": "knife for bread", "q2": "what to eat soup with"},
    {"d1": ("", "A bread knife."), "d2": ("Spoon", "For soup.")},
    {"q1": {"d1": 1}, "q2": {"d2": 1, "d1": 0}},
)
MARK = "\ufeff"


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def folder(
    path: Path, corpus: str | bytes = lines(CORPUS), queries: str | bytes = lines(QUERIES), qrels: str | bytes = QRELS
) -> Path:
    (path / "qrels").mkdir(parents=True, exist_ok=True)
    for name, content in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels/test.tsv", qrels)):
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def evaluated(path: Path) -> RetrievalSet:
    return read_beir(Storage(str(path)), "test")


def trained(path: Path, **settings: Any) -> tuple[list[LabelledRow], list[Reject]]:
    cfg = LabelledDatasetConfig.model_validate({"path": str(path), "format": "beir", "split": "test", **settings})
    found = list(read_labelled("s", cfg, 0))
    return [r for r in found if isinstance(r, LabelledRow)], [r for r in found if isinstance(r, Reject)]


def numbers(path: Path) -> Path:
    """Ids that are numbers here and digits there."""
    corpus = [{"_id": i, "text": text} for i, text in ((1, "A bread knife."), ("2", "For soup."))]
    return folder(
        path, lines(corpus), lines([{"_id": "7", "text": "q"}]), "query-id\tcorpus-id\tscore\n7\t1\t1\n7\t2\t0\n"
    )


def parquet(path: Path) -> Path:
    (path / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", CORPUS), ("queries", QUERIES)):
        pq.write_table(pa.Table.from_pylist(rows), path / f"{name}.parquet")
    judged = [
        {"query-id": q, "corpus-id": d, "score": float(s)}
        for q, found in WANTED.qrels.items()
        for d, s in found.items()
    ]
    pq.write_table(pa.Table.from_pylist(judged), path / "qrels" / "test.parquet")
    return path


def packed(path: Path) -> Path:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        place = folder(path) / name
        (path / f"{name}.gz").write_bytes(gzip.compress(place.read_bytes()))
        place.unlink()
    return path


FORMS: dict[str, Callable[[Path], Path]] = {
    "plain": folder,
    "byte order marks": lambda path: folder(path, MARK + lines(CORPUS), MARK + lines(QUERIES), MARK + QRELS),
    "blank lines": lambda path: folder(path, lines(CORPUS) + "\n \n", "\n" + lines(QUERIES), QRELS + "\n\n"),
    "CRLF": lambda path: folder(path, *(c.replace("\n", "\r\n") for c in (lines(CORPUS), lines(QUERIES), QRELS))),
    "scores 1.0": lambda path: folder(path, qrels=QRELS.replace("\t1\n", "\t1.0\n")),
    "no header": lambda path: folder(path, qrels=QRELS.split("\n", 1)[1]),
    "TREC": lambda path: folder(path, qrels="q1\t0\td1\t1\nq2\t0\td2\t1\nq2\t0\td1\t0\n"),
    "columns in another order": lambda path: folder(
        path, qrels="score\tcorpus-id\tquery-id\n1\td1\tq1\n1\td2\tq2\n0\td1\tq2\n"
    ),
    "judged again": lambda path: folder(path, lines(CORPUS * 2), lines(QUERIES * 2), QRELS + "q1\td1\t1\n"),
    "id": lambda path: folder(path, lines(CORPUS).replace("_id", "id"), lines(QUERIES).replace("_id", "id")),
    "null title": lambda path: folder(path, lines([CORPUS[0] | {"title": None}, CORPUS[1]])),
    "NaN title": lambda path: folder(path, lines([CORPUS[0] | {"title": float("nan")}, CORPUS[1]])),
    "blank line first": lambda path: folder(path, qrels=" \n\n" + QRELS.replace("corpus-id", " corpus-id ")),
    "parquet": parquet,
    "gzip": packed,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_set(tmp_path: Path, form: str) -> None:
    path = FORMS[form](tmp_path / "set")
    assert evaluated(path) == WANTED
    rows, rejects = trained(path)
    wanted = [LabelledRow("s/q1/d1", "knife for bread", "A bread knife.")]
    wanted.append(LabelledRow("s/q2/d2", "what to eat soup with", "Spoon For soup.", ("A bread knife.",)))
    assert (rows, rejects) == (wanted, [])


def test_ids_that_are_numbers_are_their_digits(tmp_path: Path) -> None:
    path = numbers(tmp_path)
    assert evaluated(path).qrels == {"7": {"1": 1, "2": 0}}
    assert list(evaluated(path).corpus) == ["1", "2"]
    assert [row.negatives for row in trained(path)[0]] == [("For soup.",)]


def test_ids_of_pandas_with_an_empty_cell_are_their_digits(tmp_path: Path) -> None:
    path = numbers(tmp_path)
    (path / "corpus.jsonl").write_text(lines([{"_id": 1.0, "text": "A bread knife."}, {"_id": 2.0, "text": "b"}]))
    assert list(evaluated(path).corpus) == ["1", "2"]


@pytest.mark.parametrize("name", ["qrels/test.tsv", "corpus.jsonl", "queries.jsonl"])
def test_a_folder_in_the_place_of_a_table_is_told_and_never_hides_one(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path)
    (path / name).rename(path / "kept")
    (path / name).mkdir()
    for reader in (evaluated, trained):
        with pytest.raises(UserError, match=rf"{name} is a folder"):
            reader(path)
    (path / f"{name}.gz").write_bytes(gzip.compress((path / "kept").read_bytes()))
    assert evaluated(path) == WANTED


def test_a_query_with_a_bad_language_is_refused_and_not_used(tmp_path: Path) -> None:
    path = folder(tmp_path, queries=lines([QUERIES[0] | {"language": 5}, QUERIES[1] | {"language": float("nan")}]))
    rows, rejects = trained(path)
    assert [r.id for r in rows] == ["s/q2/d2"]
    assert [r.code for r in rejects] == ["not_a_string", "missing_query"]


def corpus_with(row: dict[str, Any]) -> bytes:
    return lines([CORPUS[1], row]).encode()


BAD: dict[str, tuple[dict[str, bytes], str, str]] = {
    "null text": ({"corpus": corpus_with({"_id": "d1", "text": None})}, "missing_field", r"corpus\.jsonl, line 2"),
    "no text": ({"corpus": corpus_with({"_id": "d1", "title": "T"})}, "missing_field", r"corpus\.jsonl, line 2"),
    "list": ({"corpus": corpus_with({"_id": "d1", "text": ["a"]})}, "not_a_string", r"corpus\.jsonl, line 2"),
    "number": ({"corpus": corpus_with({"_id": "d1", "text": 5})}, "not_a_string", r"corpus\.jsonl, line 2"),
    "no id": ({"corpus": corpus_with({"text": "a"})}, "missing_field", r"corpus\.jsonl, line 2"),
    "surrogate": (
        {"corpus": corpus_with({"_id": "d1", "text": "a \ud83d"})},
        "lone_surrogate",
        r"corpus\.jsonl, line 2",
    ),
    "in the title": (
        {"corpus": corpus_with({"_id": "d1", "title": "\udcff", "text": "a"})},
        "lone_surrogate",
        r"corpus\.jsonl, line 2",
    ),
    "latin-1": (
        {"corpus": lines(CORPUS[1:]).encode() + b'{"_id": "d1", "text": "caf\xe9"}\n'},
        "invalid_utf8",
        r"corpus\.jsonl, line 2",
    ),
    "broken": ({"corpus": lines(CORPUS[1:]).encode() + b'{"_id": "d1"'}, "invalid_json", r"corpus\.jsonl, line 2"),
    "id twice": (
        {"corpus": lines(CORPUS).encode() + corpus_with({"_id": "d1", "text": "Another."})},
        "duplicate_id",
        r"corpus\.jsonl, line 4",
    ),
    "null query": ({"queries": lines([QUERIES[1], {"_id": "q1", "text": None}]).encode()}, "missing_field", "queries"),
    "blank query": ({"queries": lines([QUERIES[1], {"_id": "q1", "text": " "}]).encode()}, "empty_field", "queries"),
    "half a grade": ({"qrels": QRELS.replace("d1\t1", "d1\t0.5").encode()}, "bad_grade", r"test\.tsv, line 2"),
    "no grade": ({"qrels": QRELS.replace("d1\t1", "d1\t").encode()}, "bad_grade", r"test\.tsv, line 2"),
    "too few columns": ({"qrels": QRELS.encode() + b"q1\td2\n"}, "invalid_csv", r"test\.tsv, line 5"),
    "a huge grade": ({"qrels": QRELS.replace("d1\t1", "d1\t2147483648").encode()}, "bad_grade", r"test\.tsv, line 2"),
    "an endless grade": ({"qrels": QRELS.replace("d1\t1", f"d1\t1{'0' * 400}").encode()}, "bad_grade", r"tsv, line 2"),
    "NUL in an id": ({"qrels": QRELS.replace("q1\td1", "q1\td1\0a").encode()}, "control_character", r"tsv, line 2"),
    "NUL in a document": ({"corpus": corpus_with({"_id": "d1\0", "text": "a"})}, "control_character", r"corpus.*2"),
    "two grades": ({"qrels": QRELS.encode() + b"\nq1\td1\t0\n"}, "conflicting_grade", r"test\.tsv, line 6"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_an_error_where_scores_depend_on_it_and_a_reject_where_it_is_trained_on(
    tmp_path: Path, case: str
) -> None:
    files, code, where = BAD[case]
    path = folder(tmp_path, **files)
    with pytest.raises(UserError, match=rf"{where}.*{code}") as caught:
        evaluated(path)
    assert "\n" not in str(caught.value)
    rows, rejects = trained(path)
    assert code in [reject.code for reject in rejects]
    said = next(reject for reject in rejects if reject.code == code)
    assert Path(said.source).is_file() and said.row > 0 and said.reason.encode() and said.payload.encode()
    assert "s/q2/d2" in [row.id for row in rows], "the others go on"
    assert not any(word in f"{row.query} {row.positive}" for row in rows for word in ("None", "['a']", "Another"))


def test_empty_documents_and_odd_characters_stay_as_mteb_has_them(tmp_path: Path) -> None:
    corpus = [
        {"_id": "d1", "text": ""},
        {"_id": "d2", "title": "Spoon", "text": ""},
        {"_id": "d3", "text": " a\x00\x85 "},
    ]
    path = folder(tmp_path, lines(corpus))
    data = evaluated(path)
    assert data.corpus == {"d1": ("", ""), "d2": ("Spoon", ""), "d3": ("", " a\x00\x85 ")}
    assert data.notes == ("1 documents are empty",)
    rows, rejects = trained(path)
    assert [(row.id, row.positive) for row in rows] == [("s/q2/d2", "Spoon")]
    assert sorted(r.code for r in rejects) == ["control_character", "empty_field"]


def test_judgments_of_what_is_in_no_file_are_counted(tmp_path: Path) -> None:
    path = folder(tmp_path, qrels=QRELS + "q1\td9\t1\nq1\td8\t0\n")
    assert evaluated(path).notes == ("2 judgments are of documents that the corpus lacks (first 'd9')",)
    assert [(r.id, r.code) for r in trained(path)[1]] == [("s/q1/d9", "missing_document")]
    path = folder(tmp_path, qrels=QRELS + "q8\td1\t1\nq9\td1\t1\n")
    with pytest.raises(UserError, match=r"2 of 4 queries.*'q8'"):
        evaluated(path)
    rows, rejects = trained(path)
    assert len(rows) == 2 and [r.code for r in rejects] == ["missing_query"] * 2


def test_what_is_not_there_and_other_columns_are_one_sentence(tmp_path: Path) -> None:
    path = folder(tmp_path)
    with pytest.raises(NotThere, match=r"qrels/train\.tsv: no such file; there are judgments of test"):
        read_beir(Storage(str(path)), "train")
    folder(path, qrels="q\td\nq1\td1\n")
    with pytest.raises(UserError, match=r"test\.tsv, line 1: expected the columns query-id, corpus-id, score.*q, d"):
        evaluated(path)
    folder(path).joinpath("corpus.jsonl").unlink()
    with pytest.raises(NotThere, match=r"corpus\.jsonl"):
        evaluated(path)


def test_min_grade_says_what_is_a_positive(tmp_path: Path) -> None:
    path = folder(tmp_path, qrels="query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td2\t1\nq2\td1\t0\n")
    assert [row.id for row in trained(path, min_grade=2)[0]] == ["s/q1/d1"]
