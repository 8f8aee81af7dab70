"""`qwen3emb status`: where a run stands, once or as long as it goes on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qwen3emb.cli.options import Config, Debug, Json, Overrides, finish, print_json
from qwen3emb.config.run import load_config
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.exits import INTERRUPTED, sentence

if TYPE_CHECKING:
    from qwen3emb.pipeline.status import Ending, RunStatus, RunWatch, StageStatus

__all__ = ["status", "status_table", "watch_run"]

_COLUMNS = ("stage", "state", "rows", "rate", "ETA", "seconds", "last sign", "rejected")
_NUMBERS = ("rate", "ETA", "seconds", "last sign", "rejected")
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def status(
    config: Config,
    overrides: Overrides = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again until the run has ended.")] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Between two looks of --watch.")] = 5.0,
    events: Annotated[bool, typer.Option("--events", help="Print all events of the run, a JSON a line.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Where every stage of a run stands, from its storage alone: state, rows, rate, time left, last sign of life.

    States: new, unfinished, done, different (made by another configuration); running, failed, and lost (its driver has
    shown no life for longer than its lease). --watch ends with the run: exit code 0, or 1 and the reason.

    Example: qwen3emb status examples/demo.yaml --watch
    """

    def body() -> int:
        from qwen3emb.core.event_files import all_events
        from qwen3emb.core.storage import Storage
        from qwen3emb.pipeline.status import RunWatch

        cfg = load_config(config, overrides)
        if watch and events:
            raise UserError("status: --events prints what has happened so far; leave out --watch")
        if events:
            for event in all_events(Storage(cfg.storage)):
                print(json.dumps(event, ensure_ascii=False))
            return 0
        if watch:
            return watch_run(RunWatch(cfg), every, as_json)
        run = RunWatch(cfg).look()
        if as_json:
            print_json(run.as_json()["stages"])
        else:
            _console().print(status_table(run, ""))
        return 0

    finish(body, debug)


def watch_run(run: RunWatch, every: float, as_json: bool) -> int:
    """Show a run until it has ended; 0, or 130 after Ctrl-C, which ends the watch alone.

    Args:
        run: is looked at.
        every: seconds between two looks.
        as_json: a line of JSON for every look instead of a table.

    Raises:
        StageFailure: the run has ended without its work done; the message says why.
    """
    note = f"looks every {every:g} s until the run has ended; Ctrl-C ends this, not the run"
    try:
        with nullcontext() if as_json else Live(console=_console(), auto_refresh=False) as live:
            ending = _looks(run, every, note, _shown_by(live))
        if live and not live.console.is_terminal:  # there it shows the last look only, without the end of its last line
            live.console.print()
    except KeyboardInterrupt:
        return INTERRUPTED
    if ending.failed:
        raise StageFailure(ending.sentence)
    print(ending.sentence, file=sys.stderr if as_json else sys.stdout, flush=True)
    return 0


def _looks(run: RunWatch, every: float, note: str, show: Callable[[RunStatus, str], None]) -> Ending:
    """Look until the run has ended. Storage that does not answer for a while ends nothing, except at the first look."""
    last = run.look()
    show(last, note)
    while last.ending is None:
        time.sleep(every)
        try:
            last, said = run.look(), note
        except OSError as error:
            said = f"storage does not answer ({sentence(error)}); this is what it was"
        show(last, said)
    return last.ending


def _shown_by(live: Live | None) -> Callable[[RunStatus, str], None]:
    def show(run: RunStatus, note: str) -> None:
        moment = datetime.now(UTC)
        if live is None:
            line = {"time": moment.isoformat(timespec="seconds")} | run.as_json()
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            live.update(status_table(run, f"{moment:%H:%M:%S} UTC; {note}"), refresh=True)

    return show


def _console() -> Console:
    """On standard output; in a file at least 120 columns wide."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 120))


def status_table(run: RunStatus, note: str) -> Group:
    """One row per stage, and below them why stages have failed or are lost, and a note."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name in _NUMBERS else "left")
    for stage in run.stages:
        table.add_row(*map(escape, _cells(stage)))
    reasons = [f"{s.stage}: {s.reason}" for s in run.stages if s.reason]
    return Group(table, *(Text(line) for line in [*reasons, note] if line))


def _cells(s: StageStatus) -> list[str]:
    rejected = "" if s.rejected is None else f"{s.rejected:,}"
    rate = "" if s.rate is None or s.state != "running" else f"{s.rate:,.{0 if s.rate >= 100 else 2}f}/s"
    seconds = "" if s.seconds is None else f"{s.seconds:,.{0 if s.seconds >= 100 else 1}f}"
    sign = "" if s.silent_seconds is None else f"{_span(s.silent_seconds)} ago"
    return [
        s.stage,
        s.state,
        _rows(s),
        rate,
        "" if s.eta_seconds is None else _span(s.eta_seconds),
        seconds,
        sign,
        rejected,
    ]


def _rows(s: StageStatus) -> str:
    """How far a stage is: rows of a finished one, else of the work it is at, and the loss of a training."""
    if s.rows is not None:
        return f"{s.rows:,}"
    if s.done is None or s.total is None:
        return ""
    loss: Any = (s.figures or {}).get("loss")
    return f"{s.done:,.0f} of {s.total:,.0f} {s.work}" + (f", loss {loss:.3f}" if isinstance(loss, float) else "")


def _span(seconds: float) -> str:
    """A time in its two largest units, e.g. "3 h 12 min"."""
    left = round(seconds)
    place = next((i for i, (_, size) in enumerate(_UNITS) if left >= size), len(_UNITS) - 1)
    words: list[str] = []
    for unit, size in _UNITS[place : place + 2]:
        count, left = divmod(left, size)
        words += [f"{count} {unit}"] if count or not words else []
    return " ".join(words)
