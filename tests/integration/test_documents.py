"""A run on Markdown files without labels, from the documents to an index and a verdict (examples/documents.yaml)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.model.fetch import fetch_model
from qwen3emb.text.evaluation_sets import evaluation_sets
from qwen3emb.text.passages import passages_as_corpus

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "corpus": {"sources": [{"kind": "markdown", "path": str(ROOT / "docs")}], "dev_share": 0.2, "heldout_share": 0.3},
    "synthesize.max_passages": 6,
    "synthesize.engines": 1,
    "synthesize.max_passage_tokens": 80,
    "synthesize.gates": {"length_tolerance": None, "language": False},
    "synthesize.evaluation": {"dev_queries": 2, "heldout_queries": 3, "drafts": 3, "found_within": 500},
    "weak.steps": 1,
    "weak.batch_size": 2,
    "filter.keep_share": 1.0,
    "supervised.steps": 2,
    "supervised.batch_size": 2,
    "supervised.checkpoint_every": 1,
    "supervised.loss.mrl_dims": [32],
    "weak.loss.mrl_dims": [32],
    "evaluate.workers": 1,
    "index.workers": 1,
}


def run(folder: Path, model: Path, *words: str) -> subprocess.CompletedProcess[str]:
    settings = SETTINGS | {"storage": str(folder / "run"), "models.base": str(model)}
    flags = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", words[0], *words[1:], *flags]
    environment = os.environ | {"RAY_ADDRESS": ""}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900, env=environment)


def test_documents_alone_end_with_a_table_an_index_and_a_verdict(tmp_path: Path, tiny_qwen3: Path) -> None:
    try:
        for name in ("smollm2-135m-instruct", "all-minilm-l6-v2"):
            fetch_model(name)
    except UserError as error:
        pytest.skip(f"the real generator is needed: {error}")
    done = run(tmp_path, tiny_qwen3, "jobs.pipeline", "--config", "examples/documents.yaml")
    assert done.returncode == 0, done.stderr[-6000:]
    assert "up to 3 held-out queries and up to 2 dev queries (synthetic queries" in done.stderr
    assert "What each stage bought (held-out documents, synthetic queries)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("VERDICT: ")

    storage = Storage(str(tmp_path / "run"))
    inputs = {name: storage / name for name in ("corpus", "synthesize")}
    passages = {row["id"]: row["split"] for row in (storage / "corpus").read_table("passages").to_pylist()}
    [heldout] = evaluation_sets(inputs, "heldout")
    [dev] = evaluation_sets(inputs, "dev")
    for found, split in ((heldout, "heldout"), (dev, "dev")):
        data = found.read()
        assert {passages[name] for judged in data.qrels.values() for name in judged} == {split}
    assert heldout.read().corpus == passages_as_corpus(storage / "corpus/passages")
    trained = (storage / "synthesize").read_table("pairs").to_pylist()
    assert {passages[pair["document_id"]] for pair in trained} == {"train"}

    results = (storage / "evaluate").read_json("results.json")
    assert (results["set"], results["synthetic_queries"], results["queries"]) == ("synthetic", True, heldout.size)
    assert results["documents"] == len(passages) and set(results["models"]) == {"base", "weak", "supervised", "merged"}
    assert (storage / "index").read_json("artifact.json")["rows_out"] == len(passages)
    assert storage.read_json("summary.json")["synthetic_queries"] is True

    again = run(tmp_path, tiny_qwen3, "qwen3emb.cli", "report", "examples/documents.yaml", "--json")
    assert json.loads(again.stdout)["synthetic_queries"] is True, again.stderr
