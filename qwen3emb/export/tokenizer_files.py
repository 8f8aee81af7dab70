"""A tokenizer's files as transformers 5 and 4.57, sentence-transformers and vLLM all read them.

transformers 5 saves a class that 4.57 does not know (`TokenizersBackend`), and a list `extra_special_tokens` where 4.57
wants a mapping and fails.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen3emb.text.templates import token_id

__all__ = ["save_tokenizer"]

_UNKNOWN_TO_4 = (None, "TokenizersBackend")
_NOT_KEPT = ("backend", "is_local", "local_files_only", "auto_map")


def save_tokenizer(
    output: Path,
    tokenizer: Any,
    *,
    end_token: str = "",
    max_tokens: int | None = None,
    chat_template: str | None = None,
) -> None:
    """Write the tokenizer.

    Args:
        output: an existing directory.
        tokenizer: a fast Hugging Face tokenizer.
        end_token: the only token that it adds, after every text; empty = it adds none.
        max_tokens: length to which readers cut texts; None keeps the tokenizer's setting.
        chat_template: replaces the tokenizer's own.
    """
    tokenizer.save_pretrained(output)
    settings_file = output / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    text = json.dumps(_readable(settings, max_tokens), indent=2, ensure_ascii=False)
    settings_file.write_text(text + "\n", encoding="utf-8")
    model_file = output / "tokenizer.json"
    model = json.loads(model_file.read_text(encoding="utf-8"))
    model["post_processor"] = _post_processor(end_token, token_id(tokenizer, end_token) if end_token else 0)
    model["truncation"] = model["padding"] = (
        None  # settings of the last call in training, which readers must not inherit
    )
    model_file.write_text(json.dumps(model, ensure_ascii=False), encoding="utf-8")
    if chat_template is not None:
        (output / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _readable(settings: dict[str, Any], max_tokens: int | None) -> dict[str, Any]:
    """tokenizer_config.json in a form that transformers 5 and 4.57 both read."""
    readable = {key: value for key, value in settings.items() if key not in _NOT_KEPT}
    if readable.get("tokenizer_class") in _UNKNOWN_TO_4:
        readable["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = readable.pop("extra_special_tokens", None)
    if isinstance(extra, list):
        readable["additional_special_tokens"] = [*readable.get("additional_special_tokens", []), *extra]
    elif extra:
        readable["extra_special_tokens"] = extra
    if readable.get("add_prefix_space", False) is None:
        del readable["add_prefix_space"]  # 4.57 wants a truth value
    if not readable.get("pad_token"):
        readable["pad_token"] = readable.get("eos_token")  # batches need one; padding is masked, so any will do
    if max_tokens is not None:
        readable["model_max_length"] = max_tokens
    return readable


def _post_processor(token: str, number: int) -> dict[str, Any]:
    """tokenizers' TemplateProcessing that adds `token`, or nothing where it is empty, after a text."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    end = [{"SpecialToken": {"id": token, "type_id": 0}}] if token else []
    return {
        "type": "TemplateProcessing",
        "single": [text, *end],
        "pair": [text, second, *end],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}} if token else {},
    }
