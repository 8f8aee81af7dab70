"""Merge Hugging Face checkpoint directories tensor by tensor (paper section 2.3, RECIPE section 4).

Headers are compared before anything is written; then the files are laid out and their pieces merged, by threads
or by Ray tasks. The output gets its name when it is complete.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from qwen3emb.core.cores import usable_cores
from qwen3emb.core.errors import UserError
from qwen3emb.merging.pieces import Piece, lay_out, merge_piece
from qwen3emb.merging.slerp import MergeReport, SlerpReport, normalise_weights
from qwen3emb.merging.stored_weights import PICKLES, check_alike, read_base

__all__ = ["MergeReport", "RunPieces", "merge_checkpoints"]

RunPieces = Callable[[Sequence[Piece]], Iterable[list[SlerpReport]]]
"""Merges pieces (`merge_piece`) on this node's disk; returns the reports of each piece, in their order."""

_THREADS = 4  # more of them wait for Python's lock
_NOT_COPIED = PICKLES | {".safetensors", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".npz", ".distcp"}


def _on_threads(pieces: Sequence[Piece]) -> Iterable[list[SlerpReport]]:
    """Merge pieces in parallel, one thread each; torch's own threads are switched off, as they would only compete."""
    pool = ThreadPoolExecutor(max_workers=min(_THREADS, usable_cores(), max(1, len(pieces))))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from pool.map(merge_piece, pieces)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def merge_checkpoints(
    checkpoints: Sequence[Path],
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    base: Path | None = None,
    on: str = "weights",
    linear: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    run_pieces: RunPieces = _on_threads,
) -> MergeReport:
    """Merge checkpoints of one model into `output` by the weighted spherical mean, tensor by tensor.

    Other files come from the first checkpoint, except pickles, other formats of the weights and its artifact.json.

    Args:
        checkpoints: local directories with model.safetensors, or with an index and shards; weights in folders below
            (2_Dense/) are merged too. A single checkpoint is copied.
        output: directory to write; it must not exist or must be empty.
        weights: one number >= 0 for each checkpoint; None for equal weights.
        base: directory of the model before training; its dtype may differ, and its names may have or lack the prefix
            "model.".
        on: "weights", or "task_vectors" (checkpoint - base; needs `base`).
        linear: the weighted sum in place of the spherical mean (LM-Cocktail).
        max_shard_bytes: size at which a new file starts.
        run_pieces: merges the pieces, by default in threads of this process.

    Returns:
        The report: inputs, weights, and a row for each tensor.

    Raises:
        UserError: the checkpoints differ in tensors, shapes, dtypes, architecture or tokenizer, or hold quantised
            weights or no safetensors; a value is NaN; the output exists; or the disk is full.
    """
    paths, output = [Path(path) for path in checkpoints], Path(output)
    shares = normalise_weights(weights, len(paths))
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes is {max_shard_bytes}; it must be at least 1.")
    origin = _choose_base(on, base)
    _check_output(output, paths + origin)
    folders = check_alike(paths)
    bases = {name: read_base(root / name, parts[0]) for root in origin for name, parts in folders.items()}
    rows: list[SlerpReport] = []
    with _whole_directory(output) as partial:
        _copy_other_files(paths[0], partial)
        for folder, entries in folders.items():
            pieces = lay_out(entries, bases.get(folder), partial / folder, max_shard_bytes, shares, linear)
            for merged in run_pieces(pieces):
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
    """Yield a directory beside `output` that is renamed to it when the block ends without an error."""
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
