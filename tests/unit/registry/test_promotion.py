"""The gate before a model becomes the current one, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.registry.promotion import judged, promote, roll_back


def model(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_text(content)
    (folder / "config.json").write_text("{}")
    return folder


def scores(folder: Path, by_query: list[float], other: float) -> Path:
    """Results of a retrieval task with figures by query, and of one without."""
    place = folder / "per_query" / "test__model"
    place.mkdir(parents=True)
    (place / "Search.json").write_text(json.dumps({f"q{i}": value for i, value in enumerate(by_query)}))
    found = {"test/model": {"Search": 100 * sum(by_query) / len(by_query), "Likeness": other}}
    (folder / "summary.json").write_text(json.dumps({"scores": found | {"test/model+reranker": {}}}))
    return folder


def test_a_model_that_is_not_worse_is_promoted_and_the_one_before_comes_back(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    base = [0.1, 0.5, 0.9, 0.3] * 10
    one, two = model(tmp_path / "one", "1"), model(tmp_path / "two", "2")
    assert promote(one, scores(tmp_path / "a", base, 80.0), registry) == []
    assert (registry / "current/model.safetensors").read_text() == "1"
    better = scores(tmp_path / "b", [value + 0.05 for value in base], 80.0)
    verdicts = promote(two, better, registry)
    assert [(v.task, round(v.gain, 4), v.passed) for v in verdicts] == [("Likeness", 0.0, True), ("Search", 5.0, True)]
    assert (registry / "current/model.safetensors").read_text() == "2"
    with pytest.raises(UserError, match="is the current model"):
        promote(two, better, registry)
    roll_back(registry)
    assert (registry / "current/model.safetensors").read_text() == "1"
    roll_back(registry)
    assert (registry / "current/model.safetensors").read_text() == "2"


def test_a_worse_model_changes_nothing(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    base = [0.1, 0.5, 0.9, 0.3] * 10
    promote(model(tmp_path / "one", "1"), scores(tmp_path / "a", base, 80.0), registry)
    before = sorted(path.relative_to(registry) for path in registry.rglob("*"))
    worse = scores(tmp_path / "b", [value - 0.05 for value in base], 90.0)
    verdicts = promote(model(tmp_path / "two", "2"), worse, registry)
    assert {v.task: v.passed for v in verdicts} == {"Search": False, "Likeness": True}
    assert sorted(path.relative_to(registry) for path in registry.rglob("*")) == before
    assert promote(tmp_path / "two", worse, registry, ["Likeness"])[0].passed
    assert (registry / "current/model.safetensors").read_text() == "2"


def drawn(mean: float, spread: float, queries: int, seed: int) -> list[float]:
    """Gains by query around a true one, in nDCG."""
    return list(np.random.default_rng(seed).normal(mean, spread, queries))


def share_promoted(tmp_path: Path, mean: float, spread: float, queries: int, seeds: int) -> float:
    base = [0.5] * queries
    present, passed = scores(tmp_path / "present", base, 80.0), 0
    for seed in range(seeds):
        gains = drawn(mean, spread, queries, seed)
        new = scores(tmp_path / str(seed), [0.5 + gain for gain in gains], 80.0)
        passed += judged(new, present, ["Search"])[0].passed
    return passed / seeds


def test_a_loss_of_five_points_is_hardly_ever_promoted(tmp_path: Path) -> None:
    assert share_promoted(tmp_path, -0.05, 0.2, 50, 200) <= 0.01


def test_an_equal_model_with_many_queries_is_mostly_promoted(tmp_path: Path) -> None:
    assert share_promoted(tmp_path, 0.0, 0.06, 400, 50) >= 0.75


def test_few_queries_decide_nothing_and_it_is_said(tmp_path: Path) -> None:
    base = [0.1, 0.5, 0.9, 0.3] * 10
    present = scores(tmp_path / "a", base, 80.0)
    noisy = scores(tmp_path / "b", [v + (0.2 if i % 2 else -0.21) for i, v in enumerate(base)], 79.5)
    likeness, search = judged(noisy, present)
    assert (search.outcome, search.passed) == ("undecided", False)
    assert "with 40 queries, tolerance 1; more queries or a larger tolerance" in search.reason
    assert (likeness.outcome, likeness.low) == ("passed", None) and "no interval" in likeness.reason
    assert [v.outcome for v in judged(noisy, present, tolerance=0.1)] == ["worse", "undecided"]
    assert all(v.passed for v in judged(noisy, present, tolerance=10.0))
    exact = scores(tmp_path / "c", base, 80.0)
    assert [v.outcome for v in judged(exact, present, tolerance=0.0)] == ["passed", "passed"]


def test_a_few_queries_or_none_in_common_have_no_interval(tmp_path: Path) -> None:
    present = scores(tmp_path / "a", [0.5] * 3, 80.0)
    other = scores(tmp_path / "b", [0.9] * 3, 80.0)
    file = other / "per_query/test__model/Search.json"
    assert judged(other, present, ["Search"])[0].outcome == "undecided"
    file.write_text(json.dumps({f"other{i}": 0.9 for i in range(40)}))
    [found] = judged(other, present, ["Search"])
    assert (found.outcome, found.queries) == ("undecided", 0) and "same data" in found.reason


def test_the_gate_is_the_main_split(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, figure in zip(folders, (0.5, 0.9), strict=True):
        scores(folder, [0.5], 80.0)
        by_query = {f"default/test/q{i}": 0.5 for i in range(40)} | {f"default/dev/q{i}": figure for i in range(400)}
        (folder / "per_query/test__model/Search.json").write_text(json.dumps(by_query))
        content = json.loads((folder / "summary.json").read_text())
        content["splits"] = {"test/model": {"Search": {"test": 50.0, "dev": 100 * figure}}, "test/model+reranker": {}}
        (folder / "summary.json").write_text(json.dumps(content))
    [found] = judged(folders[1], folders[0], ["Search"])
    assert (found.gain, found.queries) == (0.0, 40)


def test_small_losses_do_not_add_up(tmp_path: Path) -> None:
    registry, base = tmp_path / "registry", [0.1, 0.5, 0.9, 0.3] * 10
    found = [scores(tmp_path / f"s{n}", [value - 0.008 * n for value in base], 80.0) for n in range(3)]
    models = [model(tmp_path / f"m{n}", str(n)) for n in range(3)]
    promote(models[0], found[0], registry)
    assert all(v.passed for v in promote(models[1], found[1], registry)), "0.8 points, of 1 that may be lost"
    first = json.loads((registry / "current.json").read_text())["reference"]["Search"]
    verdicts = promote(models[2], found[2], registry, ["Search"])
    assert [(v.against, v.outcome) for v in verdicts] == [("present", "passed"), (f"reference {first}", "worse")]
    assert (registry / "current/model.safetensors").read_text() == "1"
    promote(models[2], scores(tmp_path / "s3", [value + 0.1 for value in base], 80.0), registry)
    record = json.loads((registry / "current.json").read_text())
    assert record["reference"]["Search"] == record["id"] and record["reference"]["Likeness"] == first
    assert record["tolerance"] == 1.0 and {v["task"]: v["outcome"] for v in record["gate"]}["Search"] == "passed"
    roll_back(registry)
    assert json.loads((registry / "current.json").read_text())["reference"]["Search"] == first


def plain(folder: Path, **points: float | None) -> Path:
    """Results without figures by query."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"scores": {"test/model": points}}))
    return folder


