"""Which checkpoints to merge: every one alone and every run of the latest, scored on the dev set."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen3emb.distributed.encoding import Encoders
from qwen3emb.errors import UserError
from qwen3emb.evaluate.metrics import retrieval_metrics
from qwen3emb.evaluate.retrieval import RetrievalSet, read_retrieval_set
from qwen3emb.merge.checkpoint import merge_checkpoints
from qwen3emb.pipeline import StageContext
from qwen3emb.storage import Storage

__all__ = ["best_checkpoints"]

_METRIC = "ndcg@10"


def best_checkpoints(
    ctx: StageContext, checkpoints: Sequence[str], base: Path | None, say: Callable[[str], None]
) -> tuple[list[str], dict[str, float]]:
    """The checkpoints whose merge is best on the run's dev set; of equals, the more.

    Args:
        ctx: the stage `merge`.
        checkpoints: URIs of embedding models, oldest first.
        base: of the task vectors; None merges the weights themselves.
        say: takes lines of progress.

    Returns:
        What to merge, and candidate ("step_000030", "last 2") -> dev nDCG@10.

    Raises:
        UserError: the run has no dev set.
    """
    dev = ctx.input("corpus") / "dev"
    data = read_retrieval_set(dev) if dev.exists() else RetrievalSet({}, {}, {})
    if not data.queries:
        raise UserError(f"merge.search: {dev.uri} has no queries; raise corpus.dev_share, or leave merge.search false")
    candidates = {uri.rsplit("/", 1)[-1]: [uri] for uri in checkpoints}
    candidates |= {f"last {count}": list(checkpoints[-count:]) for count in range(2, len(checkpoints) + 1)}
    scores: dict[str, float] = {}
    pool: Encoders | None = None
    workers, gpus = ctx.cfg.evaluate.workers, ctx.cfg.cluster.gpus_per_worker
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, parts in candidates.items():
                model = _merged(parts, Path(folder) / name.replace(" ", "-"), base, ctx)
                if pool is None:
                    pool = Encoders(model, workers=workers, gpus_per_worker=gpus)
                else:
                    pool.use(model)
                scores[name] = _score(pool, data, ctx)
                say(f"merge: {name}: dev {_METRIC} {scores[name]:.4f}")
        finally:
            if pool is not None:
                pool.close()
    best = max(scores, key=lambda name: (scores[name], len(candidates[name])))
    return candidates[best], scores


def _merged(parts: Sequence[str], target: Path, base: Path | None, ctx: StageContext) -> str:
    """A directory with the merge of the parts: the checkpoint itself where it is one."""
    if len(parts) == 1:
        return parts[0]
    folders = [Storage(uri).local() for uri in parts]
    merge_checkpoints(folders, target, base=base, on=ctx.cfg.merge.on)
    return str(target)


def _score(pool: Encoders, data: RetrievalSet, ctx: StageContext) -> float:
    cfg, ask = ctx.cfg.evaluate, ctx.cfg.models.instruction
    queries = pool.encode(list(data.queries.values()), max_tokens=cfg.max_query_tokens, instruction=ask)
    documents = pool.encode(data.texts(), max_tokens=cfg.max_document_tokens)
    return retrieval_metrics(data, queries @ documents.T, [10])[_METRIC]
