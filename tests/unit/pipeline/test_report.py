"""The report: right numbers in the table, right shape of the summary."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from qwen3emb.config.run import load_config
from qwen3emb.core.artifact import StageResult, complete, start
from qwen3emb.core.storage import Storage
from qwen3emb.merging.candidates import Candidate
from qwen3emb.merging.choice import choose
from qwen3emb.pipeline.report import (
    comparison_table,
    comparisons,
    gain,
    metrics_of,
    print_report,
    quality_table,
    quality_tables,
    seconds_table,
    summary,
    write_summary,
)
from qwen3emb.pipeline.stages import identity, stage_folder

METRICS = {
    "ndcg@10": {"base": 0.01, "weak": 0.25, "supervised": 0.5, "merged": 0.51, "merged+reranker": 0.56},
    "mrr@10": {"base": 0.02, "weak": 0.2, "supervised": 0.4, "merged": 0.42, "merged+reranker": 0.5},
}


def cells(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_each_row_shows_its_metrics_and_what_it_added() -> None:
    table = quality_table(METRICS)
    assert [c.header for c in table.columns][:4] == ["model", "ndcg@10", "gain", "mrr@10"]
    rows = {row[0]: row[1:4] for row in cells(table)}
    assert list(rows) == ["base", "weak", "supervised", "merged", "merged+reranker"]
    assert rows["base"] == ["0.010", "", "0.020"]
    assert rows["weak"] == ["0.250", "+0.240", "0.200"]
    assert rows["merged+reranker"] == ["0.560", "+0.050", "0.500"]


def test_a_missing_variant_leaves_a_dash_and_gains_skip_it() -> None:
    metrics = {"ndcg@10": {"base": 0.1, "supervised": 0.4}, "mrr@10": {"base": 0.1}}
    rows = {row[0]: row[1:4] for row in cells(quality_table(metrics))}
    assert rows["supervised"] == ["0.400", "+0.300", "-"]
    assert gain(metrics["ndcg@10"], "weak") is None


def test_a_variant_nobody_knows_is_shown_all_the_same() -> None:
    assert cells(quality_table({"ndcg@10": {"base": 0.1, "yours": 0.2}}))[-1][0] == "yours"


def test_seconds_of_this_run_leave_out_what_was_reused() -> None:
    rows = cells(seconds_table({"corpus": 10.0, "weak": 2.5, "mine": 1.5, "merge": None}, ["corpus", "merge"]))
    assert rows[0] == ["corpus", "10.0", "reused"]
    assert rows[1] == ["weak", "2.5", "ran"]
    assert rows[3] == ["merge", "-", "reused"]
    assert rows[-1][:2] == ["this run", "4.0"]


def test_the_summary_is_json_with_metrics_seconds_and_reused() -> None:
    content = json.loads(json.dumps(summary(METRICS, {"corpus": 1.26, "weak": 3.0}, ["corpus"])))
    assert content == {**METRICS, "seconds": {"corpus": 1.3, "weak": 3.0}, "reused": ["corpus"]}


def test_only_metrics_by_variant_are_taken_from_a_record() -> None:
    assert metrics_of({"metrics": {**METRICS, "queries": 200}}) == METRICS


FIRST = {f"q{i}": i / 8 for i in range(8)}
CHOICE = choose(
    [
        Candidate("step_1", ("step_1",)),
        Candidate("step_2", ("step_2",)),
        Candidate("slerp last 2", ("step_1", "step_2")),
    ],
    {"step_1": FIRST, "step_2": dict.fromkeys(FIRST, 0.25), "slerp last 2": {q: f + 0.5 for q, f in FIRST.items()}},
)


def test_the_merges_table_shows_each_candidate_and_what_is_kept() -> None:
    table = comparison_table("embedding", json.loads(json.dumps(CHOICE.as_json())))
    assert table.title == "Merging the embedding model (8 dev queries)" and table.caption == CHOICE.sentence()
    rows = cells(table)
    assert rows[0] == ["step_1", "0.438", "", "", ""]
    assert rows[1][:3] == ["step_2", "0.250", "-0.188"] and rows[1][4] == ""
    assert rows[2] == ["slerp last 2", "0.938", "+0.500", "[+0.500, +0.500]", "kept"]


def test_the_report_of_a_run_has_the_tables_of_its_merges(finished_run: Path) -> None:
    cfg = load_config(finished_run)
    before = len(quality_tables(cfg))
    report = {"embedding": {"comparison": CHOICE.as_json(), "rows": []}, "reranker": {"rows": []}}
    stage_folder(cfg, "merge").write_json("report.json", report)
    assert comparisons(cfg) == {"embedding": CHOICE.as_json()}
    assert [table.title for table in quality_tables(cfg)[before:]] == ["Merging the embedding model (8 dev queries)"]


@pytest.fixture
def finished_run(run_file: Path) -> Path:
    """A config whose stages `corpus` and `evaluate` are recorded as done."""
    cfg = load_config(run_file)
    for stage, metrics, seconds in (("corpus", {}, 3.0), ("evaluate", {**METRICS, "queries": 7}, 9.0)):
        start(stage_folder(cfg, stage), identity(cfg, stage))
        complete(stage_folder(cfg, stage), identity(cfg, stage), StageResult(1, 1, metrics=metrics), seconds)
    return run_file


def test_seconds_of_a_reused_stage_come_from_its_record(finished_run: Path) -> None:
    cfg = load_config(finished_run)
    write_summary(cfg, {"corpus", "evaluate"}, {"evaluate": 12.0})
    written = Storage(cfg.storage).read_json("summary.json")
    assert written["seconds"] == {"corpus": 3.0, "evaluate": 12.0}
    assert written["reused"] == ["corpus"]
    assert written["ndcg@10"]["merged"] == 0.51
    assert "queries" not in written


def test_without_evaluation_there_is_no_summary(finished_run: Path) -> None:
    cfg = load_config(finished_run)
    write_summary(cfg, {"corpus"}, {})
    assert not Storage(cfg.storage).exists("summary.json")


def test_the_report_ends_with_the_next_command(finished_run: Path) -> None:
    cfg = load_config(finished_run)
    shown = Console(file=io.StringIO(), width=120)
    print_report(cfg, {"corpus", "evaluate"}, {}, str(finished_run), shown)
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "0.560" in text
    assert cfg.storage in text
    assert "python -m jobs.pipeline --config" in text.splitlines()[-1]


def test_the_last_line_is_the_verdict_where_there_is_one(finished_run: Path) -> None:
    cfg = load_config(finished_run)
    line = "VERDICT: WIN  ndcg@10  merged  base  +0.5000 [+0.4000, +0.6000]"
    stage_folder(cfg, "evaluate").write_json("results.json", {"verdict": {"verdict": "WIN", "line": line}})
    shown = Console(file=io.StringIO(), width=60)
    print_report(cfg, {"corpus", "evaluate"}, {}, str(finished_run), shown)
    assert shown.file.getvalue().splitlines()[-1] == line  # type: ignore[attr-defined]
    write_summary(cfg, {"corpus", "evaluate"}, {})
    assert Storage(cfg.storage).read_json("summary.json")["verdict"]["verdict"] == "WIN"


def test_the_report_has_the_languages_that_were_evaluated(run_file: Path) -> None:
    cfg = load_config(run_file, ["evaluate.few_rows=5"])
    folder = stage_folder(cfg, "evaluate")
    start(folder, identity(cfg, "evaluate"))
    complete(folder, identity(cfg, "evaluate"), StageResult(1, 1, {}, METRICS), 1.0)
    assert len(quality_tables(cfg)) == 1  # an evaluation from before there were figures by language
    sw = {"queries": 2, "training_rows": 4, "ndcg@10": {"base": 0.5, "merged": None}}
    folder.write_json("results.json", {"languages": {"sw": sw}})
    _, table = quality_tables(cfg)
    assert cells(table) == [["sw", "2", "4", "0.500", "-"]]
    assert table.caption == "fewer than 5 training rows (evaluate.few_rows): sw (4)"


def test_the_report_has_the_sizes_of_vectors_that_were_evaluated(run_file: Path) -> None:
    cfg = load_config(run_file)
    folder = stage_folder(cfg, "evaluate")
    start(folder, identity(cfg, "evaluate"))
    complete(folder, identity(cfg, "evaluate"), StageResult(1, 1, {}, METRICS), 1.0)
    full = {"vectors": "float32", "bytes": 128, "dimensions": 32, "ndcg@10": 0.5}
    small = {"vectors": "int8", "bytes": 32, "ndcg@10": 0.49, "difference": -0.01, "low": -0.02, "high": 0.001}
    folder.write_json("results.json", {"sizes": [full, small]})
    _, table = quality_tables(cfg)
    assert cells(table)[1] == ["int8", "32", "1/4", "0.4900", "-0.0100 [-0.0200, +0.0010]"]


def test_tables_say_whose_queries_they_are_of(finished_run: Path) -> None:
    cfg = load_config(finished_run)
    folder = stage_folder(cfg, "evaluate")
    law = {"set": "law", "models": {"base": {"ndcg@10": 0.25}, "merged": {"ndcg@10": 0.5}}}
    written = {"set": "synthetic", "synthetic_queries": True, "models": {"merged": {"ndcg@10": 0.75}}}
    folder.write_json("results.json", {"set": "docstrings", "sets": {"law": law, "synthetic": written}})
    first, second, third = quality_tables(cfg)
    assert first.title == "What each stage bought (held-out data)"
    assert second.title == "What each stage bought (held-out queries of law)"
    assert cells(second) == [["base", "0.250", ""], ["merged", "0.500", "+0.250"]]
    assert third.title == "What each stage bought (held-out documents, synthetic queries)"
    assert cells(third) == [["merged", "0.750", ""]]
    write_summary(cfg, {"corpus", "evaluate"}, {})
    assert Storage(cfg.storage).read_json("summary.json")["sets"] == {"law": law, "synthetic": written}


def test_a_run_that_could_not_be_judged_says_why(run_file: Path) -> None:
    cfg = load_config(run_file)
    folder = stage_folder(cfg, "evaluate")
    start(folder, identity(cfg, "evaluate"))
    complete(folder, identity(cfg, "evaluate"), StageResult(0, 0), 1.0)
    folder.write_json("results.json", {"models": {}, "note": "nothing to judge on"})
    shown = Console(file=io.StringIO(), width=120)
    print_report(cfg, {"evaluate"}, {}, str(run_file), shown)
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "nothing to judge on" in text and "What each stage bought" not in text
    write_summary(cfg, {"evaluate"}, {})
    assert Storage(cfg.storage).read_json("summary.json")["note"] == "nothing to judge on"
