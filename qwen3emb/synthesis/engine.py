"""One vLLM engine in one process that answers chats in a given JSON form, row by row.

A row that cannot be answered gets its reason; the others are answered. Only an engine that no longer works at
all raises. The engine core runs inside this process, so that both live and die together: Ray restarts both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.config.resources import engine_bundle
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.model.fetch import resolve_model
from qwen3emb.synthesis.chat import ChatRefused, Message, chat_form, defused
from qwen3emb.text.templates import beginning

__all__ = ["Answer", "EngineLost", "Question", "VllmEngine", "engine_resources", "located"]

_log = logging.getLogger(__name__)
_CHARACTERS_PER_TOKEN = 16  # a longer text is cut to this many per token before it is tokenised at all


class EngineLost(RuntimeError):
    """The engine does not answer any more; its process has to be replaced."""


@dataclass(frozen=True)
class Question:
    """One chat to be answered in the form of `schema` (JSON Schema), in at most `max_tokens` tokens."""

    messages: list[Message]
    schema: dict[str, Any]
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """What came of a question: `text`, or `problem` as `<code>: <detail>`, and the tokens it took.

    Codes: prompt_too_long, chat_template, engine_error.
    """

    text: str = ""
    problem: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


def engine_resources(cfg: SynthesizeConfig, gpus: bool) -> dict[str, Any]:
    """Ray's options of an actor that holds an engine (`config.resources.engine_bundle`) and its environment."""
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    if not gpus:
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(cfg.threads)}
    return engine_bundle(cfg, gpus).options() | {"runtime_env": {"env_vars": environment}}


class VllmEngine:
    """A loaded generator.

    Attributes:
        llm: vLLM's own engine.

    Raises:
        UserError: the engine is not installed, the model's chat template cannot hold our prompts, or the engine
            refuses the model.
        StageFailure: it cannot be started for another reason.
    """

    def __init__(self, model: str, cfg: SynthesizeConfig, gpus: bool) -> None:
        """Load `model` (a name, directory or hub id, see `resolve_model`)."""
        self._cfg = cfg
        folder = located(model)
        self._form = chat_form(model, folder)  # before the engine, which takes minutes to load
        self.llm = _load(folder, cfg, gpus)
        self._tokenizer = self._form.tokenizer

    def shown(self, text: str) -> str:
        """`text` as a prompt may hold it: no tokens of the chat format, at most `max_passage_tokens` long."""
        most = self._cfg.max_passage_tokens
        safe = defused(text[: most * _CHARACTERS_PER_TOKEN], self._form.control_tokens)
        ids = self._tokenizer.encode(safe, add_special_tokens=False)
        return safe if len(ids) <= most else beginning(self._tokenizer, ids, most)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order.

        Raises:
            EngineLost: the engine answers nothing any more.
        """
        prompts = [self._prompt(q.messages) for q in questions]
        rooms = [self._cfg.max_model_len - q.max_tokens for q in questions]
        fitting = {i: ids for i, ids in enumerate(prompts) if isinstance(ids, list) and len(ids) <= rooms[i]}
        generated = self._generate(list(fitting.values()), [self.sampling(questions[i]) for i in fitting])
        answers = [
            Answer(problem=f"prompt_too_long: {len(prompt)} tokens, {room} fit" if isinstance(prompt, list) else prompt)
            for prompt, room in zip(prompts, rooms, strict=True)
        ]
        for i, answer in zip(fitting, generated, strict=True):
            answers[i] = answer
        return answers

    def _prompt(self, messages: list[Message]) -> list[int] | str:
        """A chat's tokens, or the problem with it."""
        try:
            return list(self._tokenizer.encode(self._form.text(messages), add_special_tokens=False))
        except ChatRefused as error:
            return f"chat_template: {error}"

    def sampling(self, question: Question) -> Any:
        """The engine's parameters for one question."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        return SamplingParams(
            temperature=self._cfg.temperature,
            top_p=self._cfg.top_p,
            max_tokens=question.max_tokens,
            seed=question.seed,
            structured_outputs=StructuredOutputsParams(json=question.schema),
        )

    def _generate(self, prompts: list[list[int]], sampling: list[Any]) -> list[Answer]:
        """All at once; where that fails, one at a time, so that only the guilty rows fail."""
        if not prompts:
            return []
        try:
            outputs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False)
        except Exception as error:  # whatever a row can do to an engine must not end the stage
            _log.warning("the engine failed on %d rows: %s", len(prompts), error)
            self._recover(error)
            if len(prompts) == 1:
                return [Answer(problem=f"engine_error: {type(error).__name__}: {error}")]
            return [self._generate([p], [s])[0] for p, s in zip(prompts, sampling, strict=True)]
        return [_answer(output) for output in outputs]

    def _recover(self, error: Exception) -> None:
        """Drop what the failed call left behind and see whether the engine still answers."""
        from vllm import SamplingParams

        try:
            engine = self.llm.llm_engine
            engine.abort_request(list(engine.output_processor.request_states), internal=True)
            self.llm.generate([{"prompt_token_ids": [0]}], SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)
        except Exception as second:
            raise EngineLost(f"{type(error).__name__}: {error}; then {type(second).__name__}") from error


def _answer(output: Any) -> Answer:
    [completion] = output.outputs
    return Answer(
        text=completion.text,
        prompt_tokens=len(output.prompt_token_ids),
        cached_tokens=output.num_cached_tokens or 0,
        generated_tokens=len(completion.token_ids),
    )


def located(model: str) -> str:
    """The model's directory on this node; a hub id that is not there is left to what loads it.

    Raises:
        UserError: neither a model that is there nor a hub id.
    """
    try:
        return str(resolve_model(model))
    except UserError:
        if model.count("/") != 1:
            raise
        return model


def _load(model: str, cfg: SynthesizeConfig, gpus: bool) -> Any:
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            f"the generator engine cannot be imported ({error}); install the cpu or the gpu extra"
        ) from error
    try:
        return LLM(model=model, **_options(cfg, gpus))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"models.generator {model}: the engine refuses it: {reason}") from error
    except Exception as error:
        raise StageFailure(f"the engine cannot start {model}: {type(error).__name__}: {error}") from error


def _options(cfg: SynthesizeConfig, gpus: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "dtype": cfg.dtype,
        "load_format": "safetensors",  # else pickled weights are read where there are no others
        "trust_remote_code": False,
        "max_model_len": cfg.max_model_len,
        "max_num_seqs": cfg.max_num_seqs,
        "tensor_parallel_size": cfg.tensor_parallel,
        "enable_prefix_caching": True,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if gpus:
        backend = {"distributed_executor_backend": "mp"} if cfg.tensor_parallel > 1 else {}
        return options | backend
    # A seeded row whose prompt is split over two steps ends the CPU engine: its generators cannot go back.
    whole_prompts = {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(cfg.max_model_len, 2048),
    }
    # Prefixes are shared in whole blocks: with the CPU's default of 128 tokens much of the query prompt is not.
    memory = {"kv_cache_memory_bytes": int(cfg.kv_cache_gb * 2**30), "block_size": 32}
    return options | whole_prompts | memory | {"enforce_eager": True, "use_tqdm_on_load": False}
