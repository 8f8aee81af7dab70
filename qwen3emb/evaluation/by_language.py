"""Metrics by language of the query, beside the training rows of that language (the paper's stated limit)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from qwen3emb.config.catalogue import chosen_datasets
from qwen3emb.config.datasets import is_synthetic
from qwen3emb.config.run import RunConfig
from qwen3emb.text.languages import UNDETERMINED, identified

__all__ = ["Query", "by_language", "few_rows_line", "language_table", "languages_of", "trained_on"]

_SURE = 0.5
_LOOKED_AT = 50_000  # training queries; identifying millions would take longer than the evaluation


@dataclass(frozen=True)
class Query:
    """A query and, where the data says it, the code of its language."""

    text: str
    language: str | None = None


def languages_of(queries: Sequence[Query]) -> list[str]:
    """The language of each, without script and region: as the data says, else identified, `und` where neither is sure.

    Identification cannot tell scripts and regions, so `zh-Hans` and `zh` must be one.
    """
    unsaid = [query.text for query in queries if not _said(query)]
    guesses = iter(identified(unsaid, _SURE) if unsaid else [])
    return [_said(query) or next(guesses) for query in queries]


def _said(query: Query) -> str:
    code = (query.language or "").partition("-")[0].lower()
    return "" if code == UNDETERMINED else code


def trained_on(cfg: RunConfig, dataset: str) -> bool:
    """Whether the supervised stage trains on the rows of this dataset: not switched off, and not of weight 0."""
    if is_synthetic(dataset) and not cfg.supervised.synthetic:
        return False
    own, sets = cfg.supervised.datasets.get(dataset), chosen_datasets(cfg.labelled)
    if own is not None and (dataset not in sets or "weight" in own.model_fields_set):
        return own.weight > 0
    return dataset not in sets or sets[dataset].weight > 0


def by_language(
    queries: Mapping[str, Query], training: Sequence[Query], figures: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> dict[str, dict[str, Any]]:
    """language -> {"queries", "training_rows", metric: {model: mean}}, most queries first.

    Args:
        queries: query id -> query of the evaluation.
        training: queries of the training rows; of very many whose language is not said, every n-th is looked at and
            counts n times.
        figures: model -> query id -> metric -> value.
    """
    languages = dict(zip(queries, languages_of(list(queries.values())), strict=True))
    rows = _rows(training)
    found: dict[str, dict[str, Any]] = {}
    for language, count in Counter(languages.values()).most_common():
        here = [query for query, code in languages.items() if code == language]
        found[language] = {"queries": count, "training_rows": rows[language]} | _means(here, figures)
    return found


def _rows(training: Sequence[Query]) -> Counter[str]:
    """language -> training rows."""
    rows = Counter(languages_of([query for query in training if _said(query)]))
    unsaid = [query for query in training if not _said(query)]
    every = max(1, len(unsaid) // _LOOKED_AT)
    for language, count in Counter(languages_of(unsaid[::every])).items():
        rows[language] += count * every
    return rows


def _means(
    queries: Sequence[str], figures: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> dict[str, dict[str, float | None]]:
    """metric -> model -> mean over those of the queries that are judged; None where none is."""
    means: dict[str, dict[str, float | None]] = {}
    for metric in dict.fromkeys(name for values in figures.values() for row in values.values() for name in row):
        means[metric] = {}
        for model, values in figures.items():
            judged = [values[query][metric] for query in queries if query in values]
            means[metric][model] = round(sum(judged) / len(judged), 4) if judged else None
    return means


_COUNTS = ("queries", "training_rows")


def few_rows_line(languages: Mapping[str, Mapping[str, Any]], few_rows: int) -> str:
    """Names the languages with fewer than `few_rows` training rows; empty where there are none."""
    few = [
        f"{language} ({found['training_rows']})"
        for language, found in languages.items()
        if found["training_rows"] < few_rows and language != UNDETERMINED
    ]
    return f"fewer than {few_rows} training rows (evaluate.few_rows): {', '.join(few)}" if few else ""


def language_table(languages: Mapping[str, Mapping[str, Any]], few_rows: int, headline: str = "ndcg@10") -> Table:
    """One row per language: queries, training rows, and the `headline` metric of each model."""
    table = Table(title=f"{headline} by language of the query", title_justify="left", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    table.caption, table.caption_justify = few_rows_line(languages, few_rows), "left"
    models = list(dict.fromkeys(model for found in languages.values() for model in found.get(headline, {})))
    table.add_column("language", no_wrap=True)
    for name in (*_COUNTS, *models):
        table.add_column(name.replace("_", " ").replace("+", " + "), justify="right")  # so that a name can wrap
    for language, found in languages.items():
        means = [found.get(headline, {}).get(model) for model in models]
        cells = ["-" if mean is None else f"{mean:.3f}" for mean in means]
        table.add_row(language, *(str(found[name]) for name in _COUNTS), *cells)
    return table
