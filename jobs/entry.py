"""Shared by the command lines of all stages: options, artifact record, exit codes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from rich.console import Console

from cluster.session import connected
from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.artifact import Identity, StageResult, complete, start, state_of
from qwen3emb.core.card import count_rows, write_card
from qwen3emb.core.context import StageContext
from qwen3emb.core.errors import UserError
from qwen3emb.core.events import recording
from qwen3emb.core.exits import guarded
from qwen3emb.core.lease import held
from qwen3emb.core.location import redacted
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.gauges import export_progress
from qwen3emb.pipeline.run_models import with_run_models
from qwen3emb.pipeline.stages import identity, is_enabled, needs, stage_folder, stage_inputs, writable_folder

__all__ = ["command_line", "guarded", "run_stage", "say", "table_console"]

_Stage = Callable[[StageContext[RunConfig]], StageResult]

_CARDS = {"corpus": ("passages", "pairs"), "filter": ("pairs", "dropped"), "mine": ("rows",)}
"""Folders of rows whose card is written here; `synthesize` and `labelled` write their own."""


def say(message: str) -> None:
    """One line of progress on standard error, with the time and without passwords in URIs."""
    print(f"{datetime.now(UTC):%H:%M:%S} {redacted(message)}", file=sys.stderr, flush=True)


def table_console() -> Console:
    """A console on standard output of at least 120 columns, so that tables are not cut in a file or narrow terminal."""
    return Console(width=max(Console().width, 120))


def command_line(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all stages share."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m jobs.corpus --config examples/demo.yaml --set corpus.max_pairs=500",
    )
    parser.add_argument("--config", required=True, help="YAML of the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config key")
    parser.add_argument("--replace", action="store_true", help="throw away output of another configuration")
    parser.add_argument("--debug", action="store_true", help="show stack traces")
    return parser


def run_stage(name: str, run: _Stage, arguments: argparse.Namespace) -> int:
    """Load the config, open the artifact, run the stage on Ray, and write the completion record.

    Args:
        name: of the stage.
        run: does the stage's work.
        arguments: of `command_line`.

    Returns:
        The exit code.
    """
    return guarded(lambda: _run(name, run, load_config(arguments.config, arguments.set), arguments), arguments.debug)


def _run(name: str, run: _Stage, cfg: RunConfig, arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    if not is_enabled(cfg, name):
        raise UserError(f"this run has no stage {name}: its section is not in {arguments.config}")
    known: dict[str, Identity] = {}
    stage_identity, out = identity(cfg, name, known), writable_folder(cfg, name)
    for need in needs(cfg, name):
        # "different" counts as missing: what this stage wrote would be recorded as made from other inputs.
        if state_of(stage_folder(cfg, need), known[need]) != "done":
            folder = stage_folder(cfg, need)
            raise UserError(f"stage {name} reads {folder}, which is not complete for this config; run {need} first")
    current = state_of(out, stage_identity)
    if current == "done":
        say(f"{name}: reused {out} ({stage_identity.fingerprint})")
        return
    if current == "different" and not arguments.replace:
        start(out, stage_identity)  # refuses, and says what differs
    run_folder, fingerprint = Storage(cfg.storage), stage_identity.fingerprint
    with recording(run_folder, name, fingerprint, say, export_progress) as record, held(out, say) as lease:
        state = start(out, stage_identity, arguments.replace)
        if state == "done":  # by another driver, just now
            say(f"{name}: reused {out} ({stage_identity.fingerprint})")
            return
        say(f"{name}: {'resuming' if state == 'unfinished' else 'starting'} {out}")
        record.begin(resumed=state == "unfinished")
        with connected(cfg.cluster):
            result = run(StageContext(with_run_models(cfg, name, say), name, out, stage_inputs(cfg, name)))
        if name in _CARDS:
            facts = {"rows_in": result.rows_in, "seconds": round(time.monotonic() - began), "rejected": result.rejected}
            write_card(out, f"Stage {name}", facts | count_rows(out, _CARDS[name]))
        lease.check()
        complete(out, stage_identity, result, time.monotonic() - began)
        record.finish(_summary(result), rows_in=result.rows_in, rows_out=result.rows_out)
    say(f"{name}: {_summary(result)}")
    for key, value in result.metrics.items():
        say(f"{name}: {key} = {value}")


def _summary(result: StageResult) -> str:
    rejected = ", ".join(f"{n} {reason}" for reason, n in result.rejected.items() if n) or "none"
    return f"{result.rows_in} rows in, {result.rows_out} out, rejected: {rejected}"
