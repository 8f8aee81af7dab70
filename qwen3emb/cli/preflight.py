"""`qwen3emb preflight`: what would stop a run, before anything is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from qwen3emb.cli.options import Config, Debug, Overrides, finish
from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.errors import UserError

__all__ = ["preflight"]


def preflight(
    config: Config,
    address: Annotated[
        str | None, typer.Option(help="http://HOST:8265, HOST:6379 or auto; default cluster.address, RAY_ADDRESS.")
    ] = None,
    cluster_file: Annotated[
        Path | None, typer.Option(help="Ask a file instead: of `ray up`, or a manifest of KubeRay.")
    ] = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """What would stop a run on a cluster, a sentence each: room, storage, versions, models. Exit code 2 where it would.

    A cluster is asked by a job of some seconds; a cluster file, before there is a cluster, for room and for what is
    still to be filled in; without both, the Ray that a run would start here.

    Example: qwen3emb preflight examples/qwen3-8b.yaml --cluster-file cluster/aws.yaml
    """

    def body() -> None:
        cfg = load_config(config, overrides)
        place = address or cfg.cluster.address or os.environ.get("RAY_ADDRESS")
        if cluster_file:
            _file(cluster_file, config, overrides or [])
        elif place:
            _cluster(place, cfg, config, overrides or [])
        else:
            _here(cfg, config)

    finish(body, debug)


def _file(cluster_file: Path, config: Path, overrides: list[str]) -> None:
    from cluster.check import cluster_problems

    problems = cluster_problems(str(cluster_file), [str(config)], overrides)
    if problems:
        raise UserError("\n".join(problems))
    print(f"{cluster_file}: filled in, and large enough for {config}")


def _cluster(address: str, cfg: RunConfig, config: Path, overrides: list[str]) -> None:
    from cluster.submission import cluster_target, connect
    from cluster.submission import preflight as ask
    from qwen3emb.model.mirror import is_here
    from qwen3emb.pipeline.run_models import models_of
    from qwen3emb.pipeline.stages import enabled_stages

    names = enabled_stages(cfg)
    models = {model for name in names for model in models_of(cfg, name).values()}
    target = cluster_target(connect(address), cfg, str(config), overrides)
    ask(target, names, sorted(model for model in models if is_here(model)))


def _here(cfg: RunConfig, config: Path) -> None:
    from cluster.private_head import refuse_unmet
    from qwen3emb.pipeline.stages import enabled_stages

    refuse_unmet(cfg, enabled_stages(cfg))
    print(f"{config}: this machine has room for every stage")