def test_a_task_of_the_references_is_not_forgotten(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    models = [model(tmp_path / f"m{n}", str(n)) for n in range(4)]
    promote(models[0], plain(tmp_path / "s0", A=80.0, B=80.0), registry)
    promote(models[1], plain(tmp_path / "s1", A=80.0), registry, ["A"])
    with pytest.raises(UserError, match="task B of the gate is not in"):
        promote(models[2], plain(tmp_path / "s2", A=80.0), registry)
    first = json.loads((registry / "current.json").read_text())["reference"]["B"]
    verdicts = promote(models[2], plain(tmp_path / "s2", A=80.0, B=20.0), registry)
    found = [(v.task, v.against, v.outcome) for v in verdicts if v.task == "B"]
    assert found == [("B", f"reference {first}", "worse")]
    assert (registry / "current/model.safetensors").read_text() == "1"
    [again] = promote(models[0], plain(tmp_path / "s3", A=70.0, B=10.0), registry, ["B"])
    assert again.outcome == "worse", "the reference itself, evaluated anew, is compared with what it was"
    with pytest.raises(UserError, match="lacks B, where this model is the registry's reference"):
        promote(models[0], plain(tmp_path / "s4", A=80.0), registry, ["A"])


def test_nothing_to_judge_by_is_refused(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    one, two = model(tmp_path / "one", "1"), model(tmp_path / "two", "2")
    for empty in ({}, {"test/model": {}}):
        (plain(tmp_path / "none") / "summary.json").write_text(json.dumps({"scores": empty}))
        with pytest.raises(UserError, match="holds no score"):
            promote(one, tmp_path / "none", registry)
    promote(one, plain(tmp_path / "a", A=80.0), registry)
    with pytest.raises(UserError, match="holds no score"):
        promote(two, tmp_path / "none", registry)
    kept = json.loads((registry / "current.json").read_text())
    (registry / "current.json").write_text(json.dumps(kept | {"reference": {}}))
    (registry / "versions" / kept["id"] / "scores/summary.json").write_text(json.dumps({"scores": {"test/model": {}}}))
    with pytest.raises(UserError, match="no result to compare with"):
        promote(two, tmp_path / "a", registry)
    assert (registry / "current/model.safetensors").read_text() == "1"


@pytest.mark.parametrize(("new", "present", "decided"), [(60, 5, 0), (5, 60, 0), (40, 36, 1), (40, 35, 0), (36, 40, 1)])
def test_results_that_share_some_queries_only_are_undecided(
    tmp_path: Path, new: int, present: int, decided: int
) -> None:
    ours, theirs = scores(tmp_path / "a", [0.5] * new, 80.0), scores(tmp_path / "b", [0.5] * present, 80.0)
    [found] = judged(ours, theirs, ["Search"])
    assert found.outcome == ("passed" if decided else "undecided")
    assert decided or f"{min(new, present)} of {max(new, present)} queries are in both" in found.reason


def test_figures_of_one_side_only_are_undecided_and_the_side_is_named(tmp_path: Path) -> None:
    ours, theirs = scores(tmp_path / "a", [0.9] * 40, 80.0), scores(tmp_path / "b", [0.5] * 40, 80.0)
    (theirs / "per_query/test__model/Search.json").unlink()
    [found] = judged(ours, theirs, ["Search"])
    assert found.outcome == "undecided" and "the present model has no figures by query" in found.reason
    [found] = judged(theirs, ours, ["Search"])
    assert found.outcome == "undecided" and "the new model has no figures by query" in found.reason


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "80", True, [1], 10**400])
def test_a_score_that_is_no_number_is_refused_with_file_and_task(tmp_path: Path, value: Any) -> None:
    good, bad = plain(tmp_path / "good", A=1.0, B=1.0), plain(tmp_path / "bad", A=1.0, B=value)
    for new, present in ((good, bad), (bad, good)):
        with pytest.raises(UserError, match=r"bad.summary\.json: .* task B"):
            judged(new, present)
    figures = scores(tmp_path / "figures", [0.5] * 9, 80.0)
    (figures / "per_query/test__model/Search.json").write_text(json.dumps({"q1": 0.5, "q2": value}))
    with pytest.raises(UserError, match=r"Search\.json: .*'q2'"):
        judged(figures, figures)


