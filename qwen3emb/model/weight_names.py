"""Names of the tensors in a model directory and in the model, and the check that the directory holds all of them.

Trainers store a decoder inside wrappers, whose names stand before the decoder's (`encoder.model.layers.0...`,
`base_model.model.`, `0.auto_model.`, `module.`). transformers knows none of them: it would draw every parameter at
random and only log it. Therefore the prefix before `layers.` is removed, and a model with missing, unknown or
misshaped tensors is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from qwen3emb.core.errors import UserError

__all__ = ["renamed", "renamings", "require_complete", "stored_names"]

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PREFIX = re.compile(r"(.*?)layers\.\d+\.")
_HEAD = re.compile(r"(.+\.)?lm_head\.(weight|bias)")
_EMBEDDINGS = "embed_tokens.weight"
_OF_NO_TRUNK = re.compile(r"(lm_head|score)\.(weight|bias)")  # heads of a causal LM and of a sequence classifier
_SHOWN = 3


def stored_names(model_dir: Path) -> list[str]:
    """Names of the tensors in the files that transformers reads, from their headers alone.

    Raises:
        UserError: there are none, one of them is missing or cannot be read, or an adapter lies beside them.
    """
    if (model_dir / "adapter_config.json").is_file():
        # transformers would put the adapter's layers into the model, or load another model than this one
        raise UserError(
            f"model directory {model_dir}: it holds a PEFT adapter (adapter_config.json); merge the adapter into its "
            "base (merge_and_unload), save that, and name the folder"
        )
    names: list[str] = []
    for file in _files(model_dir):
        try:
            with safe_open(file, framework="pt") as opened:
                names += _float_names(opened, file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read ({error}); copy the model again") from error
    return names


def _float_names(opened: Any, file: Path) -> list[str]:
    """Names of a file's tensors. Integers and 8 bit floats need scales, without which their values mean nothing."""
    names: list[str] = list(opened.keys())
    for name in names:
        kind = opened.get_slice(name).get_dtype()
        if name.endswith("weight") and kind not in ("F64", "F32", "F16", "BF16"):
            raise UserError(f"{file}: {name} is stored as {kind}; name the model in bf16, fp16 or fp32")
    return names


def _files(model_dir: Path) -> list[Path]:
    if (model_dir / _WEIGHTS).is_file():
        return [model_dir / _WEIGHTS]
    index = model_dir / _INDEX
    if not index.is_file():
        others = ", ".join(sorted(file.name for file in model_dir.glob("*.safetensors"))[:_SHOWN])
        raise UserError(f"model directory {model_dir}: neither {_WEIGHTS} nor {_INDEX} in it, only {others}")
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [model_dir / str(name) for name in sorted(set(places.values()))]
        if not files:
            raise ValueError("it names no file")
        return files
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: no readable index of weights ({error}); copy the model again") from error


def renamings(names: Iterable[str], tied: bool) -> dict[str, str]:
    """Regular expressions for stored names -> replacements, for the argument `key_mapping` of `from_pretrained`.

    Args:
        names: of the stored tensors.
        tied: whether embeddings and language-model head are one tensor, which may be stored under either name.
    """
    names = list(names)
    prefixes = {match[1] for name in names if (match := _PREFIX.match(name))}
    if len(prefixes) != 1:  # none, or several models in the files: what is missing is named later
        return {}
    [prefix] = prefixes
    heads = [name for name in names if _HEAD.fullmatch(name)]
    out = {}
    if tied and heads and prefix + _EMBEDDINGS not in names:
        out = {f"^{re.escape(head)}$": f"model.{_EMBEDDINGS}" for head in heads if head.endswith("weight")}
    elif len({head.rpartition("lm_head.")[0] for head in heads}) == 1:
        out = {f"^{re.escape(head)}$": "lm_head." + head.rpartition(".")[2] for head in heads if head[:3] != "lm_"}
    return out if prefix in ("", "model.") else out | {f"^{re.escape(prefix)}": "model."}


def renamed(name: str, mapping: Mapping[str, str]) -> str:
    """The model's name of a stored tensor, by the `renamings` of its files."""
    for pattern, replacement in mapping.items():
        name = re.sub(pattern, replacement, name)
    return name


def require_complete(
    model_dir: Path, names: Iterable[str], mapping: Mapping[str, str], info: Mapping[str, Any], trunk: bool
) -> None:
    """Refuse a model whose tensors are not exactly those in its files.

    Args:
        model_dir: where it was loaded from.
        names: of the tensors stored there.
        mapping: the renamings it was loaded with.
        info: the loading info of `from_pretrained`.
        trunk: whether the model is a trunk, so that heads in its files are ignored.

    Raises:
        UserError: tensors are missing, left over, there twice, or of another shape.
    """
    if sorted(info["missing_keys"]) == ["lm_head.weight"]:
        raise UserError(
            f"model directory {model_dir}: its language-model head (lm_head.weight) is not in its files, as is usual "
            "for a model that is published for embedding; name the base causal LM that it was trained from"
        )
    heads = [name for name in info["unexpected_keys"] if trunk and _OF_NO_TRUNK.fullmatch(name)]
    require_loaded(model_dir, info, heads, _doubled(names, mapping))


def require_loaded(
    place: Path, info: Mapping[str, Any], harmless: Collection[str] = (), twice: Sequence[str] = ()
) -> None:
    """Refuse a model for which transformers drew parameters at random or ignored tensors of the files.

    Args:
        place: directory or file that was loaded.
        info: the loading info of `from_pretrained`.
        harmless: names that may be missing or left over.
        twice: names of tensors that stand for the same parameter as another one.

    Raises:
        UserError: tensors are missing, left over, there twice, or of another shape.
    """
    missing = sorted(set(info["missing_keys"]) - set(harmless))
    odd = sorted(set(info["unexpected_keys"]) - set(harmless))
    problems = []
    if missing:
        problems.append(f"{len(missing)} of the model's tensors are not in its files: {_listed(missing)}")
    if odd:
        problems.append(f"its files hold {len(odd)} tensors that the model does not know: {_listed(odd)}")
    if twice:
        problems.append(f"its files hold tensors under two names: {_listed(twice)}")
    for name, stored, wanted in sorted(info["mismatched_keys"])[:_SHOWN]:
        problems.append(f"{name} is {tuple(stored)} in its files, its config.json says {tuple(wanted)}")
    problems += map(str, info.get("error_msgs") or [])
    if problems:
        adapters = any("lora_" in name for name in odd)
        todo = "merge the adapter into its base first" if adapters else "name a directory that holds the whole model"
        raise UserError(f"model directory {place}: {'; '.join(problems)}; {todo}")


def _doubled(names: Iterable[str], mapping: Mapping[str, str]) -> list[str]:
    """Stored names that stand for the same parameter as another one; which of them is loaded would be chance."""
    spelled = {name: renamed(name, mapping).removeprefix("model.") for name in names}
    counts = Counter(spelled.values())
    return sorted(name for name, parameter in spelled.items() if counts[parameter] > 1)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
