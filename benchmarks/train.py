"""Training speed: our steps against sentence-transformers and FlagEmbedding, the bare model, and ourselves at scale.

Three datasets in their natural lengths, 1 positive and 3 negatives (reranker: 8), the instruction on queries, 2
threads, each side in a process of its own (sentence-transformers in this one). The benchmark stops where two sides
compute different losses or scores. `--layers` shortens the model, so that a round takes seconds.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from benchmarks.apart import Apart
from benchmarks.comparing import Comparison, Outcome, compare, report, seconds
from benchmarks.train_reranker_sides import NEGATIVES, OurReranker, TheirReranker
from benchmarks.train_scale_sides import Workers, peak_memory
from benchmarks.train_sides import FlagEmbedding, Ours, Theirs, alone, peer_columns, read_rows, shortened
from qwen3emb.model.fetch import fetch_model
from qwen3emb.model.loading import load_tokenizer
from qwen3emb.text.templates import RerankTemplate

MODEL = "smollm2-135m-instruct"
SETS = {"scifact": "train", "mlquestions": "dev", "mbpp": "test"}
BATCHES = {"scifact": 8, "mlquestions": 32, "mbpp": 32}  # 7,000 to 10,000 tokens in each step
RERANKED = ("scifact", "mbpp")  # long documents and short ones
PARTS = ("sentence-transformers", "bare", "flagembedding", "reranker", "memory", "workers")
THREADS = 2
VARIANTS = {
    "autocast, plain": (torch.float32, False),
    "autocast, cached": (torch.float32, True),
    "bf16 weights, plain": (torch.bfloat16, False),
    "bf16 weights, cached": (torch.bfloat16, True),
}
Measured = Callable[[], float]


def said(text: str) -> None:
    """One line on standard error."""
    print(f"train.{text}", file=sys.stderr, flush=True)


def same_loss(what: str, found: float, ours: float) -> None:
    """Stop where a peer computes another loss."""
    if abs(found - ours) > 0.02 * abs(ours) + 0.02:
        raise SystemExit(f"train.{what} has loss {found:.4f}, ours is {ours:.4f}: not the same work")


def in_turn(batches: Sequence[Any], size: int, step: Callable[[Any], object]) -> Measured:
    """A measurement of pairs per second of one step on the next batch."""
    turns = cycle(batches)

    def measure() -> float:
        batch = next(turns)
        return size / seconds(lambda: step(batch))

    return measure


def embedding(name: str, directory: Path, given: argparse.Namespace) -> list[Outcome]:
    """Our step against the peers', and against the bare model."""
    rows, size = read_rows(name, SETS[name]), given.batch or BATCHES[name]
    batches = [rows[i : i + size] for i in range(0, size * (given.rounds + 1), size)]
    tokenizer = load_tokenizer(directory)
    columns = [peer_columns(tokenizer, batch) for batch in batches]
    ours = Apart(THREADS, alone, Ours, directory)
    step = partial(ours.call, "step")
    loss = step(batches[0])
    found = []
    if "sentence-transformers" in given.parts:
        found.append(against_sentence_transformers(name, directory, step, batches, columns, loss, given.rounds))
        gc.collect()  # its gigabytes, before the next peer starts
    if "flagembedding" in given.parts:
        found.append(against_flagembedding(name, directory, step, batches, columns, loss, given.rounds))
    if "bare" in given.parts:
        tokens = ours.call("bare", batches[1])
        comparison = Comparison(f"train.{name}.tokens_per_s_over_bare", must=0.85, aim=0.95)
        found.append(
            compare(
                comparison,
                lambda: tokens / seconds(lambda: step(batches[1])),
                lambda: tokens / seconds(lambda: ours.call("bare", batches[1])),
                given.rounds,
            )
        )
    ours.close()
    return found


def against_sentence_transformers(
    name: str,
    directory: Path,
    step: Callable[[Any], float],
    batches: Sequence[Any],
    columns: Sequence[Any],
    loss: float,
    rounds: int,
) -> Outcome:
    """The fastest of its variants: plain or cached loss, autocast or bf16 weights."""
    peer, size = fastest_of_theirs(name, directory, columns[0], loss), len(batches[0])
    comparison = Comparison(f"train.{name}.pairs_per_s", must=1.5, aim=2.5)
    return compare(comparison, in_turn(batches, size, step), in_turn(columns, size, peer.step), rounds)


def fastest_of_theirs(name: str, directory: Path, columns: Sequence[Sequence[str]], loss: float) -> Theirs:
    """sentence-transformers' variant with the best time."""
    best: tuple[float, Theirs] | None = None
    for label, (dtype, cached) in VARIANTS.items():
        peer = Theirs(directory, dtype, cached)
        found = peer.step(columns)
        same_loss(f"{name}: sentence-transformers, {label}", found, loss)
        spent = seconds(lambda peer=peer: peer.step(columns))
        said(f"{name}: sentence-transformers, {label}: loss {found:.4f} (ours {loss:.4f}), {spent:.2f} s")
        if best is None or spent < best[0]:
            best = spent, peer
    assert best is not None
    return best[1]


