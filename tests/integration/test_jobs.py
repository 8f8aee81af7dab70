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
from pathlib import Path

import psutil
import pytest

from cluster.private_head import private_head
from qwen3emb.config import ClusterConfig

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def options(tmp_path: Path, tiny_qwen3: Path) -> list[str]:
    """The demo's config with inputs so small that `corpus` takes a moment."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(5):
        (texts / f"{i}.txt").write_text(f"Text number {i} is about {['bread', 'flour', 'salt', 'water', 'yeast'][i]}.")
    sets = [
        f"storage={tmp_path}/run",
        f"models={{generator: {tiny_qwen3}, base: {tiny_qwen3}, retrieval: {tiny_qwen3}}}",
        f"corpus={{sources: [{{kind: text, path: {texts}}}], max_tokens: 128}}",
    ]
    return ["--config", "examples/demo.yaml", *(word for s in sets for word in ("--set", s))]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def client(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `code` as a client in a process of its own, as users do.

    Ray reads its authentication mode once per process, and other tests have started a Ray without it in this one.
    """
    imports = (
        "import json, sys\n"
        "from qwen3emb.config import load_config\n"
        "from qwen3emb.distributed.submission import connect, there\n"
    )
    command = [sys.executable, "-c", imports + textwrap.dedent(code), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


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


def test_a_given_cluster_gets_the_project_and_its_answers_come_back(
    options: list[str], tmp_path: Path, shared_head: str
) -> None:
    first = run("jobs.pipeline", *options, "--only", "corpus", RAY_ADDRESS=shared_head)
    assert first.returncode == 0, first.stderr
    assert f"submitting to {shared_head}" in first.stderr
    assert "corpus: 5 rows in, 5 out" in first.stderr
    assert (tmp_path / "run" / "corpus" / "artifact.json").is_file()


def test_a_users_mistake_inside_a_job_comes_back_as_exit_code_2(options: list[str], shared_head: str) -> None:
    submit = ["qwen3emb.cli", "submit", "examples/demo.yaml", *options[2:], "--address", shared_head]
    done = run(*submit, "--stage", "mine")  # its inputs are not there
    assert done.returncode == 2, done.stderr
    assert "not complete" in done.stderr


def test_a_wrong_token_is_one_sentence(options: list[str], shared_head: str) -> None:
    submit = ["qwen3emb.cli", "submit", "examples/demo.yaml", *options[2:], "--address", shared_head]
    done = run(*submit, "--stage", "corpus", RAY_AUTH_MODE="disabled")
    assert done.returncode == 2, done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr


def test_the_whole_pipeline_can_be_one_job_that_submits_the_others(
    options: list[str], tmp_path: Path, shared_head: str
) -> None:
    done = client(
        """
        address, file, *sets = sys.argv[1:]
        target = there(connect(address), load_config(file, sets), file, sets)
        sys.exit(target.run("jobs.pipeline", ["--only", "corpus"]))
        """,
        shared_head,
        str(ROOT / options[1]),
        *options[3::2],
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "corpus" / "artifact.json").is_file()


def test_not_waiting_returns_the_jobs_id_at_once(options: list[str], tmp_path: Path, shared_head: str) -> None:
    submit = ["qwen3emb.cli", "submit", "examples/demo.yaml", *options[2:], "--address", shared_head]
    done = run(*submit, "--stage", "corpus", "--no-wait")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("raysubmit_")
    artifact = tmp_path / "run" / "corpus" / "artifact.json"
    deadline = time.monotonic() + 120
    while not artifact.is_file():
        assert time.monotonic() < deadline
        time.sleep(1)


def test_relative_storage_is_not_written_into_the_uploaded_copy(shared_head: str, tmp_path: Path) -> None:
    done = client(
        """
        address, file = sys.argv[1:]
        print(json.dumps(there(connect(address), load_config(file), file, []).options))
        """,
        shared_head,
        str(ROOT / "examples/demo.yaml"),
    )
    assert done.returncode == 0, done.stderr
    words = json.loads(done.stdout.splitlines()[-1])
    assert f"storage={ROOT / 'runs/demo'}" in words


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_pipeline_leaves_no_process(options: list[str], place: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "jobs.pipeline", *options, "--only", "corpus"]
    environment = os.environ | {"RAY_ADDRESS": "", "TMPDIR": str(place)}
    how = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    # As from a terminal: a test run in the background has SIGINT ignored, which children inherit.
    with subprocess.Popen(command, **how, preexec_fn=_interruptible) as pipeline:
        assert pipeline.stderr is not None
        for line in pipeline.stderr:
            if "Running entrypoint" in line:
                break
        assert heads(place)
        pipeline.send_signal(number)
        pipeline.stderr.read()
        code = pipeline.wait(60)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    deadline = time.monotonic() + 120  # a job's driver takes a while to see that its cluster is gone
    while heads(place):
        assert time.monotonic() < deadline, [process.cmdline() for process in heads(place)]
        time.sleep(0.5)
    if number == signal.SIGINT:
        assert not list(place.glob("q3e-*"))
