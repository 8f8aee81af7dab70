"""Configuration: light to import, strict about keys, and every example parses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from qwen3emb.config import docs as config_docs
from qwen3emb.config.run import json_schema, load_config
from qwen3emb.config.training import LossConfig
from qwen3emb.core.errors import UserError

EXAMPLES = sorted(set(Path("examples").glob("*.yaml")) - {Path("examples/datasets.yaml")})
TRAINING = {"steps": 1}


def minimal(**sections: Any) -> dict[str, Any]:
    """The smallest run, with `sections` laid over it."""
    run: dict[str, Any] = {
        "name": "r",
        "storage": "./r",
        "models": {"generator": "g", "base": "b", "retrieval": "e"},
        "corpus": {"sources": [{"kind": "text", "path": "."}]},
        "synthesize": {"personas": "p.jsonl"},
        "weak": TRAINING,
        "supervised": TRAINING,
        "reranker": {"steps": 1, "negatives": 2},
    }
    for name, values in sections.items():
        run[name] = {**run.get(name, {}), **values} if isinstance(values, dict) else values
    return run


def written(tmp_path: Path, run: dict[str, Any]) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run))
    return file


def refusal(tmp_path: Path, run: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(written(tmp_path, run), list(overrides))
    return str(caught.value)


def test_importing_the_configuration_loads_no_heavy_library() -> None:
    code = (
        "import sys, qwen3emb.config.run, qwen3emb.cli.main; qwen3emb.config.run.load_config('examples/demo.yaml');"
        "print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_there_is_an_example_for_the_demo_and_each_size() -> None:
    assert {file.stem for file in EXAMPLES} >= {"demo", "qwen3-0.6b", "qwen3-4b", "qwen3-8b"}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_parses_and_fits_the_schema(file: Path) -> None:
    cfg = load_config(file)
    assert file.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
    # PyYAML reads `on` as a boolean, editors (YAML 1.2) and this project as a word.
    raw = yaml.safe_load(file.read_text().replace("\n  on:", "\n  'on':"))
    jsonschema.Draft202012Validator(json_schema()).validate(raw)
    assert cfg.name == file.stem


@pytest.mark.parametrize(
    ("section", "typo", "nearest"),
    [
        ("weak", "bacth_size", "weak.batch_size"),
        ("weak", "temprature", "weak.loss.temperature"),
        ("weak", "lr", "weak.optimizer.lr"),
        ("mine", "min_positve", "mine.min_positive"),
        ("cluster", "num_cpu", "cluster.num_cpus"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_key(tmp_path: Path, section: str, typo: str, nearest: str) -> None:
    message = refusal(tmp_path, minimal(**{section: {typo: 4}}))
    assert f"unknown key '{section}.{typo}'" in message
    assert f"did you mean '{nearest}'?" in message


def test_a_typo_inside_a_list_is_found(tmp_path: Path) -> None:
    message = refusal(tmp_path, minimal(corpus={"sources": [{"kind": "text", "path": ".", "languge": "en"}]}))
    assert "corpus.sources.0.languge" in message
    assert "language" in message.split("did you mean")[1]


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    run = minimal()
    del run["supervised"]
    assert "'supervised' is missing" in refusal(tmp_path, run)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"supervised": {"steps": 1, "hard_negatives": 9}}, "mine.negatives is 8, but training wants 9"),
        ({"mine": {"skip_top": 49, "negatives": 2}}, "top_k"),
        ({"corpus": {"dev_share": 0.5, "heldout_share": 0.5}}, "dev_share + heldout_share"),
        ({"corpus": {"max_tokens": 64, "overlap_tokens": 64}}, "overlap_tokens"),
        ({"merge": {"last": 3, "weights": [1.0]}}, "weights has 1 entries"),
        ({"supervised": {"steps": 1, "datasets": {"labelled": {"weight": 2}}}}, "rename `labelled` to `docstrings`"),
        ({"weak": {"steps": 1, "loss": {"mrl_dims": [8], "mrl_weights": [1, 1]}}}, "mrl_weights"),
    ],
)
def test_contradictory_combinations_fail_before_anything_starts(
    tmp_path: Path, sections: dict[str, Any], named: str
) -> None:
    assert named in refusal(tmp_path, minimal(**sections))


def test_one_positive_comes_with_eight_mined_negatives_unless_the_run_says_otherwise(tmp_path: Path) -> None:
    run = minimal()
    run["reranker"] = {"steps": 1}
    cfg = load_config(written(tmp_path, run))
    assert cfg.reranker is not None
    assert cfg.mine.negatives == cfg.reranker.negatives == 8


def test_an_override_wins_over_the_file_and_is_typed(tmp_path: Path) -> None:
    file = written(tmp_path, minimal())
    overrides = [
        "weak.steps=7",
        "weak.optimizer.lr=1e-5",
        "corpus.max_pairs=null",
        "weak.loss.mrl_dims=[8, 16]",
    ]
    cfg = load_config(file, overrides)
    assert (cfg.weak.steps, cfg.weak.optimizer.lr) == (7, 1e-5)
    assert (cfg.corpus.max_pairs, cfg.weak.loss.mrl_dims) == (None, [8, 16])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("weak.steps", "expected key=value"),
        ("weak.step=1", "did you mean 'weak.steps'?"),
        ("name.x=1", "'name' is not a section"),
        ("weak.steps=[", "not YAML"),
        ("weak.steps=many", "weak.steps"),
    ],
)
def test_a_wrong_override_is_one_sentence(tmp_path: Path, override: str, named: str) -> None:
    assert named in refusal(tmp_path, minimal(), override)


def test_words_that_old_yaml_takes_for_booleans_are_words(tmp_path: Path) -> None:
    source = {"kind": "text", "path": ".", "language": "XX"}
    file = written(tmp_path, minimal(corpus={"sources": [source]}))
    text = file.read_text().replace("XX", "no") + "merge:\n  on: weights\n"
    file.write_text(text)
    cfg = load_config(file, ["weak.loss.query_query=false"])
    assert (cfg.corpus.sources[0].language, cfg.merge.on) == ("no", "weights")
    assert cfg.weak.loss.query_query is False


def test_the_terms_that_a_partial_loss_does_not_name_are_the_stages(tmp_path: Path) -> None:
    """Weak: the paper's five terms. Supervised: without q-q and d-d, also for a dataset of its own loss."""
    sets = {"docstrings": {"loss": {"temperature": 0.1}}, "synthetic": {"loss": {"query_query": True}}}
    stages = {name: {"steps": 1, "loss": {"temperature": 0.02}, "datasets": sets} for name in ("weak", "supervised")}
    cfg = load_config(written(tmp_path, minimal(**stages)), ["supervised.loss.document_document=true"])
    assert cfg.weak is not None and cfg.weak.loss == LossConfig(temperature=0.02)
    found = {
        (stage, place): (loss.temperature, loss.query_query, loss.document_document)
        for stage, section in (("weak", cfg.weak), ("supervised", cfg.supervised))
        for place, loss in (("", section.loss), *((name, section.datasets[name].loss) for name in sets))
    }
    assert found == {
        **{("weak", ""): (0.02, True, True), ("weak", "docstrings"): (0.1, True, True)},
        **{("weak", "synthetic"): (0.05, True, True), ("supervised", ""): (0.02, False, True)},
        **{("supervised", "docstrings"): (0.1, False, False), ("supervised", "synthetic"): (0.05, True, False)},
    }
    bare = load_config(written(tmp_path, minimal()))
    assert bare.weak is not None and (bare.weak.loss.query_query, bare.weak.loss.document_document) == (True, True)
    assert (bare.supervised.loss.query_query, bare.supervised.loss.document_document) == (False, False)


