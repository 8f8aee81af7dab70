"""Indexes of small vectors: that they find what a slow search of the same codes finds, and what lies in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.quantised import Kind
from qwen3emb.search.index import SHARDS, IndexInfo, SearchIndex, finish_index, shard_table
from qwen3emb.search.small import read_calibration


def _unit(seed: int, count: int, dimension: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _write(folder: Path, vectors: np.ndarray, kind: Kind, rescore: int, text: str = "text") -> Storage:
    """An index of documents d0, d1, ... in shards of unequal length."""
    storage = Storage(str(folder))
    for number, rows in enumerate(np.split(np.arange(len(vectors)), [7, 8, 30])):
        columns = {"id": [f"d{i}" for i in rows], "title": [""] * len(rows), "text": [f"{text} {i}" for i in rows]}
        storage.write_table(f"{SHARDS}/{number}.parquet", shard_table(pa.table(columns), vectors[rows]))
    finish_index(storage, IndexInfo(vectors.shape[1], len(vectors), "abc", "Find it", 128, kind, rescore))
    return storage


def _documents_as_searched(vectors: np.ndarray, kind: Kind) -> np.ndarray:
    """The documents whose inner product with a query (of signs where binary) is the score."""
    if kind == "binary":
        return np.where(vectors > 0, 1, -1) / vectors.shape[1]
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    step = np.clip(np.floor(255 * ((vectors - low) / (high - low))), 0, 255)
    return np.asarray(low + (step + 0.5) * (high - low) / 255)


@pytest.mark.parametrize("kind", ["int8", "binary"])
@pytest.mark.parametrize("rescore", [0, 3])
@pytest.mark.parametrize("piece", [11, 1000])
def test_hits_are_those_of_a_full_sort_in_the_codes(
    tmp_path: Path, kind: Kind, rescore: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3emb.search.small._PIECE", piece)
    vectors, queries = _unit(0, 50), _unit(1, 6)
    index = SearchIndex.open(_write(tmp_path, vectors, kind, rescore))
    assert len(index) == 50
    asked = np.where(queries > 0, 1, -1) if kind == "binary" else queries
    exact = asked @ _documents_as_searched(vectors, kind).T
    order = np.lexsort((np.broadcast_to(np.arange(50), exact.shape), -exact.round(6)), axis=1)
    for i, hits in enumerate(index.search_batch(queries, 5)):
        best = order[i, :5]
        if rescore:
            full = vectors.astype(np.float16).astype(np.float32) @ queries[i]
            best = sorted(order[i, : 5 * rescore].tolist(), key=lambda row: -full[row])[:5]
            exact[i] = full
        assert [hit.id for hit in hits] == [f"d{row}" for row in best]
        assert [hit.text for hit in hits] == [f"text {row}" for row in best]
        np.testing.assert_allclose([hit.score for hit in hits], exact[i, best], atol=1e-5)


def test_calibration_is_written_for_every_kind(tmp_path: Path) -> None:
    vectors = _unit(2, 40)
    for kind in ("float32", "int8", "binary"):
        ranges = read_calibration(_write(tmp_path / kind, vectors, kind, 0))
        assert ranges is not None
        np.testing.assert_array_equal(ranges, [vectors.min(axis=0), vectors.max(axis=0)])


def test_a_large_index_is_calibrated_on_its_first_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3emb.search.small._SAMPLE", 8)
    vectors = _unit(3, 40)
    index = SearchIndex.open(_write(tmp_path, vectors, "int8", 0))
    ranges = read_calibration(Storage(str(tmp_path)))
    assert ranges is not None
    np.testing.assert_array_equal(ranges, [vectors[:8].min(axis=0), vectors[:8].max(axis=0)])
    scores = {hit.id: hit.score for hit in index.search(np.eye(16)[0], 40)}
    step = (ranges[1, 0] - ranges[0, 0]) / 255
    clipped = np.clip(vectors[:, 0], *ranges[:, 0])
    assert (clipped != vectors[:, 0]).any()
    np.testing.assert_allclose([scores[f"d{i}"] for i in range(40)], clipped, atol=step)


def test_texts_and_vectors_to_rescore_with_stay_on_disk(tmp_path: Path) -> None:
    vectors = _unit(4, 400, 256)
    storage = _write(tmp_path, vectors, "binary", 4, text="long " * 2000)
    before = pa.total_allocated_bytes()
    index = SearchIndex.open(storage)
    index.search(vectors[3], 5)
    assert pa.total_allocated_bytes() - before < 1_000_000  # the texts have 4 MB
    codes = storage.names("codes")
    assert [np.load(tmp_path / name).nbytes for name in codes] == [400 * 256 // 8]
    assert [np.load(tmp_path / name).dtype for name in storage.names("full")] == [np.float16]


def test_without_rescoring_no_full_vectors_are_kept(tmp_path: Path) -> None:
    _write(tmp_path, _unit(5, 40), "int8", 4)
    storage = _write(tmp_path, _unit(5, 40), "int8", 0)
    assert not storage.names("full")
    assert len(SearchIndex.open(storage).search(np.ones(16), 40)) == 40


def test_an_index_of_an_earlier_version_has_float32_vectors(tmp_path: Path) -> None:
    vectors = _unit(6, 40)
    storage = _write(tmp_path, vectors, "float32", 0)
    storage.delete("calibration.npy")
    info = storage.read_json("index.json")
    storage.write_json("index.json", {k: v for k, v in info.items() if k not in ("vectors", "rescore")})
    hit = SearchIndex.open(storage).search(vectors[9], 1)[0]
    assert hit.id == "d9"
    assert hit.score == pytest.approx(1, abs=1e-6)
    assert read_calibration(storage) is None


def test_lost_files_are_noticed(tmp_path: Path) -> None:
    storage = _write(tmp_path, _unit(7, 40), "int8", 4)
    for folder in ("rows", "codes", "full"):
        kept = {name: storage.read_bytes(name) for name in storage.names(folder)}
        storage.delete(folder)
        with pytest.raises(UserError, match="promises 40 vectors"):
            SearchIndex.open(storage)
        for name, content in kept.items():
            storage.write_bytes(name, content)
    assert len(SearchIndex.open(storage)) == 40
