"""Figures by query (nDCG@10) as `qwen3emb evaluate` writes them, `subset/split/query` -> figure; the main split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qwen3emb.core.errors import UserError

__all__ = ["PER_QUERY", "checked_figures", "figure_key", "finite", "main_first", "of_split"]

PER_QUERY = "per_query"
"""Folder below `--out` with a file `<model>/<task>.json` for each retrieval task."""

_MAIN = "test"


def figure_key(subset: str, split: str, query: str) -> str:
    """The key of a query's figure."""
    return f"{subset}/{split}/{query}"


def finite(value: object) -> bool:
    """Whether a value of a JSON file is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def checked_figures(content: object, source: str) -> dict[str, float]:
    """Check that the content of a JSON file is figures by query, and return it.

    Args:
        content: parsed JSON.
        source: the file's name, for messages.

    Raises:
        UserError: it is no mapping of queries to finite numbers.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{source}: expected a mapping of queries to figures, it holds {type(content).__name__}")
    for query, figure in content.items():
        if not finite(figure):
            raise UserError(f"{source}: the figure of query {query!r} is {figure!r}, not a number; evaluate it again")
    return dict(content)


def of_split(figures: Mapping[str, float], split: str | None) -> dict[str, float]:
    """The figures of one split; all of them where it is None."""
    if split is None:
        return dict(figures)
    return {key: value for key, value in figures.items() if key.split("/", 2)[1:2] == [split]}


def main_first(splits: Sequence[str]) -> list[str]:
    """The distinct splits with the main one first: `test`, else the first one of `splits`."""
    return sorted(dict.fromkeys(splits), key=lambda split: split != _MAIN)
