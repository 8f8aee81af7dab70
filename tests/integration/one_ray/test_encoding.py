"""The pools that filter, mine and evaluate score with, against the models in this process."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from safetensors.torch import load_file, save_file

from qwen3emb.core.errors import UserError
from qwen3emb.core.exits import guarded
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.pool import Encoders, Rerankers
from qwen3emb.encoding.vectors import write_vectors
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.reranker import Reranker

pytestmark = pytest.mark.integration

END = "<|endoftext|>"
TEXTS = [f"text number {i} " + "with some more words " * (i * 7 % 11) for i in range(150)]


@pytest.fixture(scope="module")
def pool(tiny_qwen3: Path) -> Iterator[Encoders]:
    """Two workers with the tiny model."""
    with Encoders(str(tiny_qwen3), end_token=END, dtype="float32", workers=2) as workers:
        yield workers


def test_encoders_give_the_encoders_vectors_in_order(tiny_qwen3: Path, pool: Encoders) -> None:
    encoder = Encoder(tiny_qwen3, end_token=END, dtype="float32")
    seen: list[tuple[int, int]] = []
    assert pool.dimensions == encoder.dimensions
    documents = pool.encode(TEXTS, max_tokens=64, progress=lambda done, total: seen.append((done, total)))
    queries = pool.encode(TEXTS[:5], max_tokens=64, instruction="Find it")
    assert pool.encode([], max_tokens=64).shape == (0, encoder.dimensions)
    np.testing.assert_allclose(documents, encoder.encode(TEXTS, max_tokens=64), atol=1e-4)
    expected = encoder.encode(TEXTS[:5], max_tokens=64, instruction="Find it")
    np.testing.assert_allclose(queries, expected, atol=1e-4)
    assert [total for _, total in seen] == [150] * 3
    assert seen[-1][0] == 150


def test_written_vectors_stay_and_missing_ones_are_added(pool: Encoders, tmp_path: Path) -> None:
    folder = Storage(str(tmp_path / "vectors"))
    written = write_vectors(pool, folder, TEXTS, max_tokens=64)
    pieces = sorted((tmp_path / "vectors").glob("*.npy"))
    assert [int(p.stem) for p in pieces] == [0, 64, 128]
    rows = np.array([3, 63, 64, 140, 149])
    expected = pool.encode(TEXTS, max_tokens=64)
    np.testing.assert_allclose(written.read(rows), expected[rows], atol=1e-4)
    pieces[1].unlink()
    times = {p: p.stat().st_mtime_ns for p in (pieces[0], pieces[2])}
    seen: list[tuple[int, int]] = []
    again = write_vectors(pool, folder, TEXTS, max_tokens=64, progress=lambda *counts: seen.append(counts))
    assert again == written and seen == [(150, 150)]
    assert times == {p: p.stat().st_mtime_ns for p in times}, "a piece that was there was written again"
    np.testing.assert_allclose(again.read(np.arange(150)), expected, atol=1e-4)
    other = write_vectors(pool, folder, TEXTS, max_tokens=64, instruction="Find it")
    assert not np.allclose(other.read(rows), expected[rows], atol=1e-2), "vectors of another instruction were kept"


def test_rerankers_give_each_querys_own_scores(tiny_qwen3: Path) -> None:
    reranker = Reranker(tiny_qwen3, dtype="float32")
    queries = ["first", "second question", "third"]
    documents = [TEXTS[:4], [], TEXTS[10:30]]
    with Rerankers(str(tiny_qwen3), dtype="float32", workers=2) as pool:
        scores = pool.score(queries, documents, max_tokens=300, instruction="Find it", max_query_tokens=8)
    assert [len(s) for s in scores] == [4, 0, 20]
    for query, texts, got in zip(queries, documents, scores, strict=True):
        expected = reranker.score(query, texts, max_tokens=300, instruction="Find it", max_query_tokens=8)
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_killed_worker_costs_no_text(tiny_qwen3: Path, pool: Encoders) -> None:
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if not killed and done < total:
            killed.append(ray.get(pool._actors[0].pid.remote()))
            os.kill(killed[0], signal.SIGKILL)

    texts = TEXTS * 4
    got = pool.encode(texts, max_tokens=64, progress=kill_one)
    assert ray.get(pool._actors[0].pid.remote()) != killed[0]
    expected = Encoder(tiny_qwen3, end_token=END, dtype="float32").encode(TEXTS, max_tokens=64)
    np.testing.assert_allclose(got, np.concatenate([expected] * 4), atol=1e-4)


def test_a_worker_that_is_killed_after_a_change_of_models_comes_back_with_the_second(
    tiny_qwen3: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_qwen3, other)
    weights = load_file(other / "model.safetensors")
    embeddings = next(name for name in weights if name.endswith("embed_tokens.weight"))
    save_file(weights | {embeddings: weights[embeddings].flip(0).contiguous()}, other / "model.safetensors")
    with Encoders(str(tiny_qwen3), end_token=END, dtype="float32") as pool:
        pool.use(str(other), END, "float32")
        os.kill(ray.get(pool._actors[0].pid.remote()), signal.SIGKILL)
        got = pool.encode(TEXTS, max_tokens=64)
    first, second = (
        Encoder(d, end_token=END, dtype="float32").encode(TEXTS, max_tokens=64) for d in (tiny_qwen3, other)
    )
    np.testing.assert_allclose(got, second, atol=1e-4)
    assert np.abs(first - second).max() > 0.01


def test_users_mistakes_come_back_as_such(pool: Encoders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert guarded(lambda: Encoders(str(tmp_path), end_token=END).close(), debug=False) == 2
    assert "no *.safetensors weights" in capsys.readouterr().err
    with pytest.raises(UserError, match="max_tokens 9999"):
        pool.encode(["a"], max_tokens=9999)
