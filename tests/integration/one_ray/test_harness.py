"""mteb's harness over Ray workers: the same scores as our own metrics, two stages, results kept, a task skipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mteb
import numpy as np
import pytest

from qwen3emb.core.storage import Storage
from qwen3emb.evaluation.harness import HarnessSettings, evaluate_tasks
from qwen3emb.evaluation.harness_tasks import open_tasks
from qwen3emb.metrics.retrieval import retrieval_metrics
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.reranker import Reranker
from qwen3emb.text.retrieval_set import read_beir

pytestmark = pytest.mark.integration

END = "<|endoftext|>"
WORDS = ["file", "list", "line", "text", "query", "path", "model", "name", "page", "word"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BEIR folder of ten functions, asked for by what they do."""
    out = tmp_path / "functions"
    (out / "qrels").mkdir(parents=True)
    corpus = [{"_id": w, "title": "", "text": f"def read_{w}(x): return {w * (i + 1)}"} for i, w in enumerate(WORDS)]
    queries = [{"_id": f"q-{w}", "text": f"how do I read a {w}?"} for w in WORDS[:6]]
    (out / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (out / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    judged = [f"q-{w}\t{w}\t1" for w in WORDS[:6]]
    (out / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    return out


def test_two_stages_on_a_local_task(tiny_qwen3: Path, folder: Path, tmp_path: Path) -> None:
    data = read_beir(Storage(str(folder)), "test")
    told = "Find the function"
    encoder, reranker = Encoder(tiny_qwen3, end_token=END, dtype="float32"), Reranker(tiny_qwen3, dtype="float32")
    queries = list(data.queries.values())
    cosines = encoder.encode(queries, max_tokens=64, instruction=told) @ encoder.encode(data.texts(), max_tokens=64).T
    judged = np.array([reranker.score(query, data.texts(), max_tokens=128, instruction=told) for query in queries])
    wanted = [100 * retrieval_metrics(data, scores, [1])["ndcg@10"] for scores in (cosines, judged)]

    class Unreachable:
        """As a task whose data does not come."""

        metadata = mteb.get_task("SciFact").metadata
        data_loaded = False

        def load_data(self) -> None:
            raise ConnectionError("no way to the hub\nmore")

    settings = HarnessSettings(
        str(tiny_qwen3),
        tmp_path / "out",
        "test/tiny",
        end_token=END,
        max_tokens=64,
        reranker=str(tiny_qwen3),
        instructions={"functions": told},
    )
    said: list[str] = []
    tasks = [*open_tasks(["functions"], {"functions": folder}), Unreachable()]
    summary = evaluate_tasks(tasks, settings, said.append)
    found = [summary["scores"][name]["functions"] for name in ("test/tiny", "test/tiny+reranker")]
    assert found == pytest.approx(wanted, abs=0.02)
    assert summary["skipped"]["SciFact"].startswith("its data cannot be reached (ConnectionError: no way to the hub)")
    gain = summary["differences"]["test/tiny+reranker"]["functions"]
    assert gain["mean"] == pytest.approx(wanted[1] - wanted[0], abs=0.02) and gain["queries"] == 6
    written = list((tmp_path / "out/results").glob("*/*/functions.json"))
    assert len(written) == 2, "mteb's result files, one for each model"

    again = evaluate_tasks(open_tasks(["functions"], {"functions": folder}), settings, said.append)
    assert again["scores"] == summary["scores"]
    assert again["differences"] == summary["differences"]

    other = replace(settings, instructions={"functions": "zzz"}, reranker=None)
    asked = encoder.encode(queries, max_tokens=64, instruction="zzz") @ encoder.encode(data.texts(), max_tokens=64).T
    points = 100 * retrieval_metrics(data, asked, [1])["ndcg@10"]
    assert points != pytest.approx(wanted[0], abs=0.02)
    retold = evaluate_tasks(open_tasks(["functions"], {"functions": folder}), other, said.append)
    assert retold["scores"]["test/tiny"]["functions"] == pytest.approx(points, abs=0.02), "not what was kept before"

    (tmp_path / "other/per_query/test__tiny").mkdir(parents=True)
    (tmp_path / "other/per_query/test__tiny/functions.json").write_text('{"default/test/unknown": 1.0}')
    rows = (folder / "qrels/test.tsv").read_text().splitlines()
    (folder / "qrels/validation.tsv").write_text("\n".join(rows[:3]))
    both = replace(settings, out=tmp_path / "both", reranker=None, baseline=tmp_path / "other")
    tasks = open_tasks(["functions"], {"functions": folder}, ["validation", "test"])
    split = evaluate_tasks(tasks, both, said.append)
    points = split["splits"]["test/tiny"]["functions"]
    assert list(points) == ["test", "validation"] and points["test"] == found[0] != points["validation"]
    assert split["scores"]["test/tiny"]["functions"] == found[0]
    assert "no query of the split test" in split["not_compared"]["test/tiny"]["functions"]
    assert json.loads((tmp_path / "both/summary.json").read_text()) == split
    assert any("functions is not compared" in line for line in said)
