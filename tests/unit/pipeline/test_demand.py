"""What stages ask of a cluster: by hand for a run, and against the source of the stages, without starting Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen3emb.config.run import RunConfig
from qwen3emb.pipeline.demand import SERVE, Demand, run_demands, stage_demands

ROOT = Path(__file__).resolve().parents[3]

EVERYTHING: dict[str, Any] = {
    "name": "all",
    "storage": "s3://bucket/run",
    "cluster": {"gpus_per_worker": 1},
    "models": {"generator": "g", "base": "b", "retrieval": "r"},
    "corpus": {"sources": [{"kind": "text", "path": "s3://bucket/texts"}], "workers": 11},
    "labelled": {"sets": {"nq": {"path": "s3://bucket/nq", "format": "beir", "task": "retrieval"}}},
    "synthesize": {"personas": "p.jsonl", "engines": 9, "tensor_parallel": 2, "threads": 4},
    "weak": {"steps": 1, "num_workers": 12, "teacher": {"model": "t", "workers": 2}},
    "filter": {"workers": 3},
    "mine": {"workers": 4, "veto": {"model": "v"}},
    "supervised": {"steps": 1, "num_workers": 13, "teacher": {"model": "t", "workers": 5}},
    "reranker_weak": {"steps": 1, "num_workers": 14},
    "reranker": {"steps": 1, "num_workers": 15, "teacher": {"model": "t", "workers": 6}},
    "distill": {"steps": 1, "num_workers": 16, "teacher": {"workers": 7}},
    "merge": {"keep": "best"},
    "evaluate": {"workers": 8},
    "index": {"workers": 10},
    "serve": {"embedder_replicas": 2, "reranker_replicas": 3, "num_gpus": 0.5},
}
"""A run with every stage and every pool, each of a size of its own."""

ASKED = {
    # stage, what: (count, CPUs, GPUs, all at once, phase)
    ("corpus", "reading task"): (11, 1, 0, False, 0),
    ("labelled", "task"): (1, 1, 0, False, 0),
    ("synthesize", "engine"): (9, 0, 2, False, 0),
    ("synthesize", "reader"): (3, 0.5, 0, False, 0),
    ("synthesize", "ranking task"): (8, 1, 0, False, 1),
    ("weak", "teacher"): (2, 0, 1, True, 0),
    ("weak", "training worker"): (12, 0, 1, True, 1),
    ("filter", "encoder"): (3, 0, 1, True, 0),
    ("mine", "encoder"): (4, 0, 1, True, 0),
    ("mine", "search task"): (1, 1, 0, False, 1),
    ("mine", "reranker"): (4, 0, 1, True, 2),
    ("supervised", "teacher"): (5, 0, 1, True, 0),
    ("supervised", "training worker"): (13, 0, 1, True, 1),
    ("reranker_weak", "training worker"): (14, 0, 1, True, 1),
    ("reranker", "teacher"): (6, 0, 1, True, 0),
    ("reranker", "training worker"): (15, 0, 1, True, 1),
    ("distill", "teacher"): (7, 0, 1, True, 0),
    ("distill", "training worker"): (16, 0, 1, True, 1),
    ("merge", "encoder"): (8, 0, 1, True, 0),
    ("merge", "probing task"): (1, 0, 1, False, 0),
    ("merge", "reranker"): (8, 0, 1, True, 1),
    ("merge", "merging task"): (2, 1, 0, False, 2),
    ("evaluate", "encoder"): (8, 0, 1, True, 0),
    ("evaluate", "reranker"): (8, 0, 1, True, 1),
    ("index", "encoder"): (10, 0, 1, False, 0),
    ("index", "task"): (1, 0.25, 0, False, 0),
    (SERVE, "embedder replica"): (2, 0, 0.5, True, 0),
    (SERVE, "reranker replica"): (3, 0, 0.5, True, 0),
    (SERVE, "replica without a model"): (2, 0.25, 0, True, 0),
}

ON_CPUS = {
    # what of it is other without GPUs
    ("synthesize", "engine"): (9, 4, 0),
    ("weak", "training worker"): (12, 1, 0),
    ("filter", "encoder"): (3, 0.5, 0),
    ("merge", "probing task"): (1, 1, 0),
    ("index", "encoder"): (10, 0.5, 0),
    (SERVE, "embedder replica"): (2, 3, 0),
}

TRAININGS = ("weak", "supervised", "reranker_weak", "reranker", "distill")

SOURCE = {
    # where the source asks Ray for something, how many and how large: the demands that stand for it
    "corpus/stage.py: _read_unit TASK": [("corpus", "reading task")],
    "labelled/stage.py: _one_dataset TASK": [("labelled", "task")],
    "labelled/stage.py: drop_like_held_out TASK": [("labelled", "task")],
    "labelled/stage.py: drop_false_negatives TASK": [("labelled", "task")],
    "synthesis/stage.py: _Reader x -(-engines // ENGINES_PER_READER) reader_bundle(cfg)": [("synthesize", "reader")],
    "synthesis/stage.py: _Writer x engines resources": [("synthesize", "engine")],
    "synthesis/sets.py: _draft_vectors options": [("synthesize", "ranking task")],
    "synthesis/sets.py: _outranked options": [("synthesize", "ranking task")],
    "synthesis/tally.py: Tally COUNTER": [],
    "filtering/stage.py: Encoders x cfg.filter.workers gpus": [("filter", "encoder")],
    "mining/stage.py: Encoders x cfg.mine.workers gpus": [("mine", "encoder")],
    "mining/stage.py: search_shard TASK": [("mine", "search task")],
    "mining/veto.py: Rerankers x cfg.mine.workers cfg.cluster.gpus_per_worker": [("mine", "reranker")],
    "training/teacher.py: Rerankers x judge.workers run.cluster.gpus_per_worker": [
        ("reranker", "teacher"),
        ("distill", "teacher"),
    ],
    "training/teacher.py: Encoders x teacher.workers gpus": [("weak", "teacher"), ("supervised", "teacher")],
    "training/loop.py: ScalingConfig x cfg.num_workers trainer_bundle(job.gpus)": [
        (stage, "training worker") for stage in TRAININGS
    ],
    "merging/dev_scores.py: Encoders x cfg.evaluate.workers gpus": [("merge", "encoder")],
    "merging/dev_scores.py: Rerankers x cfg.evaluate.workers gpus": [("merge", "reranker")],
    "merging/stage.py: probed_weights probe_bundle(probe.gpus)": [("merge", "probing task")],
    "merging/stage.py: _merge TASK": [("merge", "merging task")],
    "merging/stage.py: merge_piece MERGE_PIECE": [],  # where the task that waits for it has left room
    "evaluation/stage.py: Pools x ctx.cfg.evaluate.workers ctx.cfg.cluster.gpus_per_worker": [
        ("evaluate", "encoder"),
        ("evaluate", "reranker"),
    ],
    "evaluation/model_rankings.py: Encoders self._options": [],  # those of `Pools`
    "evaluation/model_rankings.py: Rerankers self._options": [],
    "evaluation/harness.py: Encoders options": [],  # `qwen3emb evaluate`, which is no stage
    "evaluation/harness.py: Rerankers options": [],
    "encoding/dispatch.py: worker options": [],  # `WorkerPool`, for the two pools below
    "cluster/preflight.py: _look COUNTER": [],  # `qwen3emb preflight`, which is no stage
    "encoding/pool.py: EncodeWorker x workers options": [],
    "encoding/pool.py: RerankWorker x workers options": [],
    "search/stage.py: _read _TINY": [("index", "task")],
    "search/stage.py: _pending _TINY": [("index", "task")],
    "search/stage.py: _Embed x workers encoder_bundle(gpus)": [("index", "encoder")],
    "search/stage.py: _write _TINY": [("index", "task")],
    "serve/deploy.py: Replica x replicas actor": [(SERVE, "embedder replica"), (SERVE, "reranker replica")],
    "serve/deploy.py: part GATEWAY": [(SERVE, "replica without a model")],
}


def run_of(**changes: Any) -> RunConfig:
    return RunConfig.model_validate(EVERYTHING | changes)


def everything(cfg: RunConfig) -> dict[tuple[str, str], Demand]:
    return {(d.stage, d.what): d for d in [*run_demands(cfg), *stage_demands(cfg, SERVE)]}


def test_every_stage_asks_for_what_the_configuration_says() -> None:
    found = everything(run_of())
    assert {k: (d.count, d.cpus, d.gpus, d.together, d.phase) for k, d in found.items()} == ASKED


def test_without_gpus_the_same_is_asked_for_in_cpus() -> None:
    found = everything(run_of(cluster={}, serve={"embedder_replicas": 2, "threads": 3}))
    assert not any(d.gpus for d in found.values())
    assert {k: (found[k].count, found[k].cpus, found[k].gpus) for k in ON_CPUS} == ON_CPUS


def test_readers_on_gpus_ask_for_them() -> None:
    found = everything(run_of(synthesize={"personas": "p.jsonl", "engines": 9, "reader_gpus": 2}))
    reader = found["synthesize", "reader"]
    assert (reader.count, reader.cpus, reader.gpus) == (3, 0, 2)


def test_nothing_that_holds_gpus_asks_for_cpus() -> None:
    assert [d.what for d in everything(run_of()).values() if d.gpus and d.cpus] == []


def test_keys_that_a_sentence_names_exist() -> None:
    def value(key: str) -> Any:
        found: Any = run_of()
        for part in key.split("."):
            found = getattr(found, part)
        return found

    demands = everything(run_of()).values()
    assert [d for d in demands if d.count_key and value(d.count_key) != d.count] == []
    assert [d for d in demands if d.size_key and value(d.size_key) != d.gpus] == []


def test_a_run_without_optional_parts_asks_for_less() -> None:
    small = {k: v for k, v in EVERYTHING.items() if k not in ("reranker", "reranker_weak", "distill", "labelled")}
    small |= {"merge": {}, "mine": {"workers": 4}, "weak": {"steps": 1}, "supervised": {"steps": 1}}
    found = everything(RunConfig.model_validate(small))
    whats = {stage: {what for name, what in found if name == stage} for stage, _ in found}
    assert whats["mine"] == {"encoder", "search task"}
    assert whats["merge"] == {"merging task"}
    assert whats["evaluate"] == {"encoder"}
    assert whats["weak"] == whats["supervised"] == {"training worker"}
    assert whats[SERVE] == {"embedder replica", "replica without a model"}
    assert not {"labelled", "reranker", "distill"} & whats.keys()
    assert found["merge", "merging task"].count == 1


def test_demands_are_known_without_ray_and_torch() -> None:
    code = (
        "import sys; import qwen3emb.pipeline.demand, qwen3emb.pipeline.supply, qwen3emb.pipeline.fit; "
        "print({'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


POOLS = ("Encoders", "Rerankers", "Pools", "ScalingConfig")


def product_files() -> Iterator[Path]:
    for top in ("qwen3emb", "serve", "jobs", "cluster"):
        yield from sorted((ROOT / top).rglob("*.py"))


def _shown(node: ast.AST) -> str:
    """A size as it is written, without the method that makes Ray's options of it."""
    return ast.unparse(node).removesuffix(".options()").removesuffix(".resources()")


