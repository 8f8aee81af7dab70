"""Fixtures that several tests share: real data beside the repository, a tiny Qwen3 model, an S3 server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs as pafs

ROOT = Path(__file__).resolve().parent.parent
MOTO = ROOT / ".venv-s3"

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ORDINARY_ADDED_TOKENS = ["<think>", "</think>"]  # not special, as in Qwen3: decoding keeps them

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# What the tokenizer learns its merges from; yes and no are frequent enough to become one token each.
TRAINING_TEXT = [
    "Instruct: Given a web search query, retrieve relevant passages that answer the query",
    "Query: how do I read a file line by line in Python?",
    "The query and the document are texts; the model answers yes or no.",
    "def read(path): return open(path).read()",
    "Return the lines of the file as a list, with line endings removed.",
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided.",
    "system\nuser\nassistant\n",
    "Wie öffnet man eine Datei? 如何打开文件? Comment ouvrir un fichier ?",
    *["yes", "no"] * 50,
]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real datasets beside the repository (`../shared/data`)."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random Qwen3 causal LM in fp32, always the same: 2 layers of 64, 4 heads, 2 KV heads.

    Its byte-level BPE tokenizer knows Qwen's special tokens, and yes and no as single tokens.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config).float()
        # Weights drawn at 0.02 make all texts look alike; wider ones let attention and order matter.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer():  # type: ignore[no-untyped-def]  # transformers is imported late, so that unit tests start fast
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    bpe.train_from_iterator(TRAINING_TEXT, trainer)
    bpe.add_tokens([AddedToken(token, normalized=False) for token in ORDINARY_ADDED_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """A real S3 server (moto's) as a process of its own: what the environment must hold to use it, bucket `bucket`."""
    if not (MOTO / "moto").is_dir():
        pytest.skip("no S3 server: run `make s3`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "--port", str(port)]
    server = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(MOTO)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        _wait_for(server, port)
        _bucket(port)
        yield environment
    finally:
        server.kill()
        server.wait()


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server did not start (exit code {server.poll()})")


def _bucket(port: int) -> None:
    made = pafs.S3FileSystem(
        access_key="tester",
        secret_key="none",
        endpoint_override=f"127.0.0.1:{port}",
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    made.create_dir("bucket")


@pytest.fixture
def s3_here(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """This process and those it starts use that server for every `s3://`."""
    for key, value in s3.items():
        monkeypatch.setenv(key, value)
