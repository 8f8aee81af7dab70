"""What every stage's command line shares: options, artifact record, exit codes."""

from __future__ import annotations

import argparse
import errno
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

from cluster.session import connected
from qwen3emb.artifact import StageResult, complete, start
from qwen3emb.config import RunConfig, load_config
from qwen3emb.errors import StageFailure, UserError
from qwen3emb.pipeline import STAGES, StageContext, identity, stage_folder

__all__ = ["command_line", "guarded", "run_stage", "say"]


def say(message: str) -> None:
    """One line of progress on standard error, with the time."""
    print(f"{datetime.now(UTC):%H:%M:%S} {message}", file=sys.stderr, flush=True)


def command_line(description: str) -> argparse.ArgumentParser:
    """The options all stages share."""
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


def run_stage(name: str, run: Callable[[StageContext], StageResult], arguments: argparse.Namespace) -> int:
    """Load the config, open the artifact, run `run` on Ray, write the completion record; the exit code."""
    return guarded(lambda: _run(name, run, load_config(arguments.config, arguments.set), arguments), arguments.debug)


def _run(
    name: str, run: Callable[[StageContext], StageResult], cfg: RunConfig, arguments: argparse.Namespace
) -> None:
    began = time.monotonic()
    what, out = identity(cfg, name), stage_folder(cfg, name)
    for need in STAGES[name].needs:
        if not stage_folder(cfg, need).exists("artifact.json"):
            raise UserError(f"stage {name} reads {stage_folder(cfg, need).uri}, which is not complete; run {need} first")
    state = start(out, what, arguments.replace)
    if state == "done":
        say(f"{name}: reused {out.uri} ({what.fingerprint})")
        return
    say(f"{name}: {'resuming' if state == 'unfinished' else 'starting'} {out.uri}")
    with connected(cfg.cluster):
        result = run(StageContext(cfg, STAGES[name], out, state == "unfinished"))
    complete(out, what, result, time.monotonic() - began)
    rejected = ", ".join(f"{n} {reason}" for reason, n in result.rejected.items() if n) or "none"
    say(f"{name}: {result.rows_in} rows in, {result.rows_out} out, rejected: {rejected}")
    for key, value in result.metrics.items():
        say(f"{name}: {key} = {value}")


def guarded(action: Callable[[], None], debug: bool) -> int:
    """Run `action`; 0, 2 for a user's mistake, 1 for a failure, each in one sentence on standard error."""
    try:
        action()
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, code = _verdict(_root_cause(error))
        print(f"error: {message}", file=sys.stderr, flush=True)
        return code
    return 0


def _verdict(error: BaseException) -> tuple[str, int]:
    """One sentence and the exit code for what ended a stage."""
    if isinstance(error, UserError | StageFailure):
        return str(error), error.exit_code
    if isinstance(error, OSError) and _is_users(error):
        return _io_sentence(error), 2
    return f"{type(error).__name__}: {error} (run again with --debug for the stack trace)", 1


def _is_users(error: OSError) -> bool:
    """True for a full disk, a port in use, or a missing permission."""
    numbers = {errno.ENOSPC, errno.EDQUOT, errno.EADDRINUSE, errno.EACCES, errno.EROFS}
    return error.errno in numbers or "No space left" in str(error)


def _io_sentence(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return f"the disk is full ({error}); free space or set another storage, then run again: finished rows are kept"
    return str(error)


def _root_cause(error: BaseException) -> BaseException:
    """What was raised inside a Ray worker, under Ray's wrappers."""
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            return error
        error = inner