@pytest.mark.parametrize("content", ["[]", "{", "", "null", "3", '"x"', '{"scores": []}', '{"scores": {"a": 3}}', "{}"])
def test_a_broken_file_of_results_is_named(tmp_path: Path, content: str) -> None:
    good, bad = scores(tmp_path / "good", [0.5] * 9, 80.0), scores(tmp_path / "bad", [0.5] * 9, 80.0)
    (bad / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"bad.summary\.json: "):
        judged(good, bad)
    if "{}" not in content:
        figures = scores(tmp_path / "figures", [0.5] * 9, 80.0)
        (figures / "per_query/test__model/Search.json").write_text(content)
        with pytest.raises(UserError, match=r"per_query.test__model.Search\.json: "):
            judged(good, figures)


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    found = scores(tmp_path / "a", [0.5], 80.0)
    with pytest.raises(UserError, match="no model directory"):
        promote(tmp_path / "nothing", found, tmp_path / "registry")
    pickled = model(tmp_path / "one", "1")
    (pickled / "optimizer.pt").write_text("")
    with pytest.raises(UserError, match=r"optimizer\.pt: pickled files are not promoted"):
        promote(pickled, found, tmp_path / "registry")
    (pickled / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"no summary\.json"):
        promote(pickled, tmp_path, tmp_path / "registry")
    with pytest.raises(UserError, match="no current model there"):
        roll_back(tmp_path / "registry")
    promote(pickled, found, tmp_path / "registry")
    with pytest.raises(UserError, match="no model was current before"):
        roll_back(tmp_path / "registry")
    with pytest.raises(UserError, match="task Other of the gate is not in"):
        judged(found, found, ["Other"])
