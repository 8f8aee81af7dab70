"""The stage graph: what changes an identity, what is chosen to run, what a dry run leaves behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3emb.config.run import load_config
from qwen3emb.core.artifact import StageResult, State, complete, start
from qwen3emb.core.errors import UserError
from qwen3emb.pipeline.selection import selected
from qwen3emb.pipeline.stages import (
    STAGES,
    Stage,
    identity,
    needs,
    reuse_stages,
    stage_folder,
    stage_states,
    writable_folder,
)

ABSENT = {"labelled", "reranker_weak", "distill"}  # the small run has neither sets nor those sections


def fingerprints(file: Path, *overrides: str) -> dict[str, str]:
    cfg = load_config(file, list(overrides))
    return {name: identity(cfg, name).fingerprint for name in STAGES}


def changed(file: Path, *overrides: str) -> set[str]:
    before, after = fingerprints(file), fingerprints(file, *overrides)
    return {name for name in STAGES if before[name] != after[name]}


def finish(file: Path, *names: str) -> None:
    cfg = load_config(file)
    for name in names:
        start(stage_folder(cfg, name), identity(cfg, name))
        complete(stage_folder(cfg, name), identity(cfg, name), StageResult(1, 1), 1.0)


def readers(name: str) -> set[str]:
    """A stage and everything downstream of it, from the graph alone, in a run that holds out no labelled queries."""
    found = {name}
    for stage in STAGES.values():
        if found & (set(stage.needs) - ({"labelled"} if stage.name in ("synthesize", "weak") else set())):
            found.add(stage.name)
    return found


@pytest.mark.parametrize(
    ("override", "stage"),
    [
        ("corpus.max_tokens=128", "corpus"),
        ("synthesize.temperature=0.1", "synthesize"),
        ("weak.steps=2", "weak"),
        ("weak.batch_size=32", "weak"),
        ("filter.threshold=0.5", "filter"),
        ("mine.margin=0.1", "mine"),
        ("supervised.loss.temperature=0.02", "supervised"),
        ("reranker.optimizer.lr=1e-6", "reranker"),
        ("merge.last=1", "merge"),
        ("evaluate.rerank_top=10", "evaluate"),
        ("index.max_tokens=64", "index"),
    ],
)
def test_a_changed_key_changes_its_stage_and_those_that_read_it(run_file: Path, override: str, stage: str) -> None:
    assert changed(run_file, override) == readers(stage)


@pytest.mark.parametrize(
    "override",
    [
        "corpus.workers=7",
        "synthesize.threads=2",
        "synthesize.batch_size=4",
        "synthesize.engines=3",
        "synthesize.kv_cache_gb=2",
        "weak.threads=1",
        "weak.max_failures=-1",
        "evaluate.workers=1",
        "cluster.num_cpus=16",
        "serve.port=9000",
    ],
)
def test_keys_that_only_change_speed_change_nothing(run_file: Path, override: str) -> None:
    assert changed(run_file, override) == set()


def test_where_a_run_is_stored_is_not_part_of_what_it_is(run_file: Path) -> None:
    assert changed(run_file, "storage=/somewhere/else") == set()


def test_a_changed_seed_changes_everything(run_file: Path) -> None:
    assert changed(run_file, "seed=1") == set(STAGES)


def test_changed_input_files_change_the_stages_that_read_them(run_file: Path) -> None:
    before = fingerprints(run_file)
    (run_file.parent / "personas.jsonl").write_text('{"persona": "a pilot"}\n')
    after = fingerprints(run_file)
    assert {n for n in STAGES if before[n] != after[n]} == readers("synthesize")
    (run_file.parent / "texts" / "b.txt").write_text("More.")
    assert fingerprints(run_file)["corpus"] != after["corpus"]


def test_retrained_weights_of_the_same_size_change_what_is_made_with_them_and_nothing_else(run_file: Path) -> None:
    model = run_file.parent / "model"
    before = fingerprints(run_file)
    (model / "model.safetensors").write_bytes(b"v")
    after = fingerprints(run_file)
    assert len(b"v") == len(b"w")
    assert {n for n in STAGES if before[n] != after[n]} == set(STAGES) - {"corpus", "labelled"}


def test_a_larger_base_model_of_the_family_keeps_the_corpus_and_what_was_written_for_it(run_file: Path) -> None:
    larger = run_file.parent / "larger"
    larger.mkdir()
    (larger / "config.json").write_text('{"hidden_size": 2048}')
    (larger / "model.safetensors").write_bytes(b"larger")
    for folder in (larger, run_file.parent / "model"):
        (folder / "tokenizer.json").write_text("{}")
    kept = {"corpus", "synthesize", "labelled"}
    assert changed(run_file, f"models.base={larger}") == set(STAGES) - kept
    assert changed(run_file, "models.instruction=Find", "models.end_token=x") == set(STAGES) - kept
    (larger / "tokenizer.json").write_text('{"another": 1}')
    assert changed(run_file, f"models.base={larger}") == set(STAGES)


def test_fetching_a_hub_model_changes_no_stage(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3EMB_CACHE", str(run_file.parent / "cache"))
    sets = ["models.generator=owner/writer", "models.retrieval=owner/finder"]
    before = fingerprints(run_file, *sets)
    for name in ("owner--writer", "owner--finder"):
        shutil.copytree(run_file.parent / "model", run_file.parent / "cache" / "models" / name)
    assert fingerprints(run_file, *sets) == before


def test_a_stage_that_scores_with_another_model_does_not_read_the_weak_one(run_file: Path) -> None:
    other = f"{run_file.parent}/model"
    with_other = fingerprints(run_file, f"filter.model={other}", f"mine.model={other}")
    steps = fingerprints(run_file, f"filter.model={other}", f"mine.model={other}", "weak.steps=2")
    changed_by_steps = {n for n in STAGES if with_other[n] != steps[n]}
    assert changed_by_steps == {"weak"} | readers("supervised")


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("merge.search=true", "evaluate.max_query_tokens=99"),
        ("merge.keep=best", "evaluate.max_query_tokens=99"),
        ("merge.keep=best", "evaluate.rerank_dev_top=9"),
        ("merge.keep=best", "evaluate.rerank_max_tokens=99"),
    ],
)
def test_a_choice_among_checkpoints_reads_how_texts_are_evaluated(run_file: Path, setting: str, key: str) -> None:
    assert changed(run_file, key) == {"evaluate"}
    before, after = (fingerprints(run_file, setting, *more) for more in ([], [key]))
    assert {n for n in STAGES if before[n] != after[n]} == {"merge", "evaluate", "index"}


def test_a_missing_input_is_named(run_file: Path) -> None:
    (run_file.parent / "personas.jsonl").unlink()
    with pytest.raises(UserError, match=r"personas\.jsonl: no such file"):
        identity(load_config(run_file), "synthesize")


def test_an_identity_is_the_same_with_and_without_a_memory(run_file: Path) -> None:
    cfg = load_config(run_file)
    known: dict = {}
    for name in reversed(STAGES):
        assert identity(cfg, name, known) == identity(cfg, name)


def test_a_plan_follows_storage(run_file: Path) -> None:
    finish(run_file, "corpus", "synthesize")
    cfg = load_config(run_file)
    start(stage_folder(cfg, "weak"), identity(cfg, "weak"))
    states = {stage.name: state for stage, state in stage_states(cfg)}
    assert [states[n] for n in ("corpus", "synthesize", "weak", "filter")] == [
        "done",
        "done",
        "unfinished",
        "new",
    ]
    other = {stage.name: state for stage, state in stage_states(load_config(run_file, ["synthesize.top_p=0.5"]))}
    assert [other[n] for n in ("corpus", "synthesize", "weak")] == ["done", "different", "different"]


def steps(**states: State) -> list[tuple[Stage, State]]:
    """The stages of the small run."""
    return [(stage, states.get(name, "new")) for name, stage in STAGES.items() if name not in ABSENT]


def names(chosen: list[tuple[Stage, State]]) -> list[str]:
    return [stage.name for stage, _ in chosen]


def test_all_stages_are_chosen_from_a_stage_or_only_one() -> None:
    done: dict[str, State] = {name: "done" for name in ("corpus", "synthesize", "weak", "filter", "mine")}
    assert names(selected(steps())) == [name for name in STAGES if name not in ABSENT]
    rest = ["supervised", "reranker", "merge", "evaluate", "index"]
    assert names(selected(steps(**done), first="supervised")) == rest
    assert names(selected(steps(**done), first="supervised", last="merge")) == rest[:3]
    assert names(selected(steps(**done), last="mine")) == ["corpus", "synthesize", "weak", "filter", "mine"]
    assert names(selected(steps(**done), only="mine")) == ["mine"]
    with pytest.raises(UserError, match="no stage reranker_weak"):
        selected(steps(**done), only="reranker_weak")


@pytest.mark.parametrize("state", ["new", "unfinished", "different"])
def test_a_stage_whose_inputs_are_not_done_for_this_config_is_refused(state: State) -> None:
    with pytest.raises(UserError, match="synthesize reads corpus"):
        selected(steps(corpus=state), only="synthesize")
    with pytest.raises(UserError, match="mine reads corpus"):
        selected(steps(corpus=state, filter="done", weak="done"), first="mine")


def pipeline(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.pipeline", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_labelled_sets_bring_their_stage_and_change_what_reads_it(run_file: Path) -> None:
    data = run_file.parent / "pairs.jsonl"
    data.write_text('{"anchor": "q", "positive": "p"}\n')
    sets = [f"labelled={{sets: {{mine: {{path: {data}}}}}}}"]
    without, with_sets = (stage_states(load_config(run_file, s)) for s in ([], sets))
    assert [name for name in names(with_sets) if name not in names(without)] == ["labelled"]
    assert {s.name for s, _ in with_sets if "labelled" in s.needs} == {
        *("mine", "supervised", "reranker", "merge", "evaluate")
    }
    before = fingerprints(run_file)
    after = {n: identity(load_config(run_file, sets), n).fingerprint for n in STAGES}
    assert {n for n in STAGES if before[n] != after[n]} == readers("labelled")
    data.write_text('{"anchor": "q", "positive": "other"}\n')
    again = {n: identity(load_config(run_file, sets), n).fingerprint for n in STAGES}
    assert {n for n in STAGES if after[n] != again[n]} == readers("labelled")
    with pytest.raises(UserError, match="mine reads labelled"):
        done = {s.name: "done" for s, _ in without}
        selected([(s, done.get(s.name, "new")) for s, _ in with_sets], only="mine")


def test_held_out_labelled_queries_are_drawn_before_anything_is_written_or_trained(run_file: Path) -> None:
    data = run_file.parent / "pairs.jsonl"
    data.write_text('{"anchor": "q", "positive": "p"}\n')
    sets = [f"labelled={{sets: {{mine: {{path: {data}, heldout_share: 0.5}}}}}}"]
    found = stage_states(load_config(run_file, sets))
    assert names(found)[:3] == ["corpus", "labelled", "synthesize"]
    assert {s.name for s, _ in found if "labelled" in s.needs} == {
        *("synthesize", "weak", "mine", "supervised", "reranker", "merge", "evaluate")
    }


def test_a_dry_run_says_what_would_run_and_writes_nothing(run_file: Path) -> None:
    finish(run_file, "corpus")
    before = sorted(run_file.parent.rglob("*"))
    done = pipeline("--config", str(run_file), "--dry-run")
    assert done.returncode == 0
    *lines, sets = [line.split(" ", 1)[1] for line in done.stderr.splitlines()]
    assert sets.startswith("pipeline: evaluation set synthetic: up to 200 held-out queries and up to 50 dev queries")
    assert lines[0].startswith("corpus: reused")
    assert lines[2] == "weak: new, would run python -m jobs.train_embedding --stage weak"
    assert len(lines) == len(STAGES) - len(ABSENT)
    assert sorted(run_file.parent.rglob("*")) == before


def test_a_finished_pipeline_ends_within_seconds_and_reports(run_file: Path) -> None:
    finish(run_file, *STAGES)
    began = time.monotonic()
    done = pipeline("--config", str(run_file))
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 30
    assert all(f"{name}: reused" in done.stderr for name in STAGES if name not in ABSENT)
    assert "make serve" in done.stdout
    assert (run_file.parent / "run" / "summary.json").is_file()


def test_output_of_another_configuration_is_refused_before_ray_starts(run_file: Path) -> None:
    finish(run_file, "corpus")
    done = pipeline("--config", str(run_file), "--set", "corpus.max_tokens=128")
    assert done.returncode == 2
    assert "corpus.max_tokens: 512 -> 128" in done.stderr
    assert "--replace" in done.stderr
    assert "Ray" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_wrong_config_ends_with_2(run_file: Path) -> None:
    done = pipeline("--config", str(run_file), "--set", "weak.step=1")
    assert done.returncode == 2
    assert "did you mean 'weak.steps'?" in done.stderr


def test_sections_that_are_left_out_leave_their_stages_out(run_file: Path) -> None:
    without = ["synthesize=null", "weak=null", "reranker=null", "mine.model=all-minilm"]
    found = [
        stage.name
        for stage, _ in stage_states(load_config(run_file, [*without, f"mine.model={run_file.parent}/model"]))
    ]
    assert found == ["corpus", "mine", "supervised", "merge", "evaluate", "index"]
    cfg = load_config(run_file, without)
    assert [needs(cfg, name) for name in ("mine", "supervised", "merge", "evaluate")] == [
        ["corpus"],
        ["corpus", "mine"],
        ["corpus", "supervised"],
        ["corpus", "mine", "supervised", "merge"],
    ]


def test_without_a_weak_stage_the_base_model_is_part_of_what_supervised_is(run_file: Path) -> None:
    sets = ["synthesize=null", "weak=null", f"mine.model={run_file.parent}/model"]
    before = identity(load_config(run_file, sets), "supervised")
    (run_file.parent / "model" / "model.safetensors").write_bytes(b"other weights")
    after = identity(load_config(run_file, sets), "supervised")
    assert before.inputs["models.base"] != after.inputs["models.base"]


@pytest.mark.parametrize(
    ("start", "read"), [("embedding", {"supervised"}), ("base", set()), ("null", {"reranker_weak"})]
)
def test_the_reranker_reads_the_stage_that_it_starts_from(run_file: Path, start: str, read: set[str]) -> None:
    cfg = load_config(run_file, ["reranker_weak={steps: 1, negatives: 2}", f"reranker.start={start}"])
    assert set(needs(cfg, "reranker")) == {"corpus", "synthesize", "mine"} | read
    identity(cfg, "reranker")  # the word is no model's name


@pytest.mark.parametrize(
    ("sets", "read"),
    [
        ([], {"supervised"}),
        (["models.reranker_base=MODEL"], {"supervised"}),
        (["models.reranker_base=OTHER"], set()),
    ],
)
def test_a_reranker_starts_from_the_embedding_model_where_both_have_one_base(
    run_file: Path, sets: list[str], read: set[str]
) -> None:
    base = str(run_file.parent / "model")
    shutil.copytree(base, run_file.parent / "other")
    places = {"MODEL": base, "OTHER": str(run_file.parent / "other")}
    sets = [key + "=" + places[value] for key, value in (text.split("=") for text in sets)]
    cfg = load_config(run_file, [f"models.base={base}", *sets])
    assert set(needs(cfg, "reranker")) == {"corpus", "synthesize", "mine"} | read


@pytest.mark.parametrize("name", ["weak", "base", "embedding"])
def test_a_base_model_in_a_folder_with_such_a_name_counts_by_its_content(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(run_file.parent)
    shutil.copytree("model", name)
    cfg = load_config(run_file, [f"models.base={name}"])
    before = identity(cfg, "weak")
    (run_file.parent / name / "model.safetensors").write_bytes(b"other weights")
    assert identity(cfg, "weak") != before


def test_a_weak_stage_of_the_reranker_stands_before_it(run_file: Path) -> None:
    sets = ["reranker_weak={steps: 1, negatives: 2}"]
    found = [stage.name for stage, _ in stage_states(load_config(run_file, sets))]
    assert found.index("reranker_weak") + 1 == found.index("reranker")
    cfg = load_config(run_file, sets)
    assert "reranker_weak" in needs(cfg, "reranker")
    more = load_config(run_file, ["reranker_weak={steps: 2, negatives: 2}"])
    differ = {n for n in STAGES if identity(cfg, n) != identity(more, n)}
    assert differ == {"reranker_weak", "reranker", "distill", "merge", "evaluate", "index"}


def test_the_reranker_that_teaches_stands_before_what_it_teaches(run_file: Path) -> None:
    section = "distill={steps: 1, teacher: {candidates: 2}}"
    found = [stage.name for stage, _ in stage_states(load_config(run_file, [section]))]
    assert found[found.index("reranker") : found.index("merge") + 1] == ["reranker", "distill", "merge"]
    cfg = load_config(run_file, [section])
    assert needs(cfg, "distill") == ["corpus", "synthesize", "mine", "supervised", "reranker"]
    assert needs(cfg, "merge") == ["corpus", "synthesize", "supervised", "distill", "reranker"] and "distill" in needs(
        cfg, "evaluate"
    )
    # An embedding model as the teacher: the run's reranker is not read, and need not be there.
    other = ["reranker=null", f"distill={{steps: 1, teacher: {{model: {run_file.parent}/model}}}}"]
    assert needs(load_config(run_file, other), "distill") == ["corpus", "synthesize", "mine", "supervised"]
    with pytest.raises(UserError, match=r"distill\.teacher\.model is reranker, but there is no section reranker"):
        load_config(run_file, [section, "reranker=null"])
    with pytest.raises(UserError, match=r"mine\.negatives is 1, but training wants 2"):
        load_config(run_file, [section, "mine.negatives=1", "reranker.negatives=1"])


def test_finished_stages_of_another_run_serve_where_they_are_the_same(run_file: Path) -> None:
    finish(run_file, *(name for name in STAGES if name not in ABSENT))
    lender = load_config(run_file)
    other = f"storage={run_file.parent}/other"
    cfg = load_config(run_file, [other, "supervised.steps=2"])
    assert reuse_stages(cfg, lender) == ["corpus", "synthesize", "weak", "filter", "mine"]
    states = {stage.name: state for stage, state in stage_states(cfg)}
    assert [states[n] for n in ("mine", "supervised", "reranker", "merge")] == ["done", "new", "new", "new"]
    assert stage_folder(cfg, "mine").uri == stage_folder(lender, "mine").uri

    # The lender changes: what was borrowed is neither used nor written over.
    changed = load_config(run_file, [other, "supervised.steps=2", "mine.margin=0.1"])
    assert {s.name: state for s, state in stage_states(changed)}["mine"] == "different"
    with pytest.raises(UserError, match="stands for"):
        writable_folder(changed, "mine")
    assert reuse_stages(changed, lender) == ["corpus", "synthesize", "weak", "filter"]
    assert writable_folder(changed, "mine").uri == f"{run_file.parent}/other/mine"


def test_a_stage_that_the_run_began_itself_stays_its_own(run_file: Path) -> None:
    finish(run_file, "corpus")
    cfg = load_config(run_file, [f"storage={run_file.parent}/other"])
    start(stage_folder(cfg, "corpus"), identity(cfg, "corpus"))
    assert reuse_stages(cfg, load_config(run_file)) == []
    assert stage_folder(cfg, "corpus").uri == f"{run_file.parent}/other/corpus"


def test_a_teacher_is_part_of_what_the_reranker_is(run_file: Path) -> None:
    place = run_file.parent / "teacher"
    place.mkdir()
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(b"t")
    cfg = load_config(run_file, [f"reranker.teacher={{model: {place}}}"])
    before = identity(cfg, "reranker")
    (place / "model.safetensors").write_bytes(b"another teacher")
    assert identity(cfg, "reranker") != before
    assert identity(cfg, "supervised") == identity(load_config(run_file), "supervised")
