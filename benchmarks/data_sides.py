"""What `make bench-data` compares besides the engine: mining, and the preparation of a corpus."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.comparing import Comparison, Outcome, compare, seconds
from qwen3emb.config.data import CorpusConfig
from qwen3emb.config.run import load_config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS, QUERIES, DIMENSIONS = 100_000, 5_000, 384
ROUNDS = 3


def mining(threads: int) -> list[Outcome]:
    """Seconds, and memory on top of what the process held before, of one mining; each in a process of its own."""
    folder = Path(tempfile.mkdtemp())
    try:
        _write_world(folder)
        found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}

        def side(name: str) -> float:
            found[name].append(_mined(name, folder, threads))
            return float(found[name][-1]["seconds"])

        speed = Comparison("data.mining_seconds", must=1.0, aim=2.0, higher_is_better=False)
        timed = compare(speed, lambda: side("ours"), lambda: side("theirs"), ROUNDS)
    finally:
        shutil.rmtree(folder)
    mine, other = found["ours"][-1]["negatives"], found["theirs"][-1]["negatives"]
    same = sum(mine.get(query) == digest for query, digest in other.items())
    print(
        f"data: mining: {same} of {len(other)} queries have the same negatives, ours {len(mine)} rows", file=sys.stderr
    )
    if same < 0.999 * len(other) or len(mine) < len(other):
        raise SystemExit("the two sides do not mine the same negatives: nothing to compare")
    for name, runs in found.items():
        print(f"data: mining: {name}: peak of the process {_median(runs, 'peak') / 1e6:.0f} MB", file=sys.stderr)
    extra = [_median(runs, "peak") - _median(runs, "before") for runs in (found["ours"], found["theirs"])]
    memory = Comparison("data.mining_memory", must=2.0, aim=2.0, higher_is_better=False)
    return [timed, Outcome(memory, *extra)]


def _median(runs: list[dict[str, Any]], figure: str) -> float:
    return statistics.median(run[figure] for run in runs)


def _write_world(folder: Path) -> None:
    """Queries near their documents, documents in clusters, so that some are hard; texts of some 120 characters."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2_000, DIMENSIONS), dtype=np.float32)
    documents = centres[rng.integers(0, len(centres), DOCUMENTS)]
    documents += 0.8 * rng.standard_normal((DOCUMENTS, DIMENSIONS), dtype=np.float32)
    queries = documents[:QUERIES] + 0.6 * rng.standard_normal((QUERIES, DIMENSIONS), dtype=np.float32)
    words = [f"{number:x}" for number in rng.integers(0, 1 << 30, (DOCUMENTS + QUERIES) * 2)]
    texts = [f"Text {i} speaks of {words[2 * i]} and of {words[2 * i + 1]}. " * 3 for i in range(DOCUMENTS + QUERIES)]
    (folder / "texts.json").write_text(json.dumps({"documents": texts[:DOCUMENTS], "queries": texts[DOCUMENTS:]}))
    for name, vectors in (("documents", documents), ("queries", queries)):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.save(folder / f"{name}.npy", vectors)
        place = folder / name
        place.mkdir()
        piece = 2048
        for start in range(0, len(vectors), piece):
            np.save(place / f"{start:010d}.npy", vectors[start : start + piece])
        layout = {"uri": str(place), "count": len(vectors), "piece": piece, "texts": ""}
        (place / "layout.json").write_text(json.dumps(layout))


def _mined(side: str, folder: Path, threads: int) -> dict[str, Any]:
    python = sys.executable if side == "ours" else os.environ["PEER_PYTHON"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    command = [python, str(ROOT / "benchmarks/mine_sides.py"), side, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mining, {side}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def corpus_preparation(threads: int) -> Outcome:
    """Seconds of the stage `corpus` on a running Ray, and of the same calls one after the other in one process."""
    from cluster.session import connected
    from qwen3emb.core.context import StageContext
    from qwen3emb.core.storage import Storage
    from qwen3emb.corpus.stage import build_corpus

    cfg = load_config(str(ROOT / "examples/demo.yaml"))
    cfg = cfg.model_copy(update={"corpus": cfg.corpus.model_copy(update={"workers": threads})})
    folder = Path(tempfile.mkdtemp())
    written: dict[str, int] = {}

    def ours() -> float:
        shutil.rmtree(folder / "run", ignore_errors=True)
        ctx = StageContext(cfg, "corpus", Storage(str(folder / "run")), {})
        return seconds(lambda: written.update(ours=build_corpus(ctx).rows_in))

    def theirs() -> float:
        return seconds(lambda: written.update(theirs=_loop(cfg.corpus, cfg.seed, cfg.models.base, folder)))

    try:
        with connected(cfg.cluster.model_copy(update={"num_cpus": threads})):
            speed = Comparison("data.corpus_seconds", must=1.6, aim=1.9, higher_is_better=False)
            outcome = compare(speed, ours, theirs, ROUNDS)
    finally:
        shutil.rmtree(folder)
    if written["ours"] != written["theirs"]:
        raise SystemExit(f"the two sides found {written} rows: nothing to compare")
    return outcome


def _loop(cfg: CorpusConfig, seed: int, model: str, folder: Path) -> int:
    """Read, chunk and sign every file, find duplicates, write what is left; the number of rows found."""
    from qwen3emb.corpus.candidates import CANDIDATE, KEYS, chunker, file_rows
    from qwen3emb.corpus.sources import corpus_files
    from qwen3emb.corpus.split import decide

    chunk = chunker(model, cfg.max_tokens, cfg.overlap_tokens)
    rows = [row for file in corpus_files(cfg.sources, seed) for row in file_rows(file, cfg, seed, chunk)]
    table = pa.Table.from_pylist(rows, schema=CANDIDATE)
    verdict = decide(table.select(KEYS), cfg, seed)
    kept = [row for place, row in enumerate(rows) if place not in verdict.reasons]
    pq.write_table(pa.Table.from_pylist(kept, schema=CANDIDATE), folder / "kept.parquet", compression="zstd")
    return sum(row["role"] != "shadow" for row in rows)
