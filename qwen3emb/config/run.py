"""One YAML per run, one section per stage. Imports no torch, ray or vllm (a test proves it).

`load_config(path, overrides)` is the only way in: it reads the file, applies `--set key=value`, and turns
every mistake into one sentence that names the nearest valid key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from qwen3emb.config.data import CorpusConfig, FilterConfig, MineConfig, Section, SynthesizeConfig
from qwen3emb.config.labelled import LabelledConfig
from qwen3emb.config.merging import MergeConfig
from qwen3emb.config.serving import EvaluateConfig, IndexConfig, ServeConfig
from qwen3emb.config.training import (
    RERANKER,
    DistillConfig,
    TrainEmbeddingConfig,
    TrainRerankerConfig,
    TrainSupervisedConfig,
)
from qwen3emb.core.errors import UserError

__all__ = [
    "OPERATIONAL",
    "OWN_CLUSTER",
    "ClusterConfig",
    "ModelsConfig",
    "RunConfig",
    "json_schema",
    "load_config",
    "require_section",
    "reranker_start",
]

# Fields that change how fast a stage runs or where, not what it writes.
OPERATIONAL = {
    *("workers", "threads", "engines", "kv_cache_gb", "max_failures", "max_num_seqs", "batch_size"),
    *("num_workers", "token_budget", "pack_tokens", "loss_tile", "activation_checkpointing", "shard_rows"),
    *("resume_every", "reader_gpus"),
}

OWN_CLUSTER = "QWEN3EMB_OWN_CLUSTER"
"""Environment variable, set in the processes of a Ray that ends with its starter: a driver's own, or a private head."""


class ClusterConfig(Section):
    """Which Ray the stages run on."""

    address: str | None = None
    """Address of a Ray cluster, or `auto` to find one; default `RAY_ADDRESS`, else one is started."""
    num_cpus: int = Field(default=8, ge=4)
    """Logical CPUs of a Ray started here; may exceed the cores, since small tasks hold CPUs while idle."""
    gpus_per_worker: int = Field(default=0, ge=0)
    """GPUs per training or encoding worker; 0 = CPU."""


class ModelsConfig(Section):
    """Models the run starts from: a name of `qwen3emb fetch-model`, a directory, or a hub id."""

    generator: str | None = None
    """LLM that writes the queries; only a run with `synthesize` needs it."""
    base: str
    """Decoder that the embedding model is trained from."""
    reranker_base: str | None = None
    """Decoder that the reranker is trained from; default `base`."""
    retrieval: str | None = None
    """Embedding model that finds candidate personas (a sentence-transformers directory); needed with `synthesize`."""
    end_token: str = "<|endoftext|>"
    """Token the embedding is read at: `<|endoftext|>` for Qwen3, `<|im_end|>` for SmolLM2."""
    instruction: str = "Given a web search query, retrieve relevant passages that answer the query"
    """Instruction of queries in training, mining, evaluation and serving."""


