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
        end_token: what it adds after every text; nothing else is added, nor anything where it is empty.
        max_tokens: where readers cut texts; None keeps what the tokenizer says.
        chat_template: takes the place of the tokenizer's own.
    """
    tokenizer.save_pretrained(output)
    settings_file = output / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    text = json.dumps(_readable(settings, max_tokens), indent=2, ensure_ascii=False)
    settings_file.write_text(text + "\n", encoding="utf-8")
    model_file = output / "tokenizer.json"
    model = json.loads(model_file.read_text(encoding="utf-8"))
    model["post_processor"] = _adding(end_token, token_id(tokenizer, end_token) if end_token else 0)
    model["truncation"] = model["padding"] = None  # what training last asked for is not the reader's
    model_file.write_text(json.dumps(model, ensure_ascii=False), encoding="utf-8")
    if chat_template is not None:
        (output / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _readable(settings: dict[str, Any], max_tokens: int | None) -> dict[str, Any]:
    """tokenizer_config.json for both generations of readers."""
    out = {key: value for key, value in settings.items() if key not in _NOT_KEPT}
    if out.get("tokenizer_class") in _UNKNOWN_TO_4:
        out["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = out.pop("extra_special_tokens", None)
    if isinstance(extra, list):
        out["additional_special_tokens"] = [*out.get("additional_special_tokens", []), *extra]
    elif extra:
        out["extra_special_tokens"] = extra
    if out.get("add_prefix_space", False) is None:
        del out["add_prefix_space"]  # 4.57 wants a truth value
    if not out.get("pad_token"):
        out["pad_token"] = out.get("eos_token")  # batches need one; padding is masked, so any will do
    if max_tokens is not None:
        out["model_max_length"] = max_tokens
    return out


def _adding(token: str, number: int) -> dict[str, Any]:
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
