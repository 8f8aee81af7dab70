"""What a model reads of a document: the one join of title and text."""

from __future__ import annotations

__all__ = ["document_text"]


def document_text(title: str, text: str) -> str:
    """What is embedded and reranked of a document: title and text joined by one space, as in evaluation."""
    return f"{title} {text}".strip()
