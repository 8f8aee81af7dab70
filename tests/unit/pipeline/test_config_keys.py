"""Every key of the config: that a test knows it, that it parses, and which stages a change of it makes `different`.

`KEYS` is written by hand: for each key another value than that of `run_of`, and the first stage that reads it ("" where
none does: where and how fast a stage runs is not what it writes). `AFTER` says who reads that stage.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from qwen3emb.config.run import RunConfig, _section_type
from qwen3emb.core.artifact import Identity
from qwen3emb.pipeline.stages import STAGES, identity

LAST = {"merge", "evaluate", "index"}
TRAINED = {"supervised", "reranker_weak", "reranker", "distill"} | LAST
AFTER = {
    "": set(),
    "corpus": set(STAGES),
    "synthesize": {"synthesize", "weak", "filter", "mine"} | TRAINED,
    "asked": {"synthesize", "weak", "filter", "labelled", "mine"} | TRAINED,  # no row may be like an asked passage
    "weak": {"weak", "filter", "mine"} | TRAINED,
    "filter": {"filter", "mine"} | TRAINED,
    "labelled": {"labelled", "mine"} | TRAINED,
    "mine": {"mine"} | TRAINED,
    "held out": {"labelled", "synthesize", "weak", "filter", "mine"} | TRAINED,
    "supervised": {"supervised", "distill"} | LAST,
    "reranker_weak": {"reranker_weak", "reranker", "distill"} | LAST,
    "reranker": {"reranker", "distill"} | LAST,
    "distill": {"distill"} | LAST,
    "merge": LAST,
    "evaluate": {"evaluate"},
    "index": {"index"},
}

OPTIMIZER = {
    **{"lr": 1e-5, "warmup_steps": 5, "schedule": "wsd", "min_lr_ratio": 0.2, "decay_share": 0.3, "weight_decay": 0.02},
    **{"betas": [0.9, 0.99], "max_grad_norm": 2.0, "zero_stage": 3, "offload": True, "dtype": "float32"},
    "gradient_dtype": "float32",
}
LORA = {"rank": 8, "alpha": 8, "dropout": 0.1, "modules": ["q_proj"]}
LOSS = {
    **{"temperature": 0.02, "margin": 0.2, "query_query": False, "document_document": False, "in_batch_hard": False},
    **{"mask_identical": False, "mrl_dims": [16], "mrl_weights": [0.5], "hardness": 5.0, "spread_out": 0.5},
}
OFF = ("query_query", "document_document")
"""Terms of the loss that the supervised stage leaves out by default."""
TRAINING = {
    **{"steps": 2, "checkpoint_every": 1, "keep_checkpoints": 2, "max_bad_steps": 1, "stop_after": 1},
    **{f"optimizer.{key}": value for key, value in OPTIMIZER.items()},
    **{f"lora.{key}": value for key, value in LORA.items()},
}
SPEED = {
    **{"num_workers": 3, "threads": 2, "max_failures": 1, "activation_checkpointing": True},
    **{"token_budget": 512, "pack_tokens": 512, "resume_every": 2},
}
EMBEDDING = {
    **TRAINING,
    **{"batch_size": 8, "max_query_tokens": 32, "max_document_tokens": 128, "hard_negatives": 1, "synthetic": False},
    **{f"loss.{key}": value for key, value in LOSS.items()},
    **{"datasets.weight": 2.0, "datasets.task": "sts", "datasets.instruction": "Find", "datasets.hard_negatives": 1},
    **{"datasets.max_query_tokens": 16, "datasets.max_document_tokens": 64, "mixture_temperature": 2.0},
    **{f"datasets.loss.{key}": value for key, value in LOSS.items()},
    **{"teacher.model": "other", "teacher.weight": 0.4, "teacher.temperature": 2.0},
}
SUPERVISED = {
    **EMBEDDING,
    **{f"{place}.{key}": True for place in ("loss", "datasets.loss") for key in OFF},
    "curriculum": "hardness",
}
EMBEDDING_SPEED = {**SPEED, "loss_tile": 16, "teacher.workers": 2}
RERANKER = {
    **TRAINING,
    **{"queries_per_step": 2, "negatives": 3, "max_query_tokens": 32, "max_tokens": 256, "validation_queries": 9},
    **{"start": "other", "loss": "sft", "random_negatives": 2},
    **{"teacher.model": "other", "teacher.weight": 0.4, "teacher.temperature": 2.0},
}
RERANKER_SPEED = {**SPEED, "teacher.workers": 2}


def of(section: str, keys: dict[str, Any], reader: str | None = None) -> dict[str, tuple[Any, str]]:
    """Keys of a section, which are first read by its stage or by `reader`."""
    return {f"{section}.{key}": (value, section if reader is None else reader) for key, value in keys.items()}


KEYS: dict[str, tuple[Any, str]] = {
    **{"name": ("other", ""), "storage": ("/elsewhere", ""), "seed": (1, "corpus")},
    **of("cluster", {"address": "auto", "num_cpus": 16, "gpus_per_worker": 1}, ""),
    **of("models", {"generator": "other", "retrieval": "other"}, "synthesize"),
    **of("models", {"base": "larger", "end_token": "<|im_end|>", "instruction": "Find"}, "weak"),
    **of("models", {"reranker_base": "other"}, "reranker_weak"),
    **of("corpus.sources", {"kind": "markdown", "path": "more", "language": "de", "language_field": "l"}, "corpus"),
    **of("corpus.sources", {"text_field": "t", "title_field": "u", "id_field": "i", "max_files": 1}, "corpus"),
    **of("corpus", {"tokenizer": "other", "max_tokens": 128, "overlap_tokens": 2, "min_words": 3}),
    **of("corpus", {"near_duplicate": 0.7, "max_passages": 9, "max_pairs": 9, "dev_share": 0.1, "heldout_share": 0.1}),
    **of("corpus", {"max_dev_queries": 9, "max_dev_documents": 9, "max_heldout_queries": 9}),
    **of("corpus", {"max_heldout_documents": 9}),
    **of("corpus", {"workers": 3}, ""),
    **of("synthesize", {"personas": "others.jsonl", "max_passages": 9, "candidates": 3, "queries_per_passage": 2}),
    **of("synthesize", {"tasks": {"sts": 1.0}, "label_sets": {"tone": ["a", "b"]}, "label_sets_share": 0.5}),
    **of("synthesize", {"prompt_order": "passage_last", "languages": {"German": 1.0}, "words": {"3-5": 1.0}}),
    **of("synthesize", {"max_passage_tokens": 99, "max_model_len": 999, "max_query_tokens": 9, "temperature": 0.1}),
    **of("synthesize", {"top_p": 0.5, "max_retries": 2, "tensor_parallel": 2, "dtype": "float32"}),
    **of("synthesize", {"rows_per_block": 9}),
    **of("synthesize.gates", {"language": False, "language_confidence": 0.5, "length_tolerance": 0.1}, "synthesize"),
    **of("synthesize.gates", {"copied_share": 0.5, "refusals": False, "placeholders": False}, "synthesize"),
    **of("synthesize.gates", {"question_type": False}, "synthesize"),
    **of("synthesize.gates", {"near_duplicate_query": 0.5, "heldout_share": 0.4}, "synthesize"),
    **of("synthesize.evaluation", {"dev_queries": 9, "heldout_queries": 9, "passages_per_query": 2.0}, "asked"),
    **of("synthesize.evaluation", {"drafts": 2, "copied_share": 0.1, "found_within": 9}, "synthesize"),
    **of("synthesize", {"engines": 2, "kv_cache_gb": 2.0, "threads": 2, "max_num_seqs": 2, "batch_size": 2}, ""),
    **of("synthesize", {"reader_gpus": 1}, ""),
    **of("weak", EMBEDDING),
    **of("weak", EMBEDDING_SPEED, ""),
    **of("filter", {"model": "other", "threshold": 0.5, "keep_share": 0.5, "round_trip": 3, "sample": 9}),
    **of("filter", {"max_tokens": 99, "bins": 9}),
    **of("filter", {"workers": 3}, ""),
    **of("labelled.sets", {"path": "others.jsonl", "format": "columns", "kind": "jsonl", "split": "dev"}, "labelled"),
    **of("labelled.sets.columns", {"query": "q", "positive": "p", "negatives": ["n"], "grade": "g"}, "labelled"),
    **of("labelled.sets.columns", {"label": "l"}, "labelled"),
    **of("labelled.sets", {"task": "sts", "instruction": "Find", "languages": ["en"], "licence": "MIT"}, "labelled"),
    **of("labelled.sets", {"homepage": "h", "max_rows": 9, "max_positives": 2, "max_negatives": 3}, "labelled"),
    **of("labelled.sets", {"min_grade": 0.5}, "labelled"),
    **of("labelled.sets", {"max_heldout_queries": 9, "max_dev_queries": 9}, "labelled"),
    **of("labelled.sets", {"heldout_share": 0.1, "dev_share": 0.1}, "held out"),  # no pair may be like such a query
    **of("labelled.sets", {"mine": False}, "mine"),
    **of("labelled.sets", {"weight": 2.0}, "supervised"),
    **of("labelled", {"use": [], "skip_missing": True, "decontaminate": 0.5, "decontaminate_ngrams": 0.4}),
    **of("labelled", {"catalogue": "copy.yaml"}, ""),  # the sets it gives are read, not the file
    **of("mine", {"model": "other", "negatives": 7, "top_k": 90, "skip_top": 1, "min_positive": 0.1, "margin": 0.1}),
    **of("mine", {"relative_margin": 0.05, "max_tokens": 99}),
    **of("mine.veto", {"model": "other", "above": 0.6, "candidates": 3, "max_tokens": 99}, "mine"),
    **of("mine", {"workers": 3, "shard_rows": 99}, ""),
    **of("supervised", SUPERVISED),
    **of("supervised.datasets", {"instruction": "Find"}, "filter"),  # asks with it before it is trained with
    **of("supervised", EMBEDDING_SPEED, ""),
    **of("distill", SUPERVISED | {"teacher.candidates": 2}),
    **of("distill", EMBEDDING_SPEED, ""),
    **of("reranker_weak", RERANKER),
    **of("reranker_weak", RERANKER_SPEED, ""),
    **of("reranker", RERANKER),
    **of("reranker", RERANKER_SPEED, ""),
    **of("merge", {"method": "cocktail", "on": "weights", "last": 3, "weights": [1.0, 2.0], "search": True}),
    **of("merge", {"keep": "best", "candidates": ["slerp"]}),
    **of("merge", {"probe_rows": 9, "temperature": 2.0, "probe_steps": 2, "probe_lr": 0.2}),
    **of("evaluate", {"dataset": "beir", "split": "dev", "compare": ["base"], "max_query_tokens": 32}),
    **of("evaluate", {"max_document_tokens": 99, "rerank_top": 9, "rerank_max_tokens": 99, "rerank_weight": 0.5}),
    **of("evaluate", {"rerank_dev_top": 9, "recall_at": [5], "few_rows": 9, "vectors": ["int8@8"], "rescore": 2}),
    **of("evaluate", {"workers": 3}, ""),
    **of("index", {"source": "beir", "max_tokens": 99, "vectors": "int8", "dimensions": 8, "rescore": 2}),
    **of("index", {"workers": 3}, ""),
    **of("serve", {"host": "0.0.0.0", "port": 9000, "embedder_replicas": 2, "reranker_replicas": 2}, ""),
    **of("serve", {"max_query_tokens": 99, "max_document_tokens": 99, "max_batch_size": 2, "batch_wait_s": 0.1}, ""),
    **of("serve", {"max_queued_requests": 9, "threads": 2, "num_gpus": 1.0}, ""),
}

FILES = {"others.jsonl", "more", "beir", "copy.yaml"}
MODELS = ("generator", "base", "retrieval", "reranker_base", "teacher", "veto", "other", "larger")


def run_of(folder: Path) -> dict[str, Any]:
    """A run with every section, each model in a folder of its own."""
    models = {name: str(folder / name) for name in MODELS}
    training = {"steps": 1, "optimizer": {"zero_stage": 2}, "lora": {}}
    embedding = {**training, "datasets": {"synthetic": {"loss": {"mrl_dims": [8]}}}, "loss": {"mrl_dims": [8]}}
    reranker = {**training, "negatives": 2, "teacher": {"model": models["teacher"]}}
    taught = embedding | {"teacher": {"model": models["teacher"]}}
    return {
        "name": "small",
        "storage": str(folder / "run"),
        "models": {name: models[name] for name in MODELS[:4]},
        "corpus": {"sources": [{"kind": "text", "path": str(folder / "texts")}]},
        "synthesize": {"personas": str(folder / "personas.jsonl")},
        "weak": copy.deepcopy(taught),
        "labelled": {
            "sets": {"pairs": {"path": str(folder / "pairs.jsonl")}},
            "catalogue": str(folder / "sets.yaml"),
            "use": ["extra"],
        },
        "mine": {"veto": {"model": models["veto"]}, "top_k": 100},
        "supervised": copy.deepcopy(taught),
        "reranker_weak": copy.deepcopy(reranker),
        "reranker": copy.deepcopy(reranker),
        "distill": copy.deepcopy(embedding),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `run_of` names."""
    folder = tmp_path_factory.mktemp("keys")
    for name in MODELS:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
        (folder / name / "tokenizer.json").write_text("{}" if name != "other" else '{"version": 2}')
        (folder / name / "model.safetensors").write_text(name)
    for name in ("texts", "more", "beir"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text(name)
        (folder / name / "a.md").write_text(name)
    (folder / "more" / "b.txt").write_text("more")
    for name in ("personas.jsonl", "pairs.jsonl", "others.jsonl", "extra.jsonl"):
        (folder / name).write_text(f'{{"persona": "{name}"}}\n')
    for name in ("sets.yaml", "copy.yaml"):
        (folder / name).write_text(f"extra: {{path: {folder}/extra.jsonl}}\n")
    return folder


def leaves(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every key that holds a value, dotted."""
    found: list[str] = []
    for name in model.model_fields:
        section = _section_type(model, name) or _listed(model, name)
        found += leaves(section, f"{prefix}{name}.") if section else [prefix + name]
    return found


def _listed(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section class inside a list or dictionary."""
    inside = getattr(model.model_fields[name].annotation, "__args__", ())
    return next((c for c in inside if isinstance(c, type) and issubclass(c, BaseModel)), None)


def identities(raw: dict[str, Any]) -> dict[str, Identity]:
    cfg, known = RunConfig.model_validate(raw), dict[str, Identity]()
    return {name: identity(cfg, name, known) for name in STAGES}


def with_key(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(raw)
    one = {"sources": 0, "sets": "pairs", "datasets": "synthetic"}
    *parents, last = key.split(".")
    node: Any = changed
    for part in parents:
        node = node.setdefault(part, {})
        node = node[one[part]] if part in one else node
    node[last] = value
    return changed


def test_every_key_is_in_the_table() -> None:
    missing, gone = set(leaves()) - set(KEYS), set(KEYS) - set(leaves())
    assert not missing, f"add a line to KEYS for {sorted(missing)}: another value, and the first stage that reads it"
    assert not gone, f"these keys are no longer there, remove their lines from KEYS: {sorted(gone)}"


@pytest.fixture(scope="module")
def before(files: Path) -> dict[str, Identity]:
    return identities(run_of(files))


@pytest.mark.parametrize("key", KEYS)
def test_a_key_makes_different_what_reads_it_and_nothing_else(
    key: str, files: Path, before: dict[str, Identity]
) -> None:
    value, reader = KEYS[key]
    place = str(files / str(value)) if value in [*FILES, *MODELS] and key != "name" else value
    after = identities(with_key(run_of(files), key, place))
    assert {name for name in STAGES if before[name].fingerprint != after[name].fingerprint} == AFTER[reader]


UNTESTED = {
    # Keys whose effect no other test looks at yet. Write one and remove the name; the list only grows shorter.
    *("batch_wait_s", "betas", "decontaminate", "decontaminate_ngrams"),
    *("keep_checkpoints", "language_confidence", "loss_tile", "max_bad_steps", "max_batch_size"),
    *("max_dev_documents", "max_grad_norm", "max_num_seqs", "max_rows", "mixture_temperature"),
}


def test_every_key_is_named_by_a_test_besides_this_table() -> None:
    tests = Path(__file__).parents[2]
    text = "\n".join(f.read_text(encoding="utf-8") for f in tests.rglob("*.py") if f != Path(__file__))
    words = set(re.findall(r"\w+", text))
    unnamed = {key.rpartition(".")[2] for key in leaves()} - words
    assert unnamed <= UNTESTED, f"no test names {sorted(unnamed - UNTESTED)}: test what they do, by their names"
    assert unnamed >= UNTESTED, f"a test names {sorted(UNTESTED - unnamed)} now: take them out of UNTESTED"


def test_the_table_is_no_copy_of_the_defaults(files: Path) -> None:
    run = json.loads(RunConfig.model_validate(run_of(files)).model_dump_json())
    for key, (value, _) in KEYS.items():
        node: Any = run
        one = {"sources": 0, "sets": "pairs", "datasets": "synthetic"}
        for part in key.split("."):
            node = node[part] if not (part in one and isinstance(node[part], list | dict)) else node[part][one[part]]
        assert node != value, key
