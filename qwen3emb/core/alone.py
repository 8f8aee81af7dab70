"""A lock of this machine, so that one of its processes does what all of them need."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen3emb.core.errors import StageFailure

__all__ = ["alone"]

_PATIENCE = 4 * 3600.0  # seconds for which another process of this machine may download
_LOOK = 0.2


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock of this machine; the kernel frees it when its holder ends, however it ends.

    Args:
        lock: file that stands for it; made where it is missing.
        what: is being done, for the message: `s3://... is being fetched`.

    Raises:
        StageFailure: another process has held it for hours.
    """
    with lock.open("w") as file:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StageFailure(
                        f"{what} by another process of this machine for {_PATIENCE / 3600:g} hours"
                    ) from None
                time.sleep(_LOOK)
        yield
