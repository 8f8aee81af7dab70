"""Settings of glibc's allocator for training steps, which allocate and free the same large tensors again and again.

By default each large tensor is returned to the system when it is freed and allocated again as fresh pages, which costs
a step of a small model 5 to 10 % of its time. Passes of different sizes also leave gaps that the next pass does not fit
into, so that a process grows by a half over the passes of a large batch.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

__all__ = ["between_passes", "give_back", "keep_freed"]

_TRIM_EVERY = 4  # passes
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of malloc.h
_LARGEST = 2**31 - 1


@cache
def _glibc() -> Any:
    """The C library where it has glibc's controls, else None."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def keep_freed() -> bool:
    """Keep freed memory in this process for the next tensors; False where the C library has no such setting."""
    library = _glibc()
    if library is None:
        return False
    return bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, _LARGEST))


def give_back() -> None:
    """Return free pages to the system, those between live tensors too."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def between_passes(number: int, device: str) -> None:
    """Call before pass `number` (from 0) of a step: on CPU, every few passes, it returns unused pages to the system."""
    if device == "cpu" and number and number % _TRIM_EVERY == 0:
        give_back()
