"""What a directory says is enough: other libraries open tiny exports of both families and find our vectors and scores.

Unlike in test_engine_parity, prompts, template, end token, limits and answers are read from the directory by each
library's own means: prompts and MRL of sentence-transformers, its CrossEncoder, vLLM's score runner, chat templates.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen3emb.export.export import SEQUENCE_CLASSIFIER, export_embedding, export_reranker, export_sequence_classifier
from qwen3emb.model.contract import Contract
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.reranker import Reranker
from tests.integration.other_engines import LEGACY

pytestmark = pytest.mark.integration

READERS = Path(__file__).parent / "readers"
INSTRUCTION = 'Given a "question", find the function\\method'
QUERY = "how do I read a file line by line?"
TEXTS = [
    QUERY,
    "def read(path):\n    return open(path).read()",
    "Return the lines of the file as a list, with line endings removed. " * 4,
    "yes, the query and the document are texts; " * 6,
]
TOO_LONG = ["the answer is in the first words " + "and not in the last ones " * 60, "yes"]
DOCUMENTS = ["", *TEXTS[1:], ' \n a document about <nothing> & "quotes"', "如何打开文件? " * 5]
LIMIT = 256  # tokens
FAMILIES, DTYPES = ("qwen3", "llama"), ("float32", "bfloat16")
needs_legacy = pytest.mark.skipif(not (LEGACY / "transformers").is_dir(), reason="no transformers 4: run `make legacy`")
LIBRARIES = [
    "sentence-transformers",
    "vllm",
    "transformers 5",
    pytest.param("transformers 4", marks=needs_legacy),
]
SIZES = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 1024}
THETA = {"rope_type": "default", "rope_theta": 1e6}  # no reader's default
SCALED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED |= {"original_max_position_embeddings": 256}

Job = dict[str, Any]
Answers = dict[str, np.ndarray]
Ask = Callable[[str], Answers]


@pytest.fixture(scope="module")
def exported(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder with `embedding` and `reranker`, random models in fp32."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3)
    same = SIZES | {"vocab_size": len(tokenizer), "pad_token_id": None, "bos_token_id": None, "eos_token_id": 2}
    qwen3 = Qwen3Config(**same, rope_parameters=dict(THETA), tie_word_embeddings=True)
    llama = LlamaConfig(**same, rope_parameters=dict(SCALED), tie_word_embeddings=False)
    out = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    export(out["qwen3"], Qwen3ForCausalLM, qwen3, as_qwen(tokenizer))
    export(out["llama"], LlamaForCausalLM, llama, as_llama(tokenizer))
    return out


def as_qwen(tokenizer: Any) -> Any:
    """The same words in the class of Qwen3's tokenizer."""
    from transformers import Qwen2Tokenizer

    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = {"vocab": bpe["vocab"], "merges": [tuple(pair) for pair in bpe["merges"]]}
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": ["<|im_start|>"]}
    return Qwen2Tokenizer(**words, **special)


