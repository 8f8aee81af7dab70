"""Near duplicates by MinHash (Broder, 1997) and LSH; for exact ones see `text.identity`."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from datasketch import LeanMinHash, MinHash, MinHashLSH
from numpy.typing import NDArray

from qwen3emb.core.errors import UserError

__all__ = ["band_keys", "is_unspaced", "minhash", "minhashes", "near_duplicates", "shingles"]

_SEED = 1  # of the permutations: signatures compare only with signatures of the same seed
_SCHEME = "affine64"
_PLACES = 64
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
# Scripts written without spaces: Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
)
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that multiplying is a bijection modulo 2**64


def minhash(text: str, num_perm: int = _PLACES, shingle: int = 5) -> NDArray[np.uint64]:
    """The MinHash signature of a text, shape (num_perm,), uint64.

    The set is of runs of `shingle` words (punctuation marks count as words, case does not), or of
    characters where a third of the text is in a script without spaces or it has fewer words than that.
    The share of equal places of two signatures estimates the Jaccard similarity of the sets.
    """
    sketch = MinHash(num_perm, _SEED, hashfunc=int, permutations=_permutations(num_perm), scheme=_SCHEME)
    sketch.update_batch(shingles(text, shingle).tolist())
    return np.asarray(sketch.hashvalues, dtype=np.uint64)


def minhashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """(n, places) the signatures of texts, as `minhash` gives them by default; (0, places) of no texts."""
    return np.array([minhash(text) for text in texts], dtype=np.uint64).reshape(len(texts), _PLACES)


@lru_cache(maxsize=8)
def _permutations(num_perm: int) -> NDArray[np.uint64]:
    permutations: NDArray[np.uint64] = MinHash(num_perm, _SEED, scheme=_SCHEME).permutations
    return permutations


def shingles(text: str, size: int) -> NDArray[np.uint64]:
    """The distinct 64-bit hashes of the text's runs of `size` words, or characters, see `minhash`; (n,) ascending."""
    normal = unicodedata.normalize("NFC", text).lower()
    words = [] if is_unspaced(normal) else _WORD_OR_MARK.findall(normal)
    if len(words) >= size:
        units = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words], np.uint64)
    else:
        joined = " ".join(normal.split()).encode("utf-32-le", "surrogatepass")
        units = np.frombuffer(joined, dtype=np.uint32).astype(np.uint64)
    return np.unique(_windows(units + np.uint64(1), size))


def is_unspaced(text: str) -> bool:
    """True where a third of the characters are of scripts written without spaces."""
    return not text.isascii() and 3 * len(_UNSPACED.findall(text)) >= len(text)


def _windows(units: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """A polynomial hash modulo 2**64 of each run of `size` units; one run of all where there are fewer."""
    size = min(size, len(units))
    count = len(units) - size + 1 if size else 0
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(size):
        hashes = hashes * np.uint64(_MULTIPLIER) + units[i : i + count]
    return hashes


def near_duplicates(
    ids: Sequence[str], signatures: Sequence[NDArray[np.uint64]] | NDArray[np.uint64], threshold: float
) -> dict[str, str]:
    """Each duplicate's id -> the id that is kept for it, the first kept one whose signature is as similar.

    `signatures` has one row per id, in the same order, of at least 2 places; similar means equal in a
    share of at least `threshold` places. An id is kept unless an earlier kept one is similar to it, as a
    comparison with all kept ones would find (LSH only narrows the search, and misses none for a threshold
    above 1/2). Raises UserError for a threshold outside (0, 1] or an id that occurs twice.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"the near-duplicate threshold is {threshold}; it must be above 0 and at most 1.")
    if len(set(ids)) != len(ids):
        raise UserError("ids of texts to deduplicate must be distinct; give each row its own id.")
    rows = np.asarray(signatures, dtype=np.uint64)  # (ids, num_perm)
    assert len(rows) == len(ids), (len(rows), len(ids))
    if len(ids) == 0:
        return {}
    needed = int(np.ceil(threshold * rows.shape[1] - 1e-9))  # equal places
    bands = _bands(rows.shape[1], needed)
    index = MinHashLSH(num_perm=rows.shape[1], params=bands)
    duplicates: dict[str, str] = {}
    for i in np.flatnonzero(_sharing_a_band(rows, *bands)).tolist():  # no other signature can be similar to one
        sketch = LeanMinHash(seed=_SEED, hashvalues=rows[i], scheme=_SCHEME)
        candidates = np.sort(np.array(index.query(sketch), dtype=np.int64))
        similar = candidates[(rows[candidates] == rows[i]).sum(axis=1) >= needed]
        if len(similar):
            duplicates[ids[i]] = ids[int(similar[0])]
        else:
            index.insert(i, sketch, check_duplication=False)
    return duplicates


def _bands(num_perm: int, needed: int) -> tuple[int, int]:
    """(bands, rows per band) such that signatures equal in `needed` places share a whole band.

    `num_perm - needed` differing places cannot touch more bands than their number (pigeonhole); bands
    of one row would make nearly every pair a candidate, so at least two are kept.
    """
    per_band = max(2, num_perm // max(2, num_perm - needed + 1))
    return num_perm // per_band, per_band


def _sharing_a_band(rows: NDArray[np.uint64], bands: int, per_band: int) -> NDArray[np.bool_]:
    """(n,) whether a signature has a band that another one has too, or one that hashes alike."""
    shared = np.zeros(len(rows), dtype=np.bool_)
    for band in range(bands):
        keys = band_keys(rows[:, band * per_band : (band + 1) * per_band])
        _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
        shared |= counts[place] > 1
    return shared


def band_keys(band: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(n,) a key of each row of a band of signatures, (n, places): equal for equal rows, rarely for others."""
    keys = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        keys = keys * np.uint64(_MULTIPLIER) + column
    return keys
