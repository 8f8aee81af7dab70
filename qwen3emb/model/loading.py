"""Loading decoders with the packed attention: the trunk for embeddings, the causal LM for the reranker."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from qwen3emb.core.cores import fast_bfloat16
from qwen3emb.core.errors import UserError
from qwen3emb.model.attention import ATTENTION_NAME, register_attention
from qwen3emb.model.fetch import has_weights
from qwen3emb.model.shortcuts import add_shortcuts
from qwen3emb.model.weight_names import renamings, require_complete, stored_names

__all__ = [
    "compute_dtype",
    "dtype_of",
    "load_causal",
    "load_tokenizer",
    "load_trunk",
    "quiet_loading",
    "replace_trunk",
    "require_vocabulary",
    "stored_dtype",
]

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def stored_dtype(model_dir: Path) -> str:
    """The dtype a model directory's weights are stored in, `bfloat16` where its config does not say."""
    config = _config_file(model_dir)
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def compute_dtype(model_dir: Path, device: torch.device) -> str:
    """The dtype that a stored model is computed in: as stored, or float32 on a CPU that is slow in 16 bits.

    float32 holds every 16-bit number, so the weights are the same and only products are rounded less.
    """
    stored = stored_dtype(model_dir)
    fast = device.type != "cpu" or (stored == "bfloat16" and fast_bfloat16())
    return stored if fast else "float32"


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype of a config value.

    Raises:
        UserError: no such dtype.
    """
    if name not in _DTYPES:
        raise UserError(f"dtype {name!r}: expected one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def load_tokenizer(model_dir: Path | str) -> Any:
    """The tokenizer of a model directory (or hub id); code inside the directory never runs.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{model_dir}: its tokenizer cannot be loaded: {' '.join(str(error).split())}") from error
    if len(tokenizer) <= len(tokenizer.get_added_vocab()):
        # without its files transformers makes an empty one of the model's kind, for which all texts are alike
        raise UserError(f"{model_dir}: no tokenizer in it; copy tokenizer.json there from the model's own directory")
    return tokenizer


def load_trunk(model_dir: Path, dtype: str) -> Any:
    """The decoder without language-model head, in eval mode, with packed attention.

    Raises:
        UserError: no safetensors weights, or not exactly those of the model.
    """
    from transformers import AutoModel

    return _load(AutoModel, model_dir, dtype, trunk=True)


def load_causal(model_dir: Path, dtype: str) -> Any:
    """The decoder with language-model head, in eval mode, with packed attention.

    Raises:
        UserError: no safetensors weights, not exactly those of the model, or those of a sequence classifier.
    """
    from transformers import AutoModelForCausalLM

    if any(name.endswith("ForSequenceClassification") for name in _architectures(model_dir)):
        # its language-model head is not in it
        raise UserError(f"{model_dir}: a one-label sequence classifier; name the reranker directory above it")
    model = _load(AutoModelForCausalLM, model_dir, dtype, trunk=False)
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and head is not embeddings:
        # transformers keeps both, the exports and other engines one of them
        raise UserError(
            f"{model_dir}: its config.json says that embeddings and language-model head are one tensor, but its files "
            "hold two that differ; set tie_word_embeddings to false there"
        )
    return model


def replace_trunk(model: Any, trunk_dir: Path, dtype: str) -> None:
    """Give a causal LM the weights of another trunk of its architecture; its language-model head stays.

    Where head and embeddings are one tensor they stay one: it is the trunk's then.

    Args:
        model: of `load_causal`; changed in place.
        trunk_dir: model directory, e.g. of an embedding model.
        dtype: as the model was loaded with.

    Raises:
        UserError: the trunk cannot be loaded, or is of another architecture.
    """
    weights = load_trunk(trunk_dir, dtype).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.model.state_dict().items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
        raise UserError(
            f"{trunk_dir}: its trunk is not of the reranker base's architecture; set reranker.start to base, or "
            "models.reranker_base to the model that the embedding model was trained from"
        )
    model.model.load_state_dict(weights)


def _architectures(model_dir: Path) -> list[str]:
    return _config_file(model_dir).get("architectures") or [] if (model_dir / "config.json").is_file() else []


def _config_file(model_dir: Path) -> dict[str, Any]:
    with _as_user_error(model_dir, "its config.json cannot be read"):
        content = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping")
        return content


def require_vocabulary(model_dir: Path, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings: a text with such a token would end a run.

    Raises:
        UserError: a token's number is not below the number of embeddings.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise UserError(
            f"model directory {model_dir}: its tokenizer has tokens up to number {largest}, its embeddings have {rows} "
            "rows; one of them is of another model"
        )


def _load(auto: Any, model_dir: Path, dtype: str, trunk: bool) -> Any:
    if not has_weights(model_dir):
        raise UserError(f"model directory {model_dir}: no *.safetensors weights in it (pickled weights are not read)")
    config, names = _config(model_dir), stored_names(model_dir)
    if getattr(config, "quantization_config", None):
        raise UserError(f"model directory {model_dir}: it is quantised; name the model in bf16, fp16 or fp32")
    mapping = renamings(names, bool(getattr(config, "tie_word_embeddings", False)))
    register_attention()
    with _as_user_error(model_dir, "it cannot be loaded"), quiet_loading():
        model, info = auto.from_pretrained(
            model_dir,
            config=config,
            dtype=dtype_of(dtype),
            attn_implementation=ATTENTION_NAME,
            trust_remote_code=False,
            use_safetensors=True,
            key_mapping=mapping or None,
            ignore_mismatched_sizes=True,  # `require_complete` refuses them
            output_loading_info=True,
        )
    kind = type(model).__name__
    if not hasattr(getattr(model, "model", model), "layers"):
        raise UserError(f"model directory {model_dir}: {kind} is no decoder of the Qwen3 and Llama families")
    require_complete(model_dir, names, mapping, info, trunk)
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "use_bidirectional_attention", False):
        raise UserError(f"model directory {model_dir}: {kind} has attention that is capped or looks ahead")
    with _as_user_error(model_dir, f"{kind} is no decoder of the Qwen3 and Llama families"):
        add_shortcuts(model)
    return model.eval()


def _config(model_dir: Path) -> Any:
    from transformers import AutoConfig

    with _as_user_error(model_dir, "its config.json cannot be read"):
        return AutoConfig.from_pretrained(model_dir, trust_remote_code=False)


@contextmanager
def _as_user_error(model_dir: Path, problem: str) -> Iterator[None]:
    """Turn any error of a library on a damaged or foreign model directory into a `UserError` that names the directory.

    Libraries raise nearly anything there (KeyError, ZeroDivisionError, errors of their own). Errors about memory are
    passed on, since they are not the model's fault.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model directory {model_dir}: {problem} ({type(error).__name__}: {reason[:300]})") from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' report of tensors that do not fit; `require_complete` raises one sentence about them."""
    from transformers.utils import logging as library

    before = library.get_verbosity()
    library.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        library.set_verbosity(before)
