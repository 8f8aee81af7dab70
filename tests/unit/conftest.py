"""A small but complete run on local files, for tests of the pipeline and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a slow machine is no fault of the code
settings.load_profile("untimed")

RUN = """
name: small
storage: {folder}/run
models: {{generator: {folder}/model, base: {folder}/model, retrieval: {folder}/model}}
corpus: {{sources: [{{kind: text, path: {folder}/texts}}]}}
synthesize: {{personas: {folder}/personas.jsonl}}
weak: {{steps: 1}}
supervised: {{steps: 1}}
reranker: {{steps: 1, negatives: 2}}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """The YAML of a run whose inputs exist: texts, personas and a model directory (not a working model)."""
    for name in ("model", "texts"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"w")
    (tmp_path / "texts" / "a.txt").write_text("A text to search in.")
    (tmp_path / "personas.jsonl").write_text('{"persona": "a baker"}\n')
    (tmp_path / "small.yaml").write_text(RUN.format(folder=tmp_path))
    return tmp_path / "small.yaml"
