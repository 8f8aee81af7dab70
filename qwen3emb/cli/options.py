"""Options that several commands share, and how a command ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from qwen3emb.core.exits import guarded

__all__ = ["Config", "Debug", "Json", "Overrides", "finish", "print_json"]

Config = Annotated[Path, typer.Argument(help="YAML of the run.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show stack traces.")]


def finish(action: Callable[[], int | None], debug: bool) -> None:
    """Run a command's body and exit: with the code that it returns (None = 0), 2 for a `UserError`, 1 for other errors.

    Args:
        action: the body.
        debug: show stack traces.
    """
    code: list[int | None] = [0]

    def body() -> None:
        code[0] = action()

    raise typer.Exit(guarded(body, debug) or code[0] or 0)


def print_json(content: Any) -> None:
    """Print `content` as JSON on standard output."""
    print(json.dumps(content, indent=2, ensure_ascii=False))
