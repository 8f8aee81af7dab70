from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.corpus.candidates import chunker, token_offsets

TEXT = "The query and the document are texts. Wie öffnet man eine Datei? 如何打开文件? " * 20


def test_offsets_are_those_of_the_models_tokenizer(tiny_qwen3: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3)
    expected = tokenizer(TEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert token_offsets(str(tiny_qwen3))(TEXT) == expected


def test_chunks_hold_at_most_the_tokens_asked_for_and_lose_nothing(tiny_qwen3: Path) -> None:
    chunks = chunker(str(tiny_qwen3), 64, 0)(TEXT)
    assert len(chunks) > 5 and max(len(token_offsets(str(tiny_qwen3))(c)) for c in chunks) <= 64
    assert "".join(chunks).replace(" ", "") == TEXT.replace(" ", "")


def test_a_limit_stored_with_the_tokenizer_does_not_cut_texts(tiny_qwen3: Path, tmp_path: Path) -> None:
    for file in tiny_qwen3.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    stored["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    assert token_offsets(str(tmp_path))(TEXT) == token_offsets(str(tiny_qwen3))(TEXT)


def test_a_missing_model_is_named() -> None:
    with pytest.raises(UserError, match="no-such-model"):
        chunker("no-such-model", 64, 0)("text")