def _unpacked(call: ast.Call) -> str:
    return "".join(f" {_shown(k.value)}" for k in call.keywords if k.arg is None)


def asks(source: str) -> Iterator[str]:
    """Each place in a module's source that asks Ray for tasks or actors: `who [x how many] size`."""
    tree = ast.parse(source)
    with_options = {
        id(node.func.value): node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "options"
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords if k.arg}
        if name == "ray.remote":
            options = with_options.get(id(node))
            later = [o for o in with_options.values() if isinstance(o.func.value, ast.Name)]  # type: ignore[attr-defined]
            yield _shown(node.args[0]) + "".join(_unpacked(o) for o in ([options] if options else later))
        elif name in POOLS:
            count = given.get("workers") or given.get("num_workers") or (node.args[0] if name == "Pools" else None)
            size = given.get("gpus_per_worker") or given.get("resources_per_worker")
            size = node.args[1] if name == "Pools" else size
            yield name + (f" x {_shown(count)}" if count else "") + (f" {_shown(size)}" if size else _unpacked(node))
        elif name.endswith(".map_batches"):
            pool = given.get("compute")
            count = pool.keywords[0].value if isinstance(pool, ast.Call) else None
            yield _shown(node.args[0]) + (f" x {_shown(count)}" if count else "") + _unpacked(node)
        elif name == "serve.deployment":
            count = given.get("num_replicas")
            size = given["ray_actor_options"]
            yield _shown(node.args[0]) + (f" x {_shown(count)}" if count else "") + f" {_shown(size)}"
        elif name == "super().__init__" and _unpacked(node):
            yield f"{_shown(node.args[0])} x {_shown(node.args[2])}{_unpacked(node)}"


