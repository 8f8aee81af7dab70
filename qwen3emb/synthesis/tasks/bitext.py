"""Bitext: a sentence of the passage and its translation by the generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.core.draws import unit_draw
from qwen3emb.synthesis.chat import Message, example_chat, json_object, object_schema, one_line, plain, text_schema
from qwen3emb.synthesis.gates import Gates
from qwen3emb.synthesis.tasks.item import Call, SynthesisItem, choose, language_name, weighted_languages
from qwen3emb.synthesis.tasks.sentence import drawn_sentence, like

__all__ = ["Bitext", "Translation", "parse_translation", "translation_messages", "translation_schema"]

_TRANSLATION_TASK = "You are a translator. Translate the sentence faithfully, adding nothing. Answer in JSON."


@dataclass(frozen=True)
class Translation:
    """A sentence in another language."""

    text: str


class Bitext:
    """One call: a sentence of the passage in another language."""

    def __init__(self, cfg: SynthesizeConfig, seed: int, gates: Gates) -> None:
        """Draws follow from `seed`; `gates` look at what was written."""
        self._cfg, self._seed, self._gates = cfg, seed, gates
        self._languages = weighted_languages(cfg.languages)

    def call(self, row: SynthesisItem) -> Call | str | None:
        """The next call; None when all answers are there, a problem where there is no other language."""
        if "translation" in row.answers:
            return None
        language = self._language(row)
        if not language:
            return f"no_other_language: synthesize.languages has none but the passage's, {row.passage['language']}"
        sentence = self._sentence(row)
        chat = translation_messages(sentence, language_name(language))
        return Call("translation", chat, translation_schema(sentence), 2 * self._cfg.max_query_tokens)

    def read(self, row: SynthesisItem, name: str, answer: str) -> str | None:
        """Take in an answer; `<code>: <detail>` where it cannot be used."""
        sentence = self._sentence(row)
        parsed = parse_translation(answer, sentence)
        if not isinstance(parsed, str):
            parsed = self._gates.problem(parsed.text, sentence, like(sentence, self._language(row))) or parsed
        return row.keep(name, parsed)

    def pairs(self, row: SynthesisItem) -> list[dict[str, Any]]:
        """The pairs of an item with all answers."""
        translation = row.answers["translation"].text
        return [row.pair(self._sentence(row), translation, language=self._language(row), words="")]

    def _language(self, row: SynthesisItem) -> str:
        """Code of a language drawn from those that are not the passage's; empty where there is none."""
        own = str(row.passage["language"]).partition("-")[0]
        others = {code: w for code, w in self._languages.items() if code.partition("-")[0] != own and w > 0}
        return choose(others, unit_draw(self._seed, row.key, "language")) if others else ""

    def _sentence(self, row: SynthesisItem) -> str:
        return drawn_sentence(row.shown, unit_draw(self._seed, row.key, "sentence"))


def translation_messages(sentence: str, language: str) -> list[Message]:
    """The chat that asks for a translation into `language` (an English name)."""
    example = _translation_request("The ferry does not run on Sundays.", "German")
    return example_chat(
        _TRANSLATION_TASK,
        example,
        {"translation": "Die Fähre verkehrt sonntags nicht."},
        _translation_request(sentence, language),
    )


def _translation_request(sentence: str, language: str) -> str:
    return f"Sentence: {sentence}\nTranslate it into {language}."


def translation_schema(sentence: str) -> dict[str, Any]:
    """JSON schema of a translation of `sentence`."""
    return object_schema({"translation": text_schema(4 * len(sentence) + 40)})


def parse_translation(answer: str, sentence: str) -> Translation | str:
    """The translation, or the problem: invalid_json, empty_text, copied_source."""
    content = json_object(answer)
    if isinstance(content, str):
        return content
    text = one_line(content.get("translation"))
    if not text:
        return f"empty_text: {content.get('translation')!r}"
    return f"copied_source: {text}" if plain(text) == plain(sentence) else Translation(text)
