"""Whether a cluster file is filled in and large enough for runs, asked of the files alone.

`python -m cluster.check cluster/aws.yaml examples/qwen3-8b.yaml` prints one sentence per problem and exits with
2, before anything is started.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.errors import UserError
from qwen3emb.core.exits import guarded
from qwen3emb.pipeline.demand import SERVE, Demand, run_demands, stage_demands
from qwen3emb.pipeline.fit import unmet
from qwen3emb.pipeline.supply import placeholders, read_node_types, serves_only, unfilled

__all__ = ["cluster_problems", "main", "wanted"]


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


def _check(arguments: argparse.Namespace) -> None:
    problems = cluster_problems(arguments.file, arguments.runs, arguments.set)
    if problems:
        raise UserError("\n".join(problems))
    print(f"{arguments.file}: filled in, and large enough for {', '.join(arguments.runs) or 'no run (none was named)'}")


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line and check; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", help="cluster file: cluster/aws.yaml, gcp.yaml, or a manifest in cluster/kuberay/")
    parser.add_argument("runs", nargs="*", help="YAML of each run that it is for")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the runs")
    arguments = parser.parse_args(words)
    return guarded(lambda: _check(arguments), debug=False)


if __name__ == "__main__":
    sys.exit(main())
