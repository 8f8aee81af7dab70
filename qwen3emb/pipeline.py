"""The stages, what each one reads, and what identifies its output. Imports no ray, torch or vllm."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from typing import Any

from qwen3emb import __version__
from qwen3emb.artifact import Identity, State, state_of
from qwen3emb.config import RunConfig
from qwen3emb.data.catalogue import chosen_sets
from qwen3emb.errors import UserError
from qwen3emb.location import redacted, with_secrets_of
from qwen3emb.model.fetch import is_endpoint, resolve_model
from qwen3emb.storage import Storage, external_fingerprint

__all__ = [
    "OPERATIONAL",
    "STAGES",
    "Stage",
    "StageContext",
    "asked_for",
    "borrow",
    "identity",
    "needs",
    "own_folder",
    "plan",
    "selected",
    "stage_folder",
]

# Fields that change how fast a stage runs or where, not what it writes.
OPERATIONAL = {
    *("workers", "threads", "engines", "kv_cache_gb", "max_failures", "max_num_seqs", "batch_size"),
    *("num_workers", "token_budget", "pack_tokens", "loss_tile", "activation_checkpointing", "shard_rows"),
}
_TRAIN, _RERANKER = "jobs.train_embedding", "jobs.train_reranker"
_RERANKER_WEAK = "reranker_weak"
_TRAINING = {"weak", "supervised", "reranker", _RERANKER_WEAK}
_OPTIONAL = {"synthesize", "weak", "reranker", _RERANKER_WEAK}
_EVALUATED = ("corpus", "weak", "filter", "mine", "supervised", "merge")  # rows as well, to count them by language
_ELSEWHERE = "elsewhere.json"


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: folder under the run's storage.
        module: `python -m MODULE` runs it.
        section: its section of the config.
        needs: stages whose artifacts it reads.
        models: fields of `models` it reads.
        arguments: further arguments of the module.
    """

    name: str
    module: str
    section: str
    needs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


STAGES = {
    s.name: s
    for s in (
        Stage("corpus", "jobs.corpus", "corpus", models=("base",)),
        Stage("synthesize", "jobs.synthesize", "synthesize", ("corpus",), ("generator", "retrieval")),
        Stage("weak", _TRAIN, "weak", ("corpus", "synthesize"), ("base",), ("--stage", "weak")),
        Stage("filter", "jobs.filter", "filter", ("synthesize", "weak")),
        Stage("labelled", "jobs.labelled", "labelled", ("corpus",)),
        Stage("mine", "jobs.mine", "mine", ("corpus", "filter", "weak", "labelled")),
        Stage("supervised", _TRAIN, "supervised", ("corpus", "weak", "mine"), (), ("--stage", "supervised")),
        Stage(_RERANKER_WEAK, _RERANKER, _RERANKER_WEAK, ("corpus", "mine"), ("reranker_base",), ("--stage", "weak")),
        Stage("reranker", _RERANKER, "reranker", ("corpus", "mine", _RERANKER_WEAK), ("reranker_base",)),
        Stage("merge", "jobs.merge", "merge", ("supervised", "reranker"), ("base", "reranker_base")),
        Stage("evaluate", "jobs.evaluate", "evaluate", _EVALUATED, ("base",)),
        Stage("index", "jobs.index", "index", ("corpus", "merge")),
    )
}
"""In the order of the picture in the README."""


@dataclass(frozen=True)
class StageContext:
    """What a running stage is given."""

    cfg: RunConfig
    stage: Stage
    out: Storage
    resume: bool

    def input(self, name: str) -> Storage:
        """The folder of an upstream stage."""
        return stage_folder(self.cfg, name)


def asked_for(cfg: RunConfig, name: str) -> bool:
    """False for a stage that the run has nothing for: without its section, `filter` without `synthesize`, `labelled`
    without sets."""
    if name == "labelled":
        return bool(cfg.labelled.sets or cfg.labelled.use)
    return name not in _OPTIONAL | {"filter"} or getattr(cfg, {"filter": "synthesize"}.get(name, name)) is not None


def needs(cfg: RunConfig, name: str) -> list[str]:
    """The stages of this run whose artifacts a stage reads."""
    return [need for need in STAGES[name].needs if asked_for(cfg, need)]


def stage_folder(cfg: RunConfig, name: str) -> Storage:
    """Where a stage of this run lies on storage: in the run's own, or where `borrow` found it."""
    own = Storage(cfg.storage) / name
    if not own.exists(_ELSEWHERE):
        return own
    return Storage(with_secrets_of(cfg.storage, own.read_json(_ELSEWHERE)["uri"]))


def borrow(cfg: RunConfig, lender: RunConfig) -> list[str]:
    """Let the finished stages of another run serve in this one where their identity is the same.

    A note in the stage's folder of `cfg` says where it lies. Notes that are no longer true are removed; a stage that
    this run has begun or done itself stays its own.

    Returns:
        The stages that are borrowed now.
    """
    known: dict[str, Identity] = {}
    found = []
    for name in (name for name in STAGES if asked_for(cfg, name)):
        own, theirs = Storage(cfg.storage) / name, stage_folder(lender, name)
        own.delete(_ELSEWHERE)
        what = identity(cfg, name, known)
        if state_of(own, what) == "new" and state_of(theirs, what) == "done":
            own.write_json(_ELSEWHERE, {"uri": str(theirs), "fingerprint": what.fingerprint})
            found.append(name)
    return found


