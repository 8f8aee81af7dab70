"""Which rows a stage trains on. Rows that are left out are counted by reason, so that rows in = out + left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from qwen3emb.config.catalogue import chosen_datasets
from qwen3emb.config.datasets import SYNTHETIC_DATASETS, is_synthetic, trained_as
from qwen3emb.config.run import RunConfig, require_section
from qwen3emb.config.training import DatasetConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.objective.rows import TrainingRow, without_own_positives
from qwen3emb.text.evaluation_sets import evaluation_sets
from qwen3emb.text.false_negatives import answers_of, true_negatives
from qwen3emb.text.identity import content_hash, content_id
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
    "with_random_negatives",
    "without_queries",
]

EVALUATED = "evaluated_query"
"""Reason: the row's query is one of the run's dev or held-out set."""


@dataclass(frozen=True)
class Selection:
    """The rows of a reranker's training.

    Attributes:
        rows: number of rows before the selection.
        train, dev: rows to train on, and rows of the validation queries.
        left_out: reason -> number of rows that are not trained on.
    """

    rows: int
    train: list[TrainingRow]
    dev: list[TrainingRow]
    left_out: dict[str, int]

    def summary(self) -> str:
        """One line about the numbers of rows and validation queries."""
        sets = len({row.dataset for row in self.dev})
        return f"{len(self.train)} rows to train on; validation on {len(self.dev)} queries of {sets} datasets"


def reranker_rows(table: pa.Table, cfg: RunConfig, stage: str, evaluated: Collection[str]) -> Selection:
    """Select rows for `reranker` and `reranker_weak`: retrieval rows with a negative, without the validation queries.

    Where the run has both stages, no validation query of `reranker` is among the training queries of `reranker_weak`.

    Args:
        table: of `records.TRAINING_ROW`.
        cfg: the run.
        stage: name of the stage; `reranker_weak` takes synthetic rows alone.
        evaluated: `content_hash` of queries that the run is evaluated on.
    """
    section = require_section(cfg.reranker_weak if stage == "reranker_weak" else cfg.reranker)
    tasks = {name: settings.task for name, settings in chosen_datasets(cfg.labelled).items()}
    tasks |= {name: settings.task for name, settings in trained_as(set(SYNTHETIC_DATASETS)).items()}
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
    train = with_random_negatives(train, section.random_negatives, cfg.seed)
    left_out = {
        EVALUATED: len(rows) - len(unseen),
        "other_task": len(unseen) - len(suited),
        "no hard negatives": len(suited) - len(usable),
        "validation": len(usable) - len(train),
    }
    return Selection(len(rows), train, dev, left_out)


def with_random_negatives(rows: Sequence[TrainingRow], count: int, seed: int) -> list[TrainingRow]:
    """The rows with up to `count` further negatives each: positives of other rows of their dataset, drawn at random.

    None answers the row's query in any of `rows`, and none stands there already. A dataset with few distinct positives
    gives fewer. The draw depends on the seed, the row's id and the rows of its dataset.
    """
    if not count:
        return list(rows)
    pools = {name: list(dict.fromkeys(r.positive for r in group)) for name, group in by_dataset(rows).items()}
    answers = answers_of((row.query, row.positive) for row in rows)
    extended = []
    for row in rows:
        pool = pools[row.dataset]
        # Twice as many as wanted and some more, since some are answers of the query or drawn twice.
        draws = np.random.default_rng([seed, content_id(row.id)]).integers(len(pool), size=2 * count + 16)
        negatives = [*row.negatives, *(pool[place] for place in draws.tolist())]
        kept, _ = true_negatives(row.query, negatives, answers)
        extended.append(replace(row, negatives=tuple(negatives[n] for n in kept[: len(row.negatives) + count])))
    return extended


def graded(sets: Mapping[str, DatasetConfig]) -> set[str]:
    """Datasets whose pairs have a grade instead of being positives."""
    return {name for name, settings in sets.items() if settings.task == "sts"}


def evaluated_queries(inputs: Mapping[str, Storage]) -> set[str]:
    """`content_hash` of all queries of the run's dev and held-out sets (`evaluation_sets`)."""
    sets = (*evaluation_sets(inputs, "dev"), *evaluation_sets(inputs, "heldout"))
    return {content_hash(query) for found in sets for query in found.queries().values()}


