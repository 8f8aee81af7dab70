"""The run's own copies of its models."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3emb.config.run import load_config
from qwen3emb.core.errors import UserError
from qwen3emb.model.fetch import resolve_model
from qwen3emb.model.identity import model_identity
from qwen3emb.model.mirror import run_identity, run_model, run_tokenizer_identity
from qwen3emb.pipeline.run_models import with_run_models
from qwen3emb.pipeline.stages import identity


def model(folder: Path, weights: bytes = b"w" * (1 << 20)) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / ".hidden").write_bytes(b"")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


def files(uri: str) -> set[str]:
    return {str(file.relative_to(uri)) for file in Path(uri).rglob("*") if file.is_file()}


def test_a_model_is_copied_once_whole_and_without_pickles(tmp_path: Path) -> None:
    storage, source = str(tmp_path / "run"), model(tmp_path / "mine")
    copy = run_model(storage, str(source))
    assert copy.startswith(f"{storage}/models/mine-")
    assert files(copy) == {"config.json", "model.safetensors", "1_Pooling/config.json"}
    large, small = "model.safetensors", "config.json"
    assert (Path(copy) / large).samefile(source / large), "no second copy of the weights on one disk"
    assert not (Path(copy) / small).samefile(source / small), "a config may be edited in place"
    before = (Path(copy) / small).stat().st_mtime_ns
    assert run_model(storage, str(source)) == copy and (Path(copy) / small).stat().st_mtime_ns == before
    label = Path(copy).name
    assert sorted(path.name for path in Path(storage, "models").iterdir()) == [label, f"{label}.json", "named"]


def test_a_copy_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    storage, source = str(tmp_path / "run"), model(tmp_path / "mine")
    label = Path(run_model(storage, str(source))).name
    (tmp_path / "run" / "models" / f"{label}.json").unlink()
    assert Path(run_model(storage, str(source))).name == label
    assert sorted(path.name for path in (tmp_path / "run" / "models").iterdir()) == [label, f"{label}.json", "named"]


def test_a_driver_on_a_machine_without_the_model_finds_the_runs_copy(tmp_path: Path) -> None:
    storage, source = str(tmp_path / "run"), model(tmp_path / "mine")
    whole, tokenizer = run_identity(storage, str(source)), run_tokenizer_identity(storage, str(source))
    assert whole == model_identity(str(source))
    copy = run_model(storage, str(source))
    source.rename(tmp_path / "elsewhere")
    assert run_model(storage, str(source)) == copy
    assert run_identity(storage, str(source)) == run_identity(storage, copy) == whole
    assert run_tokenizer_identity(storage, str(source)) == run_tokenizer_identity(storage, copy) == tokenizer
    variant = f"{storage}/ablation/no_weak"
    assert run_model(variant, str(source)) == copy, "a variant of an ablation shares the run's models"
    with pytest.raises(UserError, match="no such directory"):
        run_identity(str(tmp_path / "other run"), str(source))


def test_the_latest_copy_of_a_name_counts(tmp_path: Path) -> None:
    storage, source = str(tmp_path / "run"), model(tmp_path / "mine")
    first = run_model(storage, str(source))
    (source / "config.json").write_text('{"a": 1}')
    second = run_model(storage, str(source))
    assert first != second
    source.rename(tmp_path / "elsewhere")
    assert run_model(storage, str(source)) == second


def test_two_models_of_one_name_have_two_copies(tmp_path: Path) -> None:
    first, second = (run_model(str(tmp_path / "run"), str(model(tmp_path / n / "mine", n.encode()))) for n in "ab")
    assert first != second
    assert [(Path(uri) / "model.safetensors").read_bytes() for uri in (first, second)] == [b"a", b"b"]


def test_what_is_on_storage_or_served_is_left_where_it_is(tmp_path: Path) -> None:
    source = model(tmp_path / "mine")
    for name in (f"file://{source}", "http://localhost:8000/v1?model=x"):
        assert run_model(str(tmp_path / "run"), name) == name
    assert not (tmp_path / "run").exists()
    assert resolve_model(f"file://{source}") == source


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory and not fetched yet"):
        run_model(str(tmp_path / "run"), "missing")


def test_a_stage_gets_the_runs_copies_and_keeps_its_identity(run_file: Path) -> None:
    cfg = load_config(str(run_file))
    for name in ("corpus", "synthesize", "weak", "reranker", "merge", "evaluate"):
        changed = with_run_models(cfg, name)
        assert identity(changed, name) == identity(cfg, name), name
        found = {"corpus": "tokenizer", "synthesize": "generator"}.get(name, "base")
        place = (
            changed.corpus.tokenizer or changed.models.base if found == "tokenizer" else getattr(changed.models, found)
        )
        assert str(place).startswith(f"{cfg.storage}/models/"), name
    assert with_run_models(cfg, "mine").mine.model == cfg.mine.model, "`weak` is no model's name"
