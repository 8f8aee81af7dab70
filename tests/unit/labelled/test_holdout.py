"""Held-out queries of a labelled set: who is drawn, what is searched, and that nothing like them is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from qwen3emb.config.labelled import LabelledConfig, LabelledDatasetConfig
from qwen3emb.core.draws import unit_draw
from qwen3emb.core.records import REJECT, TRAINING_ROW
from qwen3emb.core.storage import Storage
from qwen3emb.labelled.across import drop_like_held_out, held_out_queries
from qwen3emb.labelled.beir import beir_documents
from qwen3emb.labelled.checks import evaluation_of
from qwen3emb.labelled.holdout import drawn_queries, drawn_set, without_drawn
from qwen3emb.labelled.row import LabelledRow
from qwen3emb.text.identity import content_hash
from qwen3emb.text.retrieval_set import RetrievalSet, read_retrieval_set, write_retrieval_set


def rows_of(count: int) -> list[LabelledRow]:
    """Two rows for each query, one of them with other white space; the second positive is the next query's first."""
    return [
        LabelledRow(f"s/{n}#{k}", f"query {' ' * k}{n}", f"answer {n + k}", (f"wrong {n}", "wrong for all"))
        for n in range(count)
        for k in range(2)
    ]


def config(**settings: object) -> LabelledDatasetConfig:
    return LabelledDatasetConfig.model_validate({"path": "x.jsonl", **settings})


@pytest.mark.parametrize(("heldout", "dev", "most"), [(0.2, 0.1, 1000), (0.0, 0.3, 1000), (0.3, 0.3, 7), (0, 0, 5)])
def test_whole_queries_are_drawn_by_their_hash_and_the_rest_stays(heldout: float, dev: float, most: int) -> None:
    rows = rows_of(300)
    shares = {"heldout_share": heldout, "dev_share": dev, "max_heldout_queries": most, "max_dev_queries": most}
    drawn = drawn_queries(rows, config(**shares), seed=5)
    for split, low, high in (("heldout", 0.0, heldout), ("dev", heldout, heldout + dev)):
        within = {
            content_hash(row.query) for row in rows if low <= unit_draw(5, "labelled", content_hash(row.query)) < high
        }
        assert drawn[split] <= within and len(drawn[split]) == min(most, len(within))  # type: ignore[index]
        if most > 300:
            assert abs(len(within) - 300 * (high - low)) < 25
    assert not drawn["heldout"] & drawn["dev"]
    left, counts = without_drawn(rows, drawn)
    away = drawn["heldout"] | drawn["dev"]
    assert left == [row for row in rows if content_hash(row.query) not in away]
    assert counts == {f"{split}_query": 2 * len(names) for split, names in drawn.items() if names}
    shuffled = drawn_queries([*rows[::-1], *rows_of(2)], config(**shares), seed=5)
    assert shuffled == drawn, "neither the order nor repeated rows matter"
    assert not heldout or drawn_queries(rows, config(**shares), seed=6) != drawn


def test_a_share_of_the_draws_is_the_same_query_in_every_set() -> None:
    here, there = (drawn_queries(rows_of(n), config(heldout_share=0.3), 1)["heldout"] for n in (50, 100))
    assert here == there & {content_hash(row.query) for row in rows_of(50)}


def test_the_set_searches_all_documents_and_judges_all_positives() -> None:
    rows = [
        LabelledRow("s/1#0", "who swims", "a fish swims", ("a stone lies",), others=("a fish swims", "a  whale swims")),
        LabelledRow("s/1#1", "who  swims", "a whale swims", others=("a fish swims", "a whale swims")),
        LabelledRow("s/2", "who flies", "a bird flies", ("a fish swims", "a dog runs")),
    ]
    found = drawn_set(rows, {content_hash("who swims")}, ["a bird flies", "a dog runs", "a fish swims"], ["en"])
    [(query, text)] = found.queries.items()
    assert text == "who swims" and found.languages == {query: "en"} and query not in found.corpus
    assert sorted(found.texts()) == ["a  whale swims", "a bird flies", "a dog runs", "a fish swims"]
    assert {found.corpus[document][1]: grade for document, grade in found.qrels[query].items()} == {
        "a fish swims": 1,
        "a  whale swims": 1,
    }
    assert drawn_set(rows, {content_hash("who swims")}, [], ["en", "de"]).languages == {}


def record(dataset: str, number: int, query: str, positive: str) -> dict[str, object]:
    texts = {"query": query, "positive": positive, "negatives": ["n"], "dataset": dataset}
    return {"id": f"{dataset}/{number}", **texts, "positive_score": None, "negative_scores": [], "grade": None}


ASKED = "how do bees find their way home over many kilometres of open fields"


def test_rows_of_any_set_that_are_like_a_held_out_query_of_another_leave_the_files(tmp_path: Path) -> None:
    out = Storage(str(tmp_path))
    write_retrieval_set(out / "dev/bees", RetrievalSet({"q": ASKED}, {"d": ("", "by the sun")}, {"q": {"d": 1}}))
    rows = [
        record("other", 1, f"{ASKED}?", "by smell"),
        record("other", 2, "who swims", "a fish swims"),
        record("other", 3, "what is asked of bees", f"one asked {ASKED} and got no answer"),
        record("other", 4, "who finds the way by the sun", "by the sun"),
    ]
    out.write_parts("rows/other", pa.Table.from_pylist(rows, schema=TRAINING_ROW), 2)
    out.write_parts("rejects/other", pa.Table.from_pylist([], schema=REJECT), 2)
    queries = held_out_queries(out, ["bees", "other"])
    assert list(queries.values()) == [ASKED]
    dropped, means = drop_like_held_out(out.uri, "other", evaluation_of(queries, LabelledConfig()))
    assert dropped == 2 and means == {"query_words": 4.5, "positive_words": 3.0, "negatives": 1.0}
    assert out.read_table("rows/other").to_pylist() == [rows[1], rows[3]], (
        "documents of held-out queries may be trained on"
    )
    assert out.read_table("rows/other").schema == TRAINING_ROW
    rejects = out.read_table("rejects/other").to_pylist()
    assert [(r["id"], r["reason"].startswith("heldout_overlap: dev query of bees q")) for r in rejects] == [
        ("other/1", True),
        ("other/3", True),
    ]
    assert drop_like_held_out(out.uri, "other", evaluation_of(queries, LabelledConfig()))[0] == 0


def test_all_documents_of_a_beir_folder_are_searched(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    documents = [{"_id": 1, "title": "T", "text": "One."}, {"_id": "2", "text": ""}, {"_id": "3", "text": "Three."}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "who"}\n')
    (tmp_path / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq\t3\t1\n")
    assert beir_documents(config(path=str(tmp_path), format="beir")) == ["T One.", "Three."]


def test_shares_that_cannot_be_drawn_are_refused() -> None:
    for task in ("bitext", "classification", "sts"):
        with pytest.raises(ValidationError, match="go with task retrieval"):
            config(task=task, heldout_share=0.1)
    with pytest.raises(ValidationError, match="must be below 1"):
        config(dev_share=0.5, heldout_share=0.5)


def test_sets_that_are_no_folder_of_this_run_are_not_taken_for_one(tmp_path: Path) -> None:
    out = Storage(str(tmp_path))
    write_retrieval_set(out / "heldout/a", RetrievalSet({"q": "x"}, {"d": ("", "y")}, {"q": {"d": 1}}))
    assert held_out_queries(out, ["b"]) == {}
    assert read_retrieval_set(out / "heldout/a").queries == {"q": "x"}
