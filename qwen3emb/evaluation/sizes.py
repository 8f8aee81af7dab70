"""What smaller vectors of the merged model cost: size against nDCG@10, from vectors that the evaluation has anyway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from qwen3emb.core.errors import UserError
from qwen3emb.encoding.quantised import Kind, rank, shortened, vector_bytes
from qwen3emb.evaluation.ranking import Ranking
from qwen3emb.metrics.bootstrap import paired_bootstrap

__all__ = ["FULL", "Size", "size_rankings", "size_rows", "size_table", "sizes_of"]

FULL = "float32"
"""Name of the row that the others are compared with."""

_TOP = 10


@dataclass(frozen=True)
class Size:
    """An entry of `evaluate.vectors`.

    Attributes:
        name: as in the configuration.
        kind: of the documents' vectors.
        rescored: whether hits are rescored.
        dimension: leading dimensions that are kept.
    """

    name: str
    kind: Kind
    rescored: bool
    dimension: int

    @staticmethod
    def of(name: str, dimensions: int) -> Size:
        """Of a name, for a model of so many dimensions.

        Raises:
            UserError: the name asks for more dimensions.
        """
        vectors, _, wanted = name.partition("@")
        word, _, rescore = vectors.partition("+")
        kind = next(k for k in get_args(Kind) if k == word)
        if wanted and int(wanted) > dimensions:
            raise UserError(f"evaluate.vectors has {name}, but the merged model's vectors have {dimensions} dimensions")
        return Size(name, kind, bool(rescore), int(wanted or dimensions))

    @property
    def bytes(self) -> int:
        """Of one document's vector in memory."""
        return vector_bytes(self.kind, self.dimension)


def sizes_of(names: Sequence[str], dimensions: int) -> list[Size]:
    """The entries of `evaluate.vectors`, each once, without the one that the others are compared with.

    Raises:
        UserError: an entry asks for more than the model's `dimensions`.
    """
    return [Size.of(name, dimensions) for name in dict.fromkeys(names) if name != FULL]


def size_rankings(
    sizes: Sequence[Size], queries: np.ndarray, documents: np.ndarray, rescore: int, own: Sequence[Sequence[int]]
) -> Iterator[tuple[Size, Ranking]]:
    """The ten best documents of each query for every size.

    Args:
        sizes: from `sizes_of`.
        queries: (Q, D) float32.
        documents: (C, D) float32.
        rescore: so many times ten hits are rescored.
        own: for each query the rows of documents that do not count; they may be in the ranking, which is longer by as
            many.
    """
    top = _TOP + max(map(len, own), default=0)
    for size in sizes:
        asked, searched = shortened(queries, size.dimension), shortened(documents, size.dimension)
        yield size, Ranking(*rank(asked, searched, size.kind, rescore if size.rescored else 0, top))


def size_rows(
    sizes: Sequence[Size], figures: Mapping[str, Mapping[str, float]], dimensions: int
) -> list[dict[str, Any]]:
    """A row for whole float32 vectors and one for each size.

    Args:
        sizes: from `sizes_of`.
        figures: name -> query -> nDCG@10, also of `FULL`.
        dimensions: of the whole vectors.

    Returns:
        Rows with `vectors`, `bytes` of a document, `dimensions`, `ndcg@10`, and but for the first the `difference` to
        it with `low` and `high`, the ends of its 95 % interval (paired bootstrap over the queries).
    """
    rows = []
    for size in [Size.of(FULL, dimensions), *sizes]:
        values = figures[size.name]
        row: dict[str, Any] = {"vectors": size.name, "bytes": size.bytes, "dimensions": size.dimension}
        row["ndcg@10"] = round(float(np.mean(list(values.values()))), 4)
        gain = paired_bootstrap(values, figures[FULL]) if size.name != FULL else None
        if gain:
            ends = {"difference": gain.mean, "low": gain.low, "high": gain.high}
            row |= {name: round(value, 4) for name, value in ends.items()}
        rows.append(row)
    return rows


def size_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `size_rows` as a table."""
    title = "Size of the merged model's vectors (evaluate.vectors)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("vectors", "bytes", "of float32", "ndcg@10", "difference, 95 % interval"):
        table.add_column(name, justify="left" if name == "vectors" else "right", no_wrap=True)
    for row in rows:
        share = f"1/{rows[0]['bytes'] / row['bytes']:.3g}" if row["bytes"] < rows[0]["bytes"] else ""
        gain = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]" if "difference" in row else ""
        table.add_row(row["vectors"], str(row["bytes"]), share, f"{row['ndcg@10']:.4f}", gain)
    return table
