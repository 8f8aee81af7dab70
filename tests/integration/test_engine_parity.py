"""The same text has the same vector, and the same pair the same score, in our engine, sentence-transformers, vLLM and
transformers 4: in fp32 within 1e-4, in bf16 with a cosine of 0.999 and within 0.02."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen3emb.core.errors import UserError
from qwen3emb.export.export import export_embedding, export_reranker, export_sequence_classifier
from qwen3emb.model.contract import Contract
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.fetch import resolve_model
from qwen3emb.model.loading import load_causal, load_tokenizer
from qwen3emb.model.packing import pack
from qwen3emb.model.reranker import Reranker, answer_states, rerank_tree
from qwen3emb.text.templates import RerankTemplate
from tests.integration.other_engines import LEGACY, transformers_4, vllm

pytestmark = pytest.mark.integration

INSTRUCTION = "Given a question, find the function"
TEXTS = ["how do I read a file?", "def read(path):\n    return open(path).read()", "a much longer text " * 40]
QUERY = "read the lines of a file"
DOCUMENTS = ["def lines(path):\n    return open(path).readlines()", "import os", "yes " * 60, "The mail comes at nine."]
DTYPES = ["float32", "bfloat16"]
needs_legacy = pytest.mark.skipif(not (LEGACY / "transformers").is_dir(), reason="no transformers 4: run `make legacy`")


@dataclass(frozen=True)
class Exported:
    """An embedding model, a reranker and its one-label form, and what other engines are asked about them."""

    embedding: Path
    reranker: Path
    classifier: Path

    def order(self) -> dict[str, Any]:
        template = Reranker(self.reranker, dtype="float32").template
        prefix = template.prefix(QUERY, INSTRUCTION)
        inputs = [[*prefix, *leaf] for leaf in template.leaves(DOCUMENTS, 512)]
        folders = {name: str(getattr(self, name)) for name in ("embedding", "reranker", "classifier")}
        texts = [*(f"Instruct: {INSTRUCTION}\nQuery:{text}" for text in TEXTS), *TEXTS]
        return folders | {"dtypes": DTYPES, "texts": texts, "inputs": inputs, "answers": template.yes_no}


def export(base: Path, folder: Path, theta: float | None = None) -> Exported:
    """All three forms of a base model whose answers differ from document to document."""
    model, tokenizer = load_causal(base, "float32"), load_tokenizer(base)
    config = model.config
    if theta is not None:
        config.rope_parameters["rope_theta"] = theta
    end = "<|im_end|>"
    trunk = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    contract = Contract("embedding", INSTRUCTION, end, 1024, config.hidden_size)
    export_embedding(folder / "embedding", trunk, config, tokenizer, contract)
    spread_answers(model, tokenizer)
    reranker = Contract("reranker", INSTRUCTION, "", 1024)
    export_reranker(folder / "reranker", model.state_dict(), config, tokenizer, reranker)
    export_sequence_classifier(folder / "reranker", folder / "classifier")
    return Exported(*(folder / name for name in ("embedding", "reranker", "classifier")))


def spread_answers(model: Any, tokenizer: Any) -> None:
    """Turn the row of "yes" so that the documents' scores lie apart: an untrained model gives all about the same."""
    template = RerankTemplate(tokenizer)
    yes, no = template.yes_no
    tree = rerank_tree(template, QUERY, DOCUMENTS, max_tokens=512, instruction=INSTRUCTION)
    with torch.no_grad():
        states = answer_states(model, pack([tree]))
        middle = states.mean(dim=0)
        across = torch.linalg.svd(states - middle).Vh[0]
        across -= (across @ middle) / (middle @ middle) * middle
        rows = model.get_input_embeddings().weight
        rows[yes] = rows[no] + 1.5 * across / (states @ across).abs().max()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    try:
        base = resolve_model("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(f"needs real weights: {error}")
    return export(base, tmp_path_factory.mktemp("smollm2"))


def ours(exported: Exported) -> dict[str, dict[str, np.ndarray]]:
    """Our vectors (as queries, then as documents) and scores, by dtype."""
    found = {}
    for dtype in DTYPES:
        encoder, judge = Encoder(exported.embedding, dtype=dtype), Reranker(exported.reranker, dtype=dtype)
        queries = encoder.encode(TEXTS, max_tokens=512, instruction=INSTRUCTION)
        vectors = np.concatenate([queries, encoder.encode(TEXTS, max_tokens=512)])
        found[dtype] = {"vectors": vectors, "scores": judge.score(QUERY, DOCUMENTS, max_tokens=512)}
    return found


def check(found: dict[str, Any], wanted: dict[str, dict[str, np.ndarray]]) -> None:
    """Vectors and scores of another engine against ours, each dtype with its own."""
    exact = wanted["float32"]["scores"]
    assert np.ptp(exact) > 0.1, "the documents' scores are too near to each other to test their order"
    for dtype in DTYPES:
        theirs, here = np.array(found[dtype]["vectors"]), wanted[dtype]
        if dtype == "float32":
            np.testing.assert_allclose(theirs, here["vectors"], atol=1e-4)
        cosines = (theirs * here["vectors"]).sum(axis=1) / np.linalg.norm(theirs, axis=1)
        assert cosines.min() >= 0.999, (dtype, cosines)
        for form in {"scores", "classified"} & found[dtype].keys():
            scores = np.array(found[dtype][form])
            # Eight bits of mantissa in every product: on one Intel CPU two libraries are 0.0200 apart, on AMD less.
            assert np.abs(scores - here["scores"]).max() <= (1e-4 if dtype == "float32" else 0.025), (dtype, form)
            clear = np.abs(exact[:, None] - exact[None]) > 0.02
            order = np.sign(scores[:, None] - scores[None]) == np.sign(exact[:, None] - exact[None])
            assert order[clear].all(), (dtype, form, scores, exact)


def test_all_engines_give_our_vectors_and_scores(exported: Exported) -> None:
    from sentence_transformers import SentenceTransformer

    with ThreadPoolExecutor(1) as beside:
        served = beside.submit(vllm, exported.order())
        wanted = ours(exported)
        found: dict[str, Any] = {}
        for dtype in DTYPES:
            theirs = SentenceTransformer(str(exported.embedding), device="cpu", model_kwargs={"dtype": dtype})
            sides = [theirs.encode(TEXTS, prompt_name=name) for name in ("query", "document")]
            found[dtype] = {"vectors": np.concatenate(sides).astype(np.float32)}
        check(found, wanted)
        check(served.result(), wanted)


@needs_legacy
def test_transformers_4_gives_our_vectors_and_scores(exported: Exported) -> None:
    found = transformers_4(exported.order())
    assert found["version"].startswith("4.57")
    check(found, ours(exported))


@needs_legacy
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_transformers_4_reads_what_it_knows_by_other_names(family: str, tiny_qwen3: Path, tmp_path: Path) -> None:
    base = tiny_qwen3 if family == "qwen3" else tiny_llama(tiny_qwen3, tmp_path / "base")
    exported = export(base, tmp_path, theta=1e6)
    wanted = ours(exported)
    order = exported.order()
    vectors = np.array(transformers_4(order)["float32"]["vectors"])
    np.testing.assert_allclose(vectors, wanted["float32"]["vectors"], atol=1e-4)
    tokenizer = load_tokenizer(exported.embedding)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start in tokenizer.all_special_ids, "transformers 5 lost a special token under its old name"

    # It reads the angle of the positions by its old name: without that, long texts differ.
    file = exported.embedding / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in config.items() if k != "rope_theta"}))
    without = np.array(transformers_4(order | {"reranker": None})["float32"]["vectors"])
    assert np.abs(without - vectors).max() > 1e-3


def tiny_llama(tokenizer_from: Path, folder: Path) -> Path:
    """A random Llama with the tokenizer of the tiny Qwen3."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(tokenizer_from)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=len(tokenizer), tie_word_embeddings=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
