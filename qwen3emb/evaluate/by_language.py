"""Metrics by language of the query, beside the training rows of that language (the paper's stated limit)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3emb.data.identify import identified
from qwen3emb.data.languages import UNDETERMINED

__all__ = ["by_language", "language_lines"]

_SURE = 0.5
_LOOKED_AT = 50_000  # training queries; identifying millions would take longer than the evaluation


def by_language(
    queries: Mapping[str, str], training: Sequence[str], per_query: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """language -> {"queries", "training_rows", "ndcg@10": {model: mean}}, most queries first.

    Languages are identified by the text of the query, of evaluation and training alike; `und` where it is not clear.

    Args:
        queries: query id -> text.
        training: queries of the training rows; of very many, every n-th is looked at and counts n times.
        per_query: model -> query id -> nDCG@10.
    """
    languages = dict(zip(queries, identified(list(queries.values()), _SURE), strict=True))
    every = max(1, len(training) // _LOOKED_AT)
    rows = Counter(identified(training[::every], _SURE))
    found: dict[str, dict[str, Any]] = {}
    for language, count in Counter(languages.values()).most_common():
        here = [query for query, code in languages.items() if code == language]
        means = {}
        for model, values in per_query.items():
            judged = [values[query] for query in here if query in values]
            means[model] = round(sum(judged) / len(judged), 4) if judged else None
        found[language] = {"queries": count, "training_rows": rows[language] * every, "ndcg@10": means}
    return found


def language_lines(languages: Mapping[str, Mapping[str, Any]], few_rows: int) -> list[str]:
    """One line per language, and one that names those with fewer than `few_rows` training rows."""
    lines = []
    for language, found in languages.items():
        shown = ", ".join(f"{model} {mean:.3f}" for model, mean in found["ndcg@10"].items() if mean is not None)
        lines.append(f"{language}: {found['queries']} queries, {found['training_rows']} training rows: ndcg@10 {shown}")
    few = [language for language, found in languages.items() if found["training_rows"] < few_rows]
    few = [language for language in few if language != UNDETERMINED]
    if few:
        lines.append(f"fewer than {few_rows} training rows (evaluate.few_rows): {', '.join(few)}")
    return lines
