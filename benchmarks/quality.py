"""What training buys in the same time: SmolLM2-135M on SciFact's train split, ours and sentence-transformers'.

`quality.scifact`: both sides get `--minutes` on 2 cores (20 by default), one after the other, from the same pairs; then
mteb scores both on SciFact's test split, nDCG@10 in points. A tenth of the training queries is kept apart as dev set.
`quality.merged`: the SLERP of our last checkpoints against the best of them alone, mean nDCG@10 over dev sets of
SciFact, MLQuestions and XQuAD (en), in points. Differences, not ratios: `must` and `aim` are in points.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.comparing import Difference, report
from benchmarks.quality_sides import INSTRUCTION
from cluster.session import connected
from qwen3emb.config.run import ClusterConfig
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.pool import Encoders
from qwen3emb.evaluation.harness import HarnessSettings, evaluate_tasks
from qwen3emb.evaluation.harness_tasks import open_tasks
from qwen3emb.merging.checkpoint import merge_checkpoints
from qwen3emb.metrics.retrieval import retrieval_metrics
from qwen3emb.model.fetch import fetch_model
from qwen3emb.text.retrieval_set import RetrievalSet, read_beir

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
DEV_SETS = {"mlquestions": "dev", "xquad/en": "dev"}
DEV_QUERIES, DEV_DOCUMENTS = 300, 300
MAX_TOKENS = 256  # of a document, for both sides


def said(text: str) -> None:
    """One line on standard error."""
    print(f"quality: {text}", file=sys.stderr, flush=True)


def smaller(data: RetrievalSet, seed: int = 0) -> RetrievalSet:
    """Some of the queries, what answers them, and other documents up to `DEV_DOCUMENTS`."""
    draw = random.Random(seed)
    queries = sorted(data.queries)
    chosen = set(draw.sample(queries, min(DEV_QUERIES, len(queries))))
    answers = {document for query in chosen for document in data.qrels[query]}
    others = [document for document in data.corpus if document not in answers]
    kept = answers | set(draw.sample(others, min(len(others), max(0, DEV_DOCUMENTS - len(answers)))))
    return RetrievalSet(
        {q: t for q, t in data.queries.items() if q in chosen},
        {d: t for d, t in data.corpus.items() if d in kept},
        {q: data.qrels[q] for q in chosen},
    )


def split_training(folder: Path) -> tuple[Path, RetrievalSet]:
    """(file of training pairs, dev set) from SciFact's train split."""
    data = read_beir(Storage(str(DATA / "scifact")), "train")
    queries = sorted(data.queries)
    held = set(random.Random(0).sample(queries, len(queries) // 10))
    texts = dict(zip(data.corpus, data.texts(), strict=True))
    pairs = [[data.queries[q], texts[d]] for q in queries if q not in held for d in data.qrels[q]]
    dev = smaller(RetrievalSet({q: data.queries[q] for q in held}, data.corpus, {q: data.qrels[q] for q in held}))
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    return folder / "pairs.json", dev


def trained(side: str, folder: Path, order: dict[str, Any]) -> dict[str, Any]:
    """What the side's process printed; its model is in `folder/side`."""
    order = order | {"out": str(folder / side)}
    (folder / side).mkdir()
    (folder / f"{side}.json").write_text(json.dumps(order), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.quality_sides", side, str(folder / f"{side}.json")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"quality, {side}: ended with {done.returncode}; its message is above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    said(f"{side}: {found['steps']} steps, {found['rows']} rows in {found['seconds']:.0f} s")
    return found


def merged_gain(folder: Path, base: Path, checkpoints: list[str], dev: RetrievalSet) -> tuple[Difference, Path]:
    """The merged model's mean over the dev sets against the best checkpoint's, and where the merged model is."""
    sets = {"scifact": dev}
    sets |= {name: smaller(read_beir(Storage(str(DATA / name)), split)) for name, split in DEV_SETS.items()}
    places = [folder / "ours" / name for name in checkpoints]
    angles = merge_checkpoints(places, folder / "merged", base=base, on="task_vectors").summary()
    said(f"merge of {len(places)}: {angles['paths']}, mean angle {angles['mean_angle_degrees']:.2f} degrees")
    means = {}
    with Encoders(str(folder / "merged"), workers=1) as pool:
        for model in (folder / "merged", *places):
            pool.use(str(model))
            scores = {name: _ndcg(pool, data) for name, data in sets.items()}
            means[model.name] = 100 * sum(scores.values()) / len(scores)
            said(f"{model.name}: " + ", ".join(f"{name} {100 * score:.2f}" for name, score in scores.items()))
    best = max(value for name, value in means.items() if name != "merged")
    return Difference("quality.merged", 0.0, 0.5, means["merged"], best), folder / "merged"


def _ndcg(pool: Encoders, data: RetrievalSet) -> float:
    queries = pool.encode(list(data.queries.values()), max_tokens=64, instruction=INSTRUCTION)
    documents = pool.encode(data.texts(), max_tokens=MAX_TOKENS)
    return retrieval_metrics(data, queries @ documents.T, [10])["ndcg@10"]


def scifact(side: str, model: Path, folder: Path) -> float:
    """mteb's nDCG@10 on the test split, in points."""
    settings = HarnessSettings(str(model), folder / f"scores-{side}", f"bench/{side}", max_tokens=MAX_TOKENS, workers=2)
    tasks = open_tasks(["SciFact"], {"SciFact": DATA / "scifact"}, ["test"])
    return float(evaluate_tasks(tasks, settings, said)["scores"][settings.name]["SciFact"])


def main() -> int:
    """Train both, evaluate, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="of training, for each side")
    seconds = 60 * parser.parse_args().minutes
    if not (DATA / "scifact").is_dir():
        print(f"error: {DATA} is not there; this benchmark needs the project's shared data", file=sys.stderr)
        return 2
    base = fetch_model("smollm2-135m-instruct")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs, dev = split_training(folder)
        order = {"model": str(base), "pairs": str(pairs), "seconds": seconds}
        found = {side: trained(side, folder, order) for side in ("ours", "theirs")}
        with connected(ClusterConfig(num_cpus=4)):
            gain, merged = merged_gain(folder, base, found["ours"]["checkpoints"], dev)
            ours = scifact("ours", merged, folder)
            theirs = scifact("theirs", folder / "theirs" / found["theirs"]["model"], folder)
    return report([Difference("quality.scifact", 0.0, 5.0, ours, theirs), gain])


if __name__ == "__main__":
    sys.exit(main())
