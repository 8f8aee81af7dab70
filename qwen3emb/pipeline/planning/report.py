"""A plan as tables and sentences for people, and as values for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from qwen3emb.pipeline.planning.hardware import Gpu
from qwen3emb.pipeline.planning.measured import Comparison
from qwen3emb.pipeline.planning.work import StageEstimate

__all__ = ["Terms", "as_json", "comparison_table", "memory_table", "summary_lines", "work_table"]


@dataclass(frozen=True)
class Terms:
    """What a plan is made for: GPUs and their price, each None where it is not given; cores of a run without GPUs."""

    gpu: Gpu | None
    gpus: int | None
    price: float | None
    cores: float


def _count(number: float) -> str:
    """A count in three digits, e.g. 8.04 G."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            unit = 1e3 if letter == "k" else size
            return f"{number / unit:.3g} {letter}" if number / unit < 999.5 else f"{number / unit:,.0f} {letter}"
    return f"{number:,.0f}" if number else ""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for least, unit, length in ((3 * 86_400, "d", 86_400), (3600, "h", 3600), (120, "min", 60)):
        if seconds >= least:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    return table


def work_table(estimates: Sequence[StageEstimate], terms: Terms) -> Table:
    """One line for each stage: what there is to do, on how many GPUs, how long and for how much."""
    where = f"on {terms.gpu.name}" if terms.gpu else f"on {terms.cores:,.0f} CPU cores"
    table = _table(f"What each stage will take, {where}")
    table.add_column("stage", no_wrap=True)
    table.add_column("model", overflow="fold")
    for name in ("rows", "tokens", "FLOPs", *(["GPUs", "GPU hours"] if terms.gpu else []), "time"):
        table.add_column(name, justify="right", no_wrap=True)
    if terms.price is not None:
        table.add_column("price", justify="right", no_wrap=True)
    for e in estimates:
        hours = f"{e.gpu_hours:,.1f}" if e.gpus else ""
        cells = [str(e.gpus or ""), hours] if terms.gpu else []
        price = [_price(e.gpu_hours, terms) if e.gpus else ""] if terms.price is not None else []
        flops = f"{e.flops:.1e}" if e.flops else ""
        table.add_row(e.name, e.model, _count(e.rows), _count(e.tokens), flops, *cells, _duration(e.seconds), *price)
    total, seconds = _totals(estimates)
    cells = ["", f"{total:,.1f}"] if terms.gpu else []
    price = [_price(total, terms)] if terms.price is not None else []
    flops = f"{sum(e.flops for e in estimates):.1e}"
    table.add_section()
    table.add_row("all", "", "", "", flops, *cells, _duration(seconds), *price)
    return table


def _price(hours: float, terms: Terms) -> str:
    return "" if terms.price is None else f"{hours * terms.price:,.2f}"


def _totals(estimates: Sequence[StageEstimate]) -> tuple[float, float]:
    return sum(e.gpu_hours for e in estimates), sum(e.seconds or 0 for e in estimates)


def memory_table(estimates: Sequence[StageEstimate], terms: Terms) -> Table:
    """One line for each stage with a model: GB of one GPU, or of one worker, by what they are for."""
    whole = f", which has {terms.gpu.memory / 1e9:,.0f}" if terms.gpu else ""
    table = _table(f"Memory of each {'GPU' if terms.gpu else 'worker'} in GB{whole}")
    table.add_column("stage", no_wrap=True)
    names = ("weights", "gradients", "optimizer", "activations", "KV cache", "buffers", "all")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for e in (e for e in estimates if e.memory):
        assert e.memory is not None
        parts = [*asdict(e.memory).values(), e.memory.total]
        table.add_row(e.name, *(f"{part / 1e9:,.1f}" if part else "" for part in parts))
    return table


def summary_lines(estimates: Sequence[StageEstimate], terms: Terms) -> list[str]:
    """Sentences below the tables: notes, what holding all GPUs comes to, and what cannot be."""
    lines = [note for e in estimates for note in e.notes]
    hours, seconds = _totals(estimates)
    if terms.gpu and terms.gpus:
        held = terms.gpus * seconds / 3600
        price = f" ({_price(held, terms)})" if terms.price is not None else ""
        lines.append(
            f"{terms.gpus} GPUs that are held all the time are {held:,.1f} GPU hours{price}; stages use {hours:,.1f}"
        )
    problems = [problem for e in estimates for problem in e.problems]
    return [*(f"note: {line}" for line in lines), *(f"cannot be: {problem}" for problem in problems)]


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """One line for each finished stage: predicted and measured rows, tokens and seconds."""
    table = _table("Predicted and measured")
    table.caption_justify = "left"
    table.caption = (
        "plan: from the configuration alone; later: with what the finished stages before had found; done: measured.\n"
        "Trainings and synthesize count their tokens; a resumed stage tells the seconds of its last part."
    )
    table.add_column("stage", no_wrap=True)
    for name in ("rows: plan", "done", "tokens: plan", "later", "done", "off", "s: plan", "done"):
        table.add_column(name.replace(": ", ":\n"), justify="right", no_wrap=True)
    for c in comparisons:
        tokens = ["", "", "", ""]
        if c.measured.tokens:
            off = c.later.tokens / c.measured.tokens - 1
            tokens = [_count(c.before.tokens), _count(c.later.tokens), _count(c.measured.tokens), f"{off:+.1%}"]
        rows = [_count(c.before.rows), _count(c.measured.rows)]
        seconds = ["" if c.before.seconds is None else f"{c.before.seconds:,.0f}", f"{c.measured.seconds:,.0f}"]
        table.add_row(c.before.name, *rows, *tokens, *seconds)
    return table


def as_json(
    estimates: Sequence[StageEstimate], terms: Terms, comparisons: Sequence[Comparison] | None = None
) -> dict[str, Any]:
    """The plan as JSON: bytes, seconds, hours."""
    stages = []
    for e in estimates:
        memory = asdict(e.memory) | {"total": e.memory.total} if e.memory else None
        price = e.gpu_hours * terms.price if terms.price is not None else None
        stages.append(asdict(e) | {"memory": memory, "gpu_hours": e.gpu_hours, "price": price})
    hours, seconds = _totals(estimates)
    total = {
        "gpu_hours": hours,
        "seconds": seconds,
        "price": hours * terms.price if terms.price is not None else None,
        "fits": not any(e.problems for e in estimates),
    }
    content = {"gpu": terms.gpu.name if terms.gpu else None, "gpus": terms.gpus, "stages": stages, "total": total}
    if comparisons is None:
        return content
    return content | {
        "measured": {
            c.before.name: asdict(c.measured) | {"predicted_rows": c.later.rows, "predicted_tokens": c.later.tokens}
            for c in comparisons
        }
    }