def without_queries(rows: Sequence[TrainingRow], queries: Collection[str]) -> list[TrainingRow]:
    """The rows whose query is not among `queries`, which are `content_hash` values."""
    hashes = query_hashes(rows) if queries else []
    return [row for row, name in zip(rows, hashes, strict=True) if name not in queries] if queries else list(rows)


def check_stop(stop_after: int, queries: int, stage: str, cause: str) -> None:
    """Refuse an early stop where there are no validation queries.

    Args:
        stop_after: the stage's `stop_after`; 0 = no early stop.
        queries: number of validation queries.
        stage: name of the stage.
        cause: the key that decides how many queries there are, for the message.

    Raises:
        UserError: `stop_after` is set, and there is no validation query.
    """
    if stop_after and not queries:
        raise UserError(
            f"{stage}.stop_after is {stop_after}, but no query is left to validate on ({cause}; there may be too few "
            "rows); add data, or set stop_after to 0"
        )


def rows_from_pairs(table: pa.Table, graded: Collection[str] = ()) -> list[TrainingRow]:
    """Rows from a table of `records.PAIR`, with the negatives that classification rows have.

    False negatives are removed by `without_own_positives`, which `graded` is handed to.

    Raises:
        UserError: a row of a graded set has no grade.
    """
    return _rows_of(table, "document", graded)


def rows_from_training(
    table: pa.Table, negatives: int | None, synthetic: bool = True, graded: Collection[str] = ()
) -> list[TrainingRow]:
    """Rows with up to `negatives` hard negatives from a table of `records.TRAINING_ROW`.

    Args:
        table: the rows.
        negatives: at most so many of each row, the first ones that are no positive of its query; None = all.
        synthetic: whether to take synthetic rows as well.
        graded: datasets whose pairs have a grade; see `without_own_positives`, which removes false negatives.

    Raises:
        UserError: a row of a graded set has no grade.
    """
    return [
        replace(row, negatives=row.negatives[:negatives])
        for row in _rows_of(table, "positive", graded)
        if synthetic or not is_synthetic(row.dataset)
    ]


def _rows_of(table: pa.Table, positive: str, graded: Collection[str]) -> list[TrainingRow]:
    """All rows of a table whose column `positive` has the document that answers, without false negatives."""
    columns = (table[c].to_pylist() for c in ("id", "query", positive, "negatives", "dataset", "grade"))
    rows = [
        TrainingRow(i, query, document, tuple(negatives or ()), dataset, _grade(i, dataset, grade, graded))
        for i, query, document, negatives, dataset, grade in zip(*columns, strict=True)
    ]
    return without_own_positives(rows, graded)


def _grade(row: str, dataset: str, grade: float | None, graded: Collection[str]) -> float:
    if grade is None and dataset in graded:
        raise UserError(f"row {row}: the dataset {dataset!r} has the task sts, but this row has no grade; give it one")
    return 0.0 if grade is None else grade


def by_dataset(rows: Sequence[TrainingRow]) -> dict[str, list[TrainingRow]]:
    """dataset -> its rows, in their order."""
    grouped: dict[str, list[TrainingRow]] = {}
    for row in rows:
        grouped.setdefault(row.dataset, []).append(row)
    return grouped


def check_datasets(rows: Sequence[TrainingRow], weights: Mapping[str, float], key: str) -> None:
    """Refuse a mixture that names a dataset without rows, or gives every dataset the weight 0.

    Args:
        rows: all training rows.
        weights: dataset named in the configuration -> weight.
        key: the key of the configuration with these names, for the message.

    Raises:
        UserError: a name that no row has, or no dataset with a weight above 0.
    """
    present = sorted({row.dataset for row in rows})
    unknown = sorted(set(weights) - set(present))
    if unknown:
        raise UserError(f"{key}: no row is of the dataset {unknown[0]!r}; there are: {', '.join(present)}")
    if not any(weights.get(name, 1.0) > 0 for name in present):
        raise UserError(f"{key}: every dataset has weight 0, so there is nothing to train on; raise one of them")


def checked(rows: Sequence[TrainingRow], batch: int, folder: str) -> None:
    """Refuse to train on less than one global batch.

    Args:
        rows: all training rows.
        batch: rows of a global batch.
        folder: URI of the stage's folder, for the message.

    Raises:
        UserError: fewer rows than a global batch.
    """
    if len(rows) < batch:
        raise UserError(f"{folder}: {len(rows)} training rows, but a global batch takes {batch}; add data or lower it")
