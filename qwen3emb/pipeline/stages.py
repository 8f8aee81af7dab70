"""The stages, what each one reads, and what identifies its output. Imports no ray, torch or vllm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwen3emb import __version__
from qwen3emb.config.catalogue import chosen_datasets, holds_out
from qwen3emb.config.data import Section
from qwen3emb.config.run import OPERATIONAL, RunConfig, reranker_start
from qwen3emb.config.training import RERANKER
from qwen3emb.core.artifact import Identity, State, state_of
from qwen3emb.core.errors import UserError
from qwen3emb.core.location import redacted, with_secrets_of
from qwen3emb.core.storage import Storage
from qwen3emb.model.mirror import run_identity, run_tokenizer_identity
from qwen3emb.text.evaluation_sets import asked_passages
from qwen3emb.text.instructions import given_instructions
from qwen3emb.text.sources import source_fingerprint

__all__ = [
    "STAGES",
    "WORDS",
    "Stage",
    "enabled_stages",
    "identity",
    "is_enabled",
    "needs",
    "reuse_stages",
    "stage_folder",
    "stage_inputs",
    "stage_states",
    "value_at",
    "writable_folder",
]

_TRAIN, _RERANKER = "jobs.train_embedding", "jobs.train_reranker"
_RERANKER_WEAK = "reranker_weak"
_TRAINING = {"weak", "supervised", "reranker", _RERANKER_WEAK, "distill"}
_OPTIONAL = {"synthesize", "weak", "reranker", _RERANKER_WEAK, "distill"}
_SETS = ("corpus", "labelled", "synthesize")  # which write dev and held-out sets (text.evaluation_sets)
_EVALUATED = (*_SETS, "weak", "filter", "mine", "supervised", "distill", "merge")  # some for their rows by language
_ALIAS = "alias.json"


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: folder under the run's storage.
        module: `python -m MODULE` runs it.
        section: its section of the config; all its keys but those in `OPERATIONAL` are part of the identity.
        needs: stages whose artifacts it reads directly.
        arguments: further arguments of the module.
        reads: keys outside of its section that it reads; `labelled.*.FIELD` is a field of every labelled dataset.
        models: keys that name models: the identity has the models' content, not their names.
        tokenizer: key that names a model of which only the tokenizer is read; where the key is not set, `models.base`.
    """

    name: str
    module: str
    section: str
    needs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("seed",)
    models: tuple[str, ...] = ()
    tokenizer: str = ""


_BASES = ("models.base", "models.reranker_base")
WORDS = {
    **dict.fromkeys(("filter.model", "mine.model"), ("weak",)),
    **dict.fromkeys(("reranker.start", f"{_RERANKER_WEAK}.start"), ("base", "embedding")),
    "distill.teacher.model": (RERANKER,),
}
"""Keys of models -> words that stand there for a model of the run; in any other key they are names like others."""
_ASKS, _READS_AT = "models.instruction", "models.end_token"

STAGES = {
    s.name: s
    for s in (
        Stage("corpus", "jobs.corpus", "corpus", tokenizer="corpus.tokenizer"),
        Stage("labelled", "jobs.labelled", "labelled", ("corpus",)),
        Stage(
            *("synthesize", "jobs.synthesize", "synthesize", ("corpus", "labelled")),
            models=("models.generator", "models.retrieval"),
        ),
        Stage(
            *("weak", _TRAIN, "weak", ("corpus", "labelled", "synthesize"), ("--stage", "weak")),
            reads=("seed", _ASKS, _READS_AT),
            models=("models.base", "weak.teacher.model"),
        ),
        Stage(
            *("filter", "jobs.filter", "filter", ("synthesize", "weak")),
            reads=("seed", _ASKS, _READS_AT),
            models=("filter.model",),
        ),
        Stage(
            *("mine", "jobs.mine", "mine", ("corpus", "filter", "weak", "labelled")),
            reads=(_ASKS, _READS_AT, "labelled.*.mine"),
            models=("mine.model", "mine.veto.model"),
        ),
        Stage(
            *("supervised", _TRAIN, "supervised", (*_SETS, "weak", "mine"), ("--stage", "supervised")),
            reads=("seed", _ASKS, _READS_AT, "labelled.*.weight"),
            models=("models.base", "supervised.teacher.model"),
        ),
        Stage(
            *(_RERANKER_WEAK, _RERANKER, _RERANKER_WEAK, (*_SETS, "mine", "supervised"), ("--stage", "weak")),
            reads=("seed", _ASKS),
            models=("models.reranker_base", "reranker_weak.start", "reranker_weak.teacher.model"),
        ),
        Stage(
            *("reranker", _RERANKER, "reranker", (*_SETS, "mine", "supervised", _RERANKER_WEAK)),
            reads=("seed", _ASKS),
            models=("models.reranker_base", "reranker.start", "reranker.teacher.model"),
        ),
        Stage(
            *("distill", _TRAIN, "distill", (*_SETS, "mine", "supervised", "reranker"), ("--stage", "distill")),
            reads=("seed", _ASKS, _READS_AT, "labelled.*.weight"),
            models=("distill.teacher.model",),
        ),
        Stage("merge", "jobs.merge", "merge", (*_SETS, "supervised", "distill", "reranker"), models=_BASES),
        Stage("evaluate", "jobs.evaluate", "evaluate", _EVALUATED, reads=(_ASKS, _READS_AT), models=("models.base",)),
        Stage("index", "jobs.index", "index", ("corpus", "merge"), reads=()),
    )
}
"""In the order of the pipeline. The identity of a stage consists of what the stage reads, and of nothing else."""


