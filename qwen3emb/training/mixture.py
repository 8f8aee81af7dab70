"""Which dataset each step trains on, and which of its rows: a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["Mixture", "SampleOrder"]


class Mixture:
    """Draws a dataset for each batch in proportion to weight x rows ^ (1 / temperature), and rows of that dataset."""

    def __init__(
        self, sizes: Mapping[str, int], weights: Mapping[str, float], temperature: float, batch_size: int, seed: int
    ) -> None:
        """Compute each dataset's share of the batches.

        Args:
            sizes: rows of each dataset.
            weights: dataset -> weight; 1 for a dataset that is not named, 0 leaves the dataset out.
            temperature: 1 = in proportion to rows; larger values make the shares more equal.
            batch_size: rows of a global batch; a smaller dataset gives all of its rows.
            seed: of the draws and of the order within each dataset.

        Raises:
            ValueError: no rows are left to draw from.
        """
        shares = {name: weights.get(name, 1.0) * sizes[name] ** (1 / temperature) for name in sorted(sizes)}
        self.names = [name for name, share in shares.items() if share > 0]
        if not self.names:
            raise ValueError("no dataset has both rows and a weight above 0")
        kept = np.array([shares[name] for name in self.names])
        self._ends = np.cumsum(kept / kept.sum())
        self._sizes = [sizes[name] for name in self.names]
        self._batch, self._seed = batch_size, seed
        self.orders = [SampleOrder(size, seed) for size in self._sizes]
        self._drawn: list[int] = []
        self._nth: list[int] = []
        self._counts = [0] * len(self.names)

    def batch(self, step: int) -> tuple[str, list[int]]:
        """(dataset, its row numbers) of global batch `step`."""
        while len(self._drawn) <= step:
            chosen = self._draw(len(self._drawn))
            self._nth.append(self._counts[chosen])
            self._counts[chosen] += 1
            self._drawn.append(chosen)
        number = self._drawn[step]
        size = min(self._batch, self._sizes[number])
        return self.names[number], self.orders[number].batch(self._nth[step], size)

    def _draw(self, step: int) -> int:
        point = np.random.default_rng([self._seed, 1, step]).random()
        return min(int(np.searchsorted(self._ends, point, side="right")), len(self.names) - 1)


class SampleOrder:
    """Epochs of the shuffled rows of one dataset, one after the other: a pure function of (seed, position).

    Only the permutation of the epoch that was read last is kept, since steps go forward.

    Attributes:
        shuffled: number of permutations that were computed so far.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self.shuffled = 0

    def batch(self, number: int, size: int) -> list[int]:
        """Row numbers of the batch `number` (from 0) of `size` rows, whatever the world size."""
        first, end, numbers = number * size, (number + 1) * size, []
        while first < end:
            epoch, place = divmod(first, self._rows)
            part = self._of(epoch)[place : place + end - first]
            numbers.extend(part.tolist())
            first += len(part)
        return numbers

    def _of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(self._rows)
            self.shuffled += 1
        return self._order
