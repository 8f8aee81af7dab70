"""A reranker's veto on mined negatives: a candidate that it scores as relevant is an unlabelled positive."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qwen3emb.config.data import MineConfig
from qwen3emb.config.run import RunConfig
from qwen3emb.encoding.dispatch import paced
from qwen3emb.encoding.pool import Rerankers
from qwen3emb.mining.rules import MiningPlan, Negatives

__all__ = ["judged_rules", "veto"]

_Mined = dict[tuple[str, int], Negatives | None]


def judged_rules(rules: MineConfig) -> MineConfig:
    """The rules for choosing candidates: `veto.candidates` times as many where a reranker will judge them."""
    if rules.veto is None:
        return rules
    return rules.model_copy(update={"negatives": rules.negatives * rules.veto.candidates})


def _instruction_of(plan: MiningPlan, query: int, cfg: RunConfig) -> str:
    instruction = plan.instructions[query]
    return cfg.models.instruction if instruction is None else instruction


def veto(
    mined: Mapping[tuple[str, int], Negatives | None], plan: MiningPlan, cfg: RunConfig, say: Callable[[str], None]
) -> tuple[_Mined, int | None]:
    """Leave out candidates that the reranker scores above `mine.veto.above`, and keep at most `mine.negatives`.

    Args:
        mined: (dataset, query row) -> candidates, hardest first; None where the query is rejected.
        plan: the texts of queries and documents.
        cfg: the run.
        say: called with each line of progress.

    Returns:
        (the remaining candidates, how many were left out); (`mined`, None) without a reranker.

    Raises:
        UserError: the reranker cannot be loaded.
    """
    rules = cfg.mine.veto
    if rules is None:
        return dict(mined), None
    judged = {key: negatives for key, negatives in mined.items() if negatives is not None and negatives.rows}
    queries = [plan.queries[query] for _, query in judged]
    documents = [[plan.documents[row] for row in negatives.rows] for negatives in judged.values()]
    model = rules.model
    say(f"mine: {sum(map(len, documents))} candidates to be judged by {model}")
    with Rerankers(model, workers=cfg.mine.workers, gpus_per_worker=cfg.cluster.gpus_per_worker) as pool:
        scores = pool.score(
            queries,
            documents,
            max_tokens=rules.max_tokens,
            instruction=[_instruction_of(plan, query, cfg) for _, query in judged],
            progress=paced(say, "mine: queries judged"),
        )
    remaining, vetoed = dict(mined), 0
    for (key, negatives), judgement in zip(judged.items(), scores, strict=True):
        kept = [i for i, score in enumerate(judgement) if score <= rules.above]
        vetoed += len(judgement) - len(kept)
        places = kept[: cfg.mine.negatives]
        remaining[key] = Negatives(tuple(negatives.rows[i] for i in places), tuple(negatives.scores[i] for i in places))
    return remaining, vetoed
