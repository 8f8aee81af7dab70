"""Which instruction a dataset's queries carry: one decision, the same as the training step's."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3emb.config.run import load_config
from qwen3emb.pipeline.stages import identity
from qwen3emb.text.instructions import dataset_settings, given_instructions, instructions, labelled_datasets
from qwen3emb.training.tasks import EmbeddingTask

DATASETS = ["docstrings", "faq", "plain", "synthetic", "synthetic_bitext", "synthetic_sts", "synthetic_classification"]
SETS = "labelled.sets={faq: {path: FILE, instruction: find the answer}, plain: {path: FILE}}"


def overrides(run_file: Path, *more: str) -> list[str]:
    (run_file.parent / "faq.jsonl").write_text('{"query": "q", "pos": ["p"]}\n')
    return ["models.instruction=the run", SETS.replace("FILE", str(run_file.parent / "faq.jsonl")), *more]


@pytest.mark.parametrize(
    ("datasets", "changed"),
    [
        ("{}", {}),
        ("{faq: {weight: 2}, synthetic: {instruction: of the mixture}}", {"synthetic": "of the mixture"}),
        ("{faq: {instruction: another}, docstrings: {instruction: code}}", {"faq": "another", "docstrings": "code"}),
        ("{faq: {instruction: null}, synthetic_bitext: {instruction: ''}}", {"faq": "the run", "synthetic_bitext": ""}),
    ],
)
def test_every_stage_asks_as_the_training_step_does(run_file: Path, datasets: str, changed: dict[str, str]) -> None:
    cfg = load_config(run_file, overrides(run_file, f"supervised.datasets={datasets}"))
    found = instructions(cfg, DATASETS)
    sets = dataset_settings(labelled_datasets(cfg), set(DATASETS), cfg.supervised)
    stage = cfg.supervised.model_copy(update={"datasets": sets})
    task = EmbeddingTask(stage, run_file.parent, "<|endoftext|>", cfg.models.instruction, None)
    assert found == {dataset: task.settings(dataset).instruction for dataset in DATASETS}
    usual = {"docstrings": "the run", "plain": "the run", "synthetic": "the run", "faq": "find the answer"}
    usual["synthetic_bitext"] = "Given a sentence, retrieve its translation"
    assert {name: found[name] for name in usual} == usual | changed


def test_an_instruction_of_a_data_set_is_part_of_what_asks_with_it(run_file: Path) -> None:
    plain = load_config(run_file)
    assert given_instructions(plain, "mine") == {} and "instructions" not in identity(plain, "mine").config
    cfg = load_config(run_file, overrides(run_file, "supervised.datasets={synthetic: {instruction: own}}"))
    assert given_instructions(cfg, "mine") == {"faq": "find the answer", "synthetic": "own"}
    assert given_instructions(cfg, "filter") == {"synthetic": "own"} and given_instructions(cfg, "weak") == {}
    for stage in ("filter", "mine"):
        assert identity(cfg, stage).config["instructions"] == given_instructions(cfg, stage)
