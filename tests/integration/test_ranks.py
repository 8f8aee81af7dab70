"""The gradients of W ranks over gloo together are those of the reference of `test_global_gradients`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.unit.objective.test_global_gradients import check, gradients, reference

pytestmark = pytest.mark.integration


def worker(rank: int, world: int, folder: str, rendezvous: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    found = gradients(folder)
    for _, gradient in found.values():
        dist.all_reduce(gradient)
    if rank == 0:
        torch.save(found, result)
    # An idle thread of gloo has aborted a finished process at interpreter exit: wait for the others and leave at once.
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_give_the_reference(world: int, tiny_qwen3: Path, tmp_path: Path) -> None:
    result, rendezvous = str(tmp_path / "gradient.pt"), str(tmp_path / "rendezvous")
    mp.spawn(worker, args=(world, str(tiny_qwen3), rendezvous, result), nprocs=world)
    check(torch.load(result), reference(tiny_qwen3))
