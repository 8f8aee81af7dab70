"""Our step in processes of its own: peak memory of a global batch, and one against two workers of one core each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.comparing import peak_bytes
from benchmarks.train_sides import Ours, read_rows
from qwen3emb.objective.allocator import keep_freed


def peak_memory(directory: Path, name: str, split: str, batch: int, budget: int) -> float:
    """Peak resident bytes of a process that takes one step on a global batch of `batch` rows."""
    order = [str(directory), name, split, str(batch), str(budget)]
    command = [sys.executable, "-m", "benchmarks.train_scale_sides", *order]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["bytes"])


def measure_memory(directory: Path, name: str, split: str, batch: int, budget: int) -> None:
    """In a process of its own: print the peak after two steps of batch 2 (so that everything is there) and one more."""
    from benchmarks.train_sides import alone

    torch.set_num_threads(2)
    alone()
    rows = read_rows(name, split)
    ours = Ours(directory, token_budget=budget)
    ours.step(rows[:2])
    ours.step(rows[:batch])
    print(json.dumps({"bytes": peak_bytes()}), flush=True)


class Workers:
    """`world` processes of one thread each that take the same steps; they wait until they are asked."""

    def __init__(self, world: int, directory: Path, name: str, split: str, batch: int) -> None:
        context = mp.get_context("spawn")
        store = Path(tempfile.mkdtemp(prefix="bench-train-")) / "store"
        self.batch = batch
        self.pipes = []
        self.processes = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            arguments = (rank, world, directory, name, split, batch, str(store), theirs)
            self.processes.append(context.Process(target=_worker, args=arguments, daemon=True))
            self.processes[-1].start()
            self.pipes.append(ours)

    def pairs_per_second(self) -> float:
        """Of one step on the next global batch."""
        began = time.perf_counter()
        for pipe in self.pipes:
            pipe.send("step")
        for pipe in self.pipes:
            pipe.recv()
        return self.batch / (time.perf_counter() - began)

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send("end")
        for process in self.processes:
            process.join()


def _worker(
    rank: int, world: int, directory: Path, name: str, split: str, batch: int, store: str, pipe: object
) -> None:
    torch.set_num_threads(1)
    keep_freed()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    rows, ours, at = read_rows(name, split), Ours(directory), 0
    while pipe.recv() == "step":  # type: ignore[attr-defined]
        ours.step([rows[(at + i) % len(rows)] for i in range(batch)])
        at += batch
        pipe.send("done")  # type: ignore[attr-defined]
    dist.destroy_process_group()


if __name__ == "__main__":
    measure_memory(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
