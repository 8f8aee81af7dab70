"""The search deployment: an index in memory, searched with query vectors."""

from __future__ import annotations

import asyncio

import numpy as np

from qwen3emb.core.storage import Storage
from qwen3emb.search.index import Hit, SearchIndex

__all__ = ["Searcher"]


class Searcher:
    """One replica of the search index."""

    def __init__(self, index: str) -> None:
        """Load the index from its folder or URI."""
        self._index = SearchIndex.open(Storage(index))

    async def __call__(self, vector: np.ndarray, top: int) -> list[Hit]:
        """The `top` documents nearest to a normalised (dimension,) vector, best first."""
        return await asyncio.to_thread(self._index.search, vector, top)
