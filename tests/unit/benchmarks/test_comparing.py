"""The arithmetic of the benchmark harness, against figures worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.comparing import Comparison, Difference, Outcome, compare, report


def test_ratio_is_how_much_better_ours_is_whichever_way_the_figure_points() -> None:
    throughput = Comparison("a", must=1.0, aim=2.0)
    duration = Comparison("b", must=1.0, aim=2.0, higher_is_better=False)
    assert Outcome(throughput, ours=300, theirs=200).ratio == 1.5
    assert Outcome(duration, ours=300, theirs=200).ratio == pytest.approx(2 / 3)
    assert Outcome(duration, ours=2, theirs=3).ratio == 1.5


def test_ratio_of_zeros() -> None:
    throughput = Comparison("a", must=1.0, aim=2.0)
    assert Outcome(throughput, ours=0, theirs=0).ratio == 1.0
    assert Outcome(throughput, ours=1, theirs=0).ratio == math.inf
    assert Outcome(throughput, ours=0, theirs=1).ratio == 0.0


def test_must_is_inclusive_and_nan_never_holds() -> None:
    comparison = Comparison("a", must=1.25, aim=2.0)
    assert Outcome(comparison, ours=5, theirs=4).held
    assert not Outcome(comparison, ours=4.99, theirs=4).held
    assert not Outcome(comparison, ours=math.nan, theirs=4).held


@pytest.mark.parametrize(("must", "aim"), [(0.0, 1.0), (-1.0, 1.0), (1.5, 1.0)])
def test_contradictory_bounds_are_refused(must: float, aim: float) -> None:
    with pytest.raises(ValueError, match="0 < must <= aim"):
        Comparison("a", must=must, aim=aim)


def test_sides_take_turns_and_medians_leave_warm_up_out() -> None:
    calls: list[str] = []
    figures = {"ours": iter([99.0, 1.0, 10.0, 4.0]), "theirs": iter([99.0, 2.0, 2.0, 50.0])}

    def side(name: str) -> float:
        calls.append(name)
        return next(figures[name])

    outcome = compare(
        Comparison("a", must=1.0, aim=1.0), lambda: side("ours"), lambda: side("theirs"), rounds=3, warm_up=1
    )
    assert (outcome.ours, outcome.theirs, outcome.ratio) == (4.0, 2.0, 2.0)
    # Who goes first changes every round.
    assert calls == ["theirs", "ours", "ours", "theirs", "theirs", "ours", "ours", "theirs"]


def test_report_prints_a_line_each_and_fails_where_a_must_fails(capsys: pytest.CaptureFixture[str]) -> None:
    good = Outcome(Comparison("good", must=1.0, aim=1.3), ours=123.456, theirs=100)
    bad = Outcome(Comparison("bad", must=1.0, aim=1.3, higher_is_better=False), ours=2, theirs=1)
    assert report([good]) == 0
    assert report([good, bad]) == 1
    *lines, last = capsys.readouterr().out.splitlines()[2:]
    assert json.loads(lines[0]) == {
        "id": "good",
        "ours": 123.5,
        "theirs": 100.0,
        "ratio": 1.235,
        "must": 1.0,
        "aim": 1.3,
    }
    assert json.loads(lines[1])["ratio"] == 0.5
    assert last == "held 1/2"


def test_a_difference_holds_from_its_must_on_and_nan_never() -> None:
    assert Difference("a", 0.0, 5.0, ours=60.0, theirs=60.0).held
    assert not Difference("a", 0.0, 5.0, ours=59.99, theirs=60.0).held
    assert not Difference("a", 0.0, 5.0, ours=math.nan, theirs=60.0).held
    line = json.loads(Difference("a", 0.0, 5.0, ours=61.2346, theirs=60.0).line())
    assert line == {"id": "a", "ours": 61.235, "theirs": 60.0, "difference": 1.235, "must": 0.0, "aim": 5.0}
