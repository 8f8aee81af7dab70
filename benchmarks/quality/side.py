"""A side of the benchmark in a process of its own: `python -m benchmarks.quality.side FILE`, and what starts it.

FILE is JSON: `do` names the function, the rest are its arguments. It prints one line of JSON last. Both sides have two
threads. The time of a training runs from the start of its function, with loading, Ray and mining, to the end of its
last step or merge; of a trial it runs over the steps alone.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["THREADS", "TRIAL_STEPS", "finished", "order", "peer_arguments", "steps_that_fit", "trained_in_time"]

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2
TRIAL_STEPS = 3
_RESERVE = 0.04  # share of the time that may be lost to a machine that slows down
_LIMIT = 3600  # seconds until a side counts as stuck


def steps_that_fit(trial_seconds: float, left: float, least: int = 1) -> int:
    """Steps in `left` seconds, where `TRIAL_STEPS` took `trial_seconds`; at least `least`."""
    return max(least, int(left * (1 - _RESERVE) * TRIAL_STEPS / max(trial_seconds, 1e-3)))


def peer_arguments(folder: Path, steps: int, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """What the arguments of both of the peer's trainers have in common; no output but the model."""
    return {
        "output_dir": str(folder / "run"),
        "max_steps": steps,
        "learning_rate": settings["lr"],
        "warmup_steps": max(1, steps // 10),
        "bf16": settings["precision"] == "bf16",
        "use_cpu": True,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def trained_in_time(
    train: Callable[[int], tuple[Any, float]], seconds: float, began: float, trial: bool
) -> tuple[Any, int, float, float]:
    """The peer's model after as many steps as fit.

    Args:
        train: number of steps -> (model, seconds that they took).
        seconds: for the steps alone in a trial, else for everything since `began`.
        began: of the monotonic clock.
        trial: see `seconds`.

    Returns:
        (the model, its steps, seconds of these steps, seconds that count).
    """
    _, taken = train(TRIAL_STEPS)
    steps = steps_that_fit(taken, seconds if trial else seconds - (time.monotonic() - began))
    model, stepping = train(steps)
    return model, steps, stepping, stepping if trial else time.monotonic() - began


def finished(command: Sequence[str], what: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command from the repository's root.

    Raises:
        SystemExit: it failed, or did not end within an hour.
    """
    try:
        done = subprocess.run(command, cwd=ROOT, text=True, check=False, timeout=_LIMIT, **options)
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"quality, {what}: not done after {_LIMIT} s, ended") from error
    if done.returncode:
        raise SystemExit(f"quality, {what}: ended with {done.returncode}; its message is above")
    return done


def order(do: str, **arguments: Any) -> dict[str, Any]:
    """What the function `MODULE.NAME` of this package returns in a process of its own.

    Raises:
        SystemExit: it failed, or did not end within an hour.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "order.json"
        file.write_text(json.dumps({"do": do, **arguments}), encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "benchmarks.quality.side", str(file)]
        done = finished(command, do, stdout=subprocess.PIPE, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Do what the file says."""
    import torch

    torch.set_num_threads(THREADS)
    arguments = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    module, _, name = arguments.pop("do").rpartition(".")
    function = getattr(importlib.import_module(f"benchmarks.quality.{module}"), name)
    print("\n" + json.dumps(function(**arguments)), flush=True)


if __name__ == "__main__":
    main()
