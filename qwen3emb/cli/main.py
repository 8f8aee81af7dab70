"""The `qwen3emb` command. Heavy imports wait until a command needs them."""

from __future__ import annotations

from collections.abc import Callable

import typer

from qwen3emb.cli.check import check_config
from qwen3emb.cli.data import data_app
from qwen3emb.cli.evaluate import evaluate, promote
from qwen3emb.cli.export import export
from qwen3emb.cli.models import embed, fetch_model, search
from qwen3emb.cli.plan import plan
from qwen3emb.cli.preflight import preflight
from qwen3emb.cli.run import ablate, report, run, submit
from qwen3emb.cli.status import status

__all__ = ["app"]

app = typer.Typer(
    help="Train, merge and serve your own embedding and reranking models with the Qwen3 Embedding recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_COMMANDS: dict[str, Callable[..., None]] = {
    "plan": plan,
    "preflight": preflight,
    "run": run,
    "submit": submit,
    "status": status,
    "report": report,
    "ablate": ablate,
    "embed": embed,
    "search": search,
    "evaluate": evaluate,
    "promote": promote,
    "export": export,
    "fetch-model": fetch_model,
    "check-config": check_config,
}
for _name, _function in _COMMANDS.items():
    app.command(_name)(_function)
app.add_typer(data_app, name="data")
