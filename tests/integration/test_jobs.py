"""Stages as Ray jobs on real Ray heads: logs and exit codes come back, nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.private_head import private_head
from qwen3emb.config.run import ClusterConfig

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def settings(folder: Path, model: Path) -> list[str]:
    """The demo's config with inputs so small that `corpus` takes a moment, and output in `folder`/run."""
    texts = folder / "texts"
    texts.mkdir()
    for i in range(5):
        (texts / f"{i}.txt").write_text(f"Text number {i} is about {['bread', 'flour', 'salt', 'water', 'yeast'][i]}.")
    return [
        f"storage={folder}/run",
        f"models={{generator: {model}, base: {model}, retrieval: {model}}}",
        f"corpus={{sources: [{{kind: text, path: {texts}}}], max_tokens: 128}}",
    ]


def flags(sets: list[str]) -> list[str]:
    return [word for s in sets for word in ("--set", s)]


@pytest.fixture
def options(tmp_path: Path, tiny_qwen3: Path) -> list[str]:
    return ["--config", "examples/demo.yaml", *flags(settings(tmp_path, tiny_qwen3))]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def client(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `code` as a client in a process of its own, as users do.

    Ray reads its authentication mode once per process, and other tests have started a Ray without it in this one.
    """
    lines = ["import json, sys", "from qwen3emb.config.run import load_config"]
    imports = "\n".join([*lines, "from cluster.submission import cluster_target, connect", ""])
    command = [sys.executable, "-c", imports + textwrap.dedent(code), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture
def place() -> Iterator[Path]:
    """A short folder of this test alone for temporary files, so that its heads are told from all others."""
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def heads(place: Path) -> list[psutil.Process]:
    """Processes of private heads whose temporary files are in `place`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("QWEN3EMB_PRIVATE_HEAD", "").startswith(str(place)):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture(scope="module")
def shared_head() -> Iterator[str]:
    """A cluster that was there before; its `python` is ours."""
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"
    try:
        with private_head(ClusterConfig()) as address:
            yield address
    finally:
        os.environ["PATH"] = path


def test_without_a_cluster_a_private_head_runs_the_stage_and_goes(
    options: list[str], tmp_path: Path, place: Path
) -> None:
    words = ["jobs.pipeline", *options, "--only", "corpus"]
    first = run(*words, RAY_ADDRESS="", TMPDIR=str(place))
    assert first.returncode == 0, first.stderr
    assert "starting a private Ray head" in first.stderr
    assert "corpus: 5 rows in, 5 out" in first.stderr  # the job's own log
    record = json.loads((tmp_path / "run" / "corpus" / "artifact.json").read_text())
    assert record["rows_out"] == 5
    assert heads(place) == []
    assert not list(place.glob("q3e-*"))

    second = run(*words, RAY_ADDRESS="", TMPDIR=str(place))
    assert second.returncode == 0, second.stderr
    assert "corpus: reused" in second.stderr
    assert "private Ray head" not in second.stderr  # so it is a matter of seconds


def test_one_process_may_have_one_head_after_another() -> None:
    """As `ablate` does; Ray's client keeps the first token that it read."""
    code = "from cluster.private_head import private_head as head\nfrom qwen3emb.config.run import ClusterConfig\n"
    code += "from cluster.submission import connect\n"
    code += "for _ in range(2):\n    with head(ClusterConfig()) as at:\n        print(connect(at).list_jobs())\n"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200, env=environment
    )
    assert (done.returncode, done.stdout.split()) == (0, ["[]", "[]"]), done.stderr


PIPELINE_AS_A_JOB = """
address, file, *sets = sys.argv[1:]
target = cluster_target(connect(address), load_config(file, sets), file, sets)
sys.exit(target.run("jobs.pipeline", ["--only", "corpus"]))
"""
ARGUMENTS_OF_A_JOB = """
address, file = sys.argv[1:]
print(json.dumps(cluster_target(connect(address), load_config(file), file, []).options))
"""


@dataclass(frozen=True)
class Submission:
    """What a client of the shared cluster said, and where the stage writes."""

    done: subprocess.CompletedProcess[str]
    out: Path

    @property
    def record(self) -> Path:
        return self.out / "corpus" / "artifact.json"


