"""Merge Hugging Face checkpoint directories tensor by tensor (paper section 2.3, RECIPE section 4).

Headers are compared before anything is written; then each tensor is read from every checkpoint, merged,
and appended to a shard: peak memory is a few tensors. The output gets its name when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qwen3emb.errors import UserError
from qwen3emb.merge.slerp import MergeReport, SlerpReport, normalise_weights, spherical_mean

__all__ = ["MergeReport", "merge_checkpoints"]

_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_EXACT = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_BYTES = _FLOATS | _EXACT
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_NOT_COPIED = _PICKLES | {".safetensors", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".npz", ".distcp"}
_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Where these differ, equal shapes still mean different computations.
_CONFIG_KEYS = (
    "architectures", "model_type", "vocab_size", "tie_word_embeddings", "num_attention_heads", "head_dim",
    "num_key_value_heads", "rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "hidden_act",
)  # fmt: skip
_SAME_FILES = ("tokenizer.json", "1_Pooling/config.json")
_Entries = dict[str, "_Entry"]


@dataclass(frozen=True)
class _Entry:
    """Where one tensor is, and what its header says."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return _BYTES[self.dtype] * math.prod(self.shape)

    def read(self) -> Tensor:
        with safe_open(self.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(self.name)
        return tensor


def merge_checkpoints(
    checkpoints: Sequence[Path],
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    base: Path | None = None,
    on: str = "weights",
    max_shard_bytes: int = 5_000_000_000,
) -> MergeReport:
    """Merge checkpoints of one model into `output` by the weighted spherical mean, tensor by tensor.

    checkpoints: local directories with model.safetensors or index and shards; weights in folders below
    (2_Dense/) are merged too. One checkpoint is copied. weights: one number >= 0 each; None is equal.
    on: "weights", or "task_vectors" (checkpoint - base; needs `base`, whose dtype may differ and whose
    names may have or lack the "model." prefix). max_shard_bytes: size at which a new shard starts.
    Other files come from the first checkpoint, except pickles, other formats of the weights and its
    artifact.json. Returns the report.
    Raises UserError for checkpoints that differ in tensors, shapes, dtypes, architecture or tokenizer,
    hold no safetensors or quantised ones, for NaN, an existing output, and a full disk.
    """
    paths, output = [Path(path) for path in checkpoints], Path(output)
    shares = normalise_weights(weights, len(paths))
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes is {max_shard_bytes}; it must be at least 1.")
    origin = _choose_base(on, base)
    _check_output(output, paths + origin)
    folders = _check_alike(paths)
    bases = {name: _read_base(root / name, parts[0]) for root in origin for name, parts in folders.items()}
    rows: list[SlerpReport] = []
    with _whole_directory(output) as partial:
        _copy_other_files(paths[0], partial)
        for folder, entries in folders.items():
            merged = _merge_folder(entries, bases.get(folder), shares, partial / folder, max_shard_bytes)
            rows += [replace(row, name=(Path(folder) / row.name).as_posix()) for row in merged]
    note = "Only one checkpoint was given: its weights are copied unchanged." if len(paths) == 1 else ""
    used_base = str(origin[0]) if origin else None
    return MergeReport(tuple(map(str, paths)), shares, on, used_base, note, tuple(rows))


def _choose_base(on: str, base: Path | None) -> list[Path]:
    if on not in ("weights", "task_vectors"):
        raise UserError(f'on is {on!r}; it must be "weights" or "task_vectors".')
    if on == "task_vectors" and base is None:
        raise UserError('on is "task_vectors" but no base is given; name the model before training.')
    return [] if on == "weights" or base is None else [Path(base)]


def _check_output(output: Path, sources: Sequence[Path]) -> None:
    target = output.resolve()
    for source in sources:
        if target.is_relative_to(source.resolve()) or source.resolve().is_relative_to(target):
            raise UserError(f"The output {output} and the input {source} overlap; choose another output.")
    empty = output.is_dir() and not output.is_symlink() and not any(output.iterdir())
    if os.path.lexists(output) and not empty:
        raise UserError(f"The output {output} exists already; choose another or remove it.")


@contextmanager
def _whole_directory(output: Path) -> Iterator[Path]:
    """Yield a directory beside output that becomes output when the block ends without an error."""
    partial = output.parent / f".{output.name}.merging"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed merge left
        partial.mkdir(parents=True)
        yield partial
        partial.rename(output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk of {output} is full; free some space and merge again.") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_other_files(root: Path, target: Path) -> None:
    """Copy the files that are not weights; hidden folders (.git, .cache) are left out."""
    for path in root.rglob("*"):
        place = path.relative_to(root)
        hidden = any(part.startswith(".") for part in place.parts[:-1])
        weights = path.suffix in _NOT_COPIED or path.name.endswith(".safetensors.index.json")
        # artifact.json says what made the checkpoint; in the output it would be a false claim
        if path.is_file() and not hidden and not weights and place != Path("artifact.json"):
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / place)


def _weight_folders(root: Path) -> list[str]:
    """Folders with weights, relative to root; "." first."""
    if not root.is_dir():
        raise UserError(f"The checkpoint {root} is not a directory; name a local Hugging Face directory.")
    found = {file.parent.relative_to(root) for file in root.rglob("model*.safetensors")}
    if Path() in found:
        return sorted(f.as_posix() for f in found if not any(part.startswith(".") for part in f.parts))
    pickled = any(path.suffix in _PICKLES for path in root.iterdir())
    why = "only pickled weights; safetensors only are read" if pickled else "no model*.safetensors"
    raise UserError(f"The checkpoint {root} has {why}; save the whole model there as safetensors.")


def _read_entries(folder: Path) -> _Entries:
    """Read the headers of model.safetensors, or of the index and its shards."""
    try:
        if (folder / _ONE_FILE).exists():
            entries = _read_header(folder / _ONE_FILE)
        else:
            weight_map: dict[str, str] = json.loads((folder / _INDEX).read_text())["weight_map"]
            shards = {shard: _read_header(folder / shard) for shard in set(weight_map.values())}
            entries = {name: shards[shard][name] for name, shard in weight_map.items()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"The weights in {folder} cannot be read ({why}); copy them again.") from error
    odd = next((entry for entry in entries.values() if entry.dtype not in _BYTES), None)
    if odd is not None:
        raise UserError(f"Tensor {odd.name!r} in {odd.file} is quantised ({odd.dtype}); merge full weights.")
    return entries


def _read_header(file: Path) -> _Entries:
    with safe_open(file, framework="pt") as opened:
        parts = [(name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118 - not iterable
        return {name: _Entry(file, name, x.get_dtype(), tuple(x.get_shape())) for name, x in parts}


def _read_base(folder: Path, like: _Entries) -> _Entries:
    """Entries of the base under the checkpoints' names; tensors that only the base has are left out."""
    found = _read_entries(folder)
    base: _Entries = {}
    for name, entry in like.items():
        spellings = (name, f"model.{name}", name.removeprefix("model."))
        match = next((found[spelling] for spelling in spellings if spelling in found), None)
        if match is None or match.shape != entry.shape:
            state = "is missing" if match is None else f"{entry.shape} is {match.shape}"
            raise UserError(f"Tensor {name!r} {state} in the base {folder}; name the base of these models.")
        base[name] = match
    return base


def _check_alike(paths: Sequence[Path]) -> dict[str, list[_Entries]]:
    """Return each folder's entries, one per checkpoint; raise UserError for the first difference."""
    opened = [{name: _read_entries(path / name) for name in _weight_folders(path)} for path in paths]
    for other, folders in zip(paths[1:], opened[1:], strict=True):
        _check_same(paths[0], other, _facts(paths[0], opened[0]), _facts(other, folders))
    return {name: [folders[name] for folders in opened] for name in opened[0]}


def _facts(root: Path, folders: dict[str, _Entries]) -> dict[str, object]:
    try:
        config = json.loads((root / "config.json").read_text())
        facts: dict[str, object] = {f"config.json {key!r}": config.get(key) for key in _CONFIG_KEYS}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{root / 'config.json'} is not readable JSON ({error}); repair it.") from error
    for name in _SAME_FILES:
        if (root / name).exists():
            digest = hashlib.sha256((root / name).read_bytes()).hexdigest()
            facts[f"content of {name}"] = f"sha256 {digest[:16]}"
    for folder, entries in folders.items():
        names = {name: (Path(folder) / name).as_posix() for name in sorted(entries)}
        facts |= {f"tensor {names[n]!r}": f"{entries[n].dtype} {entries[n].shape}" for n in names}
    return facts


def _check_same(first: Path, other: Path, mine: dict[str, object], theirs: dict[str, object]) -> None:
    for what in mine | theirs:
        left, right = mine.get(what, "missing"), theirs.get(what, "missing")
        if left != right:
            raise UserError(f"The {what} is {left} in {first}, {right} in {other}; merge one model only.")


def _merge_folder(
    entries: Sequence[_Entries], base: _Entries | None, weights: Sequence[float], target: Path, limit: int
) -> list[SlerpReport]:
    """Merge one folder's weights into target: shards of at most `limit` bytes, and their index."""
    first = entries[0]
    shards = _plan_shards(first, limit)
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files = [_ONE_FILE] if len(shards) == 1 else files
    target.mkdir(parents=True, exist_ok=True)
    rows: list[SlerpReport] = []
    for file, names in zip(files, shards, strict=True):
        with (target / file).open("wb") as out:
            out.write(_header({name: first[name] for name in names}))
            for name in names:
                merged, row = _merge_tensor([part[name] for part in entries], (base or {}).get(name), weights)
                rows.append(row)
                out.write(_raw(merged).numpy().data)
            out.flush()
            os.fsync(out.fileno())
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(e.nbytes for e in first.values())}, "weight_map": weight_map}
        (target / _INDEX).write_text(json.dumps(index, indent=2))
    return rows


def _plan_shards(entries: _Entries, limit: int) -> list[list[str]]:
    """Names per shard; wide dtypes first, so that every tensor is aligned to its element size."""
    shards: list[list[str]] = [[]]
    used = 0
    for name in sorted(entries, key=lambda name: (-_BYTES[entries[name].dtype], name)):
        if shards[-1] and used + entries[name].nbytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += entries[name].nbytes
    return shards


def _header(entries: _Entries) -> bytes:
    """The safetensors header: its length in 8 bytes, then JSON padded with spaces to 8 bytes."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in entries.items():
        span = [offset, offset := offset + entry.nbytes]
        table[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": span}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _merge_tensor(
    entries: Sequence[_Entry], base: _Entry | None, weights: Sequence[float]
) -> tuple[Tensor, SlerpReport]:
    """Return the tensor to write and its row."""
    first = entries[0]
    tensors = [entry.read() for entry in entries]
    if len(tensors) > 1 and first.dtype in _FLOATS:
        return spherical_mean(tensors, weights, base=None if base is None else base.read(), name=first.name)
    for entry, tensor in zip(entries, tensors, strict=True):
        if not torch.equal(_raw(tensor), _raw(tensors[0])):
            where = f"differs between {first.file} and {entry.file}"
            raise UserError(f"Tensor {first.name!r} ({first.dtype}) {where}; only floats are merged.")
    reason = "one checkpoint" if first.dtype in _FLOATS else "not a float tensor"
    return tensors[0], SlerpReport(first.name, "copy", reason, None, (1.0,), 0.0, tensors[0].numel())


def _raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
