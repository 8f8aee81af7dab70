"""The dev and held-out sets of written queries: drafts ranked by the retrieval model on Ray, the best ones written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from qwen3emb.config.resources import TASK
from qwen3emb.config.run import ModelsConfig, RunConfig, require_section
from qwen3emb.core.context import StageContext
from qwen3emb.core.records import PAIR
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import dispatch, gather, paced
from qwen3emb.synthesis.drafts import (
    Draft,
    chosen_drafts,
    outranked,
    passage_document,
    read_drafts,
    repeated_drafts,
    write_set,
)
from qwen3emb.synthesis.retrieval_model import embedded, retrieval_model
from qwen3emb.text.evaluation_sets import asked_passages
from qwen3emb.text.passages import PASSAGES, drawn_passages, passage_files, read_ids

__all__ = ["write_sets"]

_Say = Callable[[str], None]
_SEARCHED_AT_ONCE = 512  # passages of a task
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def write_sets(ctx: StageContext[RunConfig], say: _Say) -> dict[str, Any]:
    """Choose the dev and held-out queries among the drafts and write their sets; counts by split."""
    cfg, out = require_section(ctx.cfg.synthesize), ctx.out
    splits = asked_passages(ctx.cfg)
    for split in ("dev", "heldout"):
        out.delete(split)  # of a run that was killed
    drafts = {split: read_drafts(out, split) for split in splits}
    every = [draft for written in drafts.values() for draft in written]
    if not every:
        return {}
    written = require_section(cfg.evaluation)
    pairs = out.read_table("pairs", PAIR)
    repeated = repeated_drafts(every, pairs.column("query").to_pylist(), cfg.gates.near_duplicate_query)
    ranks = _ranks(ctx, [draft for draft in every if draft.id not in repeated], say)
    corpus, counts = ctx.inputs["corpus"], {}
    for split, count in splits.items():
        asked = list(dict.fromkeys(p["id"] for p in drawn_passages(corpus, split, count, ctx.cfg.seed)))
        wanted = written.dev_queries if split == "dev" else written.heldout_queries
        queries, skipped = chosen_drafts(
            drafts[split], asked, repeated, ranks, written.found_within, wanted, ctx.cfg.seed
        )
        documents = ctx.cfg.corpus.max_dev_documents if split == "dev" else None
        write_set(out, split, queries, skipped, corpus / PASSAGES, documents, ctx.cfg.seed)
        why = dict(Counter(reason.partition(":")[0] for reason in skipped.values()))
        counts[f"{split}_queries"] = {"passages": len(asked), "queries": len(queries), "skipped": why}
        shown = ", ".join(f"{n} {reason}" for reason, n in why.items()) or "none skipped"
        say(f"synthesize: {len(queries)} {split} queries of {len(asked)} passages ({shown})")
    return counts


def _ranks(ctx: StageContext[RunConfig], drafts: Sequence[Draft], say: _Say) -> dict[str, int]:
    """Draft id -> rank of its passage among all passages, by the retrieval model."""
    if not drafts:
        return {}
    models, passages = ctx.cfg.models, ctx.inputs["corpus"] / PASSAGES
    queries, own = ray.put([d.query for d in drafts]), ray.put([d.document for d in drafts])
    options: dict[str, Any] = {**TASK.options(), "runtime_env": {"env_vars": _ENVIRONMENT}}
    asked: Any = ray.remote(_draft_vectors).options(num_returns=2, **options)
    search: Any = ray.remote(_outranked).options(**options)
    vectors, cosines = gather(list(asked.remote(queries, own, models)), "synthesize: drafts")
    shared = [ray.put(vectors), ray.put(cosines), ray.put([d.passage for d in drafts])]
    ranges = [
        (file, start)
        for file in passage_files(passages)
        for start in range(0, read_ids(passages, file).num_rows, _SEARCHED_AT_ONCE)
    ]
    counts, progress = np.ones(len(drafts), np.int64), paced(say, "synthesize: parts of the corpus searched")
    places = [None] * ctx.cfg.evaluate.workers
    answers = dispatch(
        places, lambda _, piece: search.remote(passages.uri, *piece, *shared, models), ranges, "synthesize"
    )
    for done, nearer in enumerate(answers, start=1):
        counts += nearer
        progress(done, len(ranges))
    return {draft.id: int(count) for draft, count in zip(drafts, counts, strict=True)}


def _draft_vectors(queries: list[str], documents: list[str], models: ModelsConfig) -> tuple[np.ndarray, np.ndarray]:
    """Task: the vectors of queries, and the cosine of each with its document."""
    model = retrieval_model(models)
    distinct = list(dict.fromkeys(documents))
    vectors, of_document = embedded(model, queries), embedded(model, distinct)
    rows = {text: row for row, text in enumerate(distinct)}
    own = of_document[[rows[text] for text in documents]]
    return vectors, (vectors * own).sum(axis=1)


def _outranked(
    passages: str,
    file: str,
    start: int,
    queries: np.ndarray,
    own: np.ndarray,
    names: list[str],
    models: ModelsConfig,
) -> np.ndarray:
    """Task: of each query, how many of a file's passages from `start` on are nearer than its own."""
    rows = Storage(passages).read_table(file).slice(start, _SEARCHED_AT_ONCE).to_pylist()
    vectors = embedded(retrieval_model(models), [passage_document(row) for row in rows])
    return outranked(vectors, [row["id"] for row in rows], queries, own, names)