def test_every_place_that_asks_ray_for_something_has_its_demand() -> None:
    found = set()
    for path in product_files():
        place = path.relative_to(ROOT).as_posix().removeprefix("qwen3emb/")
        found |= {f"{place}: {ask}" for ask in asks(path.read_text(encoding="utf-8"))}
    assert found == SOURCE.keys(), "change pipeline/demand.py too, then SOURCE and ASKED here"
    assert {key for keys in SOURCE.values() for key in keys} == ASKED.keys()


@pytest.mark.parametrize(
    ("source", "ask"),
    [
        ("ray.remote(f).remote()", "f"),
        ("ray.remote(f).options(**TASK.options()).remote()", "f TASK"),
        ("Encoders(m, workers=cfg.filter.workers, gpus_per_worker=2)", "Encoders x cfg.filter.workers 2"),
        ("ds.map_batches(F, compute=ActorPoolStrategy(size=7), **R.options())", "F x 7 R"),
    ],
)
def test_a_new_way_to_ask_is_seen(source: str, ask: str) -> None:
    assert list(asks(source)) == [ask]


def literal_sizes(source: str) -> list[int]:
    """Lines that say by themselves how many CPUs or GPUs something takes."""
    names = ("num_cpus", "num_gpus", "resources_per_worker", "placement_group_config")
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            lines += [node.lineno] * bool({*names, "CPU", "GPU"} & {key for key in keys if isinstance(key, str)})
        elif isinstance(node, ast.keyword) and node.arg in names:
            from_bundle = isinstance(node.value, ast.Call) and ast.unparse(node.value).endswith(".resources()")
            lines += [] if from_bundle else [node.value.lineno]
    return lines


def test_sizes_are_said_in_one_module() -> None:
    said = {p.relative_to(ROOT).as_posix(): literal_sizes(p.read_text(encoding="utf-8")) for p in product_files()}
    # The resources themselves; the Ray that `cluster.num_cpus` starts.
    assert {path for path, lines in said.items() if lines} == {"qwen3emb/config/resources.py", "cluster/session.py"}
    assert literal_sizes("task.options(num_cpus=1)\nactor = {'num_gpus': 1}\nb = [{'GPU': 1}]") != []


def test_ray_train_adds_nothing_to_what_a_worker_asks_for() -> None:
    from ray.train import ScalingConfig

    from qwen3emb.config.resources import trainer_bundle

    for gpus in (0, 1, 2):
        bundle = trainer_bundle(gpus)
        config = ScalingConfig(num_workers=3, use_gpu=gpus > 0, resources_per_worker=bundle.resources())
        asked = {"CPU": bundle.cpus, "GPU": bundle.gpus}
        assert config._resources_per_worker_not_none == {k: v for k, v in asked.items() if v}
        assert config.total_resources == {k: 3 * v for k, v in asked.items() if v}
