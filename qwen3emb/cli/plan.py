"""`qwen3emb plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qwen3emb.cli.options import Config, Debug, Json, Overrides, finish, print_json
from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.errors import UserError

if TYPE_CHECKING:
    from qwen3emb.pipeline.planning.report import Terms

__all__ = ["plan"]

_DEFAULT_GPU = "h100"


def plan(
    config: Config,
    gpu: Annotated[str | None, typer.Option("--gpu", help="h100 (default), h200, a100, a100-40, l40s or l4.")] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="GPUs that there are.")] = None,
    prices: Annotated[Path | None, typer.Option("--prices", help="YAML: a GPU's name, price of its hour.")] = None,
    assume: Annotated[
        list[str] | None, typer.Option("--assume", metavar="NAME=VALUE", help="Another assumption (docs/plan.md).")
    ] = None,
    measured: Annotated[bool, typer.Option("--measured", help="Compare with the stages that are done.")] = False,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What a run will take, before anything starts: rows, tokens, FLOPs, memory, GPU hours, time and price by stage.

    Ends with 1 where a stage cannot fit on the GPUs. Nothing but the configuration and the models' config.json is read.

    Example: qwen3emb plan examples/qwen3-8b.yaml --gpus 64 --gpu h100
    """

    def body() -> int:
        from qwen3emb.pipeline.planning.assumptions import assumptions
        from qwen3emb.pipeline.planning.measured import compared
        from qwen3emb.pipeline.planning.plan import planned
        from qwen3emb.pipeline.planning.report import (
            as_json as json_of,
        )
        from qwen3emb.pipeline.planning.report import (
            comparison_table,
            memory_table,
            summary_lines,
            work_table,
        )

        cfg, assumed = load_config(config, overrides), assumptions(assume or [])
        terms = _terms(cfg, gpu, gpus, prices)
        estimates = planned(cfg, assumed, terms.gpu, gpus)
        comparisons = compared(cfg, assumed, lambda a: planned(cfg, a, terms.gpu, gpus)) if measured else None
        fits = not any(e.problems for e in estimates)
        if as_json:
            print_json(json_of(estimates, terms, comparisons))
            return 0 if fits else 1
        console = Console(width=max(Console().width, 120))  # so that tables are not cut in a file or narrow terminal
        tables = [work_table(estimates, terms), memory_table(estimates, terms)]
        for table in [*tables, *([comparison_table(comparisons)] if comparisons is not None else [])]:
            console.print(table)
        for line in summary_lines(estimates, terms):
            console.print(line, highlight=False, markup=False)
        return 0 if fits else 1

    finish(body, debug)


def _terms(cfg: RunConfig, gpu: str | None, gpus: int | None, prices: Path | None) -> Terms:
    """The GPUs of the plan and their price.

    Raises:
        UserError: GPUs are named for a run that uses none, no such GPU, or it has no price in the file.
    """
    from qwen3emb.core.cores import usable_cores
    from qwen3emb.pipeline.planning.hardware import known_gpu, read_prices
    from qwen3emb.pipeline.planning.report import Terms

    if not cfg.cluster.gpus_per_worker:
        if gpu or gpus or prices:
            raise UserError(
                "cluster.gpus_per_worker is 0, so this run uses no GPUs: leave --gpu, --gpus and --prices out, or add "
                "--set cluster.gpus_per_worker=1"
            )
        return Terms(None, None, None, usable_cores())
    found = known_gpu(gpu or _DEFAULT_GPU)
    listed = read_prices(prices) if prices else None
    if listed is not None and found.name not in listed:
        raise UserError(f"--prices {prices}: no price for {found.name}; it has {', '.join(listed) or 'none at all'}")
    return Terms(found, gpus, None if listed is None else listed[found.name], 0)
