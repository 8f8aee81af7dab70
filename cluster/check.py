"""Whether a cluster file is filled in and large enough for runs, asked of the files alone: `qwen3emb preflight FILE
--cluster-file F`, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.pipeline.demand import SERVE, Demand, run_demands, stage_demands
from qwen3emb.pipeline.fit import unmet
from qwen3emb.pipeline.supply import placeholders, read_node_types, serves_only, unfilled

__all__ = ["cluster_problems", "wanted"]


def wanted(cfg: RunConfig, cluster_file: str) -> list[Demand]:
    """What a run asks of the cluster of a file: every stage, and `serve`; of a RayService `serve` alone."""
    return [*([] if serves_only(cluster_file) else run_demands(cfg)), *stage_demands(cfg, SERVE)]


def cluster_problems(cluster_file: str, runs: Sequence[str], overrides: Sequence[str] = ()) -> list[str]:
    """One sentence per problem: a value that is still to be filled in, a stage of a run that does not fit.

    Args:
        cluster_file: of `ray up` or of KubeRay.
        runs: files of runs.
        overrides: `key=value` for each of them.

    Raises:
        UserError: a file cannot be read.
    """
    node_types = read_node_types(cluster_file)
    problems = unfilled(cluster_file)
    for run in runs:
        cfg = load_config(run, list(overrides))
        problems += placeholders(cfg.model_dump(mode="json"), run)
        problems += [f"{run}: {sentence}" for sentence in unmet(wanted(cfg, cluster_file), node_types)]
    return problems
