"""Which rows a stage trains on, and what is left out: counted by reason, so that rows in = out + left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from qwen3emb.config.catalogue import chosen_datasets
from qwen3emb.config.datasets import SYNTHETIC_DATASETS, is_synthetic, trained_as
from qwen3emb.config.run import RunConfig, require_section
from qwen3emb.config.training import DatasetConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.objective.rows import TrainingRow, rows_from_training
from qwen3emb.text.identity import content_hash
from qwen3emb.text.retrieval_set import read_retrieval_set
from qwen3emb.training.validation import held_out, query_hashes

__all__ = ["EVALUATED", "Selection", "check_stop", "evaluated_queries", "graded", "reranker_rows", "without_queries"]

EVALUATED = "evaluated_query"
"""Reason: the row's query is one of the run's dev or held-out set."""


@dataclass(frozen=True)
class Selection:
    """The rows of a reranker's training.

    Attributes:
        rows: how many there were.
        train, dev: rows that are trained on, and those of queries that are validated on.
        left_out: reason -> rows that are not trained on.
    """

    rows: int
    train: list[TrainingRow]
    dev: list[TrainingRow]
    left_out: dict[str, int]

    def said(self) -> str:
        """One line about it."""
        sets = len({row.dataset for row in self.dev})
        return f"{len(self.train)} rows to train on; validation on {len(self.dev)} queries of {sets} datasets"


def reranker_rows(table: pa.Table, cfg: RunConfig, stage: str, evaluated: Collection[str]) -> Selection:
    """Rows of the stages `reranker` and `reranker_weak`: retrieval rows with a negative, less those of validation.

    Where the run has both stages, `reranker` validates on no query that `reranker_weak` has trained its model on.

    Args:
        table: of `records.TRAINING_ROW`.
        cfg: the run.
        stage: which of the two; `reranker_weak` takes synthetic rows alone.
        evaluated: `content_hash` of queries that the run is evaluated on.
    """
    section = require_section(cfg.reranker_weak if stage == "reranker_weak" else cfg.reranker)
    tasks = {name: one.task for name, one in chosen_datasets(cfg.labelled).items()}
    tasks |= {name: one.task for name, one in trained_as(set(SYNTHETIC_DATASETS)).items()}
    sts = {name for name, task in tasks.items() if task == "sts"}
    rows = rows_from_training(table, section.negatives, graded=sts)
    rows = [row for row in rows if stage == "reranker" or is_synthetic(row.dataset)]
    unseen = without_queries(rows, evaluated)
    suited = [row for row in unseen if tasks.get(row.dataset, "retrieval") == "retrieval"]
    usable = [row for row in suited if row.negatives]
    before: Collection[str] = ()
    if stage == "reranker" and cfg.reranker_weak is not None:
        before = set(query_hashes(reranker_rows(table, cfg, "reranker_weak", evaluated).train))
    dev, train = held_out(usable, section.validation_queries, cfg.seed, before)
    left_out = {
        EVALUATED: len(rows) - len(unseen),
        "other_task": len(unseen) - len(suited),
        "no hard negatives": len(suited) - len(usable),
        "validation": len(usable) - len(train),
    }
    return Selection(len(rows), train, dev, left_out)


def graded(sets: Mapping[str, DatasetConfig]) -> set[str]:
    """Datasets whose pairs have a grade instead of being positives."""
    return {name for name, own in sets.items() if own.task == "sts"}


def evaluated_queries(corpus: Storage) -> set[str]:
    """`content_hash` of the queries of the run's dev and held-out sets; a set that is not there counts as empty."""
    places = [corpus / split for split in ("dev", "heldout")]
    sets = [read_retrieval_set(place) for place in places if place.exists()]
    return {content_hash(query) for found in sets for query in found.queries.values()}


def without_queries(rows: Sequence[TrainingRow], queries: Collection[str]) -> list[TrainingRow]:
    """The rows whose query is none of these, given by `content_hash`."""
    hashes = query_hashes(rows) if queries else []
    return [row for row, name in zip(rows, hashes, strict=True) if name not in queries] if queries else list(rows)


def check_stop(stop_after: int, queries: int, stage: str, cause: str) -> None:
    """Refuse to wait for validations that will not be.

    Args:
        stop_after: of the stage.
        queries: that it is validated on.
        stage: its name.
        cause: the key that decides how many there are, for the message.

    Raises:
        UserError: an early stop is asked for, and there is nothing to validate on.
    """
    if stop_after and not queries:
        raise UserError(
            f"{stage}.stop_after is {stop_after}, but no query is left to validate on ({cause}; there may be too few "
            "rows); add data, or set stop_after to 0"
        )
