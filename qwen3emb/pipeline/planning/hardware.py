"""GPUs a plan knows, from the vendor's data sheets (docs/plan.md), and prices, which only a file of the user gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from qwen3emb.core.errors import UserError

__all__ = ["GPUS", "Gpu", "known_gpu", "read_prices"]


@dataclass(frozen=True)
class Gpu:
    """What one GPU has.

    Attributes:
        name: as `--gpu` names it.
        memory: bytes.
        bfloat16: peak FLOP/s of dense bf16 matrix products.
        float8: the same in fp8; 0 = it has no such units.
        bandwidth: bytes/s of its memory.
    """

    name: str
    memory: float
    bfloat16: float
    float8: float
    bandwidth: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 80e9, 989e12, 1979e12, 3.35e12),
        Gpu("h200", 141e9, 989e12, 1979e12, 4.8e12),
        Gpu("a100", 80e9, 312e12, 0, 2.039e12),
        Gpu("a100-40", 40e9, 312e12, 0, 1.555e12),
        Gpu("l40s", 48e9, 362e12, 733e12, 0.864e12),
        Gpu("l4", 24e9, 121e12, 242e12, 0.3e12),
    )
}
"""SXM forms where there are several."""


def known_gpu(name: str) -> Gpu:
    """The GPU called `name`.

    Raises:
        UserError: the table has no such GPU.
    """
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise UserError(f"--gpu {name!r}: no such GPU in the table; there are {', '.join(GPUS)}")
    return gpu


def read_prices(path: Path) -> dict[str, float]:
    """GPU name -> price of one hour, from a YAML file such as `h100: 3.5`, in whatever currency it is written in.

    Raises:
        UserError: the file cannot be read or is no mapping of names to numbers.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"--prices {path}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--prices {path}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"--prices {path}: expected a line `gpu: price of an hour` for each GPU, e.g. `h100: 3.5`")
    for name, price in content.items():
        if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price < float("inf"):
            raise UserError(f"--prices {path}: the price of {name} is {price!r}; expected a number of at least 0")
    return {str(name).lower(): float(price) for name, price in content.items()}