def is_enabled(cfg: RunConfig, name: str) -> bool:
    """Whether the run has a stage: optional ones need their section, `filter` `synthesize`, `labelled` datasets."""
    if name == "labelled":
        return bool(cfg.labelled.sets or cfg.labelled.use)
    return name not in _OPTIONAL | {"filter"} or getattr(cfg, {"filter": "synthesize"}.get(name, name)) is not None


def enabled_stages(cfg: RunConfig) -> list[str]:
    """The names of the stages that the run has, in the order of the pipeline."""
    return [name for name in STAGES if is_enabled(cfg, name)]


def needs(cfg: RunConfig, name: str) -> list[str]:
    """The stages of this run whose artifacts stage `name` reads."""
    unread = set()
    if {"filter": cfg.filter.model, "mine": cfg.mine.model}.get(name, "weak") != "weak":
        unread.add("weak")
    if name in ("synthesize", "weak") and not holds_out(cfg.labelled):
        unread.add("labelled")
    if name in ("reranker", _RERANKER_WEAK):
        start = reranker_start(cfg, name)
        unread |= {"supervised", _RERANKER_WEAK} - {"supervised" if start == "embedding" else start}
    if name == "distill" and cfg.distill and cfg.distill.teacher.model != RERANKER:
        unread.add("reranker")
    return [need for need in STAGES[name].needs if is_enabled(cfg, need) and need not in unread]


def stage_folder(cfg: RunConfig, name: str) -> Storage:
    """The folder with a stage of this run: in the run's storage, or in another run's if `reuse_stages` noted one."""
    folder = Storage(cfg.storage) / name
    if not folder.exists(_ALIAS):
        return folder
    return Storage(with_secrets_of(cfg.storage, folder.read_json(_ALIAS)["uri"]))


def stage_inputs(cfg: RunConfig, name: str) -> dict[str, Storage]:
    """The folders of the stages of this run that come before `name`, whether it reads them or not."""
    before = list(STAGES)[: list(STAGES).index(name)]
    return {stage: stage_folder(cfg, stage) for stage in before if is_enabled(cfg, stage)}


def reuse_stages(cfg: RunConfig, lender: RunConfig) -> list[str]:
    """Use the finished stages of another run in this one where their identity is the same.

    A file `alias.json` in the stage's folder of this run points to the other run's folder. Aliases that no longer hold
    are removed; a stage that this run has begun or finished itself is not replaced.

    Args:
        cfg: this run.
        lender: the other run.

    Returns:
        The names of the reused stages.
    """
    known: dict[str, Identity] = {}
    reused = []
    for name in enabled_stages(cfg):
        folder, lender_folder = Storage(cfg.storage) / name, stage_folder(lender, name)
        folder.delete(_ALIAS)
        stage_identity = identity(cfg, name, known)
        if state_of(folder, stage_identity) == "new" and state_of(lender_folder, stage_identity) == "done":
            folder.write_json(_ALIAS, {"uri": str(lender_folder), "fingerprint": stage_identity.fingerprint})
            reused.append(name)
    return reused


def writable_folder(cfg: RunConfig, name: str) -> Storage:
    """The folder that this run may write a stage to.

    Raises:
        UserError: the stage is reused from another run, whose configuration has changed since.
    """
    run_folder, folder = Storage(cfg.storage) / name, stage_folder(cfg, name)
    if folder.uri != run_folder.uri and state_of(folder, identity(cfg, name)) != "done":
        raise UserError(f"{run_folder} stands for {folder}, which is of another configuration now; remove {run_folder}")
    return folder


def identity(cfg: RunConfig, name: str, known: dict[str, Identity] | None = None) -> Identity:
    """Everything that a stage's output depends on: resolved config, fingerprints of its inputs, code version.

    Args:
        cfg: the run.
        name: the stage.
        known: stage -> identity computed before; the new ones are added. Most stages read most others, and the
            fingerprint of a source tree takes a second.

    Raises:
        UserError: a file or model it reads is missing.
    """
    known = {} if known is None else known
    if name not in known:
        known[name] = _identity(cfg, name, known)
    return known[name]


