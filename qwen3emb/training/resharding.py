"""Converts training state of one world size for another one, with DeepSpeed's universal checkpoints.

DeepSpeed saves ZeRO's optimizer state in one shard per rank. Its converter joins them into whole tensors, one folder
per parameter, from which any number of ranks takes its part.
"""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch.distributed as dist

from qwen3emb.objective.ranks import rank_and_world
from qwen3emb.training.zero import TAG

__all__ = ["place_of_node", "saved_world_size", "universal"]

_SHARDS = "*zero_pp_rank_*_optim_states.pt"


def saved_world_size(folder: Path) -> int | None:
    """Number of ranks that wrote the state in `folder`; None where it is not sharded (ZeRO 0) and fits any number."""
    return len(list((folder / TAG).glob(_SHARDS))) or None


def universal(folder: Path, target: Path) -> Path:
    """Convert the state in `folder` into a universal checkpoint in `target`; every rank calls this.

    The first rank of each node converts, so `target` is a path on the node's own disk.

    Returns:
        `target`, which `restore` takes with an engine that was built for universal checkpoints.
    """
    if int(os.environ.get("LOCAL_RANK", rank_and_world()[0])) == 0:
        _convert(folder / TAG, target / TAG)
    if rank_and_world()[1] > 1:
        dist.barrier()
    return target


def _convert(source: Path, target: Path) -> None:
    from deepspeed.checkpoint.ds_to_universal import main

    target.mkdir(parents=True, exist_ok=True)
    arguments = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,  # more would be processes of their own, started from this one's threads
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        main(arguments)


def place_of_node(local: Path, node: int, local_rank: int) -> Path:
    """The temporary folder of the first rank on this node; every rank calls this.

    Args:
        local: this rank's own.
        node: number of this rank's node.
        local_rank: of this rank on its node.
    """
    world = rank_and_world()[1]
    if world == 1:
        return local
    places: list[Any] = [None] * world
    dist.all_gather_object(places, (node, local_rank, str(local)))
    return Path(next(place for there, number, place in places if (there, number) == (node, 0)))
