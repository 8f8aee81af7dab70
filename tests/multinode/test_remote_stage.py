"""A stage whose input and output are on S3, killed between two writes: the same command goes on, to the same rows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from qwen3emb.core.artifact import finished, read_record
from qwen3emb.core.event_files import all_events
from qwen3emb.core.lease import LEASE
from qwen3emb.core.storage import Storage

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = "?region=us-east-1"
FILES, ROWS = 40, 12  # a unit of work each, so that the stage is under way for seconds


def text(number: int) -> str:
    return " ".join(f"word{number * 31 + place}" for place in range(30))


def command(storage: str, source: str, model: Path) -> list[str]:
    models = dict.fromkeys(("generator", "base", "retrieval"), str(model))
    corpus = {"sources": [{"kind": "jsonl", "path": source}], "workers": 1, "max_tokens": 1024}
    sets = [f"storage={storage}", f"models={json.dumps(models)}", f"corpus={json.dumps(corpus)}", "cluster.num_cpus=4"]
    flags = [word for one in sets for word in ("--set", one)]
    return [sys.executable, "-m", "jobs.corpus", "--config", str(ROOT / "examples" / "demo.yaml"), *flags]


def run(*words: str) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def test_a_stage_on_s3_goes_on_after_a_kill_and_gives_what_a_local_one_gives(
    s3_here: None, tmp_path: Path, tiny_qwen3: Path
) -> None:
    home = f"s3://bucket/{uuid.uuid4().hex}"
    inputs, folder = Storage(f"{home}/in put{OPTIONS}"), Storage(f"{home}/run{OPTIONS}") / "corpus"
    (tmp_path / "in put").mkdir()
    for file in range(FILES):
        lines = "".join(json.dumps({"text": text(ROWS * file + row)}) + "\n" for row in range(ROWS))
        inputs.write_bytes(f"{file:02d}.jsonl", lines.encode())
        (tmp_path / "in put" / f"{file:02d}.jsonl").write_text(lines)
    words = command(f"{home}/run{OPTIONS}", inputs.uri, tiny_qwen3)

    said = tmp_path / "said.txt"
    with said.open("w") as stream:
        first = subprocess.Popen(words, cwd=ROOT, stdout=stream, stderr=stream)
    deadline = time.monotonic() + 200
    while not folder.names("candidates", "/done") and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.02)
    first.kill()
    first.wait()
    kept = folder.names("candidates", "/done")
    assert 1 <= len(kept) < FILES, f"killed too early or too late to tell:\n{said.read_text()[-4000:]}"
    assert folder.exists(LEASE) and folder.exists("started.json") and not finished(folder)

    assert "corpus: resuming" in run(*words)
    assert not folder.exists(LEASE) and not folder.exists("candidates")
    assert "corpus: reused" in run(*words)
    happened = [(event["event"], event["attempt"]) for event in all_events(Storage(f"{home}/run{OPTIONS}"))]
    assert happened[0] == ("started", 1) and happened[-1] == ("finished", 2)
    assert [kind for kind in happened if kind[0] != "progress"] == [happened[0], ("resumed", 2), happened[-1]]

    run(*command(str(tmp_path / "run"), str(tmp_path / "in put"), tiny_qwen3))
    local = Storage(str(tmp_path / "run" / "corpus"))
    for name in ("passages", "pairs", "rejects"):
        remote, here = folder.read_table(name), local.read_table(name)
        same = [column for column in here.column_names if column != "source"]
        assert remote.schema == here.schema and remote.select(same).equals(here.select(same)), name
    assert folder.read_table("passages").num_rows == FILES * ROWS
    for name in ("rows_in", "rows_out", "rejected", "metrics"):
        assert read_record(folder)[name] == read_record(local)[name]
    sources = set(folder.read_table("passages")["source"].to_pylist())
    assert len(sources) == FILES and all(source.startswith("s3://") for source in sources)
