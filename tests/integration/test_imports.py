"""What must start fast or run anywhere imports no heavy library; each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def loaded(program: str, *names: str) -> list[str]:
    """Which of the libraries are there after the program."""
    code = f"{program}; import sys; print(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_the_corpus_chunker_does_not_load_torch(tiny_qwen3: Path) -> None:
    program = f"from qwen3emb.corpus.candidates import chunker; chunker({str(tiny_qwen3)!r}, 64, 0)('a text')"
    assert loaded(program, "torch") == []


def test_the_schema_of_the_server_imports_no_ray() -> None:
    assert loaded("import serve.schema, serve.inputs, serve.batching", "ray") == []


def test_the_prompt_module_needs_no_heavy_library() -> None:
    assert loaded("import qwen3emb.synthesis.tasks.retrieval", "torch", "ray", "vllm") == []
