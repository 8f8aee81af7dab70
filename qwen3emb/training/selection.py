"""Which rows a stage trains on, and what is left out: counted by reason, so that rows in = out + left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from qwen3emb.config.catalogue import chosen_datasets
from qwen3emb.config.datasets import SYNTHETIC_DATASETS, is_synthetic, trained_as
from qwen3emb.config.run import RunConfig, require_section
from qwen3emb.config.training import DatasetConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.objective.rows import TrainingRow, without_own_positives
from qwen3emb.text.identity import content_hash
from qwen3emb.text.retrieval_set import read_retrieval_set
from qwen3emb.training.validation import held_out, query_hashes

__all__ = [
    "EVALUATED",
    "Selection",
    "by_dataset",
    "check_datasets",
    "check_stop",
    "checked",
    "evaluated_queries",
    "graded",
    "reranker_rows",
    "rows_from_pairs",
    "rows_from_training",
    "without_queries",
]

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


def rows_from_pairs(table: pa.Table, graded: Collection[str] = ()) -> list[TrainingRow]:
    """Rows from a table of `records.PAIR`, with the negatives that classification rows have.

    `graded` as of `without_own_positives`, which they went through.

    Raises:
        UserError: a row of a graded set has no grade.
    """
    columns = (table[c].to_pylist() for c in ("id", "query", "document", "dataset", "negatives", "grade"))
    rows = [
        TrainingRow(i, q, d, tuple(n or ()), dataset, _grade(i, dataset, grade, graded))
        for i, q, d, dataset, n, grade in zip(*columns, strict=True)
    ]
    return without_own_positives(rows, graded)


def rows_from_training(
    table: pa.Table, negatives: int, synthetic: bool = True, graded: Collection[str] = ()
) -> list[TrainingRow]:
    """Rows with up to `negatives` hard negatives from a table of `records.TRAINING_ROW`.

    Args:
        table: the rows.
        negatives: at most so many of each row, the first ones that are no positive of its query.
        synthetic: take the synthetic rows as well.
        graded: as of `without_own_positives`, which all rows of the table went through.

    Raises:
        UserError: a row of a graded set has no grade.
    """
    columns = (table[c].to_pylist() for c in ("id", "query", "positive", "negatives", "dataset", "grade"))
    rows = [
        TrainingRow(i, q, p, tuple(n or ()), dataset, _grade(i, dataset, grade, graded))
        for i, q, p, n, dataset, grade in zip(*columns, strict=True)
    ]
    return [
        replace(row, negatives=row.negatives[:negatives])
        for row in without_own_positives(rows, graded)
        if synthetic or not is_synthetic(row.dataset)
    ]


def _grade(row: str, dataset: str, grade: float | None, graded: Collection[str]) -> float:
    if grade is None and dataset in graded:
        raise UserError(f"row {row}: the dataset {dataset!r} has the task sts, but this row has no grade; give it one")
    return 0.0 if grade is None else grade


def by_dataset(rows: Sequence[TrainingRow]) -> dict[str, list[TrainingRow]]:
    """The rows of each dataset, in their order."""
    found: dict[str, list[TrainingRow]] = {}
    for row in rows:
        found.setdefault(row.dataset, []).append(row)
    return found


def check_datasets(rows: Sequence[TrainingRow], weights: Mapping[str, float], what: str) -> None:
    """Refuse a mixture that names what is not there, or leaves nothing.

    Args:
        rows: all training rows.
        weights: of the datasets that the configuration names.
        what: where the names stand, for the message.

    Raises:
        UserError: a name that no row has, or no dataset with a weight above 0.
    """
    there = sorted({row.dataset for row in rows})
    unknown = sorted(set(weights) - set(there))
    if unknown:
        raise UserError(f"{what}: no row is of the dataset {unknown[0]!r}; there are: {', '.join(there)}")
    if not any(weights.get(name, 1.0) > 0 for name in there):
        raise UserError(f"{what}: every dataset has weight 0, so there is nothing to train on; raise one of them")


def checked(rows: Sequence[TrainingRow], batch: int, what: str) -> None:
    """Refuse to train on less than one batch.

    Raises:
        UserError: fewer rows than a global batch.
    """
    if len(rows) < batch:
        raise UserError(f"{what}: {len(rows)} training rows, but a global batch takes {batch}; add data or lower it")
