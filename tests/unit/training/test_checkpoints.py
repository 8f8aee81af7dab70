"""Exported checkpoints: whole or not there, also after a kill, readable by others, in order of their steps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch

from qwen3emb.core.storage import Storage
from qwen3emb.export.export import export_embedding
from qwen3emb.model.contract import Contract
from qwen3emb.model.loading import load_tokenizer, load_trunk
from qwen3emb.training.checkpoints import checkpoint_names, drop_oldest, export_checkpoint, sweep


def write(folder: Path) -> None:
    """A model directory whose contract is not its last file."""
    (folder / "qwen3emb.json").write_text("{}")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "merges.txt").write_text("a b")
    (folder / "model.safetensors").write_text("weights")


def killed_half_way(folder: Path) -> None:
    (folder / "qwen3emb.json").write_text("{}")
    os._exit(9)


def remote(folder: Path) -> Storage:
    """Storage that is not local: no renames of folders, every file a write of its own."""
    out = Storage(str(folder))
    folder.mkdir()
    out.filesystem, out.root = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()), ""
    assert not out.is_local
    return out


@pytest.fixture(params=["local", "remote"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out")) if request.param == "local" else remote(tmp_path / "out")


def test_an_export_that_is_killed_is_no_checkpoint_and_is_swept(out: Storage, tmp_path: Path) -> None:
    export_checkpoint(out, 1, write)
    for step in (1, 2):
        child = os.fork()
        if child == 0:
            export_checkpoint(out, step, killed_half_way)
        assert os.waitpid(child, 0)[1] >> 8 == 9
    old = Path(out.uri) / "checkpoints" / ".export-abc"  # of an earlier version
    old.mkdir()
    (old / "qwen3emb.json").write_text("{}")
    assert checkpoint_names(out) == ["checkpoints/step_000001"]
    assert out.read_bytes("checkpoints/step_000001/model.safetensors") == b"weights", "it was there before"
    if out.is_local:
        sweep(out)
        assert [path.name for path in sorted((tmp_path / "out").rglob("*.json"))] == ["qwen3emb.json"]
        assert sorted(os.listdir(tmp_path / "out")) == ["checkpoints"]


def test_an_export_replaces_what_is_there_and_its_contract_is_written_last(out: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "checkpoints" / "step_000007"
    (folder / "left").mkdir(parents=True)
    (folder / "left" / "over.bin").write_text("of an upload that was killed")
    export_checkpoint(out, 7, write)
    files = {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert sorted(files) == ["model.safetensors", "qwen3emb.json", "tokenizer/merges.txt"]
    if not out.is_local:
        assert files.pop("qwen3emb.json") > max(files.values())


def test_checkpoints_are_in_the_order_of_their_steps_and_the_best_one_stays(out: Storage) -> None:
    for step in (999_999, 2, 1_000_000, 30):
        export_checkpoint(out, step, write)
    names = [f"checkpoints/step_{step}" for step in ("000002", "000030", "999999", "1000000")]
    assert checkpoint_names(out) == names
    drop_oldest(out, 1, best=2)
    assert checkpoint_names(out) == [names[0], names[3]]


@pytest.fixture(params=[0o022, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_modes_are_those_of_the_umask(tiny_qwen3: Path, tmp_path: Path, umask: int) -> None:
    trunk, tokenizer = load_trunk(tiny_qwen3, "float32"), load_tokenizer(tiny_qwen3)
    state: dict[str, torch.Tensor] = dict(trunk.state_dict())
    contract = Contract("embedding", "find it", "<|endoftext|>", 512, 64)
    export_checkpoint(
        Storage(str(tmp_path)), 1, lambda folder: export_embedding(folder, state, trunk.config, tokenizer, contract)
    )
    made = [tmp_path / "checkpoints", *(tmp_path / "checkpoints").rglob("*")]
    assert len(made) > 6
    for path in made:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
