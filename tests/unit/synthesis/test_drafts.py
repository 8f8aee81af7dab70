"""Queries for held-out documents: which draft is taken, and why a passage has none."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qwen3emb.config.data import SynthesizeConfig, WrittenQueriesConfig
from qwen3emb.core.records import PAIR, PASSAGE
from qwen3emb.core.storage import Storage
from qwen3emb.synthesis.drafts import (
    Draft,
    chosen_drafts,
    draft_config,
    draft_folder,
    outranked,
    read_drafts,
    repeated_drafts,
    word_share,
    write_set,
)
from qwen3emb.text.passages import PASSAGES
from qwen3emb.text.retrieval_set import read_retrieval_set

TEXT = "bread rises because yeast makes gas in the dough"


def draft(name: str, query: str, document: str = TEXT) -> Draft:
    return Draft(name, name.partition("#")[0], query, document, "en")


def test_of_the_drafts_that_find_their_passage_the_one_with_the_fewest_of_its_words_is_taken() -> None:
    drafts = [
        draft("a#0", "bread rises because yeast"),
        draft("a#1", "why do loaves grow"),  # none of its words, but it finds nothing
        draft("a#2", "why does bread grow"),
        draft("b#0", "hopeless"),
        draft("b#1", "hopeless too"),
        draft("c#0", "asked before"),
    ]
    ranks = {"a#0": 1, "a#1": 9, "a#2": 3, "b#0": 30, "b#1": 6}
    repeated = {"c#0": "duplicate_query: of training query 0"}
    queries, skipped = chosen_drafts(drafts, ["d", "c", "b", "a"], repeated, ranks, 5, 10, 0)
    assert [d.id for d in queries] == ["a#2"]
    assert {name: reason.partition(":")[0] for name, reason in skipped.items()} == {
        **{"b": "not_found", "c": "duplicate_query", "d": "no_draft"}
    }
    assert "rank 6" in skipped["b"] and "hopeless too" in skipped["b"]


def test_more_queries_than_wanted_are_drawn_and_a_larger_number_keeps_the_smaller_ones() -> None:
    drafts = [draft(f"p{n}#0", f"query {n}") for n in range(30)]
    asked, ranks = [d.passage for d in drafts], {d.id: 1 for d in drafts}
    drawn = [chosen_drafts(drafts, asked, {}, ranks, 1, wanted, 0)[0] for wanted in (5, 12, 99)]
    assert [len(queries) for queries in drawn] == [5, 12, 30]
    assert set(drawn[0]) < set(drawn[1]) < set(drawn[2])
    assert drawn[1] == sorted(drawn[1], key=lambda d: asked.index(d.passage))


def test_drafts_that_repeat_training_queries_or_each_other_go() -> None:
    long = "how does the yeast in a dough make the bread rise so much over one night"
    drafts = [
        draft("a#0", long.replace("one night", "one evening")),
        draft("b#0", "Why Is Rye  sticky"),
        draft("c#0", "what is malt"),
        draft("d#0", "What is malt"),
    ]
    training = [long, "why is rye sticky"]
    found = repeated_drafts(drafts, training, 0.7)
    assert {name: reason.partition(":")[0] for name, reason in found.items()} == {
        **{"a#0": "near_duplicate_query", "b#0": "duplicate_query", "d#0": "duplicate_query"}
    }
    assert found["d#0"].endswith("of c#0") and "training query 0" in found["a#0"]
    assert set(repeated_drafts(drafts, training, None)) == {"b#0", "d#0"}


@pytest.mark.parametrize(
    ("query", "share"),
    [("Bread and wine", 1 / 3), ("yeast yeast gas", 1.0), ("", 0.0), ("never seen", 0.0)],
)
def test_the_share_of_a_querys_words_that_stand_in_the_passage(query: str, share: float) -> None:
    assert word_share(query, TEXT) == pytest.approx(share)
    assert word_share("面包", "面包为什么会发") == 1.0


def test_ranks_over_parts_of_the_corpus_are_those_of_one_search() -> None:
    random_numbers = np.random.default_rng(0)
    vectors = random_numbers.normal(size=(50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"p{n}" for n in range(50)]
    owners = random.Random(0).choices(range(50), k=12)
    queries = vectors[owners] + 0.5 * random_numbers.normal(size=(12, 8)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    own = (queries * vectors[owners]).sum(axis=1)
    passages = [names[owner] for owner in owners]
    parts = [(0, 20), (20, 21), (21, 50)]
    found = 1 + sum(outranked(vectors[a:b], names[a:b], queries, own, passages) for a, b in parts)
    scores = queries @ vectors.T
    want = [sorted(range(50), key=lambda n: -scores[i, n]).index(owner) + 1 for i, owner in enumerate(owners)]
    assert found.tolist() == want and max(want) > 1


def test_drafts_are_retrieval_queries_under_the_stricter_gate() -> None:
    cfg = SynthesizeConfig(personas="p", tasks={"sts": 1.0}, queries_per_passage=2)
    written = WrittenQueriesConfig(drafts=3, copied_share=0.4)
    drafts = draft_config(cfg, written)
    assert (drafts.tasks, drafts.queries_per_passage, drafts.gates.copied_share) == ({"retrieval": 1.0}, 3, 0.4)
    unlimited = cfg.model_copy(update={"gates": cfg.gates.model_copy(update={"copied_share": None})})
    assert draft_config(unlimited, written).gates.copied_share == 0.4
    strict = cfg.model_copy(update={"gates": cfg.gates.model_copy(update={"copied_share": 0.1})})
    assert draft_config(strict, written).gates.copied_share == 0.1


def test_a_set_searches_all_passages_without_a_copy_or_a_few_of_them(tmp_path: Path) -> None:
    out, passages = Storage(f"{tmp_path}/out"), Storage(f"{tmp_path}/corpus") / PASSAGES
    described = {"title": "", "language": "en", "source": "s", "split": "heldout"}
    rows = [{"id": f"p{n}", "text": f"text {n}", **described} for n in range(20)]
    passages.write_table("a.parquet", pa.Table.from_pylist(rows, schema=PASSAGE))
    queries = [Draft("p3#1", "p3", "third?", "text 3", "de"), Draft("p4#0", "p4", "fourth?", "text 4", "en")]
    write_set(out, "heldout", queries, {"p5": "not_found: at best rank 9"}, passages, None, 0)
    write_set(out, "dev", queries, {}, passages, 6, 0)
    write_set(out, "empty", [], {"p1": "no_draft: none"}, passages, None, 0)
    assert not out.exists("heldout/corpus.parquet") and not out.exists("empty/queries.parquet")
    whole, few = (read_retrieval_set(out / split, passages) for split in ("heldout", "dev"))
    assert whole.queries == few.queries == {"query:p3": "third?", "query:p4": "fourth?"}
    assert whole.qrels == {"query:p3": {"p3": 1}, "query:p4": {"p4": 1}}
    assert whole.languages == {"query:p3": "de", "query:p4": "en"}
    assert whole.corpus == {f"p{n}": ("", f"text {n}") for n in range(20)}
    assert len(few.corpus) == 6 and {"p3", "p4"} < few.corpus.keys() and few.corpus.items() < whole.corpus.items()
    assert [row["id"] for row in out.read_table("heldout/skipped.parquet").to_pylist()] == ["p5"]
    assert out.read_table("empty/skipped.parquet")["reason"].to_pylist() == ["no_draft: none"]


def test_drafts_are_read_from_the_files_of_their_pairs(tmp_path: Path) -> None:
    pair = dict.fromkeys(PAIR.names) | {"id": "p#2", "document_id": "p", "query": "q", "document": "d"}
    table = pa.Table.from_pylist([pair | {"language": "fr"}], schema=PAIR)
    (Storage(str(tmp_path)) / draft_folder("dev")).write_table("pairs/a.parquet", table)
    assert read_drafts(Storage(str(tmp_path)), "dev") == [Draft("p#2", "p", "q", "d", "fr")]
    assert read_drafts(Storage(str(tmp_path)), "heldout") == []
