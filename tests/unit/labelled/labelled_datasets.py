"""What tests of labelled datasets share: a set as a file, and what is read from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen3emb.config.labelled import LabelledDatasetConfig
from qwen3emb.core.rejects import Reject
from qwen3emb.labelled.rows import LabelledRow, read_labelled


def written(folder: Path, records: list[Any], name: str = "set.jsonl") -> Path:
    """The records as JSON lines in a file of the folder."""
    path = folder / name
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


def read(path: Path, **settings: Any) -> tuple[list[LabelledRow], list[Reject]]:
    """The rows and the rejects of the set `s` at a path."""
    cfg = LabelledDatasetConfig.model_validate({"path": str(path), **settings})
    found = list(read_labelled("s", cfg, 0))
    return [r for r in found if isinstance(r, LabelledRow)], [r for r in found if isinstance(r, Reject)]
