"""Figures by query as `qwen3emb evaluate` keeps them, `subset/split/query` -> figure, and a task's main split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["PER_QUERY", "figure_key", "main_first", "of_split"]

PER_QUERY = "per_query"
"""Folder below `--out`: `<model>/<task>.json`."""

_MAIN = "test"


def figure_key(subset: str, split: str, query: str) -> str:
    """The key of a query's figure."""
    return f"{subset}/{split}/{query}"


def of_split(figures: Mapping[str, float], split: str | None) -> dict[str, float]:
    """The figures of one split; all of them where it is None."""
    if split is None:
        return dict(figures)
    return {key: value for key, value in figures.items() if key.split("/", 2)[1:2] == [split]}


def main_first(splits: Sequence[str]) -> list[str]:
    """Splits with the main one first: `test`, which a task's authors report, else the task's own first one."""
    return sorted(dict.fromkeys(splits), key=lambda split: split != _MAIN)
