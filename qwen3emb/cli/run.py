"""`qwen3emb run`, `submit`, `ablate` and `report`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from qwen3emb.cli.options import Config, Debug, Json, Overrides, finish, print_json
from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.errors import UserError

if TYPE_CHECKING:
    from qwen3emb.pipeline.stages import Stage

__all__ = ["ablate", "report", "run", "submit"]

_StageName = Annotated[str | None, typer.Option("--stage", help="One stage alone; default the whole pipeline.")]
_AtLeast = Annotated[Literal["even", "win"] | None, typer.Option(help="Exit with 1 where the verdict is less.")]
_With = Annotated[
    list[str] | None,
    typer.Option("--with", help="A row that costs a training: `distill`, where the run has no such stage."),
]
_Replace = Annotated[bool, typer.Option("--replace", help="Throw away output of another configuration.")]


def run(
    config: Config,
    stage: _StageName = None,
    overrides: Overrides = None,
    replace: _Replace = False,
    debug: Debug = False,
) -> None:
    """Run the pipeline, or one stage of it, from this machine; what is done is skipped.

    Example: qwen3emb run examples/demo.yaml --set supervised.steps=60
    """

    def body() -> None:
        load_config(config, overrides)
        module, arguments = _module(stage)
        _become(module, config, overrides, [*arguments, *["--replace"] * replace, *["--debug"] * debug])

    finish(body, debug)


def _become(module: str, config: Path, overrides: list[str] | None, words: list[str]) -> None:
    """Run a job's module in the place of this process, so that signals and the exit code are the job's own."""
    sets = [word for override in overrides or [] for word in ("--set", override)]
    os.execv(sys.executable, [sys.executable, "-m", module, "--config", str(config), *sets, *words])


def ablate(
    config: Config,
    overrides: Overrides = None,
    extra: _With = None,
    replace: _Replace = False,
    at_least: _AtLeast = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What each part of the recipe is worth on your data: the rows of the paper's Table 5, and a weak reranker stage.

    The run itself is finished first; variants reuse its stages and lie below its storage in `ablation/`. The last line
    is the verdict on the full run against the one without synthetic data.

    Example: qwen3emb ablate examples/demo.yaml
    """

    def body() -> None:
        load_config(config, overrides)
        words = [word for name in extra or [] for word in ("--with", name)]
        words += ["--replace"] * replace + ["--json"] * as_json + ["--debug"] * debug
        words += ["--at-least", at_least] if at_least else []
        _become("jobs.ablate", config, overrides, words)

    finish(body, debug)


def _module(stage: str | None) -> tuple[str, list[str]]:
    """The module of a stage and its arguments, or the pipeline's."""
    if stage is None:
        return "jobs.pipeline", []
    entry = _stage(stage)
    return entry.module, list(entry.arguments)


def _stage(name: str) -> Stage:
    from qwen3emb.pipeline.stages import STAGES

    if name not in STAGES:
        raise UserError(f"stage {name!r}: no such stage; there are {', '.join(STAGES)}")
    return STAGES[name]


def submit(
    config: Config,
    address: Annotated[
        str | None,
        typer.Option(help="http://HOST:8265, HOST:6379 or auto; default cluster.address, RAY_ADDRESS."),
    ] = None,
    stage: _StageName = None,
    overrides: Overrides = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stream the logs until it ends.")] = True,
    replace: _Replace = False,
    ask: Annotated[bool, typer.Option("--preflight/--no-preflight", help="Ask the cluster first.")] = True,
    debug: Debug = False,
) -> None:
    """Submit the pipeline, or one stage of it, as a job to a Ray cluster; its exit code comes back.

    The current folder is sent along, without what .gitignore names, and models that only this machine has are copied to
    the run's storage. Relative storage needs a cluster on this machine.

    Example: qwen3emb submit examples/qwen3-0.6b.yaml --address http://head:8265 --stage corpus
    """

    def body() -> int:
        cfg = load_config(config, overrides)
        module, arguments = _module(stage)
        cluster_address = address or cfg.cluster.address or os.environ.get("RAY_ADDRESS")
        if not cluster_address:
            raise UserError("submit: which cluster? Give --address http://HOST:8265, or set RAY_ADDRESS")
        from cluster.submission import cluster_target, connect, exit_code, follow, preflight

        target = cluster_target(connect(cluster_address), cfg, str(config), overrides or [])
        stages = _models_are_there(cfg, stage)
        if ask:
            preflight(target, stages)
        asked = [] if stage else ["--no-preflight"]  # the pipeline would ask once more
        flags = ["--replace"] * replace + ["--debug"] * debug
        job = target.start(module, [*arguments, *asked, *flags])
        print(job, flush=True)
        if not wait:
            return 0
        follow(target.client, job)
        return exit_code(target.client, job)

    finish(body, debug)


def _models_are_there(cfg: RunConfig, stage: str | None) -> list[str]:
    """Copy what only this machine has to the run's storage; the stages that are to run."""
    from qwen3emb.pipeline.run_models import copy_models_of_this_machine
    from qwen3emb.pipeline.stages import enabled_stages

    names = [stage] if stage else enabled_stages(cfg)
    copy_models_of_this_machine(cfg, names, lambda line: print(line, file=sys.stderr, flush=True))
    return names


def report(
    config: Config,
    overrides: Overrides = None,
    at_least: _AtLeast = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What each stage bought on held-out data, by language, which merge was kept, and the verdict, from its storage.

    Example: qwen3emb report examples/demo.yaml
    """

    def body() -> int:
        from qwen3emb.core.artifact import read_record
        from qwen3emb.metrics.verdict import reaches
        from qwen3emb.pipeline.report import (
            comparisons,
            further_sets,
            metrics_of,
            nothing_to_judge,
            quality_tables,
            verdict_of,
        )
        from qwen3emb.pipeline.stages import stage_folder

        cfg = load_config(config, overrides)
        metrics = metrics_of(read_record(stage_folder(cfg, "evaluate")))
        verdict = verdict_of(cfg)
        if at_least and verdict is None:
            raise UserError(
                nothing_to_judge(cfg)
                or "this evaluation has no verdict: it ranks with one model only; add base to evaluate.compare"
            )
        if as_json:
            merging = comparisons(cfg)
            merging = {"merging": merging} if merging else {}
            print_json(metrics | further_sets(cfg) | {"verdict": verdict} | merging)
        else:
            for table in quality_tables(cfg):
                Console().print(table)
            note = nothing_to_judge(cfg)
            if note:
                Console().print(note, highlight=False, markup=False)
            if verdict:
                Console(width=160).print(verdict["line"], highlight=False, markup=False)
        return int(bool(at_least and verdict and not reaches(verdict["verdict"], at_least)))

    finish(body, debug)
