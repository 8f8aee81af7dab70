"""Commands as processes of their own: exit codes, and what they start or leave alone."""

# ruff: noqa: F811 (tests name the fixture that is imported)
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3emb.config.run import load_config
from qwen3emb.pipeline.ablation import variants
from qwen3emb.pipeline.stages import STAGES
from tests.unit.cli.test_main import finish
from tests.unit.conftest import run_file  # noqa: F401, a fixture
from tests.unit.pipeline.test_ablation import finished_ablation, write

pytestmark = pytest.mark.integration


def command(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RAY_ADDRESS": "", "COLUMNS": "60"}
    whole = [sys.executable, "-m", "qwen3emb.cli", "ablate", *words]
    return subprocess.run(whole, capture_output=True, text=True, check=False, timeout=120, env=environment)


def test_the_command_shows_what_is_finished_without_starting_anything(run_file: Path) -> None:
    finished_ablation(run_file)
    done = command(str(run_file), "--json")
    assert done.returncode == 0, done.stderr
    assert "private Ray head" not in done.stderr
    assert "no-synthetic: from the full run: corpus" in done.stderr
    lines = json.loads(done.stdout)  # and nothing else
    assert [(line["row"], round(line.get("mean", 0.0), 4)) for line in lines] == [
        ("only synthetic data", -0.6),
        ("no synthetic data", -0.1),
        ("no merge", -0.1),
        ("full", 0.0),
        ("merged+reranker, no weak stage", 0.0),
        ("merged+reranker, weak stage", 0.1),
        ("merged+reranker, the paper's SFT loss", -0.2),
    ]
    kept = json.loads((run_file.parent / "run" / "ablation.json").read_text())
    assert kept["rows"] == lines and kept["left_out"] == {}
    last = done.stderr.splitlines()[-1]
    assert last == "VERDICT: WIN  ndcg@10  full  no synthetic data  +0.1000 [+0.1000, +0.1000]"
    assert kept["verdict"]["line"] == last
    assert command(str(run_file), "--at-least", "win").stdout.splitlines()[-1] == last


def test_a_verdict_below_what_is_asked_is_the_exit_code(run_file: Path) -> None:
    finished_ablation(run_file)
    cfg = load_config(run_file)
    write(load_config(run_file, variants(cfg)["no-synthetic"]), {"merged": [0.5, 0.9]})  # the same as the full run
    assert [command(str(run_file), *words).returncode for words in ([], ["--at-least", "even"])] == [0, 0]
    done = command(str(run_file), "--at-least", "win")
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith("VERDICT: EVEN  ndcg@10  full")


def test_a_variant_that_cannot_run_costs_its_row_only(run_file: Path) -> None:
    finished_ablation(run_file)
    stale = run_file.parent / "run/ablation/no-synthetic/supervised/artifact.json"
    stale.write_text(json.dumps(json.loads(stale.read_text()) | {"fingerprint": "of another configuration"}))
    done = command(str(run_file))
    assert done.returncode == 2
    assert "error: variant no-synthetic is not in the table" in done.stderr
    assert "Give --replace" in done.stderr
    assert "only synthetic data" in done.stdout
    assert "difference" in done.stdout and "…" not in done.stdout  # nothing is cut, though COLUMNS is 60
    assert "weak stage" in done.stdout
    assert "no synthetic data" not in done.stdout
    assert list(json.loads((run_file.parent / "run/ablation.json").read_text())["left_out"]) == ["no-synthetic"]


def test_a_mistake_ends_with_2_before_anything_runs(run_file: Path) -> None:
    done = command(str(run_file), "--set", "evaluate.compare=[]")
    assert (done.returncode, done.stdout) == (2, "")
    assert "add it to evaluate.compare" in done.stderr
    assert not (run_file.parent / "run").exists()


def test_run_ends_with_the_exit_code_of_the_run(run_file: Path) -> None:
    for name in STAGES:
        finish(run_file, name)
    command = [sys.executable, "-m", "qwen3emb.cli", "run", str(run_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "index: reused" in done.stderr) == (0, True)
    command += ["--set", "corpus.max_tokens=99"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "--replace" in done.stderr) == (2, True)
