"""A data card as a page to read: the counts of `card.json` as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["markdown_card"]


def markdown_card(title: str, card: Mapping[str, Any]) -> str:
    """Markdown of a card.

    Args:
        title: heading.
        card: name -> number or text, or a mapping (a table of its own), or a mapping of mappings (one row for each).
    """
    single = {name: value for name, value in card.items() if not isinstance(value, Mapping)}
    parts = [f"# {title}", _pairs(single)]
    for name, value in card.items():
        if isinstance(value, Mapping) and value:
            nested = all(isinstance(one, Mapping) for one in value.values())
            parts += [f"## {_words(name)}", _rows(value) if nested else _pairs(value)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _pairs(values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    lines = [f"| {_cell(_words(str(name)) or '-')} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _rows(values: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    head = ["| | " + " | ".join(map(_words, columns)) + " |", "|---" * (len(columns) + 1) + "|"]
    lines = [
        f"| {_cell(name)} | " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |"
        for name, row in values.items()
    ]
    return "\n".join([*head, *lines])
