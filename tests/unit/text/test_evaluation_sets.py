"""Which dev and held-out sets a run has: from its folders, and before anything is computed from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from qwen3emb.config.run import RunConfig
from qwen3emb.core.records import PASSAGE
from qwen3emb.core.storage import Storage
from qwen3emb.text.evaluation_sets import (
    NO_SETS,
    asked_passages,
    evaluation_sets,
    evaluation_texts,
    first_set,
    planned_sets,
)
from qwen3emb.text.passages import PASSAGES
from qwen3emb.text.retrieval_set import RetrievalSet, write_retrieval_set

PYTHON = {"kind": "python", "path": "stdlib"}
DOCS = {"kind": "markdown", "path": "docs/**/*.md"}


def run(*sources: dict[str, Any], **sections: Any) -> RunConfig:
    content = {
        "name": "t",
        "storage": "runs/t",
        "models": {"base": "b", "generator": "g", "retrieval": "r"},
        "corpus": {"sources": list(sources), **sections.pop("corpus", {})},
        "supervised": {"steps": 1},
        "weak": {"steps": 1},
        "synthesize": {"personas": "p.jsonl"},
    }
    return RunConfig.model_validate(content | sections)


def one(query: str, document: str = "d") -> RetrievalSet:
    return RetrievalSet({"q": query}, {document: ("", f"text of {document}")}, {"q": {document: 1}})


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Storage]:
    """All three kinds of held-out sets; the dev sets are a labelled one and the written one."""
    stages = {name: Storage(f"{tmp_path}/{name}") for name in ("corpus", "labelled", "synthesize")}
    write_retrieval_set(stages["corpus"] / "heldout", one("of a function"))
    write_retrieval_set(stages["corpus"] / "dev", RetrievalSet({}, {}, {}))
    for name in ("zoo", "law"):
        write_retrieval_set(stages["labelled"] / f"heldout/{name}", one(f"of {name}", f"{name} 1"))
    write_retrieval_set(stages["labelled"] / "dev/zoo", one("dev of zoo", "zoo 2"))
    described = {"title": "T", "language": "en", "source": "s"}
    rows = [{"id": f"p{n}", "text": f"text {n}", "split": "heldout", **described} for n in range(3)]
    stages["corpus"].write_table(f"{PASSAGES}/a.parquet", pa.Table.from_pylist(rows, schema=PASSAGE))
    for split in ("dev", "heldout"):
        written = RetrievalSet({"query:p1": f"written {split}"}, {}, {"query:p1": {"p1": 1}})
        write_retrieval_set(stages["synthesize"] / split, written, with_corpus=False)
    return stages


def test_the_sets_in_their_order_and_what_is_searched(inputs: dict[str, Storage]) -> None:
    heldout = evaluation_sets(inputs, "heldout")
    assert [(found.name, found.size, found.synthetic) for found in heldout] == [
        *(("docstrings", 1, False), ("law", 1, False), ("zoo", 1, False), ("synthetic", 1, True))
    ]
    assert heldout[-1].read().corpus == {f"p{n}": ("T", f"text {n}") for n in range(3)}
    assert heldout[1].read() == one("of law", "law 1")
    dev = first_set(inputs, "dev")
    assert dev is not None and (dev.name, dev.read().queries) == ("zoo", {"q": "dev of zoo"})
    without = {name: place for name, place in inputs.items() if name != "labelled"}
    written = first_set(without, "dev")
    assert written is not None and written.synthetic
    assert first_set({"corpus": inputs["corpus"]}, "dev") is None


def test_nothing_of_the_sets_is_trained_on_but_documents_of_labelled_ones(inputs: dict[str, Storage]) -> None:
    texts = evaluation_texts(run(DOCS), inputs)
    assert texts == {
        "heldout query q": "of a function",
        "heldout document d": "text of d",
        "heldout law query q": "of law",
        "heldout zoo query q": "of zoo",
        "dev zoo query q": "dev of zoo",
        "heldout synthetic query query:p1": "written heldout",
        "dev synthetic query query:p1": "written dev",
        **{f"heldout passage p{n}": f"T text {n}" for n in range(3)},
    }
    few = {"synthesize": {"personas": "p", "evaluation": {"heldout_queries": 2, "passages_per_query": 1.0}}}
    passages = [name for name in evaluation_texts(run(DOCS, **few), inputs) if "passage" in name]
    assert len(passages) == 2
    assert not any("passage" in name for name in evaluation_texts(run(PYTHON), inputs))


def test_the_generator_is_asked_about_documents_only_and_about_some_more_than_wanted() -> None:
    assert asked_passages(run(PYTHON, DOCS)) == {"heldout": 300, "dev": 75}
    assert asked_passages(run(PYTHON)) == {}
    assert asked_passages(run(DOCS, corpus={"dev_share": 0})) == {"heldout": 300}
    assert asked_passages(run(DOCS, synthesize={"personas": "p", "evaluation": None})) == {}
    some = {"dev_queries": 0, "heldout_queries": 3, "passages_per_query": 1.1}
    assert asked_passages(run(DOCS, synthesize={"personas": "p", "evaluation": some})) == {"heldout": 4}


def test_what_there_will_be_is_said_before_anything_is_read() -> None:
    [line] = planned_sets(run(PYTHON))
    assert (
        line == "evaluation set docstrings: up to 200 held-out queries and up to 50 dev queries from modules of stdlib"
    )
    first, second = planned_sets(run(PYTHON, DOCS, corpus={"max_heldout_queries": 7, "dev_share": 0}))
    assert first == "evaluation set docstrings: up to 7 held-out queries from modules of stdlib"
    assert second.startswith("evaluation set synthetic: up to 200 held-out queries (synthetic queries, written for")
    assert "docs/**/*.md" in second and "all passages" in second
    sets = {
        "sets": {"faq": {"path": "faq.jsonl", "heldout_share": 0.1, "max_heldout_queries": 9}, "more": {"path": "m"}}
    }
    [third] = planned_sets(run(DOCS, labelled=sets, synthesize={"personas": "p", "evaluation": None}))
    assert third == "evaluation set faq: up to 9 held-out queries of its labelled ones"
    nothing = run(DOCS, synthesize={"personas": "p", "evaluation": None})
    assert planned_sets(nothing) == [f"warning: {NO_SETS}"]
    assert planned_sets(run(DOCS, corpus={"heldout_share": 0}))[-1] == f"warning: {NO_SETS}"
    assert planned_sets(
        nothing.model_copy(update={"evaluate": nothing.evaluate.model_copy(update={"dataset": "x"})})
    ) == ["evaluation on x, not on held-out sets of the run"]
