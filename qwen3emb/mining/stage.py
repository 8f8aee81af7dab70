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
from qwen3emb.config.resources import TASK
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.core.errors import UserError
from qwen3emb.core.records import PAIR, REJECT, TRAINING_ROW
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
from qwen3emb.text.false_negatives import FALSE, SEARCHED, Answers, answers_of, left_out_sentence, read_answers
from qwen3emb.text.identity import content_hash
from qwen3emb.text.instructions import instructions
from qwen3emb.text.passages import training_passages

__all__ = ["mine_negatives"]

_LEAST = 256
_AHEAD = 2

_VECTORS = "vectors"
_SHARD = 50_000
_SYNTHETIC = dataset_of("retrieval")
_Say = Callable[[str], None]


@dataclass(frozen=True)
class MiningInput:
    """The queries to mine negatives for, with their positives and corpora, and the rows that are passed through.

    Attributes:
        pairs: queries with their positives.
        corpora: dataset -> texts that the negatives of its queries are taken from.
        labelled_negatives: id of a labelled dataset's row -> the negatives that come with it.
        unmined_rows: training rows that are passed through without mining.
        answers: query -> its answers, over all data.
        left_out: negatives that came with the rows and were removed as false, by reason (see `false_negatives`).
    """

    pairs: list[MinePair]
    corpora: dict[str, list[str]]
    labelled_negatives: dict[str, list[str]]
    unmined_rows: list[dict[str, Any]]
    answers: Answers
    left_out: Counter[str]


def mine_negatives(ctx: StageContext[RunConfig], say: _Say) -> StageResult:
    """Mine each query's negatives from the corpus of its dataset; write `rows/` and `rejects/`.

    Negatives of docstrings are functions of all docstring pairs, those of synthetic queries passages of the corpus. A
    labelled dataset's are documents of that dataset, behind the negatives that came with it. Classification, STS and
    bitext rows pass through, labelled and synthetic ones.

    Args:
        ctx: the stage.
        say: called with each line of progress.

    Returns:
        Rows in, rows out, rejects by reason, and metrics.

    Raises:
        UserError: there are no pairs, or the scoring model is missing.
    """
    mining = _mining_input(ctx, say)
    plan = mining_plan(mining.pairs, mining.corpora, instructions(ctx.cfg, list(mining.corpora)), mining.answers)
    queries, documents = _embed(plan, ctx, say)
    mined: dict[tuple[str, int], Negatives | None] = {}
    cosines: dict[tuple[int, int], float] = {}
    for dataset, search in plan.searches.items():
        progress = paced(say, f"mine: {dataset} queries searched")
        for block, scores, selected in _mined_blocks(search, queries, documents, judged_rules(ctx.cfg.mine), progress):
            mined |= {(dataset, query): negatives for query, negatives in zip(block.rows, selected, strict=True)}
            pairs = zip((block.rows[i] for i in block.owners), block.positives.tolist(), strict=True)
            cosines |= dict(zip(pairs, scores.positive_scores.tolist(), strict=True))
    mined, vetoed = veto(mined, plan, ctx.cfg, say)
    rows, rejects = training_rows(mining.pairs, plan, cosines, mined)
    for row in rows:
        row["negatives"], row["negative_scores"] = _with_mined(
            mining.labelled_negatives.get(row["id"], []), row, ctx.cfg.mine.negatives
        )
    for name, records, schema in (
        ("rows", [*rows, *mining.unmined_rows], TRAINING_ROW),
        ("rejects", rejects, REJECT),
    ):
        ctx.out.delete(name)  # of a run that was killed
        ctx.out.write_parts(name, pa.Table.from_pylist(records, schema=schema), _SHARD)
    metrics = _figures(rows, ctx.cfg.mine.negatives) | ({} if vetoed is None else {"vetoed": vetoed})
    metrics |= {reason: mining.left_out[reason] for reason in FALSE}
    if metrics["short"]:
        say(f"mine: {metrics['short']} of {len(rows)} rows have fewer than {ctx.cfg.mine.negatives} negatives")
    rejected = dict(Counter(r["reason"] for r in rejects))
    ctx.out.delete(_VECTORS)
    others = len(mining.unmined_rows)
    return StageResult(len(mining.pairs) + others, len(rows) + others, rejected, metrics)


