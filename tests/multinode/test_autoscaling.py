"""A stage on a cluster without workers: Ray's autoscaler adds nodes for it, and takes them away when it is done."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwen3emb.core.artifact import read_record
from tests.multinode.nodes import ROOT, Nodes, why_not
from tests.multinode.test_faults import FILES, ROWS, corpus_of

pytestmark = pytest.mark.cluster


@pytest.fixture
def empty(s3_here: None, s3: dict[str, str]) -> Iterator[Nodes]:
    """A head without CPUs, to which up to three nodes of one CPU may be added."""
    if why_not():
        pytest.skip(why_not())
    with Nodes([], s3, grows_to=3) as cluster:
        yield cluster


def test_nodes_come_for_a_stage_and_go_after_it(empty: Nodes, tiny_qwen3: Path) -> None:
    words, out = corpus_of(tiny_qwen3)
    # Nodes of this provider share a folder, and would take an uploaded project from one another: they read this one.
    flags = words[words.index("--config") :]
    del flags[flags.index("--only") : flags.index("--only") + 2]
    stage = shlex.join(["python", "-m", "jobs.corpus", *flags])
    words = ["ray", "job", "submit", "--", "bash", "-c", f"cd {ROOT} && {stage}"]
    began, most = time.monotonic(), 0
    with ThreadPoolExecutor(1) as pool:
        assert empty.up() == 0
        job = pool.submit(empty.type, words, 600)
        while not job.done():
            most = max(most, empty.up())
            time.sleep(0.5)
    done, ended = job.result(), time.monotonic()
    assert done.returncode == 0, f"{done.stderr[-4000:]}\n{empty.log()}"
    assert read_record(out)["rows_in"] == FILES * ROWS
    assert most == 3, "corpus.workers is 4, and there may be three nodes"
    while empty.up():
        assert time.monotonic() < ended + 120, "idle nodes are not given back"
        time.sleep(0.5)
    print(f"0 -> {most} -> 0 nodes: {time.monotonic() - began:.0f} s, of which {time.monotonic() - ended:.0f} s idle")
