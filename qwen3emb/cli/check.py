"""`qwen3emb check-config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qwen3emb.cli.options import Debug, Json, Overrides, finish, print_json
from qwen3emb.config.run import json_schema, load_config
from qwen3emb.core.errors import UserError

__all__ = ["check_config"]


def check_config(
    files: Annotated[list[Path] | None, typer.Argument(help="Configs.", show_default=False)] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema for editors.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Validate configs without starting anything; a typo is answered with the nearest valid key.

    Also says which sets the run will be evaluated on and how many queries they have at most.

    Example: qwen3emb check-config examples/*.yaml --set weak.steps=10
    """

    def body() -> int:
        if schema:
            print_json(json_schema())
        elif not files:
            raise UserError("check-config: name at least one file, or give --schema")
        checked = [_check(file, overrides or []) for file in files or []]
        if as_json:
            print_json(checked)
        for result in [] if as_json else checked:
            typer.echo(
                f"{result['file']}: ok" if result["valid"] else f"error: {result['error']}",
                err=not result["valid"],
            )
            for line in result["evaluation"]:
                typer.echo(f"  {line}")
        return 0 if all(result["valid"] for result in checked) else UserError.exit_code

    finish(body, debug)


def _check(file: Path, overrides: list[str]) -> dict[str, Any]:
    from qwen3emb.text.evaluation_sets import planned_sets

    try:
        sets = planned_sets(load_config(file, overrides))
    except UserError as error:
        return {"file": str(file), "valid": False, "error": str(error), "evaluation": []}
    return {"file": str(file), "valid": True, "error": None, "evaluation": sets}
