"""The stage `mine`: hard negatives for labelled and filtered synthetic pairs (RECIPE section 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from qwen3emb.config.catalogue import chosen_datasets
from qwen3emb.config.data import MineConfig
from qwen3emb.config.datasets import DOCSTRINGS, dataset_of
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.core.errors import UserError
from qwen3emb.core.records import PAIR, PASSAGE, REJECT, TRAINING_ROW
from qwen3emb.encoding.dispatch import Progress, gather, paced
from qwen3emb.encoding.pool import Encoders
from qwen3emb.encoding.vectors import Vectors, write_vectors
from qwen3emb.mining.rules import (
    CorpusSearch,
    MinePair,
    MiningPlan,
    Negatives,
    QueryBlock,
    ShardHits,
    merged_hits,
    mining_plan,
    query_blocks,
    select_negatives,
    settle_negatives,
    training_rows,
)
from qwen3emb.mining.search import QUERIES_AT_ONCE, search_shard, shards
from qwen3emb.mining.veto import judged_rules, veto
from qwen3emb.model.stored import scoring_model
from qwen3emb.text.documents import document_text
from qwen3emb.text.false_negatives import FALSE, SEARCHED, Answers, answers_of, read_answers, told
from qwen3emb.text.identity import content_hash
from qwen3emb.text.instructions import instructions

__all__ = ["mine_negatives"]

_LEAST = 256
_AHEAD = 2

_VECTORS = "vectors"
_SHARD = 50_000
_SYNTHETIC = dataset_of("retrieval")
_Say = Callable[[str], None]


@dataclass(frozen=True)
class MiningInput:
    """What the stages before have left: queries with their positives, the corpora to mine from, and rows not mined.

    Attributes:
        pairs: queries with their positives.
        corpora: dataset -> texts that its queries are mined from.
        own: id of a labelled dataset's row -> the negatives that the set has itself.
        unmined_rows: training rows that are not mined.
        answers: what answers the queries, by all data.
        left_out: negatives of the data's own that were none, see `false_negatives`.
    """

    pairs: list[MinePair]
    corpora: dict[str, list[str]]
    own: dict[str, list[str]]
    unmined_rows: list[dict[str, Any]]
    answers: Answers
    left_out: Counter[str]


def mine_negatives(ctx: StageContext[RunConfig], say: _Say) -> StageResult:
    """Mine each query's negatives from the corpus of its dataset; write `rows/` and `rejects/`.

    Docstrings are mined from the functions of all such pairs, synthetic queries from all passages, those of a labelled
    dataset from its documents, behind the negatives that it has itself. Classification, STS and bitext rows pass
    through, labelled and synthetic ones.

    Args:
        ctx: the stage.
        say: takes lines of progress.

    Raises:
        UserError: there are no pairs, or the scoring model is missing.
    """
    mining = _gathered(ctx, say)
    work = mining_plan(mining.pairs, mining.corpora, instructions(ctx.cfg, list(mining.corpora)), mining.answers)
    queries, documents = _embed(work, ctx, say)
    found: dict[tuple[str, int], Negatives | None] = {}
    cosines: dict[tuple[int, int], float] = {}
    for dataset, search in work.searches.items():
        progress = paced(say, f"mine: {dataset} queries searched")
        for asked, scores, mined in _mined_blocks(search, queries, documents, judged_rules(ctx.cfg.mine), progress):
            found |= {(dataset, query): negatives for query, negatives in zip(asked.rows, mined, strict=True)}
            pairs = zip((asked.rows[i] for i in asked.owners), asked.positives.tolist(), strict=True)
            cosines |= dict(zip(pairs, scores.positive_scores.tolist(), strict=True))
    found, vetoed = veto(found, work, ctx.cfg, say)
    rows, rejects = training_rows(mining.pairs, work, cosines, found)
    for row in rows:
        row["negatives"], row["negative_scores"] = _after(mining.own.get(row["id"], []), row, ctx.cfg.mine.negatives)
    for name, found_rows, schema in (
        ("rows", [*rows, *mining.unmined_rows], TRAINING_ROW),
        ("rejects", rejects, REJECT),
    ):
        ctx.out.delete(name)  # of a run that was killed
        ctx.out.write_parts(name, pa.Table.from_pylist(found_rows, schema=schema), _SHARD)
    metrics = _figures(rows, ctx.cfg.mine.negatives) | ({} if vetoed is None else {"vetoed": vetoed})
    metrics |= {reason: mining.left_out[reason] for reason in FALSE}
    if metrics["short"]:
        say(f"mine: {metrics['short']} of {len(rows)} rows have fewer than {ctx.cfg.mine.negatives} negatives")
    rejected = dict(Counter(r["reason"] for r in rejects))
    ctx.out.delete(_VECTORS)
    others = len(mining.unmined_rows)
    return StageResult(len(mining.pairs) + others, len(rows) + others, rejected, metrics)


def _gathered(ctx: StageContext[RunConfig], say: _Say) -> MiningInput:
    """What the stages before have left."""
    corpus, filtered = ctx.inputs["corpus"], ctx.inputs.get("filter")
    synthetic = filtered.read_table("pairs", PAIR).to_pylist() if filtered else []
    sets = _labelled_rows(ctx) + [_training_row(pair) for pair in synthetic if pair["dataset"] != _SYNTHETIC]
    names = {n for n, one in chosen_datasets(ctx.cfg.labelled).items() if one.mine and one.task == "retrieval"}
    mined_sets = [row for row in sets if row["dataset"] in names]
    unmined_rows = [row for row in sets if row["dataset"] not in names]
    pairs = _pairs(corpus.read_table("pairs", PAIR).to_pylist(), DOCSTRINGS)
    pairs += _pairs([pair for pair in synthetic if pair["dataset"] == _SYNTHETIC], _SYNTHETIC)
    pairs += [MinePair(row["id"], row["query"], row["positive"], row["dataset"]) for row in mined_sets]
    if not pairs and not sets:
        places = f"{corpus.uri}/pairs and {filtered.uri}/pairs hold" if filtered else f"{corpus.uri}/pairs holds"
        raise UserError(f"{places} no pair to mine for; add sources or labelled.sets, or lower filter.threshold")
    passages = corpus.read_table("passages", PASSAGE).select(["title", "text"]).to_pylist()
    functions = [p.document for p in pairs if p.dataset == DOCSTRINGS]
    texts = [document_text(p["title"] or "", p["text"]) for p in passages]  # as in the synthetic pairs
    corpora = {DOCSTRINGS: functions, _SYNTHETIC: texts}
    for row in mined_sets:
        corpora.setdefault(row["dataset"], []).extend([row["positive"], *row["negatives"]])
    answers, left_out = _settled(ctx, pairs, sets)
    if left_out:
        say(f"mine: {told(left_out)}")
    own = {row["id"]: row["negatives"] for row in mined_sets}
    return MiningInput(pairs, corpora, own, unmined_rows, answers, left_out)


def _settled(
    ctx: StageContext[RunConfig], pairs: Sequence[MinePair], rows: Sequence[dict[str, Any]]
) -> tuple[Answers, Counter[str]]:
    """(what answers each query by all data, how many of the rows' own negatives were none and are taken out)."""
    sets = chosen_datasets(ctx.cfg.labelled)
    searched = {name for name, one in sets.items() if one.task in SEARCHED} | {DOCSTRINGS}
    searched |= {dataset_of(task) for task in SEARCHED}
    answers = read_answers(ctx.inputs["labelled"]) if "labelled" in ctx.inputs else {}
    found = [(pair.query, pair.document) for pair in pairs]
    found += [(row["query"], row["positive"]) for row in rows if row["dataset"] in searched]
    for query, positives in answers_of(found).items():
        answers.setdefault(query, set()).update(positives)
    return answers, settle_negatives(rows, answers, searched)


def _labelled_rows(ctx: StageContext[RunConfig]) -> list[dict[str, Any]]:
    """The rows of the stage `labelled`, where the run has sets."""
    if "labelled" not in ctx.inputs:
        return []
    rows: list[dict[str, Any]] = ctx.inputs["labelled"].read_table("rows", TRAINING_ROW).to_pylist()
    return rows


def _after(own: Sequence[str], row: dict[str, Any], wanted: int) -> tuple[list[str], list[float | None]]:
    """A set's own negatives, then mined ones up to `wanted` in all; (texts, scores, None for the set's own)."""
    known = {content_hash(text) for text in own}
    mined = [
        (text, score)
        for text, score in zip(row["negatives"], row["negative_scores"], strict=True)
        if content_hash(text) not in known
    ][: max(0, wanted - len(own))]
    return [*own, *(text for text, _ in mined)], [*[None] * len(own), *(score for _, score in mined)]


def _pairs(rows: Sequence[dict[str, Any]], dataset: str) -> list[MinePair]:
    return [MinePair(row["id"], row["query"], row["document"], dataset) for row in rows]


def _training_row(pair: dict[str, Any]) -> dict[str, Any]:
    """A synthetic pair of a task without mining, as a training row."""
    negatives = pair.get("negatives") or []
    return {
        "id": pair["id"],
        "query": pair["query"],
        "positive": pair["document"],
        "negatives": negatives,
        "dataset": pair["dataset"],
        "positive_score": pair["score"],
        "negative_scores": [None] * len(negatives),
        "grade": pair.get("grade"),
    }


def _embed(work: MiningPlan, ctx: StageContext[RunConfig], say: _Say) -> tuple[Vectors, Vectors]:
    """Each distinct text once: (queries, documents), on storage until the stage is done."""
    cfg = ctx.cfg
    model, end_token = scoring_model(cfg.mine.model, ctx.inputs.get("weak"), cfg.models.end_token)
    say(f"mine: embedding {len(work.queries)} queries and {len(work.documents)} documents with {model}")
    gpus = cfg.cluster.gpus_per_worker
    with Encoders(model, end_token=end_token, workers=cfg.mine.workers, gpus_per_worker=gpus) as pool:
        write = partial(write_vectors, pool, max_tokens=cfg.mine.max_tokens)
        folder, told = ctx.out / _VECTORS, paced(say, "mine: queries embedded")
        queries = write(folder / "queries", work.queries, instruction=work.instructions, progress=told)
        documents = write(folder / "documents", work.documents, progress=paced(say, "mine: documents embedded"))
        for line in pool.notes():
            say(f"mine: {line}")
    return queries, documents


def _figures(rows: Sequence[dict[str, Any]], wanted: int) -> dict[str, Any]:
    """Figures of the training rows; `short` counts those with fewer than the `wanted` negatives."""
    hard = [s for row in rows for s in row["negative_scores"] if s is not None]
    return {
        "rows": dict(Counter(row["dataset"] for row in rows)),
        "negatives": sum(len(row["negatives"]) for row in rows),
        "short": sum(len(row["negatives"]) < wanted for row in rows),
        "missing_negatives": sum(max(0, wanted - len(row["negatives"])) for row in rows),
        "mean_positive_score": round(float(np.mean([r["positive_score"] for r in rows])), 4) if rows else None,
        "mean_negative_score": round(float(np.mean(hard)), 4) if hard else None,
    }


_Mined = tuple[QueryBlock, ShardHits, list[Negatives | None]]
"""A block of queries, the cosines of their positives, and their negatives."""


def _mined_blocks(
    search: CorpusSearch, queries: Vectors, documents: Vectors, rules: MineConfig, progress: Progress
) -> Iterator[_Mined]:
    """The negatives of a search, block by block in the order of the queries, from Ray tasks.

    Args:
        search: what is asked.
        queries: vectors of `MiningPlan.queries`.
        documents: vectors of `MiningPlan.documents`.
        rules: the rules; `rules.shard_rows` documents are held by one task.
        progress: called with (queries done, queries in all).
    """
    cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    size = min(QUERIES_AT_ONCE, max(_LEAST, -(-len(search.queries) // cores)))
    task: Any = ray.remote(search_shard)
    done = 0
    pending: list[tuple[QueryBlock, list[Any]]] = []
    waiting = query_blocks(search, size)
    while True:
        while len(pending) < max(_AHEAD, cores) and (asked := next(waiting, None)) is not None:
            where = ray.put(asked)
            parts = shards(asked, documents, rules.shard_rows)
            pending.append((asked, [task.remote(queries, documents, where, part, rules.top_k) for part in parts]))
        if not pending:
            return
        asked, results = pending.pop(0)
        found = _joined(results)
        done += len(asked.rows)
        progress(done, len(search.queries))
        yield asked, found, select_negatives(asked, found, rules)


def _joined(results: Sequence[Any]) -> ShardHits:
    """What all shards have together; of each no more than one at a time is in this process."""
    parts: Iterator[ShardHits] = (gather([result], "mine: a search in one shard")[0] for result in results)
    return reduce(merged_hits, parts)
