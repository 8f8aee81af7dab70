"""Draws that depend on their arguments only: the same on every machine and in every run."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

__all__ = ["chosen_by_hash", "hash_place", "unit_draw"]


def unit_draw(*parts: object) -> float:
    """A number in [0, 1) that depends on the arguments only, the same in every process."""
    digest = blake2b("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


def chosen_by_hash(names: Iterable[str], count: int | None, seed: int) -> set[str]:
    """`count` of the names (all for None), drawn by a hash of each: the same on every machine and every run.

    A name that is drawn for some count is also drawn for every larger count.
    """
    distinct = set(names)
    if count is None or count >= len(distinct):
        return distinct
    return set(sorted(distinct, key=lambda name: (hash_place(name, seed), name))[:count])


def hash_place(name: str, seed: int) -> bytes:
    """16 bytes that names are sorted by in a draw: a hash of `seed` and `name`."""
    return blake2b(f"{seed}:{name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