def own_folder(cfg: RunConfig, name: str) -> Storage:
    """Where this run may write a stage.

    Raises:
        UserError: the stage is another run's, which has changed since.
    """
    own, folder = Storage(cfg.storage) / name, stage_folder(cfg, name)
    if folder.uri != own.uri and state_of(folder, identity(cfg, name)) != "done":
        raise UserError(f"{own} stands for {folder}, which is of another configuration now; remove {own}")
    return folder


def identity(cfg: RunConfig, name: str, known: dict[str, Identity] | None = None) -> Identity:
    """What decides a stage's output: resolved config, fingerprints of its inputs, code version.

    Args:
        cfg: the run.
        name: the stage.
        known: identities computed before, by stage; added to. Most stages read most others, and looking at
            a source tree takes a second.

    Raises:
        UserError: a file or model it reads is missing.
    """
    known = {} if known is None else known
    if name not in known:
        known[name] = _identity(cfg, name, known)
    return known[name]


def _identity(cfg: RunConfig, name: str, known: dict[str, Identity]) -> Identity:
    stage, given = STAGES[name], getattr(cfg, STAGES[name].section)
    section = {} if given is None else given.model_dump(mode="json")
    models = (*stage.models, "base") if name == "supervised" and not asked_for(cfg, "weak") else stage.models
    skipped = OPERATIONAL - ({"batch_size"} if name in _TRAINING else set())
    config: dict[str, Any] = {
        stage.section: {k: v for k, v in section.items() if k not in skipped},
        "seed": cfg.seed,
        "models": {f: _model_name(cfg, f) for f in models},
        "end_token": cfg.models.end_token,
        "instruction": cfg.models.instruction,
    }
    inputs = {need: identity(cfg, need, known).fingerprint for need in needs(cfg, name)}
    inputs |= {f"models.{f}": _model_fingerprint(_model_name(cfg, f)) for f in models}
    inputs |= {place: _source_fingerprint(place) for place in _external(cfg, name)}
    return Identity(name, __version__, redacted(config), redacted(inputs))


def plan(cfg: RunConfig) -> list[tuple[Stage, State]]:
    """Every stage of the run in order, and where it stands on storage."""
    known: dict[str, Identity] = {}
    stages = [s for s in STAGES.values() if asked_for(cfg, s.name)]
    return [(s, state_of(stage_folder(cfg, s.name), identity(cfg, s.name, known))) for s in stages]


def selected(
    steps: list[tuple[Stage, State]], first: str | None = None, only: str | None = None, last: str | None = None
) -> list[tuple[Stage, State]]:
    """The steps of a plan from stage `first` on and up to `last`, or `only` one.

    Raises:
        UserError: the run has no such stage, or one of them reads a stage that is neither done nor among them.
    """
    names = [stage.name for stage, _ in steps]
    absent = next((name for name in (first, only, last) if name and name not in names), None)
    if absent:
        raise UserError(f"this run has no stage {absent}; its stages are {', '.join(names)}")
    begin, end = names.index(only or first or names[0]), names.index(only or last or names[-1])
    chosen = steps[begin : end + 1]
    there = {stage.name for stage, state in steps if state == "done"} | {stage.name for stage, _ in chosen}
    for stage, _ in chosen:
        missing = [need for need in stage.needs if need in names and need not in there]
        if missing:
            raise UserError(
                f"stage {stage.name} reads {missing[0]}, which is not done for this config; "
                f"run with --from {missing[0]}, or without --from and --only"
            )
    return chosen


def _model_name(cfg: RunConfig, field: str) -> str:
    return str(getattr(cfg.models, field) or cfg.models.base)


def _model_fingerprint(name: str) -> str:
    try:
        return external_fingerprint(str(resolve_model(name)), ".safetensors")
    except UserError:
        if "/" not in name:
            raise
        return name  # a hub id that the nodes load themselves


def _external(cfg: RunConfig, name: str) -> list[str]:
    """Files and folders outside the run's storage that a stage reads."""
    if name == "corpus":
        return [s.path for s in cfg.corpus.sources]
    if name == "synthesize":
        return [cfg.synthesize.personas] if cfg.synthesize else []
    if name == "labelled":
        places = [one.path for one in chosen_sets(cfg.labelled).values()]
        return [place for place in places if not cfg.labelled.skip_missing or _is_there(place)]
    if name in ("filter", "mine"):
        models = [cfg.filter.model] if name == "filter" else [cfg.mine.model]
        models += [cfg.mine.veto.model] if name == "mine" and cfg.mine.veto else []
        return [model if is_endpoint(model) else str(resolve_model(model)) for model in models if model != "weak"]
    if name in ("reranker", _RERANKER_WEAK):
        section = getattr(cfg, name)
        return [str(resolve_model(section.teacher.model))] if section and section.teacher else []
    dataset = {"evaluate": cfg.evaluate.dataset, "index": cfg.index.source}.get(name, "heldout")
    return [] if dataset in ("heldout", "passages") else [dataset]


def _is_there(place: str) -> bool:
    try:
        _source_fingerprint(place)
    except UserError:
        return False
    return True


def _source_fingerprint(place: str) -> str:
    words = {"stdlib": "stdlib", "site-packages": "purelib"}
    if place in words:
        return external_fingerprint(sysconfig.get_paths()[words[place]], ".py")
    if any(c in place for c in "*?[") or place.startswith("hf://") or is_endpoint(place):
        return place
    return external_fingerprint(place)
