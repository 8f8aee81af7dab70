"""Passages by split: old corpora are for training, and the draw is that of the synthesis."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from qwen3emb.core.records import PASSAGE
from qwen3emb.core.storage import Storage
from qwen3emb.synthesis.blocks import plan_blocks, read_block
from qwen3emb.text.passages import PASSAGES, drawn_passages, passages_as_corpus, training_passages

SPLITS = ["train", "heldout", "dev", None]


def rows(first: int, count: int) -> list[dict[str, str | None]]:
    described = {"title": "t", "language": "en", "source": "here"}
    return [{"id": f"p{n}", "text": f"text {n}", "split": SPLITS[n % 4], **described} for n in range(first, count)]


@pytest.fixture
def corpus(tmp_path: Path) -> Storage:
    """40 passages in two files, a quarter of each split and a quarter whose split is not said."""
    for file, (first, end) in {"a": (0, 25), "b": (25, 40)}.items():
        table = pa.Table.from_pylist(rows(first, end), schema=PASSAGE)
        Storage(str(tmp_path)).write_table(f"{PASSAGES}/{file}.parquet", table)
    return Storage(str(tmp_path))


def test_what_is_not_held_out_is_for_training(corpus: Storage) -> None:
    want = [f"text {n}" for n in range(40) if SPLITS[n % 4] in ("train", None)]
    assert [row["text"] for row in training_passages(corpus)] == want
    old = pa.Table.from_pylist([{"id": "old", "title": "", "text": "of an older version"}])
    corpus.write_table(f"{PASSAGES}/c.parquet", old)
    assert [row["text"] for row in training_passages(corpus)] == [*want, "of an older version"]
    assert list(drawn_passages(corpus, "heldout", 40, 0))[-1]["id"] == "p37"


@pytest.mark.parametrize("count", [0, 1, 4, 10, 99])
@pytest.mark.parametrize("split", ["dev", "heldout"])
def test_the_drawn_passages_are_those_that_the_generator_is_asked_about(
    corpus: Storage, split: str, count: int
) -> None:
    drawn = [row["id"] for row in drawn_passages(corpus, split, count, seed=3)]
    assert len(drawn) == min(count, 10)
    assert {SPLITS[int(name[1:]) % 4] for name in drawn} <= {split}
    if count:
        folder = corpus / PASSAGES
        plan = plan_blocks(folder, 3, count, 3, split)
        assert [row["id"] for block in plan.blocks for row in read_block(folder, plan, block)] == drawn


def test_all_passages_are_searched_the_first_of_equal_ids(corpus: Storage) -> None:
    corpus.write_table(f"{PASSAGES}/z.parquet", pa.Table.from_pylist(rows(3, 4), schema=PASSAGE).slice(0, 1))
    found = passages_as_corpus(corpus / PASSAGES)
    assert found == {f"p{n}": ("t", f"text {n}") for n in range(40)}
