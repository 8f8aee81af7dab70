"""STS: a sentence of the passage with three rewrites by the generator, graded from near to far."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.core.draws import unit_draw
from qwen3emb.synthesis.chat import Message, example_chat, json_object, object_schema, one_line, plain, text_schema
from qwen3emb.synthesis.gates import Gates
from qwen3emb.synthesis.tasks.item import Call, SynthesisItem, language_name
from qwen3emb.synthesis.tasks.sentence import drawn_sentence, similar_requirement

__all__ = ["GRADES", "Rewrite", "Sts", "parse_rewrites", "rewrites_messages", "rewrites_schema"]

GRADES = {
    "close": "says the same in other words (score 4 to 5)",
    "partial": "shares the subject and part of the meaning (score 2 to 3)",
    "distant": "shares the subject only and says something else (score 0 to 1)",
}
"""The rewrites of an STS item, from near to far."""

_REWRITES_TASK = (
    "You write sentences for a test of meaning. For the given sentence write three others in the same language, "
    "each with a score from 0 (unrelated) to 5 (same meaning):\n"
    + "\n".join(f"{name}: {what}." for name, what in GRADES.items())
    + "\nAnswer in JSON."
)

_HIGHEST = 5.0


@dataclass(frozen=True)
class Rewrite:
    """A sentence beside another, and how near their meanings are, from 0 to 5."""

    text: str
    score: float


class Sts:
    """One call: three rewrites of a sentence of the passage, from near to far, with scores."""

    def __init__(self, cfg: SynthesizeConfig, seed: int, gates: Gates) -> None:
        """Draws follow from `seed`; `gates` look at what was written."""
        self._cfg, self._seed, self._gates = cfg, seed, gates

    def call(self, item: SynthesisItem) -> Call | None:
        """The next call; None when all answers are there."""
        if "rewrites" in item.answers:
            return None
        sentence, code = self._sentence(item), item.passage["language"]
        chat = rewrites_messages(sentence, language_name(code))
        return Call("rewrites", chat, rewrites_schema(sentence), 4 * self._cfg.max_query_tokens)

    def read(self, item: SynthesisItem, name: str, answer: str) -> str | None:
        """Take in an answer; `<code>: <detail>` where it cannot be used."""
        sentence = self._sentence(item)
        parsed = parse_rewrites(answer, sentence)
        if isinstance(parsed, str):
            return parsed
        requirement = similar_requirement(sentence, str(item.passage["language"]))
        problems = (self._gates.problem(rewrite.text, "", requirement) for rewrite in parsed.values())
        return next(filter(None, problems), None) or item.keep(name, parsed)

    def pairs(self, item: SynthesisItem) -> list[dict[str, Any]]:
        """The pairs of an item with all answers."""
        sentence, number = self._sentence(item), f"{item.passage['id']}#{item.number}"
        return [
            item.pair(
                sentence,
                rewrite.text,
                id=f"{number}/{name}",
                grade=rewrite.score,
                language=item.passage["language"],
                words="",
            )
            for name, rewrite in item.answers["rewrites"].items()
        ]

    def _sentence(self, item: SynthesisItem) -> str:
        return drawn_sentence(item.shown, unit_draw(self._seed, item.key, "sentence"))


def rewrites_messages(sentence: str, language: str) -> list[Message]:
    """The chat that asks for three graded rewrites of a sentence of `language` (an English name)."""
    answer = {
        "close": {"text": "On Sundays there is no ferry.", "score": 5},
        "partial": {"text": "The ferry runs only in summer.", "score": 2},
        "distant": {"text": "The ferry was built of oak.", "score": 0},
    }
    example = _rewrites_request("The ferry does not run on Sundays.", "English")
    return example_chat(_REWRITES_TASK, example, answer, _rewrites_request(sentence, language))


def _rewrites_request(sentence: str, language: str) -> str:
    return f"Sentence ({language}): {sentence}"


def rewrites_schema(sentence: str) -> dict[str, Any]:
    """JSON schema of the rewrites of `sentence`."""
    rewrite = object_schema(
        {"text": text_schema(3 * len(sentence) + 40), "score": {"type": "number", "enum": [n / 2 for n in range(11)]}}
    )
    return object_schema(dict.fromkeys(GRADES, rewrite))


def parse_rewrites(answer: str, sentence: str) -> dict[str, Rewrite] | str:
    """Name of `GRADES` -> rewrite, or the problem.

    Codes: invalid_json, empty_text, bad_score, sts_order (scores that do not fall from near to far), same_rewrites
    (two are one text, or one is the sentence itself).
    """
    content = json_object(answer)
    if isinstance(content, str):
        return content
    rewrites: dict[str, Rewrite] = {}
    for name in GRADES:
        value = content.get(name)
        text = one_line(value.get("text")) if isinstance(value, dict) else ""
        if not isinstance(value, dict) or not text:
            return f"empty_text: {name} is {value!r}"
        score = value.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= _HIGHEST:
            return f"bad_score: {name} has {score!r}"
        rewrites[name] = Rewrite(text, float(score))
    scores = [rewrite.score for rewrite in rewrites.values()]
    if any(far >= near for near, far in pairwise(scores)):
        return f"sts_order: scores {scores} do not fall"
    if len({plain(sentence), *(plain(rewrite.text) for rewrite in rewrites.values())}) <= len(rewrites):
        return f"same_rewrites: {[rewrite.text for rewrite in rewrites.values()]}"
    return rewrites
