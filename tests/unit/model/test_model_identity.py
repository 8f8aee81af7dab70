"""What counts as the same model: its content, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.model import identity as identity_module
from qwen3emb.model.identity import model_identity, streamed_digest, tokenizer_identity


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWEN3EMB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(folder: Path, weights: bytes = b"w" * 100) -> Path:
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    (folder / "tokenizer.json").write_text('{"model": 1}')
    (folder / "tokenizer_config.json").write_text('{"eos": 1}')
    (folder / "1_Pooling" / "config.json").write_text('{"mode": 1}')
    (folder / "model-00001-of-00002.safetensors").write_bytes(weights)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"more")
    return folder


def test_a_retrained_model_of_the_same_shape_is_another_model(tmp_path: Path) -> None:
    model = made(tmp_path / "m")
    before = model_identity(str(model))
    file = model / "model-00001-of-00002.safetensors"
    times = file.stat()
    file.write_bytes(b"w" * 99 + b"v")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert model_identity(str(model)) != before


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json", "chat_template.jinja"]
)
def test_config_and_tokenizer_belong_to_a_model(tmp_path: Path, name: str) -> None:
    model = made(tmp_path / "m")
    before = model_identity(str(model))
    (model / name).write_text("{}")
    assert model_identity(str(model)) != before


def test_a_copy_elsewhere_is_the_same_model_and_notes_beside_it_do_not_count(tmp_path: Path) -> None:
    model = made(tmp_path / "m")
    copied = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    for name in ("README.md", ".gitattributes", "pytorch_model.bin"):
        (copied / name).write_text("x")
    for name in ("onnx", ".cache"):
        (copied / name).mkdir()
        (copied / name / "config.json").write_text("{}")
    assert model_identity(str(copied)) == model_identity(str(model))


def test_two_files_that_change_places_are_another_model(tmp_path: Path) -> None:
    model = made(tmp_path / "m")
    before = model_identity(str(model))
    first, second = (model / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    first.rename(model / "x")
    second.rename(first)
    (model / "x").rename(second)
    assert model_identity(str(model)) != before


def test_models_of_one_family_share_their_tokenizer(tmp_path: Path) -> None:
    small, large = made(tmp_path / "s"), made(tmp_path / "l", b"v" * 200)
    (large / "config.json").write_text('{"hidden_size": 16}')
    (large / "1_Pooling" / "config.json").write_text("{}")
    assert tokenizer_identity(str(small)) == tokenizer_identity(str(large))
    (large / "tokenizer.json").write_text('{"model": 2}')
    assert tokenizer_identity(str(small)) != tokenizer_identity(str(large))


def test_an_older_tokenizer_is_all_its_files(tmp_path: Path) -> None:
    model = made(tmp_path / "m")
    (model / "tokenizer.json").unlink()
    (model / "vocab.txt").write_text("a\nb\n")
    before = tokenizer_identity(str(model))
    (model / "config.json").write_text('{"hidden_size": 16}')
    assert tokenizer_identity(str(model)) == before
    (model / "vocab.txt").write_text("a\nc\n")
    assert tokenizer_identity(str(model)) != before


def test_a_hub_model_is_the_same_before_and_after_it_is_fetched_until_its_files_change(
    tmp_path: Path, cache: Path
) -> None:
    before = model_identity("owner/name")
    fetched = made(cache / "models" / "owner--name")
    assert model_identity("owner/name") == before == "owner/name"
    (fetched / "model-00002-of-00002.safetensors").write_bytes(b"mode")
    retrained = model_identity("owner/name")
    assert retrained not in (before, model_identity(str(fetched)))
    shutil.rmtree(fetched)
    made(fetched)
    assert model_identity("owner/name") == before  # fetched again, the same files


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/where", "~/nowhere", "a/b/c"])
def test_what_is_neither_there_nor_a_hub_id_is_refused(name: str) -> None:
    for find in (model_identity, tokenizer_identity):
        with pytest.raises(UserError, match="no such directory"):
            find(name)


def test_a_server_is_its_address_without_its_password() -> None:
    assert model_identity("http://host:8000/v1?model=m") == "http://host:8000/v1?model=m"
    assert "hunter" not in model_identity("https://u:hunter2@host/v1?model=m&api_key=hunter3")


def large(folder: Path) -> Path:
    """A model whose file is large enough to be looked up, and has been so for some time."""
    file = made(folder) / "model-00001-of-00002.safetensors"
    file.write_bytes(b"\0" * (3 << 20))
    return file


def notes(cache: Path) -> list[Path]:
    return sorted((cache / "identity").glob("*.json"))


def test_a_large_file_is_hashed_once_while_it_stays_as_it_is(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = large(tmp_path / "m")
    before = model_identity(str(file.parent))
    assert not notes(cache)  # it was written just now and may be written again within the same tick
    monkeypatch.setattr(identity_module, "_SETTLED", -1.0)
    assert model_identity(str(file.parent)) == before
    [note] = notes(cache)
    monkeypatch.setattr(identity_module, "_IN_THIS_PROCESS", {})
    # Another process takes the note's word for it, which is seen by a note that says something else.
    content = json.loads(note.read_text())
    assert list(content) == [str(file)]
    note.write_text(json.dumps({str(file): content[str(file)] | {"sha256": "0" * 64}}))
    assert model_identity(str(file.parent)) != before
    note.write_text("not JSON")
    monkeypatch.setattr(identity_module, "_IN_THIS_PROCESS", {})
    assert model_identity(str(file.parent)) == before


def test_a_noted_file_that_changed_is_hashed_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_module, "_SETTLED", -1.0)
    file = large(tmp_path / "m")
    before, times = model_identity(str(file.parent)), file.stat()
    time.sleep(0.02)
    with file.open("r+b") as stream:
        stream.write(b"\1")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `rsync -t` or `tar` leave it
    assert file.stat().st_size == times.st_size
    assert model_identity(str(file.parent)) != before


def test_a_cache_in_the_place_of_a_file_costs_only_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_module, "_SETTLED", -1.0)
    cache.write_text("a file")
    assert model_identity(str(large(tmp_path / "m").parent))


def test_a_digest_of_streams_is_that_of_names_and_contents() -> None:
    large = bytes(range(256)) * (70_000)  # more than is read at once
    wanted = hashlib.sha256(b"a.json" + b"{}" + b"model.safetensors" + large).hexdigest()[:16]
    streams = [io.BytesIO(b"{}"), io.BytesIO(large)]
    assert streamed_digest(zip(["a.json", "model.safetensors"], streams, strict=True)) == wanted
    assert all(stream.closed for stream in streams)
