"""Each example on each cluster file: every stage fits, and what does not is refused in a sentence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.check import cluster_problems, wanted
from qwen3emb.cli.main import app
from qwen3emb.config.run import load_config
from qwen3emb.pipeline.demand import Demand, run_demands
from qwen3emb.pipeline.fit import unmet
from qwen3emb.pipeline.supply import read_node_types, unfilled

ROOT = Path(__file__).resolve().parents[2]
RUNS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "examples").glob("qwen3-*.yaml"))
CLUSTERS = [
    *("cluster/aws.yaml", "cluster/gcp.yaml"),
    *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "cluster/kuberay").glob("ray*.yaml")),
]


def test_there_are_examples_and_cluster_files() -> None:
    assert (len(RUNS), len(CLUSTERS)) == (3, 5)


@pytest.mark.parametrize("path", CLUSTERS)
def test_no_node_serves_both_cpu_work_and_gpus(path: str) -> None:
    """So that CPU work cannot start a GPU node: tests/unit/pipeline/test_fit.py shows what Ray does otherwise."""
    head, *workers = read_node_types(ROOT / path)
    assert (head.cpus, head.gpus) == (0, 0)
    assert [node.name for node in workers if node.cpus and node.gpus] == []
    assert any(node.cpus for node in workers)


def everything(demands: Sequence[Demand]) -> list[Demand]:
    """The demands, all of them at once even where a stage would go on with fewer."""
    return [dataclasses.replace(demand, together=True) for demand in demands]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("path", CLUSTERS)
def test_every_stage_of_every_example_fits(path: str, run: str) -> None:
    demands = wanted(load_config(ROOT / run), str(ROOT / path))
    assert len({d.stage for d in demands}) == (1 if "rayservice" in path else 11)
    assert unmet(everything(demands), read_node_types(ROOT / path)) == []


@pytest.mark.parametrize("path", [path for path in CLUSTERS if "rayservice" not in path])
def test_a_file_or_a_run_that_is_broken_on_purpose_is_refused_with_the_sentence(path: str) -> None:
    types = read_node_types(ROOT / path)
    gpus = {node.name: node.gpus for node in types}
    assert (gpus["gpu1"], gpus["gpu8"]) == (1, 8)
    demands = run_demands(load_config(ROOT / "examples/qwen3-8b.yaml"))
    small = [node for node in types if node.name != "gpu8"]
    assert unmet(demands, small)[:2] == [
        "stage synthesize asks for 8 engines, each with 2 GPUs on one node; the largest node type gpu1 has 1: "
        "set synthesize.tensor_parallel to 1, or use nodes with 2 GPUs",
        "stage weak asks for 32 training workers, each with 1 GPU, all at the same time; at most 8 fit on the nodes "
        "that there can be (8 gpu1): set weak.num_workers to 8, or allow more nodes",
    ]
    wide = run_demands(load_config(ROOT / "examples/qwen3-8b.yaml", ["synthesize.tensor_parallel=16"]))
    assert unmet(wide, types) == [
        "stage synthesize asks for 8 engines, each with 16 GPUs on one node; the largest node type gpu8 has 8: "
        "set synthesize.tensor_parallel to 8, or use nodes with 16 GPUs"
    ]
    assert unmet(demands, [node for node in types if node.name != "cpu"])[0] == (
        "stage corpus asks for 64 reading tasks, each with 1 CPU on one node; no node type has a CPU: "
        "use nodes with 1 CPU"
    )


@pytest.mark.parametrize("path", [*CLUSTERS, "cluster/kuberay/serviceaccount.yaml"])
def test_a_file_as_it_is_shipped_is_refused_until_it_is_filled_in(path: str, tmp_path: Path) -> None:
    problems = unfilled(ROOT / path)
    assert problems
    assert all("a value of yours" not in problem for problem in problems)  # each placeholder is explained
    text = (ROOT / path).read_text(encoding="utf-8")
    assert {word for p in problems for word in re.findall(r"replace (\S+) in", p)} == set(
        re.findall(r"YOUR-[A-Z-]*[A-Z]", re.sub(r"#.*", "", text))
    )
    (tmp_path / "filled.yaml").write_text(re.sub(r"YOUR-[A-Z-]*[A-Z]", "mine", text))
    assert unfilled(tmp_path / "filled.yaml") == []


def asked(cluster_file: str, run: str, *words: str) -> Result:
    return CliRunner().invoke(app, ["preflight", run, "--cluster-file", cluster_file, *words])


def test_the_check_says_every_problem_and_then_none(tmp_path: Path) -> None:
    text = (ROOT / "cluster/aws.yaml").read_text(encoding="utf-8")
    (tmp_path / "aws.yaml").write_text(re.sub(r"YOUR-[A-Z-]*[A-Z]", "mine", text))
    (tmp_path / "run.yaml").write_text((ROOT / "examples/qwen3-8b.yaml").read_text().replace("YOUR-BUCKET", "mine"))
    files = [str(tmp_path / "aws.yaml"), str(tmp_path / "run.yaml")]
    assert cluster_problems(files[0], files[1:]) == []
    fits = asked(*files)
    assert fits.exit_code == 0 and "large enough" in fits.stdout
    too_large = asked(*files, "--set", "weak.num_workers=99")
    assert too_large.exit_code == 2 and "stage weak asks for 99 training workers" in too_large.stderr
    shipped = cluster_problems(str(ROOT / "cluster/aws.yaml"), [str(ROOT / "examples/qwen3-8b.yaml")])
    assert [re.findall(r"replace (\S+)", p) for p in shipped] == [["YOUR-REGISTRY"], ["YOUR-ACCOUNT"], ["YOUR-BUCKET"]]
