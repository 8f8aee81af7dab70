"""One mining of hard negatives in a process of its own: `python benchmarks/mine_sides.py ours|theirs FOLDER`.

FOLDER holds `texts.json` ({"queries", "documents"}; query i is answered by document i) and the vectors of both, as
`.npy` for sentence-transformers and in our pieces. Prints one JSON line: seconds of the mining, bytes of memory before
it and at its peak, and a hash of each query's negatives. Threads are those of the environment (OMP_NUM_THREADS).
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.comparing import peak_bytes

NEGATIVES, TOP, RELATIVE_MARGIN = 8, 50, 0.05


def ours(folder: Path, texts: dict[str, list[str]]) -> Any:
    """Our stage's steps one after the other in this process; a function that mines, which gives (query, negatives)."""
    from qwen3emb.config.data import MineConfig
    from qwen3emb.encoding.vectors import Vectors
    from qwen3emb.mining.rules import MinePair, merged_hits, mining_plan, query_blocks, select_negatives, training_rows
    from qwen3emb.mining.search import QUERIES_AT_ONCE, search_shard, shards

    rules = MineConfig(negatives=NEGATIVES, top_k=TOP, relative_margin=RELATIVE_MARGIN)

    def mine() -> list[dict[str, Any]]:
        pairs = zip(texts["queries"], texts["documents"], strict=False)
        given = [MinePair(str(i), query, document, "docstrings") for i, (query, document) in enumerate(pairs)]
        work = mining_plan(given, {"docstrings": texts["documents"]})
        layouts = (json.loads((folder / name / "layout.json").read_text()) for name in ("queries", "documents"))
        queries, documents = (Vectors(**layout) for layout in layouts)
        found, cosines = {}, {}
        for asked in query_blocks(work.searches["docstrings"], QUERIES_AT_ONCE):
            parts = shards(asked, documents, rules.shard_rows)
            everything = reduce(merged_hits, (search_shard(queries, documents, asked, part, TOP) for part in parts))
            owners = [asked.rows[i] for i in asked.owners]
            pairs_of = zip(owners, asked.positives.tolist(), strict=True)
            cosines |= dict(zip(pairs_of, everything.positive_scores.tolist(), strict=True))
            chosen = select_negatives(asked, everything, rules)
            found |= {("docstrings", query): some for query, some in zip(asked.rows, chosen, strict=True)}
        return training_rows(given, work, cosines, found)[0]

    return mine, lambda rows: [(row["query"], row["negatives"]) for row in rows]


def theirs(folder: Path, texts: dict[str, list[str]]) -> Any:
    """`mine_hard_negatives` with faiss, given a model that has the vectors already."""
    import numpy as np
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives, pairwise_cos_sim

    model = SimpleNamespace(
        device="cpu",
        get_embedding_dimension=lambda: 384,
        similarity_pairwise=pairwise_cos_sim,
        encode_query=lambda texts, **_: np.load(folder / "queries.npy"),
        encode_document=lambda texts, **_: np.load(folder / "documents.npy"),
    )
    given = {"query": texts["queries"], "positive": texts["documents"][: len(texts["queries"])]}
    data = Dataset.from_dict(given)

    def mine() -> Any:
        return mine_hard_negatives(
            data,
            model,
            corpus=texts["documents"],
            num_negatives=NEGATIVES,
            range_max=TOP,
            relative_margin=RELATIVE_MARGIN,
            output_format="n-tuple",
            output_scores=True,
            use_faiss=True,
            verbose=False,
        )

    def plain(rows: Any) -> list[tuple[str, list[str]]]:
        return [(row["query"], [row[f"negative_{i + 1}"] for i in range(NEGATIVES)]) for row in rows]

    return mine, plain


def main() -> None:
    """Mine once and print."""
    side, folder = sys.argv[1], Path(sys.argv[2])
    texts = json.loads((folder / "texts.json").read_text())
    mine, plain = (ours if side == "ours" else theirs)(folder, texts)
    before, began = peak_bytes(), time.perf_counter()
    rows = mine()
    took, peak = time.perf_counter() - began, peak_bytes()
    digests = {query: hashlib.sha256(repr(negatives).encode()).hexdigest()[:12] for query, negatives in plain(rows)}
    print(json.dumps({"seconds": took, "before": before, "peak": peak, "negatives": digests}))


if __name__ == "__main__":
    main()
