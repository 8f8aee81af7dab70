"""A stage whose blocks are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from qwen3emb.core.records import PAIR, REJECT
from qwen3emb.core.storage import Storage

BLOCKS = (["how to open a file", "list of colours"], ["How to open  a file", "what is a socket"], ["list of colours"])


def _pair(number: int, query: str) -> dict[str, Any]:
    texts = {"query": query, "document": f"text {number}", "document_id": f"d{number}", "dataset": "synthetic"}
    kinds = {"language": "en", "persona": "a nurse", "question_type": "keywords", "difficulty": "phd"}
    return {"id": f"d{number}#0", **texts, **kinds, "words": "5-10", "score": None}


@pytest.fixture
def pair() -> Callable[[int, str], dict[str, Any]]:
    """A pair of the passage with a number, by its query."""
    return _pair


@pytest.fixture
def written_stage(tmp_path: Path) -> Callable[..., Storage]:
    """The folder of a stage by the queries of its blocks; two of the usual ones repeat others."""

    def written(*blocks: list[str]) -> Storage:
        out, number = Storage(str(tmp_path)), 0
        for block, queries in enumerate(blocks or BLOCKS):
            rows = [_pair(number + i, query) for i, query in enumerate(queries)]
            number += len(rows)
            out.write_table(f"pairs/{block}.parquet", pa.Table.from_pylist(rows, schema=PAIR))
            out.write_table(f"rejects/{block}.parquet", pa.Table.from_pylist([], schema=REJECT))
        return out

    return written
