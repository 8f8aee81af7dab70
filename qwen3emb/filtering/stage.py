"""The stage `filter`: keep the synthetic pairs whose query-document cosine is above a threshold (RECIPE section 3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qwen3emb.config.datasets import dataset_of
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.core.errors import StageFailure
from qwen3emb.core.records import PAIR
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import paced
from qwen3emb.encoding.pool import Encoders
from qwen3emb.filtering.threshold import Histogram, draw, histogram, keep, round_trip, threshold_for
from qwen3emb.model.stored import scoring_model
from qwen3emb.text.instructions import instructions

__all__ = ["filter_pairs"]

_Item = TypeVar("_Item")
_SHARD = 100_000
_SCORED = {
    dataset_of("retrieval"),
    dataset_of("bitext"),
}
"""Only these are scored: the documents of classification and low-grade STS pairs need not be similar to the query."""


def filter_pairs(ctx: StageContext[RunConfig], say: Callable[[str], None]) -> StageResult:
    """Score the pairs of `synthesize` and write `pairs/` (kept), `dropped/` and `histogram.json`.

    Args:
        ctx: configuration, inputs and output folder of the stage.
        say: takes lines of progress.

    Returns:
        Counts of pairs read, kept, and rejected by reason; `metrics` has the threshold and quantiles of the cosines.

    Raises:
        UserError: the scoring model is missing.
        StageFailure: a cosine is NaN or infinite.
    """
    cfg = ctx.cfg.filter
    table = ctx.inputs["synthesize"].read_table("pairs", PAIR).select(PAIR.names).cast(PAIR)
    chosen = draw(len(table), cfg.sample, ctx.cfg.seed)
    sample = table.take(pa.array(chosen))
    scored = pa.array([dataset in _SCORED for dataset in sample["dataset"].to_pylist()], pa.bool_())
    pairs, exempt = sample.filter(scored), sample.filter(pc.invert(scored))
    scores, returned = _scores(pairs, ctx.cfg, ctx.inputs.get("weak"), say)
    pairs = pairs.set_column(PAIR.get_field_index("score"), PAIR.field("score"), pa.array(scores, pa.float32()))
    threshold = cfg.threshold if cfg.keep_share is None else threshold_for(scores, cfg.keep_share)
    above = keep(scores, threshold)
    kept = above & returned
    parts = {
        "pairs": pa.concat_tables([pairs.filter(pa.array(kept)), exempt]),
        "dropped": pairs.filter(pa.array(~kept)),
    }
    for name, rows in parts.items():
        ctx.out.delete(name)  # left by an interrupted run
        ctx.out.write_parts(name, rows, _SHARD)
    distribution = histogram(scores, cfg.bins)
    _write_histogram(ctx.out, distribution, threshold, int(kept.sum()))
    quantiles = {f"{q:g}": round(value, 4) for q, value in distribution.quantiles.items()}
    _say_histogram(distribution, threshold, quantiles, say)
    rejected = {"below_threshold": int((~above).sum()), "not_sampled": len(table) - len(sample)}
    if cfg.round_trip is not None:
        rejected["no_round_trip"] = int((above & ~returned).sum())
    metrics = {"threshold": round(threshold, 6), "scored": len(pairs), "exempt": len(exempt), "quantiles": quantiles}
    return StageResult(len(table), int(kept.sum()) + len(exempt), rejected, metrics)


def _say_histogram(
    distribution: Histogram, threshold: float, quantiles: dict[str, float], say: Callable[[str], None]
) -> None:
    """Print the histogram, and a hint where no pair is above the threshold."""
    for line in distribution.lines(threshold):
        say(f"filter: {line}")
    if max(distribution.quantiles.values(), default=-1.0) <= threshold:
        say(
            f"filter: no pair scores above filter.threshold {threshold}, so no synthetic pairs go on; "
            f"quantiles of the cosine to choose one from: {quantiles or 'none, there are no pairs'}"
        )


def _scores(
    pairs: pa.Table, cfg: RunConfig, weak: Storage | None, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """The cosines of the pairs; each distinct text is encoded once.

    Returns:
        ((pairs,) float32 cosines, (pairs,) booleans: whether `round_trip` retrieves the document, True without it).

    Raises:
        UserError: the scoring model is missing.
        StageFailure: a cosine is NaN or infinite.
    """
    model, end_token = scoring_model(cfg.filter.model, weak, cfg.models.end_token)
    if not len(pairs):
        return np.empty(0, dtype=np.float32), np.empty(0, dtype=bool)
    datasets = pairs["dataset"].to_pylist()
    instruction_of = instructions(cfg, set(datasets))
    queries, of_query = _distinct(list(zip(pairs["query"].to_pylist(), map(instruction_of.get, datasets), strict=True)))
    documents, of_document = _distinct(pairs["document"].to_pylist())
    say(f"filter: scoring {len(pairs)} pairs with {model}")
    gpus = cfg.cluster.gpus_per_worker
    with Encoders(model, end_token=end_token, workers=cfg.filter.workers, gpus_per_worker=gpus) as pool:
        encode = partial(pool.encode, max_tokens=cfg.filter.max_tokens)
        texts, query_instructions = [text for text, _ in queries], [instruction for _, instruction in queries]
        query_vectors = encode(texts, instruction=query_instructions, progress=paced(say, "filter: queries embedded"))
        vectors = encode(documents, progress=paced(say, "filter: documents embedded"))
        for line in pool.notes():
            say(f"filter: {line}")
    cosines: np.ndarray = np.einsum("nd,nd->n", query_vectors[of_query], vectors[of_document])
    if not np.isfinite(cosines).all():
        raise StageFailure(f"{model} gives NaN for {int((~np.isfinite(cosines)).sum())} pairs; its training diverged")
    if cfg.filter.round_trip is None:
        return cosines, np.ones(len(cosines), dtype=bool)
    return cosines, round_trip(query_vectors, of_query, vectors, of_document, cfg.filter.round_trip)


def _distinct(items: list[_Item]) -> tuple[list[_Item], np.ndarray]:
    """The distinct items, and for each item its index among them, (len(items),) int64."""
    place = {item: i for i, item in enumerate(dict.fromkeys(items))}
    return list(place), np.array([place[item] for item in items], dtype=np.int64)


def _write_histogram(out: Storage, distribution: Histogram, threshold: float, kept: int) -> None:
    content = {
        "threshold": threshold,
        "scored": sum(distribution.counts),
        "kept": kept,
        "edges": [round(e, 6) for e in distribution.edges],
        "counts": list(distribution.counts),
        "quantiles": {f"{q:g}": value for q, value in distribution.quantiles.items()},
    }
    out.write_json("histogram.json", content)
