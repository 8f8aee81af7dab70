"""What a cluster loses while a stage runs: a node, a driver, the head, answers of the storage. Nothing is computed
otherwise for it, and no finished row or step is lost. `make test-cluster` prints the table."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from cluster.private_head import free_ports
from qwen3emb.core.artifact import read_record
from qwen3emb.core.storage import Storage
from tests.integration.test_training import STEPS, write_run
from tests.multinode.nodes import Nodes, why_not

pytestmark = pytest.mark.cluster

FILES, ROWS = 40, 25
REPEATED = "fewer than 2 steps"  # those since the latest state
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def faulty(s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Path]]:
    """The environment of an S3 server behind a proxy, and the file that says what the proxy does wrong."""
    control, [port] = tmp_path_factory.mktemp("proxy") / "control.json", free_ports(1)
    control.write_text("{}")
    words = [sys.executable, "-m", "tests.multinode.faulty_s3", str(port), s3["AWS_ENDPOINT_URL"], str(control)]
    proxy = subprocess.Popen(words)
    with pytest.MonkeyPatch.context() as patch:  # this process reads and writes past the proxy
        for key, value in s3.items():
            patch.setenv(key, value)
        yield s3 | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}, control
    proxy.kill()
    proxy.wait()


@pytest.fixture(scope="module")
def three(faulty: tuple[dict[str, str], Path]) -> Iterator[Callable[[], Nodes]]:
    """A head without CPUs and two nodes; a node that a test lost is started again for the next."""
    if why_not():
        pytest.skip(why_not())
    clusters: list[Nodes] = []

    def whole(anew: bool = False, cpus: int = 2) -> Nodes:
        if anew and clusters:
            clusters.pop().close()
        if not clusters:
            clusters.append(Nodes(["b", "c"], faulty[0]))
        for name in ("b", "c"):
            if not clusters[-1].processes(name):
                clusters[-1].add(name, cpus)
        return clusters[-1]

    yield whole
    for cluster in clusters:
        cluster.close()


@pytest.fixture(scope="module")
def table() -> Iterator[Callable[..., None]]:
    """Collects lines, and prints them when all tests are done."""
    lines: list[str] = []
    yield lambda *cells: lines.append(" | ".join(map(str, cells)))
    print("", "fault | stage | rows lost | repeated | seconds lost", *lines, sep="\n")


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Where a command runs while the test does something to it."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


def prepared(cluster: Nodes, model: Path) -> tuple[str, Storage]:
    """A run whose stages before `weak` are done, its config in the laptop's project; (config's name, storage)."""
    home, name = f"s3://bucket/{uuid.uuid4().hex}", uuid.uuid4().hex[:8]
    (cluster.project / name).mkdir()
    write_run(cluster.project / name, model, home)
    return f"{name}/run.yaml", Storage(f"{home}/run")


def submit(cluster: Nodes, config: str, stage: str, *sets: str) -> Done:
    words = [sys.executable, "-m", "qwen3emb.cli", "submit", config, "--stage", stage, "--no-preflight"]
    return cluster.type([*words, *(word for one in sets for word in ("--set", one))], 900)


def until(holds: Callable[[], object], seconds: float, job: Future[Done]) -> None:
    """Wait until something holds while the job runs."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert not job.done(), f"it ended too early:\n{job.result().stderr[-3000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def resumable(storage: Storage) -> bool:
    """Whether Ray Train has a checkpoint of the stage `weak` in its books, which then goes on from there."""
    books = "weak/ray_train/checkpoint_manager_snapshot.json"
    return storage.exists(books) and b"step_00000" in storage.read_bytes(books)


def weights(storage: Storage) -> dict[str, torch.Tensor]:
    return load(storage.read_bytes(f"weak/checkpoints/step_{STEPS:06d}/model.safetensors"))


def assert_same(first: Storage, second: Storage) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    steps = [json.loads(line)["step"] for line in second.read_bytes("weak/metrics.jsonl").splitlines()]
    assert steps == list(range(1, STEPS + 1)), "a step is missing, or there twice"


@pytest.fixture(scope="module")
def undisturbed(three: Callable[[], Nodes], tiny_qwen3: Path) -> tuple[Storage, float]:
    """The stage `weak` as it comes out of two nodes that nothing happens to, and its seconds."""
    cluster = three()
    config, storage = prepared(cluster, tiny_qwen3)
    began = time.monotonic()
    done = submit(cluster, config, "weak")
    assert done.returncode == 0, done.stderr[-4000:]
    return storage, time.monotonic() - began


def holder_of_training(cluster: Nodes) -> str:
    """The node that the training's workers run on."""
    for name in ("b", "c"):
        if any("TrainWorker" in " ".join(process.cmdline()) for process in cluster.processes(name)):
            return name
    return ""


def test_a_lost_node_of_a_training(
    three: Callable[[], Nodes],
    undisturbed: tuple[Storage, float],
    tiny_qwen3: Path,
    background: ThreadPoolExecutor,
    table: Callable[..., None],
) -> None:
    cluster = three()
    config, storage = prepared(cluster, tiny_qwen3)
    began = time.monotonic()
    job = background.submit(submit, cluster, config, "weak")
    until(lambda: resumable(storage) and holder_of_training(cluster), 300, job)
    cluster.lose(holder_of_training(cluster))
    done = job.result()
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same(undisturbed[0], storage)
    lost = time.monotonic() - began - undisturbed[1]
    table("node", "weak", 0, REPEATED, f"{lost:.0f}")


def test_a_lost_driver_of_a_training(
    three: Callable[[], Nodes],
    undisturbed: tuple[Storage, float],
    tiny_qwen3: Path,
    background: ThreadPoolExecutor,
    table: Callable[..., None],
) -> None:
    cluster = three()
    config, storage = prepared(cluster, tiny_qwen3)
    began = time.monotonic()
    job = background.submit(submit, cluster, config, "weak")
    until(lambda: resumable(storage), 300, job)
    for process in cluster.processes("head"):
        if "jobs.train_embedding" in " ".join(process.cmdline()):
            process.kill()
    assert job.result().returncode == 1
    again = submit(cluster, config, "weak")
    assert again.returncode == 0, again.stderr[-4000:]
    assert "weak: resuming" in again.stderr and f"step 1/{STEPS} " not in again.stderr
    assert_same(undisturbed[0], storage)
    table("driver", "weak", 0, REPEATED, f"{time.monotonic() - began - undisturbed[1]:.0f}")


def test_storage_that_refuses_and_is_slow(
    three: Callable[[], Nodes],
    undisturbed: tuple[Storage, float],
    tiny_qwen3: Path,
    faulty: tuple[dict[str, str], Path],
    table: Callable[..., None],
) -> None:
    cluster, control = three(), faulty[1]
    config, storage = prepared(cluster, tiny_qwen3)
    control.write_text(json.dumps({"errors": 0.1, "delay": 0.02}))
    began = time.monotonic()
    try:
        done = submit(cluster, config, "weak")
    finally:
        control.write_text("{}")
    assert done.returncode == 0, done.stderr[-4000:]
    refused = int(control.with_suffix(".count").read_text())
    assert refused > 20
    assert_same(undisturbed[0], storage)
    table(f"{refused} answers 503", "weak", 0, "none", f"{time.monotonic() - began - undisturbed[1]:.0f}")


def test_two_drivers_of_one_stage(
    three: Callable[[], Nodes], tiny_qwen3: Path, background: ThreadPoolExecutor, table: Callable[..., None]
) -> None:
    cluster = three()
    config, storage = prepared(cluster, tiny_qwen3)
    first = background.submit(submit, cluster, config, "weak")
    until(lambda: storage.exists("weak/lease.json"), 200, first)
    second = submit(cluster, config, "weak")
    assert second.returncode == 2 and "is being written by" in second.stderr, second.stderr[-3000:]
    assert first.result().returncode == 0, first.result().stderr[-3000:]
    table("a second driver", "weak", 0, "none", "refused")


def corpus_of(model: Path) -> tuple[list[str], Storage]:
    """The command of a stage `corpus` with many files, whose storage is S3."""
    home = f"s3://bucket/{uuid.uuid4().hex}"
    for file in range(FILES):
        lines = [{"text": " ".join(f"word{(ROWS * file + row) * 31 + n}" for n in range(30))} for row in range(ROWS)]
        Storage(home).write_bytes(f"in/{file:02d}.jsonl", "".join(json.dumps(x) + "\n" for x in lines).encode())
    models = dict.fromkeys(("generator", "base", "retrieval"), str(model))
    corpus = {"sources": [{"kind": "jsonl", "path": f"{home}/in"}], "workers": 4, "max_tokens": 1024}
    sets = [f"storage={home}/run", f"models={json.dumps(models)}", f"corpus={json.dumps(corpus)}"]
    words = [sys.executable, "-m", "jobs.pipeline", "--config", "examples/demo.yaml", "--only", "corpus"]
    return [*words, *(word for one in sets for word in ("--set", one))], Storage(f"{home}/run/corpus")


def test_a_lost_node_of_the_corpus(
    three: Callable[[], Nodes], tiny_qwen3: Path, background: ThreadPoolExecutor, table: Callable[..., None]
) -> None:
    cluster = three()
    words, out = corpus_of(tiny_qwen3)
    began = time.monotonic()
    job = background.submit(cluster.type, words, 600)
    until(lambda: out.names("candidates", "/done"), 200, job)
    cluster.lose("b")
    done = job.result()
    assert done.returncode == 0, done.stderr[-4000:]
    passages = out.read_table("passages")
    record = read_record(out)
    assert passages.num_rows + sum(record["rejected"].values()) == record["rows_in"] == FILES * ROWS
    assert len(set(passages["id"].to_pylist())) == passages.num_rows
    table("node", "corpus", record["rows_in"] - FILES * ROWS, "0 rows", f"{time.monotonic() - began:.0f} in all")


def test_a_lost_head(
    three: Callable[..., Nodes],
    undisturbed: tuple[Storage, float],
    tiny_qwen3: Path,
    background: ThreadPoolExecutor,
    table: Callable[..., None],
) -> None:
    cluster = three()
    config, storage = prepared(cluster, tiny_qwen3)
    began = time.monotonic()
    job = background.submit(submit, cluster, config, "weak")
    until(lambda: resumable(storage), 300, job)
    for name in ("head", "b", "c"):
        cluster.lose(name)
    assert job.result().returncode == 1
    written = (cluster.project / config).read_text()
    other = three(anew=True)
    (other.project / Path(config).parent).mkdir()
    (other.project / config).write_text(written)
    again = submit(other, config, "weak")
    assert again.returncode == 0, again.stderr[-4000:]
    assert f"step 1/{STEPS} " not in again.stderr, "it began again instead of going on"
    assert_same(undisturbed[0], storage)
    table("head", "weak", 0, REPEATED, f"{time.monotonic() - began - undisturbed[1]:.0f}")


def test_an_elastic_training_goes_on_with_the_workers_that_are_left(
    three: Callable[..., Nodes],
    undisturbed: tuple[Storage, float],
    tiny_qwen3: Path,
    background: ThreadPoolExecutor,
    table: Callable[..., None],
) -> None:
    """One worker on each node; the sums of one worker are rounded otherwise than those of two."""
    cluster = three(anew=True, cpus=1)
    config, storage = prepared(cluster, tiny_qwen3)
    job = background.submit(submit, cluster, config, "weak", "weak.num_workers=[1, 2]", "weak.resume_every=1")
    until(lambda: resumable(storage), 300, job)
    cluster.lose("b")
    done = job.result()
    assert done.returncode == 0, done.stderr[-4000:]
    assert "with 1 workers instead of 2" in done.stderr, done.stderr[-4000:]
    one, other = weights(undisturbed[0]), weights(storage)
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=2e-3) for name in one)
    steps = [json.loads(line)["step"] for line in storage.read_bytes("weak/metrics.jsonl").splitlines()]
    assert steps == list(range(1, STEPS + 1))
    table("node of an elastic training", "weak", 0, REPEATED, "")