def _mining_input(ctx: StageContext[RunConfig], say: _Say) -> MiningInput:
    """Read the pairs to mine for and the rows to pass through from the folders of the earlier stages."""
    corpus, filtered = ctx.inputs["corpus"], ctx.inputs.get("filter")
    synthetic = filtered.read_table("pairs", PAIR).to_pylist() if filtered else []
    sets = _labelled_rows(ctx) + [_training_row(pair) for pair in synthetic if pair["dataset"] != _SYNTHETIC]
    names = {
        name
        for name, settings in chosen_datasets(ctx.cfg.labelled).items()
        if settings.mine and settings.task == "retrieval"
    }
    mined_sets = [row for row in sets if row["dataset"] in names]
    unmined_rows = [row for row in sets if row["dataset"] not in names]
    pairs = _pairs(corpus.read_table("pairs", PAIR).to_pylist(), DOCSTRINGS)
    pairs += _pairs([pair for pair in synthetic if pair["dataset"] == _SYNTHETIC], _SYNTHETIC)
    pairs += [MinePair(row["id"], row["query"], row["positive"], row["dataset"]) for row in mined_sets]
    if not pairs and not sets:
        places = f"{corpus.uri}/pairs and {filtered.uri}/pairs hold" if filtered else f"{corpus.uri}/pairs holds"
        raise UserError(f"{places} no pair to mine for; add sources or labelled.sets, or lower filter.threshold")
    functions = [p.document for p in pairs if p.dataset == DOCSTRINGS]
    # As in the synthetic pairs, and only passages that are trained on: no held-out one is shown as a wrong answer.
    texts = [document_text(p["title"] or "", p["text"]) for p in training_passages(corpus)]
    corpora = {DOCSTRINGS: functions, _SYNTHETIC: texts}
    for row in mined_sets:
        corpora.setdefault(row["dataset"], []).extend([row["positive"], *row["negatives"]])
    answers, left_out = _known_answers(ctx, pairs, sets)
    if left_out:
        say(f"mine: {left_out_sentence(left_out)}")
    labelled_negatives = {row["id"]: row["negatives"] for row in mined_sets}
    return MiningInput(pairs, corpora, labelled_negatives, unmined_rows, answers, left_out)


def _known_answers(
    ctx: StageContext[RunConfig], pairs: Sequence[MinePair], rows: Sequence[dict[str, Any]]
) -> tuple[Answers, Counter[str]]:
    """(answers of each query over all data, number of false negatives removed from `rows` by reason).

    `rows` are the labelled and synthetic rows; they are changed in place.
    """
    sets = chosen_datasets(ctx.cfg.labelled)
    searched = {name for name, settings in sets.items() if settings.task in SEARCHED} | {DOCSTRINGS}
    searched |= {dataset_of(task) for task in SEARCHED}
    answers = read_answers(ctx.inputs["labelled"]) if "labelled" in ctx.inputs else {}
    answered = [(pair.query, pair.document) for pair in pairs]
    answered += [(row["query"], row["positive"]) for row in rows if row["dataset"] in searched]
    for query, positives in answers_of(answered).items():
        answers.setdefault(query, set()).update(positives)
    return answers, settle_negatives(rows, answers, searched)


def _labelled_rows(ctx: StageContext[RunConfig]) -> list[dict[str, Any]]:
    """The rows of the stage `labelled`; empty where the run has no labelled sets."""
    if "labelled" not in ctx.inputs:
        return []
    rows: list[dict[str, Any]] = ctx.inputs["labelled"].read_table("rows", TRAINING_ROW).to_pylist()
    return rows


