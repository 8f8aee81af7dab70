"""all-MiniLM-L6-v2 through our `evaluate` on data of mteb's tasks, against its published scores.

No race: a published score that comes out again says that data, prompts, pooling and metrics are right. The tasks are
those of `../shared/data` that equal mteb's; without them there is nothing to do. One JSON line per task and split, in
points.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from cluster.session import connected
from qwen3emb.config.run import ClusterConfig
from qwen3emb.evaluation.harness import HarnessSettings, evaluate_tasks
from qwen3emb.evaluation.harness_tasks import open_tasks
from qwen3emb.model.fetch import fetch_model

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
PUBLISHED = DATA / "mteb_results" / "sentence-transformers__all-MiniLM-L6-v2"
TASKS = {
    "SciFact": ("scifact", ["test"]),
    "MLQuestions": ("mlquestions", ["dev", "test"]),
    "MBPPRetrieval": ("mbpp", ["test"]),
    "Banking77Classification": ("banking77/en", ["test"]),
    "STSBenchmark": ("stsb_multi_mt/en", ["test"]),
}
TOLERANCE = 0.1  # points


def main() -> int:
    """Evaluate, compare, and say what held."""
    if not PUBLISHED.is_dir():
        print(f"error: {PUBLISHED} is not there; this benchmark needs the project's shared data", file=sys.stderr)
        return 2
    model, held, lines = str(fetch_model("all-minilm-l6-v2")), 0, 0
    with connected(ClusterConfig(num_cpus=4)), tempfile.TemporaryDirectory() as out:
        for name, (folder, splits) in TASKS.items():
            began = time.monotonic()
            settings = HarnessSettings(model, Path(out), "sentence-transformers/all-MiniLM-L6-v2", workers=2)
            tasks = open_tasks([name], {name: DATA / folder}, splits)
            evaluate_tasks(tasks, settings, lambda line: print(line, file=sys.stderr, flush=True))
            found = json.loads(next(Path(out).glob(f"results/*/*/{name}.json")).read_text())["scores"]
            theirs = json.loads((PUBLISHED / f"{name}.json").read_text())["scores"]
            for split in splits:
                ours, published = (100 * scores[split][0]["main_score"] for scores in (found, theirs))
                lines, held = lines + 1, held + (abs(ours - published) <= TOLERANCE)
                figures = {"ours": round(ours, 3), "published": round(published, 3), "tolerance": TOLERANCE}
                seconds = round(time.monotonic() - began)
                print(json.dumps({"id": f"harness.{name}.{split}", **figures, "seconds": seconds}), flush=True)
    print(f"held {held}/{lines}", flush=True)
    return 0 if held == lines else 1


if __name__ == "__main__":
    sys.exit(main())
