"""When two texts count as the same text: one rule for duplicates, mining, and the masks of the losses.

What is stored for a text, such as its vector, is stored by its `exact_hash`, for which white space counts too.
"""

from __future__ import annotations

import unicodedata
from hashlib import blake2b

__all__ = ["content_hash", "content_id", "exact_hash"]


def content_hash(text: str) -> str:
    """32 hexadecimal digits, equal for texts that are equal in NFC with white space collapsed (blake2b, 128 bit).

    Case and every other character count. Lone surrogates are hashed as they are, so that any `str` has an identity.
    """
    normal = " ".join(unicodedata.normalize("NFC", text).split())
    return blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def content_id(text: str) -> int:
    """The first 62 bits of `content_hash`: the same identity as a number that an int64 tensor holds.

    Two of a million different texts share one with a chance of 1 in 10 million.
    """
    return int(content_hash(text)[:16], 16) >> 2


def exact_hash(text: str) -> bytes:
    """16 bytes, equal for texts that are equal in every character (blake2b, 128 bit); lone surrogates count too."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
