"""A side of a benchmark in a process of its own, as its users run it: its memory and its settings are its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp


class Apart:
    """An object made and kept in another process; `call` runs one of its methods there."""

    def __init__(self, threads: int, setup: Callable[[], None], kind: Callable[..., Any], *arguments: Any) -> None:
        """Start the process.

        Args:
            threads: of torch there.
            setup: is called there first.
            kind: makes the object there from `arguments`; like them it must be importable.
        """
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        order = (threads, setup, kind, arguments, theirs)
        self._process = context.Process(target=_serve, args=order, daemon=True)
        self._process.start()

    def call(self, method: str, *arguments: Any) -> Any:
        """What the object's method returns."""
        self._pipe.send((method, arguments))
        good, answer = self._pipe.recv()
        if not good:
            raise SystemExit(f"{method}: {answer}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def _serve(
    threads: int, setup: Callable[[], None], kind: Callable[..., Any], arguments: tuple[Any, ...], pipe: Any
) -> None:
    torch.set_num_threads(threads)
    setup()
    made = kind(*arguments)
    while (order := pipe.recv()) is not None:
        method, values = order
        try:
            pipe.send((True, getattr(made, method)(*values)))
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))
