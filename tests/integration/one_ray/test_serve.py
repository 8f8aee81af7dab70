"""The stages `index` and `serve` as a user runs them, on a real Ray, with tiny models."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
import yaml

from qwen3emb.config.run import load_config
from qwen3emb.core.artifact import StageResult, complete, start
from qwen3emb.core.errors import UserError
from qwen3emb.core.records import CORPUS, REJECT
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.quantised import rank
from qwen3emb.export.export import export_embedding, export_reranker
from qwen3emb.model.contract import Contract
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.foreign import open_encoder
from qwen3emb.model.loading import load_causal, load_tokenizer
from qwen3emb.model.reranker import Reranker
from qwen3emb.pipeline.stages import identity, stage_folder
from qwen3emb.search.index import SearchIndex

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
INSTRUCTION = "Given a description, retrieve the function"
LIMIT = 200
TEXTS = [f"def function_{i}(path):\n    return open(path)[{i}:]" + " and more" * (i % 7) for i in range(40)]


@dataclass(frozen=True)
class Run:
    """A run whose models and index are there."""

    config: Path
    storage: Path

    def command(self, job: str, *settings: str) -> list[str]:
        sets = [part for s in settings for part in ("--set", s)]
        return [sys.executable, "-m", f"jobs.{job}", "--config", str(self.config), *sets]


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def run(
    tiny_qwen3: Path,
    tmp_path_factory: pytest.TempPathFactory,
    run_here: Callable[..., str],
    minimal_run: Callable[[Path, Path], dict[str, Any]],
) -> Run:
    """Artifacts of `corpus` and `merge` written by hand, then the stage `index`."""
    folder = tmp_path_factory.mktemp("run")
    raw = minimal_run(folder, tiny_qwen3)
    raw["models"]["instruction"] = INSTRUCTION
    raw["index"] = {"max_tokens": 64}
    raw["serve"] = {"max_query_tokens": LIMIT, "max_document_tokens": LIMIT, "max_queued_requests": 30}
    (folder / "run.yaml").write_text(yaml.safe_dump(raw))
    cfg = load_config(folder / "run.yaml")
    corpus, merge = stage_folder(cfg, "corpus"), stage_folder(cfg, "merge")
    rows = [{"id": f"d{i}", "title": f"Title {i}" if i % 2 else "", "text": t} for i, t in enumerate(TEXTS)]
    rows += [{"id": "empty", "title": "", "text": " "}, {"id": "d3", "title": "", "text": "the second d3"}]
    start(corpus, identity(cfg, "corpus"))
    corpus.write_table("heldout/corpus.parquet", pa.Table.from_pylist(rows, schema=CORPUS))
    complete(corpus, identity(cfg, "corpus"), StageResult(0, 0), 0)
    start(merge, identity(cfg, "merge"))
    _export(tiny_qwen3, merge.local())
    complete(merge, identity(cfg, "merge"), StageResult(0, 0), 0)
    run_here("index", folder / "run.yaml")
    return Run(folder / "run.yaml", folder / "run")


def _export(model_dir: Path, merge: Path) -> None:
    tokenizer, model = load_tokenizer(model_dir), load_causal(model_dir, "float32")
    embedding = Contract("embedding", INSTRUCTION, "<|endoftext|>", 512, model.config.hidden_size, [16, 32])
    export_embedding(merge / "embedding", model.model.state_dict(), model.config, tokenizer, embedding)
    reranker = Contract("reranker", INSTRUCTION, "", 512)
    export_reranker(merge / "reranker", model.state_dict(), model.config, tokenizer, reranker)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    url: str
    port: int
    lines: list[str]
    process: subprocess.Popen[str]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def vectors(self, **body: Any) -> np.ndarray:
        answer = self.post("/v1/embeddings", **body)
        assert answer.status_code == 200, answer.text
        return np.array([d["embedding"] for d in answer.json()["data"]], dtype=np.float32)

    def refusal(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        answer = self.post(path, **body)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        return answer.status_code, answer.json()["error"]


@pytest.fixture(scope="module")
def server(run: Run) -> Iterator[Server]:
    """`python -m jobs.serve` on a free port; stopped with SIGTERM, after which it must be gone cleanly."""
    port = _free_port()
    process = subprocess.Popen(
        run.command("serve", f"serve.port={port}"),
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)  # type: ignore[union-attr]
    reader.start()
    try:
        _until(lambda: any("/search" in line for line in lines), process, lines)
        yield Server(f"http://127.0.0.1:{port}", port, lines, process)
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, "".join(lines)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, "something still listens"
        assert len(below) > 5
        assert psutil.wait_procs(below, timeout=20)[1] == [], "processes are left"
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def _until(ready: Any, process: subprocess.Popen[str], lines: list[str]) -> None:
    deadline = time.monotonic() + 180
    while not ready():
        assert process.poll() is None, "the server ended:\n" + "".join(lines)
        assert time.monotonic() < deadline, "not ready:\n" + "".join(lines)
        time.sleep(0.2)


@pytest.fixture(scope="module")
def encoder(run: Run) -> Encoder:
    torch.set_num_threads(1)
    return Encoder(run.storage / "merge" / "embedding", dtype="float32")


@pytest.fixture(scope="module")
def reranker(run: Run) -> Reranker:
    return Reranker(run.storage / "merge" / "reranker", dtype="float32")


def test_index_holds_every_document_and_the_rejects_their_reason(run: Run, encoder: Encoder) -> None:
    storage = Storage(str(run.storage / "index"))
    record = storage.read_json("artifact.json")
    assert (record["rows_in"], record["rows_out"]) == (42, 40)
    assert record["rejected"] == {"empty_field": 1, "duplicate_id": 1}
    rejects = storage.read_table("rejects", REJECT).to_pylist()
    reasons = {r["reason"].partition(":")[0]: r for r in rejects}
    assert (reasons["empty_field"]["row"], reasons["duplicate_id"]["row"]) == (41, 42)
    assert reasons["duplicate_id"]["id"] == "d3"
    assert all(r["source"].endswith("heldout/corpus.parquet") for r in rejects)
    texts = [f"Title {i} {t}" if i % 2 else t for i, t in enumerate(TEXTS)]
    expected = encoder.encode(texts, max_tokens=64)
    index = SearchIndex.open(storage)
    assert len(storage.names("vectors", ".parquet")) > 1
    for i in (0, 3, 17, 39):
        best = index.search(expected[i], 1)[0]
        assert (best.id, best.text) == (f"d{i}", TEXTS[i])
        assert best.score == pytest.approx(1, abs=1e-4)


def test_unfinished_index_goes_on_and_finished_one_is_reused(run: Run, run_here: Callable[..., str]) -> None:
    folder = run.storage / "index"
    shards = sorted((folder / "vectors").glob("*.parquet"))
    kept = {s: s.stat().st_mtime_ns for s in shards[1:]}
    (folder / "artifact.json").unlink()  # as after kill -9: a shard is missing, the record too
    (folder / "index.json").unlink()
    shards[0].unlink()
    assert "resuming" in run_here("index", run.config)
    assert {s: s.stat().st_mtime_ns for s in kept} == kept
    assert json.loads((folder / "artifact.json").read_text())["rows_out"] == 40
    assert "reused" in run_here("index", run.config)


@pytest.mark.parametrize(("kind", "rescore"), [("int8", 0), ("binary", 4)])
def test_an_index_of_small_vectors_finds_what_the_codes_find(
    run: Run, run_here: Callable[..., str], encoder: Encoder, tmp_path: Path, kind: Any, rescore: int
) -> None:
    for stage in ("corpus", "merge"):
        shutil.copytree(run.storage / stage, tmp_path / stage)
    settings = (f"index.vectors={kind}", f"index.rescore={rescore}", "index.dimensions=24")
    run_here("index", run.config, f"storage={tmp_path}", *settings)
    index = SearchIndex.open(Storage(str(tmp_path / "index")))
    assert (index.info.vectors, index.info.rescore, index.info.dimension) == (kind, rescore, 24)
    rows = index._rows.to_pylist()  # in stored order: of documents with equal bits the first are rescored
    assert sorted(row["text"] for row in rows) == sorted(TEXTS)
    documents = encoder.encode([f"{row['title']} {row['text']}".strip() for row in rows], max_tokens=64, dimensions=24)
    queries = encoder.encode(TEXTS[:6], max_tokens=64, instruction=INSTRUCTION, dimensions=24)
    _, scores = rank(queries, documents, kind, rescore, 3)
    found = [[hit.score for hit in hits] for hits in index.search_batch(queries, 3)]
    np.testing.assert_allclose(found, scores, atol=2e-3)


def test_health_and_models(server: Server) -> None:
    health = httpx.get(server.url + "/health", timeout=60)
    assert health.status_code == 200, health.text
    assert set(health.json()["deployments"].values()) == {"HEALTHY"}
    names = [m["id"] for m in httpx.get(server.url + "/v1/models", timeout=60).json()["data"]]
    assert names == ["tiny-embedding", "tiny-reranker"]


def test_printed_examples_work(server: Server) -> None:
    commands = [line for line in server.lines if line.startswith("curl")]
    assert len(commands) == 3
    for command in commands:
        answer = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True)
        assert "error" not in json.loads(answer.stdout), answer.stdout


@pytest.mark.parametrize("instruction", [None, "Another task entirely"])
def test_embeddings_are_the_encoders(server: Server, encoder: Encoder, instruction: str | None) -> None:
    documents = encoder.encode(TEXTS, max_tokens=LIMIT)
    np.testing.assert_allclose(server.vectors(input=TEXTS), documents, atol=1e-4)
    queries = encoder.encode(TEXTS[:5], max_tokens=LIMIT, instruction=instruction or INSTRUCTION)
    options = {"input_type": "query"} | ({"instruction": instruction} if instruction else {})
    np.testing.assert_allclose(server.vectors(input=TEXTS[:5], **options), queries, atol=1e-4)
    assert np.abs(queries - documents[:5]).max() > 0.01


def test_the_served_model_is_a_model_to_score_with(server: Server, encoder: Encoder) -> None:
    served = open_encoder(f"{server.url}/v1?model=tiny-embedding")
    assert served.dimensions == encoder.dimensions
    for ask in (None, INSTRUCTION):
        found = served.encode(TEXTS[:7], max_tokens=LIMIT, instruction=ask)
        np.testing.assert_allclose(found, encoder.encode(TEXTS[:7], max_tokens=LIMIT, instruction=ask), atol=1e-4)
    with pytest.raises(UserError, match="refuses the request"):
        open_encoder(f"{server.url}/v1?model=no-such-model")


def test_embedding_does_not_depend_on_the_batch_or_the_form_of_the_request(server: Server, encoder: Encoder) -> None:
    together = server.vectors(input=TEXTS)
    alone = np.concatenate([server.vectors(input=text) for text in TEXTS[:6]])
    np.testing.assert_allclose(alone, together[:6], atol=1e-4)
    ids = encoder.template.tokenizer(TEXTS[:3], add_special_tokens=False)["input_ids"]
    np.testing.assert_allclose(server.vectors(input=ids), together[:3], atol=1e-4)
    coded = server.post("/v1/embeddings", input=TEXTS[:2], encoding_format="base64").json()["data"]
    raw = np.stack([np.frombuffer(base64.b64decode(d["embedding"]), dtype="<f4") for d in coded])
    np.testing.assert_allclose(raw, together[:2], atol=1e-4)


def test_requests_at_the_same_time_get_their_own_answers(server: Server, encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS, max_tokens=LIMIT)
    got: dict[int, np.ndarray] = {}
    at_once = threading.Semaphore(20)  # the server takes 30 into its queue and tells the others to come again

    def ask(i: int) -> None:
        with at_once:
            got[i] = server.vectors(input=TEXTS[i])[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(TEXTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.stack([got[i] for i in range(len(TEXTS))]), expected, atol=1e-4)


def test_dimensions_are_cut_and_normalised_again(server: Server, encoder: Encoder) -> None:
    full = encoder.encode(TEXTS[:4], max_tokens=LIMIT)
    expected = full[:, :16] / np.linalg.norm(full[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(server.vectors(input=TEXTS[:4], dimensions=16), expected, atol=1e-4)
    for wrong in (0, full.shape[1] + 1):
        status, error = server.refusal("/v1/embeddings", input="a", dimensions=wrong)
        assert (status, error["param"]) == (400, "dimensions")


def test_small_vectors_are_codes_of_the_floats(server: Server, run: Run) -> None:
    floats = server.vectors(input=TEXTS[:4])
    low, high = np.load(run.storage / "index" / "calibration.npy")
    body = httpx.get(server.url + "/v1/calibration", timeout=60).json()
    np.testing.assert_array_equal(np.float32([body["low"], body["high"]]), [low, high])
    codes = server.vectors(input=TEXTS[:4], output_dtype="int8")
    decoded = low + (codes + 128.5) * (high - low) / 255
    assert np.abs(decoded - np.clip(floats, low, high)).max() <= ((high - low) / 255).max()
    signs = np.unpackbits(server.vectors(input=TEXTS[:4], output_dtype="ubinary").astype(np.uint8), axis=1)
    clear = np.abs(floats) > 1e-4
    assert np.array_equal(signs[:, : floats.shape[1]][clear], (floats > 0)[clear])
    coded = server.post("/v1/embeddings", input=TEXTS[0], output_dtype="binary", encoding_format="base64").json()
    raw = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), dtype=np.int8)
    assert raw.tolist() == server.vectors(input=TEXTS[0], output_dtype="binary")[0].tolist()
    status, error = server.refusal("/v1/embeddings", input="a", output_dtype="int8", dimensions=16)
    assert (status, error["param"]) == (400, "dimensions")


def test_usage_counts_the_tokens_the_model_saw(server: Server, encoder: Encoder) -> None:
    prefix, leaves = encoder.template.encode(TEXTS[:3], LIMIT, INSTRUCTION)
    usage = server.post("/v1/embeddings", input=TEXTS[:3], input_type="query").json()["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] == sum(len(prefix) + len(leaf) for leaf in leaves)


def test_too_long_is_400_or_cut_on_request(server: Server, encoder: Encoder) -> None:
    long = "read the file " * 200
    status, error = server.refusal("/v1/embeddings", input=["a", long])
    assert (status, error["param"], error["code"]) == (400, "input", "context_length_exceeded")
    assert f"may have {LIMIT}" in error["message"]
    answer = server.post("/v1/embeddings", input=["a", long], truncate=True)
    assert answer.json()["truncated"] == [1]
    expected = encoder.encode([long], max_tokens=LIMIT)[0]
    np.testing.assert_allclose(answer.json()["data"][1]["embedding"], expected, atol=1e-4)
    for path, body in (
        ("/v1/rerank", {"query": long, "documents": ["a"]}),
        ("/v1/rerank", {"query": "a", "documents": [long]}),
        ("/search", {"query": long}),
    ):
        assert server.refusal(path, **body)[0] == 400
        assert server.post(path, **body, truncate=True).status_code == 200


def test_wrong_requests_have_openais_error_shape(server: Server) -> None:
    assert server.refusal("/v1/embeddings")[0] == 400
    assert server.refusal("/v1/embeddings", input="")[1]["message"] == "input: input[0] is empty"
    assert server.refusal("/v1/embeddings", input="a", dimension=3)[1]["param"] == "dimension"
    status, error = server.refusal("/v1/embeddings", input="a", model="tiny-reranker")
    assert (status, error["code"]) == (404, "model_not_found")
    assert server.refusal("/v1/rerank", query="a", documents=["b"], model="tiny-embedding")[0] == 404
    assert server.refusal("/v1/nothing", input="a")[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/v1/embeddings", {"input": "a \ud83d b"}, "input"),
        ("/v1/embeddings", {"input": ["a", "b \ud83d"]}, "input[1]"),
        ("/v1/rerank", {"query": "k", "documents": ["x \ud83d"]}, "documents[0]"),
        ("/v1/rerank", {"query": "k", "documents": [{"text": "x \ud83d"}]}, "documents[0].text"),
        ("/search", {"query": "k \ud83d"}, "query"),
    ],
)
def test_half_a_surrogate_pair_is_the_clients_mistake(
    server: Server, path: str, body: dict[str, Any], place: str
) -> None:
    content = json.dumps(body)  # with escapes, as clients cut in the middle of an emoji send it
    answer = httpx.post(server.url + path, content=content, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == place.partition("[")[0]
    assert f" {place} holds half of a surrogate pair" in answer.json()["error"]["message"]
    for content, kind in (
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b"input=a", "text/plain"),
    ):
        headers = {"Content-Type": kind}
        broken = httpx.post(server.url + "/v1/embeddings", content=content, headers=headers, timeout=60)
        assert broken.status_code == 400
        assert "the body is not" in broken.json()["error"]["message"]


def test_openais_own_client_works(server: Server, encoder: Encoder) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model="tiny-embedding", input=TEXTS[:3], dimensions=32)
    expected = encoder.encode(TEXTS[:3], max_tokens=LIMIT, dimensions=32)
    np.testing.assert_allclose([d.embedding for d in answer.data], expected, atol=1e-4)
    query = client.embeddings.create(model="tiny-embedding", input=TEXTS[0], extra_body={"input_type": "query"})
    expected = encoder.encode(TEXTS[:1], max_tokens=LIMIT, instruction=INSTRUCTION)
    np.testing.assert_allclose(query.data[0].embedding, expected[0], atol=1e-4)
    with pytest.raises(openai.NotFoundError, match="tiny-embedding"):
        client.embeddings.create(model="another", input="a")


def test_more_than_the_queue_holds_is_429_and_the_server_goes_on(server: Server) -> None:
    # 75 pieces of work: 32 fit into the replica, 30 may wait.
    answer = server.post("/v1/embeddings", input=["a " * 500] * 1490, truncate=True)
    assert answer.status_code == 429, answer.text[:300]
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    deadline = time.monotonic() + 60
    while server.post("/v1/embeddings", input="a").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_rerank_scores_are_the_rerankers(server: Server, reranker: Reranker, path: str) -> None:
    query = "how to read a file"
    expected = reranker.score(query, TEXTS, max_tokens=1024)
    answer = server.post(path, query=query, documents=TEXTS, model="tiny-reranker").json()
    assert [r["index"] for r in answer["results"]] == list(np.argsort(-expected, kind="stable"))
    scores = {r["index"]: r["relevance_score"] for r in answer["results"]}
    np.testing.assert_allclose([scores[i] for i in range(len(TEXTS))], expected, atol=1e-4)
    whole = [len(reranker.template.tokenizer.encode(reranker.template.text(query, t, INSTRUCTION))) for t in TEXTS]
    assert answer["usage"]["total_tokens"] == answer["meta"]["tokens"]["input_tokens"] == sum(whole)
    few = server.post(path, query=query, documents=TEXTS, top_n=2, return_documents=True).json()["results"]
    assert [r["document"]["text"] for r in few] == [TEXTS[r["index"]] for r in few]
    assert len(few) == 2


def test_rerank_takes_an_instruction(server: Server, reranker: Reranker) -> None:
    expected = reranker.score("a query", TEXTS[:3], max_tokens=1024, instruction="Something else")
    answer = server.post("/v1/rerank", query="a query", documents=TEXTS[:3], instruction="Something else")
    scores = {r["index"]: r["relevance_score"] for r in answer.json()["results"]}
    np.testing.assert_allclose([scores[i] for i in range(3)], expected, atol=1e-4)


def test_search_finds_what_a_full_comparison_finds(server: Server, encoder: Encoder, reranker: Reranker) -> None:
    query = "read a file from byte 7 on"
    texts = [f"Title {i} {t}" if i % 2 else t for i, t in enumerate(TEXTS)]
    vector = encoder.encode([query], max_tokens=LIMIT, instruction=INSTRUCTION)[0]
    scores = encoder.encode(texts, max_tokens=64) @ vector
    hits = server.post("/search", query=query, top_k=5).json()["hits"]
    assert [h["id"] for h in hits] == [f"d{i}" for i in np.argsort(-scores)[:5]]
    np.testing.assert_allclose([h["score"] for h in hits], np.sort(scores)[::-1][:5], atol=1e-4)
    assert all(h["text"] == TEXTS[int(h["id"][1:])] for h in hits)
    best = np.argsort(-scores)[:10]
    judged = reranker.score(query, [texts[i] for i in best], max_tokens=1024)
    hits = server.post("/search", query=query, top_k=3, rerank=True, rerank_top=10).json()["hits"]
    assert [h["id"] for h in hits] == [f"d{best[i]}" for i in np.argsort(-judged)[:3]]
    np.testing.assert_allclose([h["rerank_score"] for h in hits], np.sort(judged)[::-1][:3], atol=1e-4)


def test_port_in_use_is_one_sentence_and_exit_code_2(run: Run, server: Server) -> None:
    second = _call(run.command("serve", f"serve.port={server.port}"))
    assert second.returncode == 2
    [line] = [s for s in second.stderr.splitlines() if s.startswith("error:")]
    assert f"port {server.port}" in line
    assert "in use" in line


def test_missing_artifacts_name_the_stage(run: Run, tmp_path: Path) -> None:
    missing = _call(run.command("serve", f"storage={tmp_path}"))
    assert missing.returncode == 2
    assert "run the stage merge" in missing.stderr
