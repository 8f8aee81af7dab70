"""How title and text of a document are joined, for every model and stage."""

from __future__ import annotations

__all__ = ["document_text"]


def document_text(title: str, text: str) -> str:
    """The text of a document that is embedded and reranked: its title and text, joined by one space."""
    return f"{title} {text}".strip()
