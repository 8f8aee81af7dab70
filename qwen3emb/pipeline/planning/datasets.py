"""How many rows each dataset of a run has at each stage, and how long their texts are, from the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from qwen3emb.config.catalogue import chosen_datasets
from qwen3emb.config.datasets import DOCSTRINGS, dataset_of
from qwen3emb.config.run import RunConfig
from qwen3emb.core.errors import UserError
from qwen3emb.pipeline.planning.assumptions import Assumptions
from qwen3emb.pipeline.planning.texts import Lengths, LogNormal, Uniform, written_words

__all__ = ["Corpus", "DatasetSize", "corpus_size", "dataset_sizes", "passage_lengths", "task_shares", "written_tokens"]

_SENTENCE = Uniform(25, 25)
_LABEL = Uniform(4, 4)
_SPREAD = 0.8  # of labelled texts
_STS_PAIRS = 3  # rewrites of one sentence


@dataclass(frozen=True)
class DatasetSize:
    """One dataset.

    Attributes:
        name: as in the column `dataset`.
        task: `retrieval`, `bitext`, `sts` or `classification`.
        rows: before the filter.
        kept: behind it.
        scored: rows that the filter encodes.
        query, document: lengths of texts.
        corpus: documents that its negatives are searched in; 0 = none are mined.
        searched: their lengths.
    """

    name: str
    task: str
    rows: float
    kept: float
    query: Lengths
    document: Lengths
    scored: float = 0
    corpus: float = 0
    searched: Lengths | None = None


@dataclass(frozen=True)
class Corpus:
    """What the stage `corpus` writes, and sentences about what is not known."""

    passages: float
    pairs: float
    dev_documents: int = 0
    heldout_documents: int = 0
    dev_queries: int = 0
    heldout_queries: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> float:
        """All of its rows."""
        return self.passages + self.pairs + self.dev_documents + self.heldout_documents


def corpus_size(cfg: RunConfig, assumed: Assumptions) -> Corpus:
    """Rows of the corpus: the configured limits, which are taken to be reached.

    Raises:
        UserError: neither the configuration nor an assumption limits the passages.
    """
    limits, notes = cfg.corpus, []
    python = any(source.kind == "python" for source in limits.sources)
    passages = assumed.passages or limits.max_passages or (cfg.synthesize.max_passages if cfg.synthesize else None)
    if not passages and cfg.synthesize:
        raise UserError(
            "how many passages corpus.sources hold is known only when they are read, and neither corpus.max_passages "
            "nor synthesize.max_passages limits them; give --assume passages=NUMBER"
        )
    if not (assumed.passages or limits.max_passages) and passages:
        notes.append(
            f"corpus.max_passages is not set: {passages:,} passages are counted, as many as synthesize.max_passages "
            "uses; --assume passages=NUMBER counts more"
        )
    pairs = assumed.pairs or limits.max_pairs or 0
    if python and not pairs:
        notes.append("corpus.max_pairs is not set: no docstring pairs are counted; give --assume pairs=NUMBER")
    split = python and {"dev": limits.dev_share > 0, "heldout": limits.heldout_share > 0}
    dev, held = (bool(split and split[name]) for name in ("dev", "heldout"))
    return Corpus(
        passages or 0,
        pairs if python else 0,
        limits.max_dev_documents * dev,
        limits.max_heldout_documents * held,
        limits.max_dev_queries * dev,
        limits.max_heldout_queries * held,
        notes,
    )


def passage_lengths(cfg: RunConfig, assumed: Assumptions) -> Uniform:
    """Any length up to `corpus.max_tokens` alike; docstrings have at least `corpus.min_words`."""
    python = all(source.kind == "python" for source in cfg.corpus.sources)
    least = cfg.corpus.min_words * assumed.tokens_per_word if python else 0
    return Uniform(min(least, cfg.corpus.max_tokens), cfg.corpus.max_tokens)


def written_tokens(cfg: RunConfig, assumed: Assumptions) -> float:
    """Mean tokens of a written query."""
    return written_words(cfg.synthesize.words) * assumed.tokens_per_word if cfg.synthesize else 0.0


def task_shares(cfg: RunConfig) -> dict[str, float]:
    """Task of `synthesize` -> its share of the asked rows."""
    tasks = cfg.synthesize.tasks if cfg.synthesize else {}
    total = sum(tasks.values()) or 1.0
    return {str(task): weight / total for task, weight in tasks.items() if weight}


def dataset_sizes(cfg: RunConfig, assumed: Assumptions, corpus: Corpus) -> list[DatasetSize]:
    """The datasets of the run."""
    return [*_docstrings(assumed, corpus), *_synthetic(cfg, assumed, corpus), *_labelled(cfg, assumed)]


def _docstrings(assumed: Assumptions, corpus: Corpus) -> Iterator[DatasetSize]:
    if corpus.pairs:
        functions = LogNormal(assumed.function_tokens, assumed.function_spread)
        query = LogNormal(assumed.docstring_tokens, assumed.docstring_spread)
        pairs = corpus.pairs
        yield DatasetSize(DOCSTRINGS, "retrieval", pairs, pairs, query, functions, corpus=pairs, searched=functions)


def _synthetic(cfg: RunConfig, assumed: Assumptions, corpus: Corpus) -> Iterator[DatasetSize]:
    """One dataset for each task; only pairs of retrieval and bitext are scored by the filter, others pass."""
    section = cfg.synthesize
    if section is None:
        return
    asked = min(section.max_passages or corpus.passages, corpus.passages) * section.queries_per_passage
    share = assumed.filter_kept if cfg.filter.keep_share is None else cfg.filter.keep_share
    passages, length = passage_lengths(cfg, assumed), written_tokens(cfg, assumed)
    shapes: dict[str, tuple[Lengths, Lengths]] = {
        "retrieval": (Uniform(length, length), passages),
        "bitext": (_SENTENCE, _SENTENCE),
        "sts": (_SENTENCE, _SENTENCE),
        "classification": (passages, _LABEL),
    }
    rows = {
        task: asked * part * assumed.synthesis_yield * (_STS_PAIRS if task == "sts" else 1)
        for task, part in task_shares(cfg).items()
    }
    total = sum(rows.values())
    drawn = min(1.0, cfg.filter.sample / total) if cfg.filter.sample and total else 1.0
    for task, count in rows.items():
        scored = count * drawn if task in ("retrieval", "bitext") else 0.0
        kept = scored * share if scored else count * drawn
        query, document = shapes[task]
        mined = (corpus.passages, passages) if task == "retrieval" else (0, None)
        yield DatasetSize(dataset_of(task), task, count, kept, query, document, scored, *mined)


def _labelled(cfg: RunConfig, assumed: Assumptions) -> Iterator[DatasetSize]:
    for name, settings in chosen_datasets(cfg.labelled).items():
        rows = settings.max_rows or assumed.labelled_rows
        query = LogNormal.of_mean(assumed.labelled_query_tokens, _SPREAD)
        document = LogNormal.of_mean(assumed.labelled_document_tokens, _SPREAD)
        mined = settings.mine and settings.task == "retrieval"
        searched = document if mined else None
        yield DatasetSize(name, settings.task, rows, rows, query, document, 0, rows if mined else 0, searched)
