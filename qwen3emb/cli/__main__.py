"""`python -m qwen3emb.cli` is the command `qwen3emb`."""

from __future__ import annotations

from qwen3emb.cli.main import app

if __name__ == "__main__":
    app()
