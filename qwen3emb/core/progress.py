"""Progress of a long call as a line now and then instead of one per piece of work."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["paced"]


def paced(say: Callable[[str], None], what: str, seconds: float = 5.0) -> Callable[[int, int], None]:
    """A callback for (done, total): says `WHAT: DONE of TOTAL` once in `seconds` at most, and at the end."""
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= seconds:
            last = now
            say(f"{what}: {done} of {total}")

    return report