@pytest.fixture(scope="module")
def submissions(shared_head: str, tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Submission]:
    """All clients of the shared cluster, two at a time, as each mostly waits for its job."""
    demo = "examples/demo.yaml"

    def submit(sets: list[str], *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run(
            "qwen3emb.cli",
            "submit",
            demo,
            *flags(sets),
            "--address",
            shared_head,
            "--stage",
            *words,
            **environment,
        )

    clients = {
        "pipeline here": lambda sets: run(
            "jobs.pipeline", "--config", demo, *flags(sets), "--only", "corpus", RAY_ADDRESS=shared_head
        ),
        "pipeline there": lambda sets: client(PIPELINE_AS_A_JOB, shared_head, str(ROOT / demo), *sets),
        "not waiting": lambda sets: submit(sets, "corpus", "--no-wait"),
        "mistake": lambda sets: submit(sets, "mine"),  # its inputs are not there
        "wrong token": lambda sets: submit(sets, "corpus", RAY_AUTH_MODE="disabled"),
        "arguments": lambda sets: client(ARGUMENTS_OF_A_JOB, shared_head, str(ROOT / demo)),
    }

    def made(name: str) -> Submission:
        folder = tmp_path_factory.mktemp("submission")
        return Submission(clients[name](settings(folder, tiny_qwen3)), folder / "run")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(clients, pool.map(made, clients), strict=True))


def test_a_given_cluster_gets_the_project_and_its_answers_come_back(
    submissions: dict[str, Submission], shared_head: str
) -> None:
    first = submissions["pipeline here"]
    assert first.done.returncode == 0, first.done.stderr
    assert f"submitting to {shared_head}" in first.done.stderr
    assert "corpus: 5 rows in, 5 out" in first.done.stderr
    assert first.record.is_file()


def test_a_users_mistake_inside_a_job_comes_back_as_exit_code_2(submissions: dict[str, Submission]) -> None:
    done = submissions["mistake"].done
    assert done.returncode == 2, done.stderr
    assert "not complete" in done.stderr


def test_a_wrong_token_is_one_sentence(submissions: dict[str, Submission]) -> None:
    done = submissions["wrong token"].done
    assert done.returncode == 2, done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr


def test_the_whole_pipeline_can_be_one_job_that_submits_the_others(submissions: dict[str, Submission]) -> None:
    nested = submissions["pipeline there"]
    assert nested.done.returncode == 0, nested.done.stderr
    assert nested.record.is_file()


def test_not_waiting_returns_the_jobs_id_at_once(submissions: dict[str, Submission]) -> None:
    submitted = submissions["not waiting"]
    assert submitted.done.returncode == 0, submitted.done.stderr
    assert submitted.done.stdout.startswith("raysubmit_")
    deadline = time.monotonic() + 240
    while not submitted.record.is_file():
        assert time.monotonic() < deadline
        time.sleep(1)


def test_relative_storage_is_not_written_into_the_uploaded_copy(submissions: dict[str, Submission]) -> None:
    done = submissions["arguments"].done
    assert done.returncode == 0, done.stderr
    words = json.loads(done.stdout.splitlines()[-1])
    assert f"storage={ROOT / 'runs/demo'}" in words


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended_by(number: signal.Signals, options: list[str], place: Path) -> None:
    """Start a pipeline, send it the signal while its job runs, and see that no process is left."""
    command = [sys.executable, "-m", "jobs.pipeline", *options, "--only", "corpus"]
    environment = os.environ | {"RAY_ADDRESS": "", "TMPDIR": str(place)}
    how = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    # As from a terminal: a test run in the background has SIGINT ignored, which children inherit.
    with subprocess.Popen(command, **how, preexec_fn=_interruptible) as pipeline:
        assert pipeline.stderr is not None
        said = ""
        for line in pipeline.stderr:
            said += line
            if "Running entrypoint" in line:
                break
        assert heads(place), said
        pipeline.send_signal(number)
        pipeline.stderr.read()
        code = pipeline.wait(60)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    deadline = time.monotonic() + 240  # a job's driver takes a while to see that its cluster is gone
    while heads(place):
        assert time.monotonic() < deadline, [process.cmdline() for process in heads(place)]
        time.sleep(0.5)
    if number == signal.SIGINT:
        assert not list(place.glob("q3e-*"))


def test_an_interrupted_pipeline_leaves_no_process(options: list[str], place: Path) -> None:
    """Ctrl-C and kill -9, side by side."""
    with ThreadPoolExecutor(2) as pool:
        numbers = (signal.SIGINT, signal.SIGKILL)
        for number in numbers:
            (place / number.name).mkdir()
        list(pool.map(lambda number: ended_by(number, options, place / number.name), numbers))
