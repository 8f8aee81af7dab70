"""The gate before a model becomes the current one, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3emb.errors import UserError
from qwen3emb.evaluate.promotion import judged, promote, roll_back


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


def test_noise_does_not_stop_a_model_and_points_may_be_given_away(tmp_path: Path) -> None:
    base = [0.1, 0.5, 0.9, 0.3] * 10
    present = scores(tmp_path / "a", base, 80.0)
    noisy = scores(tmp_path / "b", [v + (0.2 if i % 2 else -0.21) for i, v in enumerate(base)], 79.5)
    gate = {v.task: v.passed for v in judged(noisy, present)}
    assert gate == {"Search": True, "Likeness": False}
    assert all(v.passed for v in judged(noisy, present, tolerance=1.0))


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
