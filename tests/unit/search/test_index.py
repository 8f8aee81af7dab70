from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.search.index import SHARDS, IndexInfo, SearchIndex, shard_table, write_info
from qwen3emb.text.documents import document_text


def _index(folder: Path, vectors: np.ndarray, shards: int = 3, count: int | None = None) -> Storage:
    """An index of documents d0, d1, ... with these vectors, in several shards."""
    storage = Storage(str(folder))
    for number, rows in enumerate(np.array_split(np.arange(len(vectors)), shards)):
        table = pa.table(
            {
                "id": [f"d{i}" for i in rows],
                "title": [f"title {i}" for i in rows],
                "text": [f"text {i}" for i in rows],
            }
        )
        storage.write_table(f"{SHARDS}/{number}.parquet", shard_table(table, vectors[rows]))
    found = len(vectors) if count is None else count
    write_info(storage, IndexInfo(vectors.shape[1], found, "abc", "Find it", 128))
    return storage


def _unit(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    vectors = rng.normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("top", [1, 7, 50, 51, 1000])
def test_search_is_a_full_sort_by_inner_product(tmp_path: Path, top: int) -> None:
    rng = np.random.default_rng(0)
    documents, queries = _unit(rng, 50, 8), _unit(rng, 6, 8)
    index = SearchIndex.open(_index(tmp_path, documents))
    for query, hits in zip(queries, index.search_batch(queries, top), strict=True):
        exact = documents.astype(np.float64) @ query.astype(np.float64)
        order = np.argsort(-exact)[:top]
        assert [h.id for h in hits] == [f"d{i}" for i in order]
        assert [h.title for h in hits] == [f"title {i}" for i in order]
        assert [h.text for h in hits] == [f"text {i}" for i in order]
        np.testing.assert_allclose([h.score for h in hits], exact[order], atol=1e-6)
        assert [h.id for h in index.search(query, top)] == [h.id for h in hits]


def test_equal_scores_come_in_stored_order_also_at_the_cut(tmp_path: Path) -> None:
    vectors = np.zeros((9, 2), dtype=np.float32)
    vectors[:, 0] = [0.5, 1, 0.5, 0.5, 0, 0.5, 1, 0.5, 0.5]
    index = SearchIndex.open(_index(tmp_path, vectors, shards=2))
    hits = index.search(np.array([1.0, 0.0]), 5)
    assert [h.id for h in hits] == ["d1", "d6", "d0", "d2", "d3"]


def test_many_queries_in_pieces_give_what_one_piece_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    index = SearchIndex.open(_index(tmp_path, _unit(rng, 20, 4)))
    queries = _unit(rng, 11, 4)
    whole = [[h.id for h in hits] for hits in index.search_batch(queries, 5)]
    monkeypatch.setattr("qwen3emb.search.index._SCORES_AT_ONCE", 60)
    assert [[h.id for h in hits] for hits in index.search_batch(queries, 5)] == whole


def test_stored_vectors_come_back_bit_for_bit(tmp_path: Path) -> None:
    vectors = _unit(np.random.default_rng(2), 5, 3)
    index = SearchIndex.open(_index(tmp_path, vectors, shards=5))
    scores = [{h.id: h.score for h in index.search(axis, 5)} for axis in np.eye(3)]
    back = [[scores[axis][f"d{i}"] for axis in range(3)] for i in range(5)]
    assert np.array_equal(np.array(back, dtype=np.float32), vectors)


def test_no_index_says_which_stage_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the stage `index`"):
        SearchIndex.open(Storage(str(tmp_path)))


def test_lost_shard_is_noticed(tmp_path: Path) -> None:
    storage = _index(tmp_path, np.eye(6, dtype=np.float32))
    storage.delete(f"{SHARDS}/1.parquet")
    with pytest.raises(UserError, match="promises 6 vectors of 6 dimensions, the shards hold 4"):
        SearchIndex.open(storage)


def test_vectors_of_another_length_are_noticed(tmp_path: Path) -> None:
    storage = _index(tmp_path, np.eye(4, dtype=np.float32))
    write_info(storage, IndexInfo(8, 4, "abc", "Find it", 128))
    with pytest.raises(UserError, match="of 8 dimensions"):
        SearchIndex.open(storage)


def test_empty_index_finds_nothing(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_info(storage, IndexInfo(4, 0, "abc", "Find it", 128))
    index = SearchIndex.open(storage)
    assert len(index) == 0
    assert index.search(np.ones(4), 3) == []


def test_wrong_questions_are_refused(tmp_path: Path) -> None:
    index = SearchIndex.open(_index(tmp_path, np.eye(4, dtype=np.float32)))
    with pytest.raises(UserError, match="dimension 4"):
        index.search(np.ones(3), 1)
    with pytest.raises(UserError, match="top 0"):
        index.search(np.ones(4), 0)


def test_document_text_is_title_and_text() -> None:
    assert document_text("A title", "the text") == "A title the text"
    assert document_text("", "the text") == "the text"
