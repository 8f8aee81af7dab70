"""Which language a text is in, by py3langid: some 100 languages, no network, a millisecond for a text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from qwen3emb.text.languages import UNDETERMINED

__all__ = ["identified", "language_identifier"]


@lru_cache(maxsize=1)
def language_identifier() -> Any:
    """`.classify(text)` gives (code, probability), `.labels` the codes that it knows; loaded once in a process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identified(texts: Sequence[str], sure: float) -> list[str]:
    """The code of each text's language, `und` where the probability is below `sure`."""
    found = (language_identifier().classify(text) for text in texts)
    return [code if float(probability) >= sure else UNDETERMINED for code, probability in found]