def against_flagembedding(
    name: str,
    directory: Path,
    step: Callable[[Any], float],
    batches: Sequence[Any],
    columns: Sequence[Any],
    loss: float,
    rounds: int,
) -> Outcome:
    """The fastest of FlagEmbedding's variants: autocast or bf16 weights, whole or in sub-batches."""
    best: tuple[float, FlagEmbedding] | None = None
    for dtype in ("autocast", "bfloat16"):
        for sub_batch in (-1, 16):
            peer = FlagEmbedding(directory, dtype, sub_batch, THREADS)
            found, _ = peer.step(columns[0])
            same_loss(f"{name}: FlagEmbedding, {dtype}, sub-batch {sub_batch}", found, loss)
            _, spent = peer.step(columns[0])
            said(f"{name}: FlagEmbedding, {dtype}, sub-batch {sub_batch}: loss {found:.4f}, {spent:.2f} s")
            if best is not None and spent >= best[0]:
                peer.close()
                continue
            if best is not None:
                best[1].close()
            best = spent, peer
    assert best is not None
    chosen, turns, size = best[1], cycle(columns), len(batches[0])
    outcome = compare(
        Comparison(f"train.{name}.pairs_per_s_flagembedding", must=1.5, aim=2.5),
        in_turn(batches, size, step),
        lambda: size / chosen.step(next(turns))[1],
        rounds,
    )
    chosen.close()
    return outcome


def reranker(name: str, directory: Path, given: argparse.Namespace) -> Outcome:
    """Our reranker step against the fastest of sentence-transformers' variants, in documents per second."""
    rows, size = read_rows(name, SETS[name], NEGATIVES), given.queries
    batches = [rows[i : i + size] for i in range(0, size * (given.rounds + 1), size)]
    ours = Apart(THREADS, alone, OurReranker, directory)
    texts = [ours.call("texts", batch) for batch in batches]
    wanted = torch.sigmoid(ours.call("margins", batches[0]))
    yes_no = RerankTemplate(load_tokenizer(directory)).yes_no
    best: tuple[float, TheirReranker] | None = None
    for label, dtype in (("autocast", torch.float32), ("bf16 weights", torch.bfloat16)):
        peer = TheirReranker(directory, dtype, yes_no)
        with torch.no_grad():
            worst = float((torch.sigmoid(peer.scores(texts[0])) - wanted).abs().max())
        if worst > 0.06:  # bf16 against bf16
            raise SystemExit(f"train.{name}.reranker: {label} scores differ by {worst:.4f}: not the same work")
        peer.step(texts[0])
        spent = seconds(lambda peer=peer: peer.step(texts[0]))
        said(f"{name}: reranker, {label}: scores differ by at most {worst:.4f}, {spent:.2f} s")
        if best is None or spent < best[0]:
            best = spent, peer
    assert best is not None
    count = size * (1 + NEGATIVES)
    outcome = compare(
        Comparison(f"train.{name}.reranker_documents_per_s", must=1.6, aim=3.0),
        in_turn(batches, count, partial(ours.call, "step")),
        in_turn(texts, count, best[1].step),
        given.rounds,
    )
    ours.close()
    return outcome


def memory(directory: Path) -> Outcome:
    """Peak memory of a global batch of 1,024 rows against one of 32, micro-batches of 4,096 tokens."""
    large, small = (peak_memory(directory, "mbpp", SETS["mbpp"], batch, 4096) for batch in (1024, 32))
    # Never more than 1.3 times (aim 1.1) the small batch's.
    return Outcome(
        Comparison("train.peak_memory_1024_vs_32", must=1 / 1.3, aim=1 / 1.1, higher_is_better=False), large, small
    )


def workers(directory: Path, given: argparse.Namespace) -> Outcome:
    """Two workers of one core each against one, on a global batch of 64 rows."""
    size = given.batch or 64
    two, one = (Workers(world, directory, "mlquestions", SETS["mlquestions"], size) for world in (2, 1))
    comparison = Comparison("train.two_workers_pairs_per_s", must=1.5, aim=1.9)
    outcome = compare(comparison, two.pairs_per_second, one.pairs_per_second, given.rounds)
    for side in (two, one):
        side.close()
    return outcome


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6, help="layers of the model (all: 30)")
    sizes = ", ".join(f"{name} {size}" for name, size in BATCHES.items())
    parser.add_argument("--batch", type=int, help=f"rows of a global batch; default {sizes}")
    parser.add_argument("--queries", type=int, default=2, help="queries of a reranker step, 9 documents each")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per side")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS), help="datasets")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="comparisons")
    given = parser.parse_args()
    if "flagembedding" in given.parts and "PEER_PYTHON" not in os.environ:
        parser.error("flagembedding needs $PEER_PYTHON, which `make bench-train` sets; or leave it out of --parts")
    torch.set_num_threads(THREADS)
    directory = shortened(fetch_model(MODEL), given.layers)
    outcomes: list[Outcome] = []

    def add(*found: Outcome) -> None:
        outcomes.extend(found)
        for outcome in found:
            said(outcome.line())  # at once: the whole takes a quarter of an hour

    if "memory" in given.parts:
        add(memory(directory))
    if "workers" in given.parts:
        add(workers(directory, given))
    for name in given.sets:
        add(*embedding(name, directory, given))
        if "reranker" in given.parts and name in RERANKED:
            add(reranker(name, directory, given))
    return report(outcomes)


if __name__ == "__main__":
    sys.exit(main())
