"""`qwen3emb plan`: tables, JSON, prices, exit codes, and no heavy import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen3emb.cli.main import app

EXAMPLES = Path(__file__).parents[3] / "examples"
DEMO, EIGHT = str(EXAMPLES / "demo.yaml"), str(EXAMPLES / "qwen3-8b.yaml")


def call(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["plan", *words], env={"COLUMNS": "200", "RAY_ADDRESS": ""})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_run_on_cpus_has_no_gpus_and_no_price() -> None:
    code, out, _ = call(DEMO)
    assert code == 0
    assert "CPU cores" in out and "GPU hours" not in out and "price" not in out
    assert all(stage in out for stage in ("corpus", "synthesize", "weak", "reranker", "merge", "index"))


def test_prices_come_from_the_file_alone(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("h100: 2.5\n")
    code, out, _ = call(EIGHT, "--gpus", "64", "--gpu", "h100", "--prices", str(prices), "--json")
    content = json.loads(out)
    assert code == 0 and content["total"]["fits"] and content["gpus"] == 64
    assert content["total"]["price"] == pytest.approx(2.5 * content["total"]["gpu_hours"])
    weak = next(stage for stage in content["stages"] if stage["name"] == "weak")
    assert weak["price"] == pytest.approx(2.5 * weak["gpu_hours"])
    assert weak["memory"]["total"] == pytest.approx(sum(v for k, v in weak["memory"].items() if k != "total"))
    code, out, _ = call(EIGHT, "--json")
    assert json.loads(out)["total"]["price"] is None
    code, _, err = call(EIGHT, "--gpu", "l4", "--prices", str(prices))
    assert code == 2 and "no price for l4" in err


def test_what_cannot_fit_is_said_and_ends_with_1() -> None:
    code, out, _ = call(EIGHT, "--gpus", "8")
    assert code == 1
    assert "cannot be: weak asks for 32 GPUs, there are 8: lower weak.num_workers" in out


def test_mistakes_end_with_2() -> None:
    for words, said in (
        ((DEMO, "--gpu", "h100"), "cluster.gpus_per_worker is 0"),
        ((EIGHT, "--gpu", "b9000"), "no such GPU"),
        ((EIGHT, "--assume", "x=1"), "no assumption is called 'x'"),
        ((EIGHT, "--set", "models.base=someone/unknown-7b"), "the shape of model 'someone/unknown-7b' is not known"),
        ((EIGHT, "--set", "models.base=http://host/v1?model=x"), "models.base is a server"),
    ):
        code, _, err = call(*words)
        assert code == 2 and said in err, err
        assert len(err.strip().splitlines()) == 1


def test_a_plan_imports_no_torch_ray_or_vllm() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom qwen3emb.cli.main import app\n"
        f"done = CliRunner().invoke(app, ['plan', {EIGHT!r}, '--measured', '--set', 'storage=./nowhere'])\n"
        "assert done.exit_code == 0, done.output\n"
        "print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
