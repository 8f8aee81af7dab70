"""The same text gives the same vector in our engine, in sentence-transformers and in vLLM, in fp32 within 1e-4."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qwen3emb.errors import UserError
from qwen3emb.model.contract import Contract
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.export import export_embedding
from qwen3emb.model.fetch import resolve_model

pytestmark = pytest.mark.integration

INSTRUCTION = "Given a question, find the function"
TEXTS = ["how do I read a file?", "def read(path):\n    return open(path).read()", "a much longer text " * 20]

VLLM = """
import json, sys
from vllm import LLM
texts = json.load(sys.stdin)
llm = LLM(sys.argv[1], runner="pooling", dtype="float32", enforce_eager=True, max_model_len=512)
print("VECTORS" + json.dumps([list(map(float, o.outputs.embedding)) for o in llm.embed(texts)]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        base = resolve_model("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(f"needs real weights: {error}")
    folder = tmp_path_factory.mktemp("smollm2")
    encoder = Encoder(base, end_token="<|im_end|>", dtype="float32")
    contract = Contract("embedding", INSTRUCTION, "<|im_end|>", 8192, encoder.dimensions)
    tokenizer, trunk = encoder.template.tokenizer, encoder.trunk
    export_embedding(folder, trunk.state_dict(), trunk.config, tokenizer, contract)
    return folder


def test_vllm_and_sentence_transformers_give_our_vectors(exported: Path) -> None:
    prompted = [f"Instruct: {INSTRUCTION}\nQuery:{text}" for text in TEXTS]
    with ThreadPoolExecutor(1) as beside:
        served = beside.submit(vllm_vectors, exported, [*prompted, *TEXTS])
        queries, documents = ours_and_theirs(exported)
    np.testing.assert_allclose(np.concatenate([queries, documents]), served.result(), atol=1e-4)


def ours_and_theirs(exported: Path) -> tuple[np.ndarray, np.ndarray]:
    """Our vectors of the texts as queries and as documents, compared with those of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    encoder = Encoder(exported, dtype="float32")
    queries = encoder.encode(TEXTS, max_tokens=512, instruction=INSTRUCTION)
    documents = encoder.encode(TEXTS, max_tokens=512)
    theirs = SentenceTransformer(str(exported), device="cpu", model_kwargs={"dtype": "float32"})
    np.testing.assert_allclose(queries, theirs.encode(TEXTS, prompt_name="query"), atol=1e-4)
    np.testing.assert_allclose(documents, theirs.encode(TEXTS, prompt_name="document"), atol=1e-4)
    return queries, documents


def vllm_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """vLLM in a process of its own: its engine must not share ours' threads."""
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", VLLM, str(folder)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | environment,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("VECTORS")]
    assert lines, done.stderr[-3000:]
    return np.array(json.loads(lines[0].removeprefix("VECTORS")))
