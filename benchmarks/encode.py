"""Our encoder against sentence-transformers: same model, same bf16 weights, same 256 texts, texts per second.

The texts are docstrings of the standard library, of very different lengths, in random order. Both sides read
the embedding at the same end token and cut at the same length; the benchmark stops if their vectors disagree.
"""

from __future__ import annotations

import ast
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from benchmarks.comparing import Comparison, compare, report, seconds
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.fetch import fetch_model

MODEL = "smollm2-135m-instruct"
END_TOKEN = "<|im_end|>"
TEXTS = 256
MAX_TOKENS = 256
ROUNDS = 3
THREADS = 2


def docstrings() -> Iterator[str]:
    """Docstrings of the standard library's modules, classes and functions, in the order of the files."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def mixed_texts() -> list[str]:
    """256 docstrings of at least 40 characters."""
    found = sorted({text for text in docstrings() if len(text) >= 40})
    return random.Random(0).sample(found, TEXTS)


def their_model(directory: Path) -> SentenceTransformer:
    """The same directory in sentence-transformers: last-token pooling, normalised, bf16."""
    # Without a modality config the tokenizer's chat template would be wrapped around every text.
    body = Transformer(
        str(directory),
        max_seq_length=MAX_TOKENS,
        model_kwargs={"dtype": torch.bfloat16},
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    body.tokenizer.padding_side = "left"
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[body, pooling, Normalize()], device="cpu")


def main() -> int:
    """Measure both sides and report."""
    torch.set_num_threads(THREADS)
    directory, texts = fetch_model(MODEL), mixed_texts()
    encoder, peer = Encoder(directory, end_token=END_TOKEN, dtype="bfloat16"), their_model(directory)
    # Cut here, so that the end token survives on both sides.
    ids = peer.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=MAX_TOKENS - 1)["input_ids"]
    texts = peer.tokenizer.batch_decode(ids)
    ended = [text + END_TOKEN for text in texts]

    def ours() -> np.ndarray:
        return encoder.encode(texts, max_tokens=MAX_TOKENS)

    def theirs() -> np.ndarray:
        return peer.encode(ended, batch_size=32, convert_to_numpy=True)

    worst = float((ours() * theirs().astype(np.float32)).sum(axis=1).min())
    print(
        f"encode: {sum(map(len, ids))} tokens, smallest cosine between both sides {worst:.4f}",
        file=sys.stderr,
    )
    if worst < 0.98:
        raise SystemExit(f"encode: the two sides compute different things (cosine {worst:.4f})")
    speed = Comparison("encode.texts_per_s", must=1.0, aim=1.3)
    return report([compare(speed, lambda: TEXTS / seconds(ours), lambda: TEXTS / seconds(theirs), ROUNDS, warm_up=0)])


if __name__ == "__main__":
    sys.exit(main())
