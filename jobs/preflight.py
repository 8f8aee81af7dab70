"""Whether the cluster can run the pipeline: room, storage, versions and models; one sentence per problem."""

from __future__ import annotations

import argparse
import sys

from cluster.session import connected
from jobs.entry import command_line, guarded, say
from qwen3emb.config.run import load_config
from qwen3emb.core.errors import UserError
from qwen3emb.pipeline.stages import STAGES, is_enabled


def _preflight(arguments: argparse.Namespace) -> None:
    cfg = load_config(arguments.config, arguments.set)
    unknown = [name for name in arguments.stages if name not in STAGES]
    if unknown:
        raise UserError(f"stage {unknown[0]!r}: no such stage; there are {', '.join(STAGES)}")
    names = [name for name in arguments.stages or STAGES if is_enabled(cfg, name)]
    with connected(cfg.cluster):
        from cluster.preflight import problems

        found = problems(cfg, names, arguments.have)
    if found:
        raise UserError("\n".join(["preflight: the run would not work here", *(f"- {line}" for line in found)]))
    say(f"preflight: room, storage, versions and models are in order for {', '.join(names)}")


if __name__ == "__main__":
    parser = command_line(__doc__ or "")
    parser.epilog = "example: python -m jobs.preflight --config examples/qwen3-0.6b.yaml"
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="default all stages of the run")
    parser.add_argument("--have", action="append", default=[], metavar="MODEL", help="will be copied to the storage")
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: _preflight(arguments), arguments.debug))
