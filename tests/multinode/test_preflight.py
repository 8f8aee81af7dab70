"""What a preflight says of clusters that could not run a pipeline: no GPUs, no bucket, no model, other versions."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.multinode.nodes import Nodes

pytestmark = pytest.mark.cluster


@pytest.fixture
def models(tiny_qwen3: Path) -> str:
    return f"models={{generator: {tiny_qwen3}, base: {tiny_qwen3}, retrieval: {tiny_qwen3}}}"


def asked(cluster: Nodes, *sets: str, storage: str = "") -> subprocess.CompletedProcess[str]:
    place = storage or f"s3://bucket/{uuid.uuid4().hex}"
    flags = [word for one in (f"storage={place}", *sets) for word in ("--set", one)]
    return cluster.type([sys.executable, "-m", "qwen3emb.cli", "preflight", "examples/demo.yaml", *flags], 300)


def refused(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert done.returncode == 2, done.stderr[-3000:]
    assert sentence in done.stderr and "Traceback" not in done.stderr, done.stderr[-3000:]
    print(next(line for line in done.stderr.splitlines() if sentence in line))


def test_room_storage_and_models(nodes: Callable[..., Nodes], models: str, tiny_qwen3: Path) -> None:
    cluster = nodes(worker=4)
    fine = asked(cluster, models)
    assert fine.returncode == 0, fine.stderr[-3000:]
    assert "room, storage, versions and models are in order for corpus, synthesize, weak" in fine.stderr

    without_gpus = asked(cluster, models, "cluster.gpus_per_worker=1")
    refused(without_gpus, "stage supervised asks for 1 training worker with 1 GPU on one node; no node type has a GPU")
    refused(asked(cluster, models, storage="s3://nobody-made-this-bucket/run"), "cannot be written from the head")
    others = [f"models.generator={tiny_qwen3}", f"models.retrieval={tiny_qwen3}"]
    nobody = asked(cluster, "models.base=/not/here", *others)
    refused(nobody, "models.base /not/here: not on the head and not in the run's storage")


def other_python() -> tuple[str, str]:
    """(interpreter, version) of the same minor version as this one and another patch; empty where there is none."""
    for name in {f"/usr/bin/python3.{sys.version_info.minor}", shutil.which(f"python3.{sys.version_info.minor}") or ""}:
        if Path(name).is_file():
            words = [name, "-c", "import platform; print(platform.python_version())"]
            version = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
            if version != platform.python_version():
                return name, version
    return "", ""


def test_nodes_that_are_not_alike(nodes: Callable[..., Nodes], models: str, tmp_path: Path) -> None:
    cluster = nodes(worker=4)
    python, version = other_python()
    if python:
        packages = str(Path(torch.__file__).parents[1])
        cluster.add("other", 1, python, RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL="minor", PYTHONPATH=packages)
        refused(asked(cluster, models), f"has python {version}, the head {platform.python_version()}")
        cluster.lose("other")

    # A node where another version of a package is installed: what its Python finds first says so.
    (tmp_path / "torch-9.9.dist-info").mkdir()
    (tmp_path / "torch-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    cluster.add("newer", 1, PYTHONPATH=str(tmp_path))
    refused(asked(cluster, models), "has torch 9.9, the head 2.")
