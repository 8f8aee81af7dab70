"""The table of `make bench-quality` from lines whose figures are worked out by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.quality.__main__ import _shown
from benchmarks.quality.results import OURS, THEIRS, Line, Results, version_of
from benchmarks.quality.table import COMPARISONS, Comparison, compared, found_in, headline, printed, student

SCIFACT = next(one for one in COMPARISONS if one.part == "scifact")


def results(folder: Path, *lines: tuple[str, str, int, dict[str, dict[str, float]]]) -> Results:
    found = Results(folder / "results.jsonl")
    for part, side, seed, scores in lines:
        found.add(Line(part, side, {}, seed, 1, 1, scores, version=version_of(side)))
    return found


def test_means_over_seeds_that_both_sides_have(tmp_path: Path) -> None:
    found = found_in(
        results(
            tmp_path,
            ("scifact", OURS, 0, {"test": {"a": 0.5, "b": 0.7}}),
            ("scifact", OURS, 1, {"test": {"a": 0.7, "b": 0.9}}),
            ("scifact", OURS, 2, {"test": {"a": 1.0, "b": 1.0}}),
            ("scifact", THEIRS, 0, {"test": {"a": 0.4, "b": 0.6}}),
            ("scifact", THEIRS, 1, {"test": {"a": 0.5, "b": 0.5}}),
        ),
        SCIFACT,
    )
    assert found is not None and found.seeds == [0, 1]
    assert (found.model, found.baseline) == (pytest.approx(70), pytest.approx(50))
    assert found.difference == pytest.approx(20)
    assert found.over_queries == (pytest.approx(15), pytest.approx(25))  # a gains 15, b gains 25
    assert found.over_seeds is None and found.held is None  # three seeds are needed
    assert found.verdict.line() == "VERDICT: WIN  ndcg@10  qwen3emb  sentence-transformers  +0.2000 [+0.1500, +0.2500]"


def test_the_interval_over_seeds_is_student_s() -> None:
    assert student([1.0, 2.0]) is None
    low, high = student([1.0, 2.0, 3.0]) or (0, 0)
    assert (low, high) == (pytest.approx(2 - 4.302653 / 3**0.5), pytest.approx(2 + 4.302653 / 3**0.5))


def test_the_verdict_has_the_wider_interval(tmp_path: Path) -> None:
    lines = [
        ("scifact", OURS, seed, {"test": {"a": 0.5 + gain, "b": 0.5 + gain}}) for seed, gain in enumerate((0, 0.1, 0.2))
    ]
    lines += [("scifact", THEIRS, seed, {"test": {"a": 0.5, "b": 0.5}}) for seed in range(3)]
    found = found_in(results(tmp_path, *lines), SCIFACT)
    assert found is not None and found.held is True and found.over_queries[0] > 0
    assert found.over_seeds is not None and found.over_seeds[0] < 0
    assert found.verdict.word == "EVEN" and found.verdict.low == pytest.approx(found.over_seeds[0] / 100)


@pytest.mark.parametrize(
    ("gains", "options", "held"),
    [
        ([0.01, 0.01], {}, True),
        ([0.009, 0.01], {}, False),
        ([0.0, 0.0], {"must": 0}, True),
        ([0.0, 0.0], {"must": 0, "above": True}, False),
        ([0.2, -0.1], {"sure": True}, False),
        ([0.2, 0.1], {"sure": True}, True),
        ([0.2, 0.1], {"seeds": 2}, None),
    ],
)
def test_what_must_hold(tmp_path: Path, gains: list[float], options: dict[str, float], held: bool | None) -> None:
    scores = {"model": dict(zip("ab", gains, strict=True)), "other": {"a": 0.0, "b": 0.0}}
    chosen = {"must": 1, "aim": 5, "seeds": 1} | options
    comparison = Comparison("x", "p", (OURS, "model"), (OURS, "other"), **chosen)  # type: ignore[arg-type]
    found = found_in(results(tmp_path, ("p", OURS, 0, scores)), comparison)
    assert found is not None and found.held is held


def test_the_demo_s_reranker_alone_is_measured_against_a_figure_and_aims_at_the_merged_model(tmp_path: Path) -> None:
    scores = {"merged": {"a": 0.8, "b": 0.9}, "reranker alone": {"a": 0.7, "b": 0.7}, "base": {"a": 0.1, "b": 0.1}}
    rows = compared(results(tmp_path, ("demo", OURS, 0, scores)), ["demo"])
    found = {one.id: found for one, found in rows}
    alone = found["demo: reranker alone"]
    assert alone is not None and alone.difference == pytest.approx(0.7) and alone.aim == pytest.approx(0.85)
    assert alone.held is True
    assert found["demo: merged+reranker over merged"] is None  # not in these lines
    verdict = headline(rows)
    assert verdict is not None and (verdict.model, verdict.baseline) == ("merged", "base")
    console = Console(width=170, record=True, file=io.StringIO())
    console.print(printed(rows))
    text = console.export_text()
    assert "+0.750" in text and "not measured yet" in text and "+0.85" in text


def test_scifact_s_verdict_is_the_last_line_and_decides_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        ("scifact", side, seed, {"test": {"a": score, "b": score}})
        for seed in range(3)
        for side, score in ((OURS, 0.4), (THEIRS, 0.5))
    ]
    lines.append(("demo", OURS, 0, {"base": {"a": 0.0}, "merged": {"a": 1.0}}))
    rows = compared(results(tmp_path, *lines), ["demo", "scifact"])
    assert _shown(rows, False, None) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "VERDICT: WORSE  ndcg@10  qwen3emb  sentence-transformers  -0.1000 [-0.1000, -0.1000]"
    assert shown[-2] == "held 1/2, 2 not measured with enough seeds"
    assert _shown(rows, True, None) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["verdict"]["line"] == shown[-1]
    assert [one["held"] for one in content["comparisons"]] == [True, False]
    demo = [row for row in rows if row[0].part == "demo"]
    assert [_shown(demo, True, least) for least in (None, "even", "win")] == [0, 0, 0]
    even = compared(
        results(tmp_path / "even", ("merged", OURS, 0, {"merged": {"a": 1}, "single": {"a": 1}})), ["merged"]
    )
    assert [_shown(even, True, least) for least in (None, "even", "win")] == [0, 0, 1]
