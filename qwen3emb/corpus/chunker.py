"""Cutting texts by the tokens of a model's tokenizer, without loading torch where that can be avoided."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Tokenizer

from qwen3emb.core.errors import UserError
from qwen3emb.corpus.candidates import Chunker
from qwen3emb.model.fetch import resolve_model
from qwen3emb.text.chunking import TokenOffsets, chunk_text
from qwen3emb.text.templates import control_ids, without_control_tokens

__all__ = ["chunker", "token_offsets"]


def chunker(model: str, max_tokens: int, overlap_tokens: int) -> Chunker:
    """`chunk_text` with the tokenizer of a model, which is loaded at once.

    Args:
        model: directory, name or hub id, as `resolve_model` takes it.
        max_tokens: longest chunk.
        overlap_tokens: tokens that neighbouring chunks share.

    Raises:
        UserError: there is no such model, or it cannot tell where tokens begin and end.
    """
    offsets = token_offsets(model)
    return lambda text: chunk_text(text, offsets, max_tokens, overlap_tokens)


@lru_cache(maxsize=1)
def token_offsets(model: str) -> TokenOffsets:
    """The tokenizer of a model as `chunk_text` wants it, control tokens read as text; loaded once per process.

    Raises:
        UserError: there is no such model, or it cannot tell where tokens begin and end.
    """
    file = resolve_model(model) / "tokenizer.json"
    backend = Tokenizer.from_file(str(file)) if file.is_file() else _converted(model)
    backend.no_truncation()
    backend.no_padding()

    control = control_ids(backend)
    plain = lru_cache(maxsize=1)(lambda: without_control_tokens(backend))

    def offsets(text: str) -> list[tuple[int, int]]:
        encoding = backend.encode(text, add_special_tokens=False)
        if not control.isdisjoint(encoding.ids):
            encoding = plain().encode(text, add_special_tokens=False)
        found: list[tuple[int, int]] = encoding.offsets
        return found

    return offsets


def _converted(model: str) -> Tokenizer:
    """The tokenizer of a directory in an older form; this imports torch, which costs each process seconds."""
    from qwen3emb.model.loading import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(model))
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer of {model}: it cannot tell where tokens end; name a model with tokenizer.json")
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend
