"""Tokens of the generator's calls: the stage's own prompts around a passage of the expected length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.pipeline.planning.datasets import written_tokens
from qwen3emb.pipeline.planning.work import Planner
from qwen3emb.synthesis.chat import Message
from qwen3emb.synthesis.tasks.bitext import translation_messages
from qwen3emb.synthesis.tasks.classification import label_messages, new_task_messages, text_messages
from qwen3emb.synthesis.tasks.item import Requirement
from qwen3emb.synthesis.tasks.retrieval_prompts import Configuration, configuration_chat, query_chat
from qwen3emb.synthesis.tasks.sts import rewrites_messages

__all__ = ["Request", "requests"]

_TURN = 5.0
"""Tokens of the chat format around one message: `<|im_start|>role`, line end, `<|im_end|>`, line end."""

_SENTENCE = 25.0
"""Tokens of a sentence drawn from a passage."""

_CONFIGURATION_ANSWER = '{"Character":1,"Question_Type":"acquire_knowledge","Difficulty":"high_school"}'
_LABEL_ANSWER = '{"label":"a label","misleading_label":"another"}'
_TASK_ANSWER = '{"task":"Which step of something a note is about","labels":["one thing","another","a third","a last"]}'
_SHOWN = "?"
"""Stands in a prompt where the passage, a sentence or a persona is counted by its tokens."""


@dataclass(frozen=True)
class Request:
    """One call: tokens of its prompt, of its answer, and of the prompt those that the prefix cache does not have."""

    prompt: float
    answer: float
    read: float


def requests(p: Planner, cfg: SynthesizeConfig, task: str, shown: float) -> list[Request]:
    """The calls for one row of a task, with a passage of `shown` tokens."""
    answers = written_tokens(p.cfg, p.assumed)
    words = next(iter(cfg.words))
    if task == "retrieval":
        return _retrieval(p, cfg, shown, answers)
    if task == "bitext":
        return [_request(p, translation_messages(_SHOWN, "Spanish"), _SENTENCE, _SENTENCE + 6)]
    if task == "sts":
        return [_request(p, rewrites_messages(_SHOWN, "English"), _SENTENCE, 3 * (_SENTENCE + 12))]
    persona = p.assumed.persona_tokens
    invented = [
        _request(p, new_task_messages(_SHOWN, _SHOWN), shown + persona, p.words(_TASK_ANSWER)),
        _request(p, text_messages(_SHOWN, ("label",) * 4, words, "English"), 10, answers + p.words(_LABEL_ANSWER)),
    ]
    if not cfg.label_sets:
        return invented
    labels = next(iter(cfg.label_sets.values()))
    given = _request(p, label_messages(_SHOWN, _SHOWN, labels), shown + 5, p.words(_LABEL_ANSWER))
    return [given] if cfg.label_sets_share >= 0.5 else invented


def _retrieval(p: Planner, cfg: SynthesizeConfig, shown: float, answer: float) -> list[Request]:
    """Two calls. With the passage first, the second one reads only what stands behind the passage."""
    requirement = Requirement(next(iter(cfg.words)), "en", "English")
    personas = [_SHOWN] * cfg.candidates
    first = configuration_chat(cfg.prompt_order, _SHOWN, personas, 0.0)
    second = query_chat(
        cfg.prompt_order, _SHOWN, _SHOWN, Configuration(0, "acquire_knowledge", "high_school"), requirement
    )
    persona = p.assumed.persona_tokens
    calls = [
        _request(p, first, shown + cfg.candidates * persona, p.words(_CONFIGURATION_ANSWER)),
        _request(p, second, shown + persona, answer + 5),
    ]
    if cfg.prompt_order != "passage_first":
        return calls
    # The system turn is the same for all rows; the passage's turn is read by the first call and found by the second.
    system = _chat_tokens(p, first[:1])
    behind = _chat_tokens(p, second[2:]) + persona
    return [
        Request(calls[0].prompt, calls[0].answer, calls[0].prompt - system),
        Request(calls[1].prompt, calls[1].answer, behind),
    ]


def _request(p: Planner, chat: Sequence[Message], more: float, answer: float) -> Request:
    prompt = _chat_tokens(p, chat) + more
    return Request(prompt, answer, prompt)


def _chat_tokens(p: Planner, chat: Sequence[Message]) -> float:
    """Tokens of a chat, with the start of the answer's turn."""
    return sum(p.words(message["content"]) + _TURN for message in chat) + _TURN - 2
