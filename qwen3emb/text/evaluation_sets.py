"""The dev and held-out sets of a run: which ones there are, whose instruction they have, and where they lie.

A run may have several: `docstrings` (stage `corpus`), queries of labelled datasets (stage `labelled`, by the dataset's
name) and `synthetic` (stage `synthesize`: queries that the generator wrote for held-out documents). The first one with
queries is the run's main one: models are chosen on it in dev and shown first in the evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow.parquet as pq

from qwen3emb.config.catalogue import chosen_datasets
from qwen3emb.config.datasets import DOCSTRINGS, dataset_of
from qwen3emb.config.run import RunConfig
from qwen3emb.core.storage import Storage
from qwen3emb.text.documents import document_text
from qwen3emb.text.passages import PASSAGES, drawn_passages
from qwen3emb.text.retrieval_set import RetrievalSet, read_retrieval_set

__all__ = [
    "NO_SETS",
    "SYNTHETIC_QUERIES",
    "EvaluationSet",
    "asked_passages",
    "evaluation_sets",
    "evaluation_texts",
    "first_set",
    "planned_sets",
]

Split = Literal["dev", "heldout"]
_QUERIES = "queries.parquet"

SYNTHETIC_QUERIES = "synthetic queries"
"""What tables say of a set whose queries the generator wrote."""

NO_SETS = (
    "there is nothing to judge the models on: no held-out Python modules, no held-out labelled queries, and no queries "
    "written for held-out documents; see corpus.heldout_share and synthesize.evaluation, or name a BEIR folder in "
    "evaluate.dataset"
)
"""The sentence about a run without a held-out set."""


@dataclass(frozen=True)
class EvaluationSet:
    """A dev or held-out set of a run.

    Attributes:
        name: `docstrings`, the name of a labelled dataset, or `synthetic`.
        folder: of the set.
        passages: folder of the passages that are searched, where the set has no corpus of its own.
        size: number of queries.
    """

    name: str
    folder: Storage
    passages: Storage | None
    size: int

    @property
    def synthetic(self) -> bool:
        """Whether the generator wrote the queries."""
        return self.name == dataset_of("retrieval")

    def queries(self) -> dict[str, str]:
        """Query id -> text, without reading the documents."""
        table = self.folder.read_table(_QUERIES)
        return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))

    def read(self) -> RetrievalSet:
        """The queries, the documents to search in and the judgments."""
        return read_retrieval_set(self.folder, self.passages)


def evaluation_sets(inputs: Mapping[str, Storage], split: Split) -> list[EvaluationSet]:
    """The sets of a split that have queries, the main one first: docstrings, labelled ones by name, synthetic.

    Args:
        inputs: stage -> its folder; sets of stages that are not among them are left out.
        split: `dev` or `heldout`.
    """
    return [found for found in _places(inputs, split) if found.size]


def _places(inputs: Mapping[str, Storage], split: Split) -> Iterator[EvaluationSet]:
    corpus, labelled, written = (inputs.get(stage) for stage in ("corpus", "labelled", "synthesize"))
    if corpus is not None:
        yield _found(DOCSTRINGS, corpus / split, None)
    if labelled is not None:
        names = [name.split("/")[1] for name in labelled.names(split, f"/{_QUERIES}")]
        yield from (_found(name, labelled / f"{split}/{name}", None) for name in names)
    if written is not None and corpus is not None:
        yield _found(dataset_of("retrieval"), written / split, corpus / PASSAGES)


def _found(name: str, folder: Storage, passages: Storage | None) -> EvaluationSet:
    there = folder.exists(_QUERIES)
    size = pq.read_metadata(folder.path(_QUERIES), filesystem=folder.filesystem).num_rows if there else 0
    return EvaluationSet(name, folder, passages, size)


def first_set(inputs: Mapping[str, Storage], split: Split) -> EvaluationSet | None:
    """The main set of a split, None where no set has a query; arguments as in `evaluation_sets`."""
    return next(iter(evaluation_sets(inputs, split)), None)


def asked_passages(cfg: RunConfig) -> dict[Split, int]:
    """Split -> passages that the generator is asked about for its queries; none in runs without such queries."""
    written = cfg.synthesize.evaluation if cfg.synthesize else None
    if written is None or all(source.kind == "python" for source in cfg.corpus.sources):
        return {}
    wanted: dict[Split, int] = {"heldout": written.heldout_queries, "dev": written.dev_queries}
    shares = {"heldout": cfg.corpus.heldout_share, "dev": cfg.corpus.dev_share}
    return {
        split: math.ceil(count * written.passages_per_query)
        for split, count in wanted.items()
        if count and shares[split] > 0
    }


def evaluation_texts(cfg: RunConfig, inputs: Mapping[str, Storage]) -> dict[str, str]:
    """Name -> text of what no training text may be like.

    Queries of all dev and held-out sets; documents of the docstrings' sets; the passages of dev and held-out documents
    that the generator is asked about. Documents of labelled sets may be trained on: only their queries are held out.

    Args:
        cfg: the run.
        inputs: as in `evaluation_sets`.
    """
    texts: dict[str, str] = {}
    splits: tuple[Split, ...] = ("heldout", "dev")
    asked = asked_passages(cfg)
    for split in splits:
        for found in evaluation_sets(inputs, split):
            prefix = split if found.name == DOCSTRINGS else f"{split} {found.name}"
            texts |= {f"{prefix} query {i}": text for i, text in found.queries().items()}
        folder = inputs["corpus"] / split
        if folder.exists():
            data = read_retrieval_set(folder)
            texts |= {f"{split} document {i}": text for i, text in zip(data.corpus, data.texts(), strict=True)}
        passages = drawn_passages(inputs["corpus"], split, asked.get(split, 0), cfg.seed)
        texts |= {f"{split} passage {p['id']}": document_text(p["title"] or "", p["text"]) for p in passages}
    return texts


def planned_sets(cfg: RunConfig) -> list[str]:
    """Sentences on the sets that a run will have and the number of their queries, from its configuration alone.

    Nothing is read, so the numbers are the most that there can be. The last one is a warning where there is none.
    """
    lines = list(_planned(cfg))
    if cfg.evaluate.dataset != "heldout":
        return [*lines, f"evaluation on {cfg.evaluate.dataset}, not on held-out sets of the run"]
    return lines if any("held-out queries" in line for line in lines) else [*lines, f"warning: {NO_SETS}"]


def _planned(cfg: RunConfig) -> Iterator[str]:
    corpus = cfg.corpus
    python = [source.path for source in corpus.sources if source.kind == "python"]
    others = [source.path for source in corpus.sources if source.kind != "python"]
    if python:
        counts = _counts(
            corpus.max_heldout_queries if corpus.heldout_share else 0, corpus.max_dev_queries if corpus.dev_share else 0
        )
        if counts:
            yield f"evaluation set docstrings: {counts} from modules of {_listed(python)}"
    for name, dataset in chosen_datasets(cfg.labelled).items():
        counts = _counts(
            dataset.max_heldout_queries if dataset.heldout_share else 0,
            dataset.max_dev_queries if dataset.dev_share else 0,
        )
        if counts:
            yield f"evaluation set {name}: {counts} of its labelled ones"
    asked = asked_passages(cfg)
    written = cfg.synthesize.evaluation if cfg.synthesize else None
    if asked and written:
        counts = _counts(written.heldout_queries * ("heldout" in asked), written.dev_queries * ("dev" in asked))
        yield (
            f"evaluation set synthetic: {counts} ({SYNTHETIC_QUERIES}, written for held-out documents of "
            f"{_listed(others)}, searched among all passages)"
        )


def _counts(heldout: int, dev: int) -> str:
    """Both numbers in words; empty where both are 0."""
    parts = [f"up to {n} {kind} queries" for n, kind in ((heldout, "held-out"), (dev, "dev")) if n]
    return " and ".join(parts)


def _listed(paths: list[str]) -> str:
    shown = ", ".join(dict.fromkeys(paths))
    return shown if len(shown) <= 200 else shown[:200] + " ..."