@pytest.mark.parametrize("example", ["qwen3-0.6b", "qwen3-4b", "qwen3-8b"])
def test_the_presets_have_all_terms_in_the_weak_stage_alone(example: str) -> None:
    cfg = load_config(f"examples/{example}.yaml")
    assert cfg.weak is not None and cfg.weak.loss.query_query and cfg.weak.loss.document_document
    assert not cfg.supervised.loss.query_query and not cfg.supervised.loss.document_document


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"- a\n", "found list"),
        (b"a: [\n", "not YAML"),
        (b"\xff\xfe\xff", "cannot be read"),
        (None, "no such file"),
    ],
)
def test_an_unreadable_file_is_one_sentence(tmp_path: Path, content: bytes | None, named: str) -> None:
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=named):
        load_config(file)


def test_the_generated_page_and_schema_are_up_to_date() -> None:
    assert config_docs.main(["--check"]) == 0


def test_a_stale_page_fails_the_check_and_is_renewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert config_docs.main([], root=tmp_path) == 0
    (tmp_path / config_docs.PAGE).write_text("old")
    assert config_docs.main(["--check"], root=tmp_path) == 1
    assert str(config_docs.PAGE) in capsys.readouterr().err
    assert config_docs.main([], root=tmp_path) == 0
    assert config_docs.main(["--check"], root=tmp_path) == 0


def test_every_key_is_described() -> None:
    for line in config_docs.markdown().splitlines():
        if line.startswith("| `"):
            assert line.rsplit("|", 2)[1].strip(), line


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"synthesize": None}, "weak trains on what synthesize writes, but there is no section synthesize"),
        ({"weak": None}, "filter.model is weak, but there is no section weak"),
        ({"weak": None, "filter": {"model": "m"}}, "mine.model is weak, but there is no section weak"),
        ({"reranker": None, "reranker_weak": {"steps": 1, "negatives": 2}}, "there is no section reranker"),
        ({"models": {"generator": None}}, "synthesize needs models.generator and models.retrieval"),
    ],
)
def test_sections_that_need_others(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, minimal(**sections))


def test_a_run_on_labelled_data_alone_needs_no_generator(tmp_path: Path) -> None:
    run = minimal(synthesize=None, weak=None, reranker=None, mine={"model": "e"})
    run["models"] = {"base": "b"}
    cfg = load_config(written(tmp_path, run))
    assert (cfg.synthesize, cfg.weak, cfg.reranker, cfg.models.generator) == (None, None, None, None)
