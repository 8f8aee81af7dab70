"""Data cards: counts and lengths of an artifact's rows, as JSON (`card.json`) and as a page to read (`card.md`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qwen3emb.core.location import redacted
from qwen3emb.core.storage import Storage

__all__ = ["CARD", "PAGE", "count_rows", "markdown_card", "write_card"]

CARD, PAGE = "card.json", "card.md"
"""Names of the two files in an artifact's folder."""

_COUNTED = ("dataset", "language", "question_type", "difficulty")
_MEASURED = ("text", "query", "document", "positive")
_CHARACTERS = (0, 50, 100, 200, 500, 1000, 2000, 5000)
_MOST = 40  # the most frequent values of a column are listed, up to this many


def count_rows(out: Storage, folders: Sequence[str]) -> dict[str, Any]:
    """Rows by dataset, language, type and difficulty, and lengths in characters, of the tables in some folders.

    Args:
        out: the artifact.
        folders: with Parquet files; read one file after the other.

    Returns:
        {"FOLDER": rows, "FOLDER_by_COLUMN": {value: rows}, "characters_of_FOLDER": {range: {column: rows}}}; columns
        that a table lacks, or that are empty everywhere, are left out.
    """
    card: dict[str, Any] = {}
    for folder in folders:
        rows, counts, lengths = 0, {name: Counter[str]() for name in _COUNTED}, {name: _bins([]) for name in _MEASURED}
        for file in out.names(folder, ".parquet"):
            table = out.read_table(file)
            rows += len(table)
            for name in set(_COUNTED) & set(table.column_names):
                counts[name].update(value or "" for value in table[name].to_pylist())
            for name in set(_MEASURED) & set(table.column_names):
                lengths[name] += _bins(_lengths(table[name]))
        card[folder] = rows
        nonempty = {name: counter for name, counter in counts.items() if any(counter)}
        card |= {f"{folder}_by_{name}": dict(counter.most_common(_MOST)) for name, counter in nonempty.items()}
        histograms = {name: bins for name, bins in lengths.items() if bins.sum()}
        names = [f"{low}-{high}" for low, high in zip(_CHARACTERS, (*_CHARACTERS[1:], ""), strict=True)]
        card[f"characters_of_{folder}"] = {
            edge: {name: int(bins[i]) for name, bins in histograms.items()} for i, edge in enumerate(names)
        }
    return card


def write_card(out: Storage, title: str, card: Mapping[str, Any]) -> None:
    """Write `card.json` and `card.md` into an artifact's folder."""
    shown = redacted(dict(card))
    out.write_json(CARD, shown)
    out.write_bytes(PAGE, markdown_card(title, shown).encode())


def _lengths(column: pa.ChunkedArray) -> list[int]:
    lengths: list[int] = pc.utf8_length(column).drop_null().to_pylist()
    return lengths


def _bins(lengths: Sequence[int]) -> np.ndarray:
    counts: np.ndarray = np.histogram(lengths, bins=[*_CHARACTERS, np.inf])[0]
    return counts


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
            nested = all(isinstance(entry, Mapping) for entry in value.values())
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