def as_llama(tokenizer: Any) -> Any:
    """Puts a token before every text, which our inputs do not have, and knows no padding."""
    from tokenizers.processors import TemplateProcessing

    first = ("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    tokenizer.pad_token = None
    return tokenizer


def export(folder: Path, family: Any, config: Any, tokenizer: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)  # scores of both families lie far apart
        model = family(config).float()
        for parameter in model.parameters():  # wide enough for attention and order to matter
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    config.architectures = [family.__name__]  # as in a base directory
    embedding = Contract("embedding", INSTRUCTION, "<|endoftext|>", LIMIT, config.hidden_size, [32])
    export_embedding(folder / "embedding", model.model.state_dict(), config, tokenizer, embedding)
    reranker = Contract("reranker", INSTRUCTION, "", 2 * LIMIT)
    export_reranker(folder / "reranker", model.state_dict(), config, tokenizer, reranker)
    export_sequence_classifier(folder / "reranker", folder / "reranker" / SEQUENCE_CLASSIFIER)


def jobs_of(family: str, folder: Path) -> dict[str, Job]:
    """What is asked of one family, grouped by directory and dtype."""
    out: dict[str, Job] = {}
    for dtype in DTYPES:
        embedding = {"folder": str(folder / "embedding"), "dtype": dtype, "texts": TEXTS}
        out[f"{family} {dtype} query"] = embedding | {"prompt": "query"}
        out[f"{family} {dtype} document"] = embedding | {"prompt": "document"}
        out[f"{family} {dtype} cut"] = embedding | {"prompt": "document", "dimensions": 32}
        out[f"{family} {dtype} too long"] = embedding | {"prompt": "document", "texts": TOO_LONG}
        reranker = {"dtype": dtype, "query": QUERY, "documents": DOCUMENTS}
        classifier = str(folder / "reranker" / SEQUENCE_CLASSIFIER)
        out[f"{family} {dtype} classifier"] = reranker | {"folder": classifier, "form": "classifier"}
        if dtype == "float32":  # in bf16 libraries round both logits before they subtract them (docs/models.md)
            out[f"{family} {dtype} causal"] = reranker | {"folder": str(folder / "reranker"), "form": "causal"}
    return out


def asked_of_vllm(name: str) -> bool:
    """vLLM refuses texts over its limit and scores one-label models only; test_engine_parity has a Llama in bf16."""
    return not name.endswith(("causal", "too long")) and "llama bfloat16" not in name


@pytest.fixture(scope="module")
def ask(exported: dict[str, Path]) -> Ask:
    """`ask(library)`: job's name -> its vectors or scores; each library is started once."""
    jobs = {name: job for family, folder in exported.items() for name, job in jobs_of(family, folder).items()}

    @cache
    def answers(library: str) -> Answers:
        if library in ("ours", "sentence-transformers"):
            read = ours if library == "ours" else sentence_transformers
            return {name: read(job) for name, job in jobs.items()}
        if library == "vllm":
            return elsewhere("read_vllm.py", {name: job for name, job in jobs.items() if asked_of_vllm(name)})
        return elsewhere("read_transformers.py", jobs, LEGACY if library == "transformers 4" else None)

    return answers


def ours(job: Job) -> np.ndarray:
    """Our engine; it takes the causal reranker for its sequence classifier too."""
    folder = Path(job["folder"])
    if "texts" not in job:
        folder = folder.parent if job["form"] == "classifier" else folder
        return Reranker(folder, dtype=job["dtype"]).score(QUERY, DOCUMENTS, max_tokens=2 * LIMIT)
    asked = INSTRUCTION if job["prompt"] == "query" else None
    encoder = Encoder(folder, dtype=job["dtype"])
    return encoder.encode(job["texts"], max_tokens=LIMIT, instruction=asked, dimensions=job.get("dimensions"))


def sentence_transformers(job: Job) -> np.ndarray:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    opened: dict[str, Any] = {"device": "cpu", "model_kwargs": {"dtype": job["dtype"]}}
    if "texts" in job:
        model = SentenceTransformer(job["folder"], truncate_dim=job.get("dimensions"), **opened)
        vectors = model.encode(job["texts"], prompt_name=job["prompt"], normalize_embeddings=True)
        return vectors.astype(np.float32)
    pairs = [(job["query"], document) for document in job["documents"]]
    return CrossEncoder(job["folder"], **opened).predict(pairs).astype(np.float32)


def elsewhere(script: str, jobs: dict[str, Job], first: Path | None = None) -> Answers:
    """The answers of a script in a process of its own, with the packages of `first` before all others."""
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    settings |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(first or "")}
    command = [sys.executable, str(READERS / script)]
    done = subprocess.run(
        command, input=json.dumps(jobs), capture_output=True, text=True, timeout=600, env=os.environ | settings
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert first is None or said["version"].startswith("4.57."), said["version"]
    return {name: np.array(answer) for name, answer in said["answers"].items()}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_ours(library: str, family: str, ask: Ask) -> None:
    for what in ("query", "document", "cut", "too long"):
        for name in (f"{family} {dtype} {what}" for dtype in DTYPES):
            if library == "vllm" and not asked_of_vllm(name):
                continue
            mine, found = ask("ours")[name], ask(library)[name]
            cosines = (mine * found).sum(axis=1) / np.linalg.norm(found, axis=1)
            assert cosines.min() >= 0.999, (name, cosines)
            if "float32" in name:
                np.testing.assert_allclose(found, mine, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_ours(library: str, family: str, ask: Ask) -> None:
    for form in ("causal", "classifier"):
        for name in (f"{family} {dtype} {form}" for dtype in DTYPES):
            if name not in ask("ours") or (library == "vllm" and not asked_of_vllm(name)):
                continue
            mine, found = ask("ours")[name], ask(library)[name]
            assert np.ptp(mine) > 0.1, "scores too near to each other to test their order"
            tolerance = 1e-4 if "float32" in name else 0.02
            np.testing.assert_allclose(found, mine, rtol=0, atol=tolerance, err_msg=name)
            apart = np.abs(mine[:, None] - mine[None]) > tolerance
            same = np.sign(found[:, None] - found[None]) == np.sign(mine[:, None] - mine[None])
            assert same[apart].all(), (name, found, mine)


@needs_legacy
def test_the_texts_are_long_enough_to_show_a_lost_key(exported: dict[str, Path], ask: Ask, tmp_path: Path) -> None:
    """Without the keys for readers of transformers 4 their vectors are others, which the tests above would see."""
    jobs = {}
    for family, key in (("qwen3", "rope_theta"), ("llama", "rope_scaling")):
        lost = tmp_path / family / "embedding"
        shutil.copytree(exported[family] / "embedding", lost)
        config = json.loads((lost / "config.json").read_text())
        del config[key]
        (lost / "config.json").write_text(json.dumps(config))
        name = f"{family} float32 document"
        jobs[name] = jobs_of(family, lost.parent)[name]
    for name, found in elsewhere("read_transformers.py", jobs, LEGACY).items():
        assert (found * ask("ours")[name]).sum(axis=1).min() < 0.99, name
