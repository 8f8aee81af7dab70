"""Training texts that are like evaluation texts: near duplicates by MinHash, and containment by word n-grams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3emb.text.near_duplicates import band_keys, shingles

__all__ = ["EvaluationNgrams", "near_matches"]


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
    matches = np.full(len(signatures), -1, dtype=np.int64)
    if not len(signatures) or not len(against):
        return matches
    places = signatures.shape[1]
    needed = int(np.ceil(threshold * places - 1e-9))
    others, rows = np.unique(against, axis=0, return_index=True)
    # Fewer differing places than bands leave one band untouched (pigeonhole).
    bands = max(1, min(places - needed + 1, places // 2))
    for columns in np.array_split(np.arange(places), bands):
        keys = band_keys(others[:, columns])
        order = np.argsort(keys, kind="stable")
        keys, signature_keys = keys[order], band_keys(signatures[:, columns])
        first, end = (np.searchsorted(keys, signature_keys, side) for side in ("left", "right"))
        for i in np.flatnonzero((matches < 0) & (first < end)).tolist():
            candidates = order[first[i] : end[i]]
            similar = (others[candidates] == signatures[i]).sum(axis=1) >= needed
            matches[i] = rows[candidates[int(similar.argmax())]] if similar.any() else -1
    return matches


class EvaluationNgrams:
    """An index of the word n-grams of evaluation texts, to find training texts that contain one, whole or in part."""

    def __init__(self, names: Sequence[str], texts: Sequence[str], share: float, size: int = 8) -> None:
        """Index the texts.

        Args:
            names: a name for each text, for reasons of rejects.
            texts: queries and documents that are evaluated on.
            share: in (0, 1]; a training text contains an evaluation text if it has this share of its distinct n-grams.
            size: words of an n-gram; characters in scripts without spaces and in texts with fewer words, so that a
                short query is found in a training text that is as short.
        """
        ngrams = [shingles(text, size) for text in texts]
        self._names, self._share, self._size = list(names), share, size
        self._counts = np.array([len(hashes) for hashes in ngrams], dtype=np.int64)
        owners = np.repeat(np.arange(len(ngrams)), self._counts)
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *ngrams])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]

    def held(self, text: str) -> str | None:
        """The evaluation text that `text` contains the largest share of, and the share, as a phrase for a reject.

        None where the share of no evaluation text's n-grams reaches `share`.
        """
        hashes = shingles(text, self._size)
        low, high = (np.searchsorted(self._hashes, hashes, side=side) for side in ("left", "right"))
        hits = np.concatenate([np.empty(0, dtype=np.int64), *map(np.arange, low[high > low], high[high > low])])
        if not len(hits):
            return None
        shares = np.bincount(self._owners[hits], minlength=len(self._counts)) / np.maximum(self._counts, 1)
        best = int(shares.argmax())
        if shares[best] < self._share:
            return None
        return f"{self._names[best]}, {shares[best]:.0%} of its runs of {self._size}"
