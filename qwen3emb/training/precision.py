"""The dtype that a training computes in, where its configuration leaves the choice to the machine."""

from __future__ import annotations

import torch

from qwen3emb.core.cores import fast_bfloat16
from qwen3emb.core.storage import Storage
from qwen3emb.objective.ranks import rank_and_world

__all__ = ["settled_dtype"]

_DTYPE = "dtype.json"


def settled_dtype(chosen: str, gpus: bool, out: Storage) -> str:
    """What `optimizer.dtype` stands for; every rank calls this.

    `auto` is decided by the first rank when a training starts, and kept in its folder, so that all ranks and every
    resumed run compute alike, whatever CPUs they are on.

    Args:
        chosen: the value of the configuration.
        gpus: whether the training runs on GPUs, all of which have bfloat16.
        out: the stage's folder.
    """
    if chosen != "auto":
        return chosen
    if gpus:
        return "bfloat16"
    (rank, world), answer = rank_and_world(), [""]
    if rank == 0:
        if not out.exists(_DTYPE):
            out.write_json(_DTYPE, {"dtype": "bfloat16" if fast_bfloat16() else "float32"})
        answer = [out.read_json(_DTYPE)["dtype"]]
    if world > 1:
        torch.distributed.broadcast_object_list(answer)
    return answer[0]
