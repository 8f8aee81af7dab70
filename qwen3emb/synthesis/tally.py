"""Counts of a synthesis: what its actors have done so far, told every few seconds, and what there is at its end."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qwen3emb.config.resources import COUNTER
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.card import write_card
from qwen3emb.core.events import report
from qwen3emb.core.records import PAIR, REJECT
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import gather
from qwen3emb.synthesis.gates import word_count
from qwen3emb.synthesis.tasks.item import item_key

__all__ = ["ANSWER_SECONDS", "Tally", "counting", "figures", "has_engine", "result"]

ANSWER_SECONDS = 600.0
"""How long the tally may take to answer: it counts, so only a driver's machine without breath is that slow."""

_LABEL = "synthesize: counting"
_SECONDS_PER_LINE = 5.0
_QUIET_LINES = 6  # a line that says nothing new comes every sixth time
_ASKED_FOR = re.compile(r"wrong_language: .*?, asked for ([\w-]+)")
_KINDS = ("dataset", "question_type", "difficulty", "language", "words")
_LENGTHS = (0, 5, 10, 15, 20, 30, 50, 100)
_PROJECTED = 1_000_000


class Tally:
    """Actor: counts by key (a block, an engine), and which rows engines have died with.

    It lives as long as the driver, so a killed and resumed run blames no row for it.
    """

    def __init__(self) -> None:
        """Nothing counted yet."""
        self._counts: dict[str, dict[str, float]] = {}
        self._begun: dict[str, int] = {}
        self._alone: dict[str, str] = {}
        self._guilty: dict[str, list[str]] = {}

    def begin(self, block: str) -> tuple[int, list[str]]:
        """A block is begun: how many engines have died with it, and the rows that were asked alone when they did."""
        self._begun[block] = self._begun.get(block, 0) + 1
        guilty = self._guilty.setdefault(block, [])
        if block in self._alone:
            guilty.append(self._alone.pop(block))
        return self._begun[block] - 1, list(guilty)

    def suspect(self, block: str, row: str) -> None:
        """A row of a block is asked alone from now on; the one before it got through."""
        self._alone[block] = row

    def put(self, key: str, counts: dict[str, float]) -> None:
        """Replace the counts of `key`."""
        self._counts[key] = counts

    def total(self) -> dict[str, float]:
        """The sums over all keys."""
        sums: dict[str, float] = {}
        for counts in self._counts.values():
            for name, value in counts.items():
                sums[name] = sums.get(name, 0) + value
        return sums


@contextmanager
def counting(say: Callable[[str], None], done: int, total: int) -> Iterator[Any]:
    """A tally actor, and a line of progress every few seconds as long as the block lasts.

    Args:
        say: is told the lines.
        done: queries that earlier runs have written or rejected.
        total: queries in all.
    """
    actor: Any = ray.remote(Tally)
    node = ray.get_runtime_context().get_node_id()  # the driver's: it is lost only together with the driver
    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    tally = actor.options(**COUNTER.options(), scheduling_strategy=pinned).remote()
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(tally, say, done, total, finished), daemon=True)
    watcher.start()
    try:
        yield tally
    finally:
        finished.set()
        watcher.join()


def _watch(tally: Any, say: Callable[[str], None], done: int, total: int, finished: threading.Event) -> None:
    """Say what is new every few seconds, and now and then that nothing is."""
    began: float | None = None
    last_line, quiet = "", 0
    while not finished.wait(_SECONDS_PER_LINE):
        [counts] = gather([tally.total.remote()], _LABEL, ANSWER_SECONDS)
        pairs, rejects = int(counts.get("pairs", 0)), int(counts.get("rejects", 0))
        if counts.get("engines"):
            report("queries", done + pairs + rejects, total, rejected=rejects)
        news = f"{done + pairs + rejects} of {total} queries" if counts.get("engines") else "the generator is loading"
        began = began or (time.monotonic() if counts.get("engines") else None)
        quiet = quiet + 1 if news == last_line else 0
        if quiet % _QUIET_LINES:
            continue
        last_line = news
        rate = pairs / max(time.monotonic() - began, _SECONDS_PER_LINE) if began else 0.0
        say(f"synthesize: {news}" + (f", {rate:.2f} pairs/s, {rejects} rejected" if began else ""))