def _with_mined(labelled: Sequence[str], row: dict[str, Any], count: int) -> tuple[list[str], list[float | None]]:
    """(texts, scores) of `labelled` negatives, then of mined ones of `row`, up to `count` in all.

    Labelled negatives have the score None, and none of them is left out.
    """
    known = {content_hash(text) for text in labelled}
    mined = [
        (text, score)
        for text, score in zip(row["negatives"], row["negative_scores"], strict=True)
        if content_hash(text) not in known
    ][: max(0, count - len(labelled))]
    return [*labelled, *(text for text, _ in mined)], [*[None] * len(labelled), *(score for _, score in mined)]


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


def _embed(plan: MiningPlan, ctx: StageContext[RunConfig], say: _Say) -> tuple[Vectors, Vectors]:
    """(vectors of the queries, vectors of the documents), on storage until the stage is done."""
    cfg = ctx.cfg
    model, end_token = scoring_model(cfg.mine.model, ctx.inputs.get("weak"), cfg.models.end_token)
    say(f"mine: embedding {len(plan.queries)} queries and {len(plan.documents)} documents with {model}")
    gpus = cfg.cluster.gpus_per_worker
    with Encoders(model, end_token=end_token, workers=cfg.mine.workers, gpus_per_worker=gpus) as pool:
        write = partial(write_vectors, pool, max_tokens=cfg.mine.max_tokens)
        folder, progress = ctx.out / _VECTORS, paced(say, "mine: queries embedded")
        queries = write(folder / "queries", plan.queries, instruction=plan.instructions, progress=progress)
        documents = write(folder / "documents", plan.documents, progress=paced(say, "mine: documents embedded"))
        for line in pool.notes():
            say(f"mine: {line}")
    return queries, documents


def _figures(rows: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    """Metrics of the training rows; `short` is the number of rows with fewer than `count` negatives."""
    hard = [s for row in rows for s in row["negative_scores"] if s is not None]
    return {
        "rows": dict(Counter(row["dataset"] for row in rows)),
        "negatives": sum(len(row["negatives"]) for row in rows),
        "short": sum(len(row["negatives"]) < count for row in rows),
        "missing_negatives": sum(max(0, count - len(row["negatives"])) for row in rows),
        "mean_positive_score": round(float(np.mean([r["positive_score"] for r in rows])), 4) if rows else None,
        "mean_negative_score": round(float(np.mean(hard)), 4) if hard else None,
    }


_Mined = tuple[QueryBlock, ShardHits, list[Negatives | None]]
"""A block of queries, the cosines of their positives, and their negatives."""


def _mined_blocks(
    search: CorpusSearch, queries: Vectors, documents: Vectors, rules: MineConfig, progress: Progress
) -> Iterator[_Mined]:
    """Mine the negatives of a search with Ray tasks, block by block in the order of the queries.

    Args:
        search: the queries of one dataset and their corpus.
        queries: vectors of `MiningPlan.queries`.
        documents: vectors of `MiningPlan.documents`.
        rules: the stage's section of the configuration; a task holds `rules.shard_rows` documents.
        progress: called with (queries done, queries in all).
    """
    cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    size = min(QUERIES_AT_ONCE, max(_LEAST, -(-len(search.queries) // cores)))
    task: Any = ray.remote(search_shard).options(**TASK.options())
    done = 0
    pending: list[tuple[QueryBlock, list[Any]]] = []
    waiting = query_blocks(search, size)
    while True:
        while len(pending) < max(_AHEAD, cores) and (block := next(waiting, None)) is not None:
            block_reference = ray.put(block)
            parts = shards(block, documents, rules.shard_rows)
            pending.append(
                (block, [task.remote(queries, documents, block_reference, part, rules.top_k) for part in parts])
            )
        if not pending:
            return
        block, results = pending.pop(0)
        hits = _joined(results)
        done += len(block.rows)
        progress(done, len(search.queries))
        yield block, hits, select_negatives(block, hits, rules)


def _joined(results: Sequence[Any]) -> ShardHits:
    """The merged hits of all shards; this process fetches those of one shard at a time."""
    parts: Iterator[ShardHits] = (gather([result], "mine: a search in one shard")[0] for result in results)
    return reduce(merged_hits, parts)