def _identity(cfg: RunConfig, name: str, known: dict[str, Identity]) -> Identity:
    stage = STAGES[name]
    config: dict[str, Any] = {stage.section: _section(cfg, stage)}
    config |= {key: value_at(cfg, key) for key in (*stage.reads, *_also_read(cfg, name))}
    instructions = given_instructions(cfg, name)
    config |= {"instructions": instructions} if instructions else {}
    inputs = {need: identity(cfg, need, known).fingerprint for need in needs(cfg, name)}
    named = {key: value_at(cfg, key) for key in stage.models}
    named |= {"models.reranker_base": cfg.models.reranker_base or cfg.models.base} if _BASES[1] in named else {}
    inputs |= {
        key: model if model in WORDS.get(key, ()) else run_identity(cfg.storage, model)
        for key, model in named.items()
        if model
    }
    if stage.tokenizer:
        inputs["tokenizer"] = run_tokenizer_identity(cfg.storage, value_at(cfg, stage.tokenizer) or cfg.models.base)
    inputs |= dict(_external(cfg, name))
    return Identity(name, __version__, redacted(config), redacted(inputs))


def _section(cfg: RunConfig, stage: Stage) -> dict[str, Any]:
    """The stage's section without keys that only change its speed, and without the names of models."""
    settings = getattr(cfg, stage.section)
    skipped = OPERATIONAL - ({"batch_size"} if stage.name in _TRAINING else set())
    section = {} if settings is None else _significant(settings, skipped)
    for key in (*stage.models, stage.tokenizer):
        first, *inner = key.split(".")
        place: Any = section
        for part in inner[:-1]:
            place = (place or {}).get(part) if first == stage.section else None
        if first == stage.section and place:
            place.pop(inner[-1], None)
    if stage.name == "labelled":  # the same whether the datasets are in the config or in a catalogue
        sets = {
            name: _significant(dataset, {"weight", "mine"}) for name, dataset in chosen_datasets(cfg.labelled).items()
        }
        section = {k: v for k, v in section.items() if k not in ("catalogue", "use")} | {"sets": sets}
    return section


def _significant(section: Section, skipped: set[str]) -> dict[str, Any]:
    """A section as JSON without the fields `skipped`, at every depth; keys that a user chose are kept."""
    fields = section.model_dump(mode="json", exclude=skipped)
    for field in fields:
        value = getattr(section, field)
        if isinstance(value, Section):
            fields[field] = _significant(value, skipped)
        elif isinstance(value, Mapping):
            fields[field] |= {k: _significant(v, skipped) for k, v in value.items() if isinstance(v, Section)}
    return fields


def value_at(cfg: RunConfig, key: str) -> Any:
    """The value of a dotted key, None where its section is missing; for `labelled.*.FIELD` dataset -> value."""
    if key.startswith("labelled.*."):
        return {
            name: getattr(dataset, key.rpartition(".")[2]) for name, dataset in chosen_datasets(cfg.labelled).items()
        }
    value: Any = cfg
    for part in key.split("."):
        value = None if value is None else getattr(value, part)
    return value


def _also_read(cfg: RunConfig, name: str) -> list[str]:
    """Keys that a stage reads only if another key is set."""
    if name == "labelled" and asked_passages(cfg):  # rows that are like such a passage are left out
        counts = ("dev_queries", "heldout_queries", "passages_per_query")
        return [f"synthesize.evaluation.{key}" for key in counts]
    if name != "merge" or not (cfg.merge.search or cfg.merge.keep == "best"):
        return []
    reranked = ["evaluate.rerank_dev_top", "evaluate.rerank_max_tokens"] if cfg.merge.keep == "best" else []
    return ["evaluate.max_query_tokens", "evaluate.max_document_tokens", *reranked]


def stage_states(cfg: RunConfig) -> list[tuple[Stage, State]]:
    """Every stage of the run in order, with what it reads in this run and the state of its artifact on storage."""
    known: dict[str, Identity] = {}
    stages = [replace(s, needs=tuple(needs(cfg, s.name))) for s in STAGES.values() if is_enabled(cfg, s.name)]
    return [(s, state_of(stage_folder(cfg, s.name), identity(cfg, s.name, known))) for s in stages]


def _external(cfg: RunConfig, name: str) -> Iterator[tuple[str, str]]:
    """(path, fingerprint) of the files and folders outside the run's storage that a stage reads."""
    if name == "corpus":
        for source in cfg.corpus.sources:
            yield source.path, source_fingerprint(source.path, source.kind)
    elif name == "synthesize" and cfg.synthesize:
        yield cfg.synthesize.personas, source_fingerprint(cfg.synthesize.personas)
    elif name == "labelled":
        yield from _labelled(cfg)
    dataset = {"evaluate": cfg.evaluate.dataset, "index": cfg.index.source}.get(name, "heldout")
    if dataset not in ("heldout", "passages"):
        yield dataset, source_fingerprint(dataset)


def _labelled(cfg: RunConfig) -> Iterator[tuple[str, str]]:
    for dataset in chosen_datasets(cfg.labelled).values():
        try:
            yield dataset.path, source_fingerprint(dataset.path)
        except UserError:
            if not cfg.labelled.skip_missing:
                raise
