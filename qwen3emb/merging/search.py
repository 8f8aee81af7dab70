"""Which checkpoints to merge and how much each of them weighs, by scores on the dev set."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3emb.config.run import RunConfig
from qwen3emb.core.context import StageContext
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.pool import Encoders
from qwen3emb.merging.checkpoint import merge_checkpoints
from qwen3emb.metrics.retrieval import retrieval_metrics
from qwen3emb.text.evaluation_sets import first_set
from qwen3emb.text.instructions import instructions
from qwen3emb.text.retrieval_set import RetrievalSet
from qwen3emb.text.templates import TextLimits

__all__ = ["best_checkpoints"]

_METRIC = "ndcg@10"
_CANDIDATES = "candidates"  # merged models while they are scored


@dataclass(frozen=True)
class _Candidate:
    """Checkpoints to merge and their weights; None for equal weights."""

    checkpoints: tuple[str, ...]
    weights: tuple[float, ...] | None = None


def best_checkpoints(
    ctx: StageContext[RunConfig], checkpoints: Sequence[str], base: Path | None, say: Callable[[str], None]
) -> tuple[list[str], list[float] | None, dict[str, float]]:
    """The checkpoints and weights whose merge is best on the run's dev set; of equal ones, that with most checkpoints.

    Every checkpoint alone and the last n of them for every n are scored, then the best of those merges with each of its
    checkpoints weighing twice and half as much as the others. So the result is never worse on the dev set than the best
    single checkpoint.

    Args:
        ctx: the stage `merge`.
        checkpoints: URIs of embedding models, oldest first.
        base: of the task vectors; None merges the weights themselves.
        say: called with each line of progress.

    Returns:
        (URIs of the checkpoints to merge; their weights, None for equal ones; dev nDCG@10 of each candidate, by names
        such as "step_000030", "last 2" and "last 2, 2 x step_000030").

    Raises:
        UserError: the run has no dev set.
    """
    dev = first_set(ctx.inputs, "dev")
    if dev is None:
        raise UserError("merge.search: the run has no dev queries; raise corpus.dev_share, or leave merge.search false")
    data, ask = dev.read(), instructions(ctx.cfg, [dev.name])[dev.name]
    singles = {_name(uri): _Candidate((uri,)) for uri in checkpoints}
    runs = {f"last {n}": _Candidate(tuple(checkpoints[-n:])) for n in range(2, len(checkpoints) + 1)}
    scores: dict[str, float] = {}
    workers, gpus = ctx.cfg.evaluate.workers, ctx.cfg.cluster.gpus_per_worker
    with Encoders(checkpoints[0], workers=workers, gpus_per_worker=gpus) as pool:

        def score(name: str, candidate: _Candidate) -> None:
            place = f"{_CANDIDATES}/{len(scores)}"
            pool.use(_merged(candidate, ctx.out / place, base, ctx))
            scores[name] = _score(pool, data, ask, ctx)
            ctx.out.delete(place)
            say(f"merge: {name}: dev {_METRIC} {scores[name]:.4f}")

        for name, candidate in (singles | runs).items():
            score(name, candidate)
        weighted = _weighted(max(runs, key=lambda name: scores[name]), runs) if runs else {}
        for name, candidate in weighted.items():
            score(name, candidate)
    everything = singles | runs | weighted
    best = everything[max(scores, key=lambda name: (scores[name], len(everything[name].checkpoints)))]
    return list(best.checkpoints), list(best.weights) if best.weights else None, scores


def _name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def _weighted(run: str, runs: Mapping[str, _Candidate]) -> dict[str, _Candidate]:
    """Candidates from the merge named `run`: one of its checkpoints weighs twice, or half, as much as each other."""
    parts = runs[run].checkpoints
    candidates = {}
    for number, uri in enumerate(parts):
        for factor, word in ((2.0, "2 x"), (0.5, "half")):
            weights = tuple(factor if i == number else 1.0 for i in range(len(parts)))
            candidates[f"{run}, {word} {_name(uri)}"] = _Candidate(parts, weights)
    return candidates


def _merged(candidate: _Candidate, out: Storage, base: Path | None, ctx: StageContext[RunConfig]) -> str:
    """Merge a candidate's checkpoints into `out` and return the URI; a single checkpoint is not copied."""
    if len(candidate.checkpoints) == 1:
        return candidate.checkpoints[0]
    folders = [Storage(uri).local() for uri in candidate.checkpoints]
    out.delete()  # of a run that was killed
    with tempfile.TemporaryDirectory() as folder:
        target = out.local() if out.is_local else Path(folder) / "model"
        merge_checkpoints(folders, target, weights=candidate.weights, base=base, on=ctx.cfg.merge.on)
        out.upload(target, "")
    return out.uri


def _score(pool: Encoders, data: RetrievalSet, ask: str, ctx: StageContext[RunConfig]) -> float:
    limits = TextLimits.of(ctx.cfg.evaluate)
    queries = pool.encode(list(data.queries.values()), max_tokens=limits.query, instruction=ask)
    documents = pool.encode(data.texts(), max_tokens=limits.document)
    return retrieval_metrics(data, queries @ documents.T, [10])[_METRIC]