class RunConfig(Section):
    """A whole run. Stages whose section may be left out are left out with it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run."""
    storage: str
    """Folder or URI that receives the artifacts, e.g. `./runs/demo`, `s3://bucket/run`."""
    seed: int = 0
    """Seed of all random draws."""
    cluster: ClusterConfig = ClusterConfig()
    """The Ray cluster."""
    models: ModelsConfig
    """Starting models."""
    corpus: CorpusConfig
    """Stage `corpus`."""
    synthesize: SynthesizeConfig | None = None
    """Stage `synthesize`; a run on labelled data alone has none, and neither `weak` nor `filter`."""
    weak: TrainEmbeddingConfig | None = None
    """Stage `train_embedding`, weakly supervised; without it the supervised stage starts from `models.base`."""
    filter: FilterConfig = FilterConfig()
    """Stage `filter`; left out without `synthesize`."""
    labelled: LabelledConfig = LabelledConfig()
    """Stage `labelled`; without sets the stage is left out."""
    mine: MineConfig = MineConfig()
    """Stage `mine`."""
    supervised: TrainSupervisedConfig
    """Stage `train_embedding`, supervised."""
    reranker_weak: TrainRerankerConfig | None = None
    """Stage `train_reranker` on the synthetic rows alone, from which `reranker` then starts; the paper has none."""
    reranker: TrainRerankerConfig | None = None
    """Stage `train_reranker`; without it the run makes an embedding model only."""
    distill: DistillConfig | None = None
    """Stage `train_embedding`, distilled: the reranker teaches the supervised model; `merge` takes the result too."""
    merge: MergeConfig = MergeConfig()
    """Stage `merge`."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Stage `evaluate`."""
    index: IndexConfig = IndexConfig()
    """Stage `index`."""
    serve: ServeConfig = ServeConfig()
    """Stage `serve`."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        problem = next(self._missing(), None)
        if problem:
            raise ValueError(problem)
        return self

    def _missing(self) -> Iterator[str]:
        """A sentence for each section that needs something which the run does not have."""
        for name in ("weak", "reranker_weak"):
            if getattr(self, name) and not self.synthesize:
                yield f"{name} trains on what synthesize writes, but there is no section synthesize"
        if self.reranker_weak and not self.reranker:
            yield "reranker_weak prepares the reranker, but there is no section reranker"
        if self.distill and self.distill.teacher.model == RERANKER and not self.reranker:
            yield "distill.teacher.model is reranker, but there is no section reranker; name an embedding model"
        if self.synthesize and not (self.models.generator and self.models.retrieval):
            yield "synthesize needs models.generator and models.retrieval"
        scoring = {"filter": self.filter.model if self.synthesize else "", "mine": self.mine.model}
        for name, model in scoring.items():
            if model == "weak" and not self.weak:
                yield f"{name}.model is weak, but there is no section weak; name another model"

    @model_validator(mode="after")
    def _negatives(self) -> RunConfig:
        rerankers = [section.negatives for section in (self.reranker, self.reranker_weak) if section]
        distilled = [self.distill.hard_negatives] if self.distill else []
        if self.distill and self.distill.teacher.model == RERANKER:
            distilled.append(self.distill.teacher.candidates)
        wanted = max([self.supervised.hard_negatives, *rerankers, *distilled])
        if self.mine.negatives < wanted:
            raise ValueError(
                f"mine.negatives is {self.mine.negatives}, but training wants {wanted} "
                "(supervised.hard_negatives, reranker.negatives, distill.teacher.candidates)"
            )
        return self


_SectionT = TypeVar("_SectionT", bound=Section)


def require_section(section: _SectionT | None) -> _SectionT:
    """`section` itself, which is not None: only stages with a section run."""
    assert section is not None
    return section


def reranker_start(cfg: RunConfig, stage: str) -> str:
    """What a stage of the reranker starts from: `reranker_weak` (that stage's model), `embedding`, `base`, or a model.

    Without the key `start` the stage `reranker` goes on from `reranker_weak` where the run has it. Else a reranker
    starts from the embedding model where both have one base, and from its own base where they have not.

    Args:
        cfg: the run.
        stage: `reranker` or `reranker_weak`.
    """
    section = cfg.reranker_weak if stage == "reranker_weak" else cfg.reranker
    if section is not None and section.start is not None:
        return section.start
    if stage == "reranker" and cfg.reranker_weak is not None:
        return "reranker_weak"
    return "embedding" if cfg.models.reranker_base in (None, cfg.models.base) else "base"


class _Loader(yaml.SafeLoader):
    """YAML with the booleans of version 1.2, in which `on` (a key here) and `no` (Norwegian) are words."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a run's YAML, apply `key=value` overrides (dotted keys, YAML values) and validate.

    Raises:
        UserError: unreadable file, bad YAML, unknown key (the nearest valid one is named), or bad value.
    """
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise UserError(f"config {path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"config {path}: expected one section per stage, found {type(raw).__name__}")
    for override in overrides or []:
        _apply(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"config {path}: {_sentence(error)}") from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of a run's YAML, for editors."""
    return RunConfig.model_json_schema()


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r}: expected key=value, e.g. --set weak.steps=10")
    *parents, last = key.strip().split(".")
    node: Any = raw
    for part in parents:
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise UserError(f"--set {override!r}: {part!r} is not a section")
    try:
        node[last] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: the value is not YAML") from error


def _sentence(error: ValidationError) -> str:
    """The first mistakes as one sentence, each with its place and, for unknown keys, the nearest one."""
    parts = []
    for item in error.errors()[:3]:
        location = [p for p in item["loc"] if not isinstance(p, int)]
        place = ".".join(str(p) for p in item["loc"]) or "(whole file)"
        if item["type"] == "extra_forbidden":
            near = _nearest([str(p) for p in location])
            parts.append(f"unknown key {place!r}" + (f", did you mean {near!r}?" if near else ""))
        elif item["type"] == "missing":
            parts.append(f"key {place!r} is missing")
        else:
            shown = "" if item["type"] == "value_error" else f" (found {item['input']!r})"
            parts.append(f"{place}: {item['msg'].removeprefix('Value error, ')}{shown}")
    more = len(error.errors()) - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _nearest(location: list[str]) -> str | None:
    """The valid key nearest to an unknown one: by its own name, keys of the same section first."""
    name, parent = location[-1], ".".join(location[:-1])

    def likeness(key: str) -> float:
        section, _, last = key.rpartition(".")
        near = 0.2 if section == parent else 0.1 if section.startswith(parent) else 0.0
        return difflib.SequenceMatcher(None, name, last).ratio() + near

    best = max(_all_keys(), key=likeness)
    return best if likeness(best) >= 0.6 else None


def _section_type(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section class behind a field, looking into lists and optionals."""
    info = model.model_fields.get(name)
    if info is None:
        return None
    for candidate in (info.annotation, *get_args(info.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _all_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    keys = []
    for name in model.model_fields:
        keys.append(prefix + name)
        section = _section_type(model, name)
        if section is not None:
            keys.extend(_all_keys(section, f"{prefix}{name}."))
    return keys
