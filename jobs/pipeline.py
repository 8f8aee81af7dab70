"""The stages in order as Ray jobs, skipping what is done."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.private_head import private_head, refuse_unmet
from cluster.submission import Target, cluster_target, connect, local_target, preflight
from jobs.entry import command_line, guarded, say, table_console
from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.artifact import start
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.events import recording
from qwen3emb.core.storage import Storage
from qwen3emb.pipeline.report import print_report, write_summary
from qwen3emb.pipeline.run_models import copy_models_of_this_machine
from qwen3emb.pipeline.selection import selected
from qwen3emb.pipeline.stages import STAGES, Stage, identity, stage_folder, stage_states, writable_folder
from qwen3emb.pipeline.status import PIPELINE
from qwen3emb.text.evaluation_sets import planned_sets

__all__ = ["main", "parse", "run_pipeline"]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__ or "")
    parser.epilog = "example: python -m jobs.pipeline --config examples/demo.yaml --from mine"
    parser.add_argument("--from", dest="first", choices=STAGES, metavar="STAGE", help="leave out the stages before")
    parser.add_argument("--until", dest="last", choices=STAGES, metavar="STAGE", help="leave out the stages after")
    parser.add_argument("--only", choices=STAGES, metavar="STAGE", help=f"one of: {', '.join(STAGES)}")
    parser.add_argument("--no-preflight", dest="preflight", action="store_false", help="do not ask the cluster first")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, start and write nothing")
    return parser.parse_args(words)


def run_pipeline(arguments: argparse.Namespace) -> None:
    """Run the chosen stages that are not done yet, then print the report.

    Raises:
        UserError: a stage before the chosen ones is not done, holds output of another configuration (without
            `--replace`), or ended with exit code 2.
        StageFailure: a stage failed.
    """
    cfg = load_config(arguments.config, arguments.set)
    steps = stage_states(cfg)
    chosen = selected(steps, arguments.first, arguments.only, arguments.last)
    for stage, state in chosen:
        folder = stage_folder(cfg, stage.name)
        command = " ".join(["python -m", stage.module, *stage.arguments])
        if state == "done":
            say(f"{stage.name}: reused {folder}")
        elif arguments.dry_run:
            say(f"{stage.name}: {state}, would run {command}")
        elif state == "different" and not arguments.replace:
            start(writable_folder(cfg, stage.name), identity(cfg, stage.name))  # refuses, and says what differs
    for line in planned_sets(cfg) if any(state != "done" for _, state in chosen) else ():
        say(f"pipeline: {line}")
    if arguments.dry_run:
        return
    ran = _run(cfg, [stage for stage, state in chosen if state != "done"], arguments)
    done = {stage.name for stage, state in steps if state == "done"} | ran.keys()
    write_summary(cfg, done, ran)
    print_report(cfg, done, ran, arguments.config, table_console())


def _run(cfg: RunConfig, stages: list[Stage], arguments: argparse.Namespace) -> dict[str, float]:
    """Run the stages one after another, and record that it is tried; the seconds of each, submission included."""
    if not stages:
        return {}
    with recording(Storage(cfg.storage), PIPELINE, PIPELINE, say) as record:
        record.begin(stages=[stage.name for stage in stages])
        seconds = _submit(cfg, stages, arguments)
        record.finish(f"the pipeline has run {', '.join(seconds)}")
    return seconds


def _submit(cfg: RunConfig, stages: list[Stage], arguments: argparse.Namespace) -> dict[str, float]:
    seconds: dict[str, float] = {}
    flags = ["--replace"] * arguments.replace + ["--debug"] * arguments.debug
    with _target(cfg, stages, arguments) as target:
        for stage in stages:
            began = time.monotonic()
            code = target.run(stage.module, [*stage.arguments, *flags])
            if code:
                kind = UserError if code == UserError.exit_code else StageFailure
                raise kind(f"stage {stage.name} ended with exit code {code}; its message is above")
            seconds[stage.name] = time.monotonic() - began
            say(f"{stage.name}: done in {seconds[stage.name]:.0f} s")
    return seconds


@contextmanager
def _target(cfg: RunConfig, stages: list[Stage], arguments: argparse.Namespace) -> Iterator[Target]:
    """The configured cluster, which finds the models of the stages on storage; else a private head for the block."""
    address = cfg.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        say(f"pipeline: submitting to {address}")
        target = cluster_target(connect(address), cfg, arguments.config, arguments.set)
        names = [stage.name for stage in stages]
        copy_models_of_this_machine(cfg, names, say)
        if arguments.preflight:
            preflight(target, names)
        yield target
        return
    if arguments.preflight:
        refuse_unmet(cfg, [stage.name for stage in stages])
    say("pipeline: starting a private Ray head")
    with private_head(cfg.cluster) as head:
        yield local_target(connect(head), arguments.config, arguments.set)


def main() -> int:
    """Parse the command line and run; the exit code."""
    arguments = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a private head is ended as well
    return guarded(lambda: run_pipeline(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
