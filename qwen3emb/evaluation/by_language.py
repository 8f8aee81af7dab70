"""Retrieval metrics by the language of the query, with the number of training rows in that language.

The paper names low-resource languages as its limit: a language with few training rows may score low.
"""

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

_MIN_CONFIDENCE = 0.5
_MAX_IDENTIFIED = 50_000  # training queries; identifying millions would take longer than the evaluation


@dataclass(frozen=True)
class Query:
    """A query and its language code, None where the data does not state it."""

    text: str
    language: str | None = None


def languages_of(queries: Sequence[Query]) -> list[str]:
    """The language code of each query: as the data states it, else identified from the text, else `und`.

    Scripts and regions are cut off, since identification does not tell them apart: `zh-Hans` and `zh` are one language.
    """
    unlabelled = [query.text for query in queries if not _stated_language(query)]
    guesses = iter(identified(unlabelled, _MIN_CONFIDENCE) if unlabelled else [])
    return [_stated_language(query) or next(guesses) for query in queries]


def _stated_language(query: Query) -> str:
    code = (query.language or "").partition("-")[0].lower()
    return "" if code == UNDETERMINED else code


def trained_on(cfg: RunConfig, dataset: str) -> bool:
    """Whether the supervised stage trains on the rows of this dataset: not switched off, and not of weight 0."""
    if is_synthetic(dataset) and not cfg.supervised.synthetic:
        return False
    settings, sets = cfg.supervised.datasets.get(dataset), chosen_datasets(cfg.labelled)
    if settings is not None and (dataset not in sets or "weight" in settings.model_fields_set):
        return settings.weight > 0
    return dataset not in sets or sets[dataset].weight > 0


def by_language(
    queries: Mapping[str, Query], training: Sequence[Query], figures: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> dict[str, dict[str, Any]]:
    """Count queries and training rows of each language, and average the metrics of its queries.

    Args:
        queries: query id -> query of the evaluation.
        training: queries of the training rows. Above 50,000 whose language is not stated, only every n-th is identified
            and counts n times.
        figures: model -> query id -> metric -> value.

    Returns:
        language -> {"queries", "training_rows", metric: {model: mean}}, the language with most queries first.
    """
    codes = dict(zip(queries, languages_of(list(queries.values())), strict=True))
    training_rows = _rows(training)
    by_code: dict[str, dict[str, Any]] = {}
    for language, count in Counter(codes.values()).most_common():
        ids = [query for query, code in codes.items() if code == language]
        by_code[language] = {"queries": count, "training_rows": training_rows[language]} | _means(ids, figures)
    return by_code


def _rows(training: Sequence[Query]) -> Counter[str]:
    """language -> training rows."""
    rows = Counter(languages_of([query for query in training if _stated_language(query)]))
    unlabelled = [query for query in training if not _stated_language(query)]
    every = max(1, len(unlabelled) // _MAX_IDENTIFIED)
    for language, count in Counter(languages_of(unlabelled[::every])).items():
        rows[language] += count * every
    return rows


def _means(
    queries: Sequence[str], figures: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> dict[str, dict[str, float | None]]:
    """metric -> model -> mean over the judged ones among `queries`; None where none of them is judged."""
    means: dict[str, dict[str, float | None]] = {}
    for metric in dict.fromkeys(name for values in figures.values() for row in values.values() for name in row):
        means[metric] = {}
        for model, values in figures.items():
            judged = [values[query][metric] for query in queries if query in values]
            means[metric][model] = round(sum(judged) / len(judged), 4) if judged else None
    return means


_COUNTS = ("queries", "training_rows")


def few_rows_line(languages: Mapping[str, Mapping[str, Any]], few_rows: int) -> str:
    """A line that names the languages with fewer than `few_rows` training rows; empty where there are none."""
    few = [
        f"{language} ({figures['training_rows']})"
        for language, figures in languages.items()
        if figures["training_rows"] < few_rows and language != UNDETERMINED
    ]
    return f"fewer than {few_rows} training rows (evaluate.few_rows): {', '.join(few)}" if few else ""


def language_table(languages: Mapping[str, Mapping[str, Any]], few_rows: int, headline: str = "ndcg@10") -> Table:
    """One row per language: queries, training rows, and the `headline` metric of each model."""
    table = Table(title=f"{headline} by language of the query", title_justify="left", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    table.caption, table.caption_justify = few_rows_line(languages, few_rows), "left"
    models = list(dict.fromkeys(model for figures in languages.values() for model in figures.get(headline, {})))
    table.add_column("language", no_wrap=True)
    for name in (*_COUNTS, *models):
        table.add_column(name.replace("_", " ").replace("+", " + "), justify="right")  # so that a name can wrap
    for language, figures in languages.items():
        means = [figures.get(headline, {}).get(model) for model in models]
        cells = ["-" if mean is None else f"{mean:.3f}" for mean in means]
        table.add_row(language, *(str(figures[name]) for name in _COUNTS), *cells)
    return table
