"""Training texts that are near duplicates of evaluation texts, by MinHash signatures."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

__all__ = ["near_matches"]


def near_matches(signatures: NDArray[np.uint64], against: NDArray[np.uint64], threshold: float) -> NDArray[np.int64]:
    """For each signature the row of a similar one in `against`, or -1 where none is similar.

    Similar means equal in a share of at least `threshold` (in (0, 1]) places. Unlike `near_duplicates`, every
    row of `against` counts, those that are duplicates of each other too, so that nothing similar to any of
    them is missed (for a threshold above 1/2).

    Args:
        signatures: (n, places), as `minhash` gives them.
        against: (m, places).

    Returns:
        (n,) rows of `against`.
    """
    found = np.full(len(signatures), -1, dtype=np.int64)
    if not len(signatures) or not len(against):
        return found
    places = signatures.shape[1]
    needed = int(np.ceil(threshold * places - 1e-9))
    others, rows = np.unique(against, axis=0, return_index=True)
    # Fewer differing places than bands leave one band untouched (pigeonhole).
    bands = max(1, min(places - needed + 1, places // 2))
    for columns in np.array_split(np.arange(places), bands):
        table = _by_band(others[:, columns])
        for i, key in enumerate(_band_keys(signatures[:, columns])):
            candidates = table.get(key) if found[i] < 0 else None
            if candidates is not None:
                similar = (others[candidates] == signatures[i]).sum(axis=1) >= needed
                found[i] = rows[candidates[int(similar.argmax())]] if similar.any() else -1
    return found


def _by_band(band: NDArray[np.uint64]) -> dict[bytes, list[int]]:
    table: dict[bytes, list[int]] = defaultdict(list)
    for row, key in enumerate(_band_keys(band)):
        table[key].append(row)
    return dict(table)


def _band_keys(band: NDArray[np.uint64]) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(band)]
