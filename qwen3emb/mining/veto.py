"""A reranker's say on mined negatives: a candidate that it takes for an answer is an unlabelled positive."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qwen3emb.config.data import MineConfig
from qwen3emb.config.run import RunConfig
from qwen3emb.encoding.dispatch import paced
from qwen3emb.encoding.pool import Rerankers
from qwen3emb.mining.rules import MiningPlan, Negatives
from qwen3emb.model.fetch import resolve_model

__all__ = ["judged_rules", "veto"]

_Found = dict[tuple[str, int], Negatives | None]


def judged_rules(rules: MineConfig) -> MineConfig:
    """The rules by which candidates are chosen: more of them where a reranker judges."""
    if rules.veto is None:
        return rules
    return rules.model_copy(update={"negatives": rules.negatives * rules.veto.candidates})


def _asked(work: MiningPlan, query: int, cfg: RunConfig) -> str:
    own = work.instructions[query]
    return cfg.models.instruction if own is None else own


def veto(
    found: Mapping[tuple[str, int], Negatives | None], work: MiningPlan, cfg: RunConfig, say: Callable[[str], None]
) -> tuple[_Found, int | None]:
    """Leave out candidates that the reranker of `mine.veto` takes for answers, and cut to `mine.negatives`.

    Args:
        found: (dataset, query) -> candidates, hardest first; None where the query is rejected.
        work: whose texts they are.
        cfg: the run.
        say: takes lines of progress.

    Returns:
        What is left, and how many candidates were left out; (found, None) without a reranker.

    Raises:
        UserError: the reranker cannot be loaded.
    """
    rules = cfg.mine.veto
    if rules is None:
        return dict(found), None
    judged = {key: negatives for key, negatives in found.items() if negatives is not None and negatives.rows}
    queries = [work.queries[query] for _, query in judged]
    documents = [[work.documents[row] for row in negatives.rows] for negatives in judged.values()]
    model = str(resolve_model(rules.model))
    say(f"mine: {sum(map(len, documents))} candidates to be judged by {model}")
    with Rerankers(model, workers=cfg.mine.workers, gpus_per_worker=cfg.cluster.gpus_per_worker) as pool:
        scores = pool.score(
            queries,
            documents,
            max_tokens=rules.max_tokens,
            instruction=[_asked(work, query, cfg) for _, query in judged],
            progress=paced(say, "mine: queries judged"),
        )
    left, out = dict(found), 0
    for (key, negatives), judgement in zip(judged.items(), scores, strict=True):
        kept = [i for i, score in enumerate(judgement) if score <= rules.above]
        out += len(judgement) - len(kept)
        places = kept[: cfg.mine.negatives]
        left[key] = Negatives(tuple(negatives.rows[i] for i in places), tuple(negatives.scores[i] for i in places))
    return left, out
