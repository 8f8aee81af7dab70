"""Headers of checkpoint directories: where each tensor is stored, and whether checkpoints are of one model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from qwen3emb.core.errors import UserError
from qwen3emb.model.weight_names import renamed, renamings

__all__ = ["BYTES", "FLOATS", "INDEX", "ONE_FILE", "PICKLES", "Entries", "Entry", "check_alike", "read_base"]

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""safetensors' names of the dtypes that are merged, and bytes of an element."""
_EXACT = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
BYTES = FLOATS | _EXACT
"""Bytes of an element of every dtype that is read."""
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
"""Suffixes of pickled files, which are never read."""
ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Where these differ, equal shapes still mean different computations.
_CONFIG_KEYS = (
    "architectures", "model_type", "vocab_size", "tie_word_embeddings", "num_attention_heads", "head_dim",
    "num_key_value_heads", "rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "hidden_act",
)  # fmt: skip
_TOKENIZER = "tokenizer.json"
_OLDER_TOKENIZER = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")  # read where there is no tokenizer.json
_POOLING = "1_Pooling/config.json"


@dataclass(frozen=True)
class Entry:
    """One stored tensor, from the header of its file: its bytes begin at `offset` of the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return BYTES[self.dtype] * self.numel

    def read(self) -> Tensor:
        """Read this tensor; the others of its file stay on disk."""
        with safe_open(self.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(self.name)
        return tensor


Entries = dict[str, Entry]
"""The tensors of one folder, by name."""


def _weight_folders(root: Path) -> list[str]:
    """Folders with safetensors weights below `root`, relative to it; "." comes first."""
    if not root.is_dir():
        raise UserError(f"The checkpoint {root} is not a directory; name a local Hugging Face directory.")
    folders = {file.parent.relative_to(root) for file in root.rglob("model*.safetensors")}
    if Path() in folders:
        return sorted(f.as_posix() for f in folders if not any(part.startswith(".") for part in f.parts))
    pickled = any(path.suffix in PICKLES for path in root.iterdir())
    why = "only pickled weights; safetensors only are read" if pickled else "no model*.safetensors"
    raise UserError(f"The checkpoint {root} has {why}; save the whole model there as safetensors.")


def _read_entries(folder: Path) -> Entries:
    """Read the headers of model.safetensors, or of the index and its shards."""
    try:
        if (folder / ONE_FILE).exists():
            entries = _read_header(folder / ONE_FILE)
        else:
            weight_map: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
            shards = {shard: _read_header(folder / shard) for shard in set(weight_map.values())}
            entries = {name: shards[shard][name] for name, shard in weight_map.items()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"The weights in {folder} cannot be read ({why}); copy them again.") from error
    odd = next((entry for entry in entries.values() if entry.dtype not in BYTES), None)
    if odd is not None:
        raise UserError(f"Tensor {odd.name!r} in {odd.file} is quantised ({odd.dtype}); merge full weights.")
    return entries


def _read_header(file: Path) -> Entries:
    with safe_open(file, framework="pt"):  # refuses a file whose header and length disagree
        pass
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        table = json.loads(opened.read(length))
    table.pop("__metadata__", None)
    return {
        name: Entry(file, name, header["dtype"], tuple(header["shape"]), 8 + length + header["data_offsets"][0])
        for name, header in table.items()
    }


def read_base(folder: Path, like: Entries) -> Entries:
    """Entries of the base model under the checkpoints' names; tensors that only the base has are left out.

    Args:
        folder: of the base.
        like: entries of a checkpoint; names may differ by wrappers and the prefix "model.".

    Raises:
        UserError: a tensor of `like` is missing in the base, or has another shape there.
    """
    stored = _read_entries(folder)
    mapping = renamings(stored, tied=True)  # the base may be stored inside a wrapper; checkpoints never are
    by_name = {renamed(name, mapping): entry for name, entry in stored.items()}
    base: Entries = {}
    for name, entry in like.items():
        spellings = (name, f"model.{name}", name.removeprefix("model."))
        match = next((by_name[spelling] for spelling in spellings if spelling in by_name), None)
        if match is None or match.shape != entry.shape:
            state = "is missing" if match is None else f"{entry.shape} is {match.shape}"
            raise UserError(f"Tensor {name!r} {state} in the base {folder}; name the base of these models.")
        base[name] = match
    return base


def check_alike(paths: Sequence[Path]) -> dict[str, list[Entries]]:
    """Check that checkpoints are of one model, by configuration, tokenizer, and names, dtypes and shapes of tensors.

    Returns:
        Folder, relative to the checkpoint -> its entries in each checkpoint.

    Raises:
        UserError: two checkpoints differ, or one cannot be read.
    """
    opened = [{name: _read_entries(path / name) for name in _weight_folders(path)} for path in paths]
    for other, folders in zip(paths[1:], opened[1:], strict=True):
        _check_same(paths[0], other, _facts(paths[0], opened[0]), _facts(other, folders))
    return {name: [folders[name] for folders in opened] for name in opened[0]}


def _facts(root: Path, folders: dict[str, Entries]) -> dict[str, object]:
    try:
        config = json.loads((root / "config.json").read_text())
        facts: dict[str, object] = {f"config.json {key!r}": config.get(key) for key in _CONFIG_KEYS}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{root / 'config.json'} is not readable JSON ({error}); repair it.") from error
    tokenizer = (_TOKENIZER,) if (root / _TOKENIZER).exists() else _OLDER_TOKENIZER
    for name in (*tokenizer, _POOLING):
        if (root / name).exists():
            digest = hashlib.sha256((root / name).read_bytes()).hexdigest()
            facts[f"content of {name}"] = f"sha256 {digest[:16]}"
    for folder, entries in folders.items():
        names = {name: (Path(folder) / name).as_posix() for name in sorted(entries)}
        facts |= {f"tensor {names[n]!r}": f"{entries[n].dtype} {entries[n].shape}" for n in names}
    return facts


def _check_same(first: Path, other: Path, mine: dict[str, object], theirs: dict[str, object]) -> None:
    for fact in mine | theirs:
        left, right = mine.get(fact, "missing"), theirs.get(fact, "missing")
        if left != right:
            raise UserError(f"The {fact} is {left} in {first}, {right} in {other}; merge one model only.")