def has_engine(tally: Any) -> bool:
    """Whether an engine has been loaded."""
    [counts] = gather([tally.total.remote()], _LABEL, ANSWER_SECONDS)
    return bool(counts.get("engines"))


def figures(tally: Any, seconds: float) -> dict[str, Any]:
    """Metrics of this run, which took `seconds`; a resumed run tells only of its own part."""
    counts: dict[str, float] = gather([tally.total.remote()], _LABEL, ANSWER_SECONDS)[0]
    busy, prompt = counts.get("seconds", 0.0), counts.get("prompt", 0)
    generated, pairs = counts.get("generated", 0), counts.get("pairs", 0)
    return {
        "pairs_written": int(pairs),
        "prompt_tokens": int(prompt),
        "generated_tokens": int(generated),
        "prefix_cache_hit_rate": round(counts.get("cached", 0) / prompt, 3) if prompt else 0.0,
        "generated_tokens_per_engine_s": round(generated / busy, 1) if busy else 0.0,
        "pairs_per_engine_s": round(pairs / busy, 3) if busy else 0.0,
        "engine_load_seconds": round(counts.get("load_seconds", 0) / max(1, counts.get("engines", 1)), 1),
        "seconds": round(seconds, 1),
    }


def result(rows: int, out: Storage, metrics: dict[str, Any]) -> StageResult:
    """Count what lies on storage, whatever run wrote it, and write the card.

    Args:
        rows: rows that were to be written.
        out: folder of the stage.
        metrics: figures of this run.
    """
    kinds: dict[str, Counter[str]] = {kind: Counter() for kind in _KINDS}
    lengths: list[float] = []
    pairs, done, rejected, foreign = 0, 0, Counter[str](), Counter[str]()
    for name in out.names("pairs", ".parquet"):
        table = out.read_table(name, PAIR)
        pairs += table.num_rows
        done += len({item_key(pair) for pair in table.select(["id", "dataset"]).to_pylist()})
        for column, counts in kinds.items():
            counts.update(table.column(column).to_pylist())
        lengths += [word_count(query) for query in table.column("query").to_pylist()]
    for name in out.names("rejects", ".parquet"):
        reasons = out.read_table(name, REJECT).column("reason").to_pylist()
        rejected.update(reason.partition(":")[0] for reason in reasons)
        foreign.update(hit[1] for hit in map(_ASKED_FOR.match, reasons) if hit)
    shares = {f"pairs_by_{column}": dict(sorted(counts.items())) for column, counts in kinds.items()}
    by_reason = dict(sorted(rejected.items()))
    card = {"asked": rows, "pairs": pairs, "rejected": by_reason, **shares, **_card(lengths, metrics)}
    card["refused_as_another_language_by_language"] = dict(sorted(foreign.items()))
    write_card(out, "Synthetic pairs", card)
    return StageResult(rows, done, by_reason, metrics | shares | {"pairs": pairs})


def _card(lengths: list[float], metrics: dict[str, Any]) -> dict[str, Any]:
    """Histogram of query lengths, and what a thousand pairs cost; costs are those of the run that ended the stage."""
    counts, _ = np.histogram(lengths, bins=[*_LENGTHS, np.inf])
    edges = [f"{low}-{high}" for low, high in zip(_LENGTHS, (*_LENGTHS[1:], ""), strict=True)]
    card: dict[str, Any] = {"query_words": dict(zip(edges, counts.tolist(), strict=True))}
    rate, made = metrics.get("pairs_per_engine_s"), metrics.get("pairs_written", 0)
    if rate and made:
        card["per_1000_pairs"] = {
            "prompt_tokens": round(1000 * metrics["prompt_tokens"] / made),
            "generated_tokens": round(1000 * metrics["generated_tokens"] / made),
            "engine_seconds": round(1000 / rate, 1),
        }
        card["prefix_cache_hit_rate"] = metrics["prefix_cache_hit_rate"]
        card[f"engine_hours_for_{_PROJECTED}_pairs"] = round(_PROJECTED / rate / 3600, 1)
    return card
