"""A run on Markdown files without labels, from the documents to an index and a verdict (examples/documents.yaml).

Typed on a laptop whose models and folders no node sees; storage is S3; the head has no CPUs. Where nodes cannot be
isolated, it runs on this machine alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from qwen3emb.core.artifact import read_record
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.model.fetch import cache_dir, fetch_model
from qwen3emb.text.evaluation_sets import evaluation_sets
from qwen3emb.text.passages import passages_as_corpus
from tests.multinode.nodes import LAPTOP, Nodes, why_not

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"base", "weak", "supervised", "merged", "merged+reranker"}
SETTINGS = {
    "corpus": {"sources": [{"kind": "markdown", "path": "docs"}], "dev_share": 0.2, "heldout_share": 0.3},
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
    "reranker": {"steps": 1, "negatives": 1, "queries_per_step": 1, "num_workers": 1, "max_tokens": 256},
    "evaluate.rerank_top": 2,
    "evaluate.workers": 1,
    "index.workers": 1,
}


def words(storage: str, model: Path, *module: str) -> list[str]:
    settings = SETTINGS | {"storage": storage, "models.base": str(model)}
    flags = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return [sys.executable, "-m", *module, *flags]


def run_here(command: list[str], seconds: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """Without other nodes: a private head."""
    own = os.environ | {"RAY_ADDRESS": ""} | environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds, env=own)


def test_documents_alone_end_with_a_table_an_index_and_a_verdict(
    tmp_path: Path, tiny_qwen3: Path, s3_here: None, request: pytest.FixtureRequest
) -> None:
    try:
        for name in ("smollm2-135m-instruct", "all-minilm-l6-v2"):
            fetch_model(name)
    except UserError as error:
        pytest.skip(f"the real generator is needed: {error}")
    place, run, model, known = str(tmp_path / "run"), run_here, tiny_qwen3, {}
    if not why_not():
        cluster = request.getfixturevalue("nodes")(worker=4)
        place, run, model = f"s3://bucket/{uuid.uuid4().hex}", cluster.type, cluster.folder(LAPTOP) / "base"
        shutil.copytree(tiny_qwen3, model)
        known = {"QWEN3EMB_CACHE": str(cache_dir().parent)}  # the laptop's alone
    done = run(words(place, model, "jobs.pipeline", "--config", "examples/documents.yaml"), 900, **known)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "up to 3 held-out queries and up to 2 dev queries (synthetic queries" in done.stderr
    assert "What each stage bought (held-out documents, synthetic queries)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("VERDICT: ")

    storage = Storage(place)
    for name, seconds in re.findall(r"(\w+): done in (\d+) s", done.stderr):
        own = read_record(storage / name)["seconds"]
        print(f"{name}: {seconds} s as a job, {own:.0f} s its own work")
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
    assert results["documents"] == len(passages) and set(results["models"]) == MODELS
    assert (storage / "index").read_json("artifact.json")["rows_out"] == len(passages)
    assert storage.read_json("summary.json")["synthetic_queries"] is True

    again = run(words(place, model, "qwen3emb.cli", "report", "examples/documents.yaml", "--json"), 200, **known)
    assert json.loads(again.stdout)["synthetic_queries"] is True, again.stderr


@pytest.mark.cluster
def test_one_two_and_three_nodes_give_one_table(tmp_path: Path, tiny_qwen3: Path, s3: dict[str, str]) -> None:
    """Every stage, the generator SmolLM2: on this machine alone, and with one and two nodes beside a head."""
    if why_not():
        pytest.skip(why_not())
    try:
        for name in ("smollm2-135m-instruct", "all-minilm-l6-v2"):
            fetch_model(name)
    except UserError as error:
        pytest.skip(f"the real generator is needed: {error}")
    pipeline = ("jobs.pipeline", "--config", "examples/documents.yaml")
    known = {"QWEN3EMB_CACHE": str(cache_dir().parent)}
    tables = {}
    for names in ((), ("b",), ("b", "c")):
        with Nodes(names, s3) as cluster:
            for name in names:
                cluster.add(name, 4 // len(names))
            place = f"s3://bucket/{uuid.uuid4().hex}" if names else str(tmp_path / "run")
            command = words(place, tiny_qwen3, *pipeline)
            alone = {"RAY_ADDRESS": ""} if not names else {}
            done = cluster.type(command, 1200, **known, **alone)
            assert done.returncode == 0, done.stderr[-6000:]
            with pytest.MonkeyPatch.context() as patch:
                for key, value in s3.items():
                    patch.setenv(key, value)
                out = Storage(place) / "evaluate"
                found = out.read_json("results.json")["models"]
                ranked = {name: out.read_table(name).to_pylist() for name in out.names("runs", ".parquet")}
            tables[1 + len(names)] = found, ranked
            print(f"{1 + len(names)} nodes: {json.dumps(found)}; {sum(map(len, ranked.values()))} ranked documents")
    assert len(tables[1][1]) >= len(MODELS) and all(tables[1][1].values())
    assert tables[1] == tables[2] == tables[3], "figures, or which document was ranked where and with which score"
