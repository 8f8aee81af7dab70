"""Length and language of a synthetic query: drawn for each passage, not chosen (paper section 3).

A draw depends on the run's seed and the passage's id only, so that a resumed run asks for the same queries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from qwen3emb.core.draws import unit_draw
from qwen3emb.core.errors import UserError
from qwen3emb.text.languages import LANGUAGES, check_language

__all__ = ["Requirement", "choose", "draw_requirement", "language_name", "weighted_languages", "weighted_words"]


_Key = TypeVar("_Key", bound=str)


@dataclass(frozen=True)
class Requirement:
    """What is drawn for a row: `words` as `low-high`, `language` as a code, `language_name` in English."""

    words: str
    language: str
    language_name: str


def draw_requirement(
    seed: int, passage_id: str, languages: Mapping[str, float], words: Mapping[str, float]
) -> Requirement:
    """Length and language of a row's query: a pure function of (seed, passage id) and the distributions.

    Args:
        languages: code -> weight, as `weighted_languages` returns them.
        words: `low-high` -> weight, as `weighted_words` returns them.
    """
    language = choose(languages, unit_draw(seed, passage_id, "language"))
    return Requirement(choose(words, unit_draw(seed, passage_id, "words")), language, language_name(language))


def weighted_languages(languages: Mapping[str, float]) -> dict[str, float]:
    """Names or codes of languages -> weight, as codes -> weight.

    Raises:
        UserError: an unknown language, or weights that cannot be drawn from.
    """
    _check_weights("languages", languages)
    codes = {name: code for code, name in LANGUAGES.items()}
    weights: dict[str, float] = {}
    for key, weight in languages.items():
        code = codes.get(key) or check_language(key)
        weights[code] = weights.get(code, 0.0) + weight
    return weights


def weighted_words(words: Mapping[str, float]) -> dict[str, float]:
    """Query lengths `low-high` -> weight, checked.

    Raises:
        UserError: a range that is none, or weights that cannot be drawn from.
    """
    _check_weights("words", words)
    for key in words:
        found = re.fullmatch(r"(\d+)-(\d+)", key)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"synthesize.words: {key!r} is no range of words; write low-high, e.g. 5-10")
    return dict(words)


def _check_weights(field: str, weights: Mapping[str, float]) -> None:
    if not weights or any(w < 0 for w in weights.values()) or not 0 < sum(weights.values()) < float("inf"):
        raise UserError(f"synthesize.{field}: {dict(weights)!r} needs weights of at least 0, one of them above 0")


def language_name(code: str) -> str:
    """The English name of a language code, with its script or region behind it."""
    primary, _, variant = code.partition("-")
    name = LANGUAGES.get(primary, primary)
    return f"{name} ({variant})" if variant else name


def choose(weights: Mapping[_Key, float], draw: float) -> _Key:
    """The key of `weights` whose share of the unit interval holds `draw`; keys in sorted order."""
    rest = draw * sum(weights.values())
    for key in sorted(weights):
        rest -= weights[key]
        if rest < 0:
            return key
    return max(k for k in weights if weights[k] > 0)
