"""Bitext: a sentence of the passage and its translation by the generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.core.draws import unit_draw
from qwen3emb.synthesis.chat import Message, example_chat, json_object, object_schema, one_line, plain, text_schema
from qwen3emb.synthesis.gates import Gates
from qwen3emb.synthesis.tasks.item import Call, SynthesisItem, choose, language_name, weighted_languages
from qwen3emb.synthesis.tasks.sentence import drawn_sentence, similar_requirement

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

    def call(self, item: SynthesisItem) -> Call | str | None:
        """The next call; None when all answers are there, a problem where there is no other language."""
        if "translation" in item.answers:
            return None
        language = self._language(item)
        if not language:
            return f"no_other_language: synthesize.languages has none but the passage's, {item.passage['language']}"
        sentence = self._sentence(item)
        chat = translation_messages(sentence, language_name(language))
        return Call("translation", chat, translation_schema(sentence), 2 * self._cfg.max_query_tokens)

    def read(self, item: SynthesisItem, name: str, answer: str) -> str | None:
        """Take in an answer; `<code>: <detail>` where it cannot be used."""
        sentence = self._sentence(item)
        parsed = parse_translation(answer, sentence)
        if not isinstance(parsed, str):
            parsed = (
                self._gates.problem(parsed.text, sentence, similar_requirement(sentence, self._language(item)))
                or parsed
            )
        return item.keep(name, parsed)

    def pairs(self, item: SynthesisItem) -> list[dict[str, Any]]:
        """The pairs of an item with all answers."""
        translation = item.answers["translation"].text
        return [item.pair(self._sentence(item), translation, language=self._language(item), words="")]

    def _language(self, item: SynthesisItem) -> str:
        """Code of a language drawn from those that are not the passage's; empty where there is none."""
        passage_language = str(item.passage["language"]).partition("-")[0]
        others = {
            code: w for code, w in self._languages.items() if code.partition("-")[0] != passage_language and w > 0
        }
        return choose(others, unit_draw(self._seed, item.key, "language")) if others else ""

    def _sentence(self, item: SynthesisItem) -> str:
        return drawn_sentence(item.shown, unit_draw(self._seed, item.key, "sentence"))


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
