"""The file of results: what counts as done, and what adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.quality.plan import Job, Outcome, carry_out
from benchmarks.quality.results import OURS, THEIRS, Line, Results, version_of


def line(side: str = OURS, seed: int = 0, score: float = 0.5, version: str = "", **settings: float) -> Line:
    version = version or version_of(side)
    return Line("scifact", side, settings, seed, 1.0, 2, {"test": {"q": score}}, version=version)


def test_a_line_is_found_again_after_reading(tmp_path: Path) -> None:
    results = Results(tmp_path / "new" / "results.jsonl")
    results.add(line(seed=1, score=1 / 3, lr=0.1))
    for known in (results, Results(results.file)):
        found = known.find("scifact", OURS, {"lr": 0.1}, 1)
        assert found is not None and found.scores == {"test": {"q": 0.3333}} and found.steps == 2
        assert known.find("scifact", OURS, {"lr": 0.2}, 1) is None
        assert known.find("scifact", OURS, {"lr": 0.1}, 0) is None
        assert known.find("rerank", OURS, {"lr": 0.1}, 1) is None
        assert known.find("scifact", OURS, {"lr": 0.1}, 1, since=1) is None


def test_another_version_of_ours_is_measured_again_and_the_peer_is_not(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    results.add(line(version="0.0.1"))
    results.add(line(THEIRS))
    assert results.find("scifact", OURS, {}, 0) is None
    assert results.find("scifact", THEIRS, {}, 0) is not None
    assert version_of(OURS) != version_of(THEIRS)


def test_seeds_add_up_over_lines_of_the_latest_settings_and_the_later_of_two_counts(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    for made in (line(lr=1, seed=7), line(lr=2, seed=0, score=0.1), line(lr=2, seed=1), line(lr=2, seed=0, score=0.2)):
        results.add(made)
    assert {seed: one.scores["test"]["q"] for seed, one in results.seeds("scifact", OURS).items()} == {0: 0.2, 1: 0.5}
    assert results.seeds("scifact", THEIRS) == {}


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    Results(file).add(line())
    with file.open("a") as out:
        out.write(json.dumps({"part": "scifact"}) + "\n")
    with pytest.raises(SystemExit, match=r"results\.jsonl, line 2: not a line of this benchmark"):
        Results(file)


def jobs(done: list[str], expected: float, *names: str) -> list[Job]:
    """Jobs that note what they did."""

    def work(name: str) -> Outcome:
        done.append(name)
        return Outcome(1.0, 1, {"test": {"q": 1.0}}, {"name": name})

    return [Job("part", OURS, {"name": name}, 0, expected, lambda name=name: work(name)) for name in names]


def test_what_is_done_is_not_done_again_unless_asked(tmp_path: Path) -> None:
    done: list[str] = []
    file = tmp_path / "results.jsonl"
    assert carry_out(lambda: jobs(done, 1, "a", "b"), Results(file)) == []
    assert carry_out(lambda: jobs(done, 1, "a", "b", "c"), Results(file)) == []
    assert done == ["a", "b", "c"]
    carry_out(lambda: jobs(done, 1, "a", "b", "c"), Results(file), again=True)
    assert done == ["a", "b", "c"] * 2
    last = Results(file).lines[-1]
    assert last.facts == {"name": "c"} and last.cores >= 1 and last.commit and last.version == version_of(OURS)


def test_a_job_that_would_not_end_in_time_is_left_but_the_first_is_always_done(tmp_path: Path) -> None:
    done: list[str] = []
    results = Results(tmp_path / "results.jsonl")
    left = carry_out(lambda: jobs(done, 4000, "a", "b", "c"), results)
    assert done == ["a"] and [str(job.settings["name"]) for job in left] == ["b", "c"]


def test_what_comes_next_may_depend_on_what_came_out(tmp_path: Path) -> None:
    done: list[str] = []
    results = Results(tmp_path / "results.jsonl")

    def named() -> list[Job]:
        return jobs(done, 1, "a", *(["b"] if any(one.facts["name"] == "a" for one in results.lines) else []))

    assert carry_out(named, results) == [] and done == ["a", "b"]
