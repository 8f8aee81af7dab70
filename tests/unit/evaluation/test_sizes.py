"""The table of sizes: names, rankings and rows, against full sorts and means by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.encoding.quantised import rank
from qwen3emb.evaluation.sizes import FULL, size_rankings, size_rows, size_table, sizes_of


def _unit(seed: int, count: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_names_say_kind_rescoring_and_dimensions() -> None:
    sizes = sizes_of(["int8", "float32@8", "binary+rescore@16", "int8", "float32"], 32)
    assert [(s.name, s.kind, s.rescored, s.dimension, s.bytes) for s in sizes] == [
        ("int8", "int8", False, 32, 32),
        ("float32@8", "float32", False, 8, 32),
        ("binary+rescore@16", "binary", True, 16, 2),
    ]


def test_more_dimensions_than_there_are_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"evaluate\.vectors has int8@33, but the merged model's vectors have 32"):
        sizes_of(["int8@33"], 32)


def test_rankings_are_of_the_vectors_cut_to_their_dimensions() -> None:
    queries, documents = _unit(0, 5), _unit(1, 80)
    own: list[list[int]] = [[3], [], [], [], []]
    sizes = sizes_of(["float32@8", "int8", "binary+rescore"], 32)
    found = {size.name: ranking for size, ranking in size_rankings(sizes, queries, documents, 3, own)}
    cut = [v[:, :8] / np.linalg.norm(v[:, :8], axis=1, keepdims=True) for v in (queries, documents)]
    assert np.array_equal(found["float32@8"].rows, np.argsort(-(cut[0] @ cut[1].T), axis=1)[:, :11])
    assert np.array_equal(found["int8"].rows, rank(queries, documents, "int8", 0, 11)[0])
    assert np.array_equal(found["binary+rescore"].rows, rank(queries, documents, "binary", 3, 11)[0])
    assert (found["binary+rescore"].rows != rank(queries, documents, "binary", 0, 11)[0]).any()


def test_rows_have_the_difference_to_whole_float32_vectors() -> None:
    queries = [f"q{i}" for i in range(50)]
    figures = {
        FULL: dict.fromkeys(queries, 0.5),
        "binary": dict.fromkeys(queries, 0.25),
        "int8": {q: 0.5 + (0.1 if i % 2 else -0.1) for i, q in enumerate(queries)},
    }
    first, binary, int8 = size_rows(sizes_of(["binary", "int8"], 32), figures, 32)
    assert first == {"vectors": "float32", "bytes": 128, "dimensions": 32, "ndcg@10": 0.5}
    assert binary["bytes"] == 4
    assert [binary[k] for k in ("ndcg@10", "difference", "low", "high")] == [0.25, -0.25, -0.25, -0.25]
    assert int8["difference"] == 0
    assert int8["low"] < 0 < int8["high"]
    cells = [
        list(row) for row in zip(*(column.cells for column in size_table([first, binary, int8]).columns), strict=True)
    ]
    assert cells[0] == ["float32", "128", "", "0.5000", ""]
    assert cells[1] == ["binary", "4", "1/32", "0.2500", "-0.2500 [-0.2500, -0.2500]"]
