"""The ablation: which runs it consists of, and its table from figures worked out by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.artifact import StageResult, complete, start
from qwen3emb.core.errors import UserError
from qwen3emb.pipeline.ablation import (
    ablation_table,
    on_another_set,
    rows_of,
    table_verdict,
    variants,
    with_figures,
    write_ablation,
)
from qwen3emb.pipeline.stages import identity, reuse_stages, stage_folder, stage_states


def finish(cfg: RunConfig, *names: str) -> None:
    for name in names:
        start(stage_folder(cfg, name), identity(cfg, name))
        complete(stage_folder(cfg, name), identity(cfg, name), StageResult(1, 1), 1.0)


def to_run(file: Path, variant: str, *overrides: str, extra: Sequence[str] = ()) -> list[str]:
    """The stages that a variant has to run up to `evaluate`, once the full run is done."""
    full = load_config(file, list(overrides))
    finish(full, *(stage.name for stage, state in stage_states(full) if state == "new"))
    cfg = load_config(file, [*overrides, *variants(full, extra)[variant]])
    reuse_stages(cfg, full)
    return [stage.name for stage, state in stage_states(cfg) if state != "done" and stage.name != "index"]


def test_without_synthetic_data_only_what_depends_on_it_runs_again(run_file: Path) -> None:
    assert to_run(run_file, "no-synthetic") == ["mine", "supervised", "merge", "evaluate"]


@pytest.mark.parametrize(
    ("own", "stages"),
    [
        ([], ["reranker_weak", "reranker", "merge", "evaluate"]),
        (["reranker_weak={steps: 3, negatives: 2}"], ["reranker", "merge", "evaluate"]),
    ],
)
def test_the_reranker_with_and_without_its_weak_stage(run_file: Path, own: list[str], stages: list[str]) -> None:
    assert to_run(run_file, "other-reranker", *own) == stages


def test_the_paper_s_loss_trains_every_reranker_of_the_run_again(run_file: Path) -> None:
    assert to_run(run_file, "sft-reranker") == ["reranker", "merge", "evaluate"]
    weak = "reranker_weak={steps: 3, negatives: 2}"
    assert to_run(run_file, "sft-reranker", weak) == ["reranker_weak", "reranker", "merge", "evaluate"]


DISTILL = "distill={steps: 3, teacher: {candidates: 2}}"


def test_a_distilled_run_is_merged_and_evaluated_without_it(run_file: Path) -> None:
    assert to_run(run_file, "no-distillation", DISTILL) == ["merge", "evaluate"]


def test_a_run_is_distilled_where_that_is_asked_for(run_file: Path) -> None:
    assert "distilled" not in variants(load_config(run_file))
    sets = "supervised={steps: 5, loss: {temperature: 0.02}, datasets: {docstrings: {weight: 2}}}"
    assert to_run(run_file, "distilled", sets, extra=["distill"]) == ["distill", "merge", "evaluate"]
    made = load_config(run_file, [sets, *variants(load_config(run_file, [sets]), ["distill"])["distilled"]]).distill
    assert made is not None
    assert (made.steps, made.loss.temperature, made.datasets, made.teacher.candidates) == (5, 0.02, {}, 8)
    with pytest.raises(UserError, match="ablate --with merge: no such row; there are: distill"):
        variants(load_config(run_file), ["distill", "merge"])
    with pytest.raises(UserError, match="no section reranker"):
        variants(load_config(run_file, ["reranker=null"]), ["distill"])


def test_the_rows_of_distillation(run_file: Path) -> None:
    plain, distilled = load_config(run_file), load_config(run_file, [DISTILL])
    assert [(row.name, row.run, row.model, row.against) for row in rows_of(plain)[2:5]] == [
        ("no merge", "", "supervised", "full"),
        ("full", "", "merged", ""),
        ("distilled", "distilled", "merged", "full"),
    ]
    assert [(row.name, row.run, row.model) for row in rows_of(distilled)[2:5]] == [
        ("no merge", "", "distilled"),
        ("full", "", "merged"),
        ("no distillation", "no-distillation", "merged"),
    ]
    with pytest.raises(UserError, match=r"the model distilled of the run itself; add it to evaluate\.compare"):
        variants(load_config(run_file, [DISTILL, "evaluate.compare=[weak, supervised]"]))
    without = load_config(run_file, [DISTILL, *variants(distilled)["no-synthetic"]])
    assert without.distill is None


def test_a_run_without_synthetic_data_has_nothing_to_leave_out(run_file: Path) -> None:
    cfg = load_config(run_file, ["synthesize=null", "weak=null", "mine.model=m"])
    with pytest.raises(UserError, match="no section synthesize and weak"):
        variants(cfg)


def test_rows_of_the_run_itself_must_be_evaluated(run_file: Path) -> None:
    with pytest.raises(UserError, match=r"the model weak of the run itself; add it to evaluate\.compare"):
        variants(load_config(run_file, ["evaluate.compare=[base, supervised]"]))


def test_a_mixture_without_synthetic_data_does_not_name_it(run_file: Path) -> None:
    own = "supervised.datasets={synthetic: {weight: 2}, synthetic_sts: {}, docstrings: {weight: 3, hard_negatives: 0}}"
    cfg = load_config(run_file, [own, *variants(load_config(run_file, [own]))["no-synthetic"]])
    assert {name: one.model_fields_set for name, one in cfg.supervised.datasets.items()} == {
        "docstrings": {"weight", "hard_negatives"}
    }
    assert cfg.supervised.datasets["docstrings"].weight == 3


def test_rows_are_compared_query_by_query(run_file: Path) -> None:
    cfg = load_config(run_file, ["reranker=null"])
    runs = {name: load_config(run_file, ["reranker=null", *sets]) for name, sets in variants(cfg).items()}
    assert list(runs) == ["no-synthetic"]
    figures = {"weak": [0.0, 0.2], "supervised": [0.5, 0.7], "merged": [0.5, 0.9]}
    write(cfg, figures)
    with pytest.raises(UserError, match=r"ablation/no-synthetic/evaluate: not complete"):
        with_figures(cfg, runs)
    write(runs["no-synthetic"], {"merged": [0.4, 0.8]})
    lines = {line["row"]: line for line in with_figures(cfg, runs)}
    assert list(lines) == ["only synthetic data", "no synthetic data", "no merge", "full"]
    assert [round(line["ndcg@10"], 4) for line in lines.values()] == [0.1, 0.6, 0.6, 0.7]
    assert "mean" not in lines["full"]
    shown = {
        name: [round(line[key], 4) for key in ("mean", "low", "high")] for name, line in lines.items() if "mean" in line
    }
    assert shown == {
        "only synthetic data": [-0.6, -0.7, -0.5],
        "no synthetic data": [-0.1, -0.1, -0.1],
        "no merge": [-0.1, -0.2, 0.0],
    }
    assert [lines[name]["sure"] for name in shown] == [True, True, False]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(ablation_table(list(lines.values())))
    text = console.export_text()
    assert "-0.100 [-0.200, +0.000]" in text
    assert "-0.600 [-0.700, -0.500]*" in text
    assert lines["full"]["evaluation"] == lines["no merge"]["evaluation"] == identity(cfg, "evaluate").fingerprint
    assert lines["no synthetic data"]["evaluation"] == identity(runs["no-synthetic"], "evaluate").fingerprint
    kept = json.loads(Path(write_ablation(cfg, list(lines.values()), {"x": "why"})).read_text())
    verdict = table_verdict(list(lines.values()))
    assert verdict is not None
    assert verdict.line() == "VERDICT: WIN  ndcg@10  full  no synthetic data  +0.1000 [+0.1000, +0.1000]"
    assert kept == {"rows": list(lines.values()), "left_out": {"x": "why"}, "verdict": verdict.as_json()}
    without = [line for name, line in lines.items() if name != "no synthetic data"]
    assert (
        table_verdict(without) is None
        and json.loads(Path(write_ablation(cfg, without, {})).read_text())["verdict"] is None
    )
    # An evaluation of another configuration gives no row.
    with pytest.raises(UserError, match="not complete for this configuration"):
        with_figures(load_config(run_file, ["reranker=null", "supervised.steps=7"]), {})


def test_the_verdict_turns_the_row_s_interval_round() -> None:
    row = {"row": "no synthetic data", "mean": 0.1, "low": -0.05, "high": 0.3, "queries": 9}
    found = table_verdict([{"row": "full"}, row])
    assert found is not None and (found.difference, found.low, found.high, found.word) == (-0.1, -0.3, 0.05, "EVEN")


def finished_ablation(file: Path) -> None:
    """The full run and both variants, as `ablate` would leave them."""
    cfg = load_config(file)
    finish(cfg, *(stage.name for stage, _ in stage_states(cfg) if stage.name not in ("evaluate", "index")))
    write(cfg, {"weak": [0.0, 0.2], "supervised": [0.5, 0.7], "merged": [0.5, 0.9], "merged+reranker": [1.0, 0.8]})
    for name, figures in (
        ("no-synthetic", {"merged": [0.4, 0.8]}),
        ("other-reranker", {"merged": [0.5, 0.9], "merged+reranker": [1.0, 1.0]}),
        ("sft-reranker", {"merged": [0.5, 0.9], "merged+reranker": [0.5, 0.9]}),
    ):
        run = load_config(file, variants(cfg)[name])
        reuse_stages(run, cfg)
        finish(run, *(stage.name for stage, state in stage_states(run) if state != "done" and stage.name != "evaluate"))
        write(run, figures)


def write(cfg: RunConfig, per_query: dict[str, list[float]]) -> None:
    """An evaluation of two queries."""
    folder = stage_folder(cfg, "evaluate")
    named = {model: dict(zip(("a", "b"), values, strict=True)) for model, values in per_query.items()}
    means = {model: {"ndcg@10": sum(values) / 2} for model, values in per_query.items()}
    folder.write_json("per_query.json", named)
    folder.write_json("results.json", {"models": means})
    finish(cfg, "evaluate")


def test_a_variant_that_is_judged_on_another_set_has_no_row(run_file: Path) -> None:
    """Without synthetic data there are no written queries."""
    finished_ablation(run_file)
    cfg = load_config(run_file)
    runs = {name: load_config(run_file, changes) for name, changes in variants(cfg).items()}
    for run, name in ((cfg, "synthetic"), (runs["other-reranker"], "synthetic"), (runs["sft-reranker"], "synthetic")):
        folder = stage_folder(run, "evaluate")
        folder.write_json("results.json", folder.read_json("results.json") | {"set": name})
    without = stage_folder(runs["no-synthetic"], "evaluate")
    without.write_json("results.json", {"models": {}, "note": "nothing to judge on"})
    without.delete("per_query.json")
    assert list(on_another_set(cfg, runs)) == ["no-synthetic"]
    names = [line["row"] for line in with_figures(cfg, runs)]
    assert names == [row.name for row in rows_of(cfg) if row.run not in ("no-synthetic", "distilled")]
    stage_folder(cfg, "evaluate").write_json("results.json", {"models": {}})
    with pytest.raises(UserError, match="nothing to judge the models on"):
        with_figures(cfg, runs)


def test_the_rerankers_are_compared_with_each_other(run_file: Path) -> None:
    names = [(row.name, row.run, row.against) for row in rows_of(load_config(run_file))[5:]]
    own, other = "merged+reranker, no weak stage", "merged+reranker, weak stage"
    sft = ("merged+reranker, the paper's SFT loss", "sft-reranker", own)
    assert names == [(own, "", ""), (other, "other-reranker", own), sft]
    plain = load_config(run_file, ["reranker.loss=sft"])
    assert [row.run for row in rows_of(plain)[5:]] == ["", "other-reranker"] and "sft-reranker" not in variants(plain)
    mixed = load_config(run_file, ["evaluate.rerank_weight=null", "reranker_weak={steps: 1, negatives: 2}"])
    assert [row.name for row in rows_of(mixed)[5:7]] == ["reranker alone, weak stage", "reranker alone, no weak stage"]
