"""SLERP of two bf16 checkpoints of 1.2 GB (the shapes of Qwen3 0.6B, random weights) against mergekit.

`merge.seconds` and `merge.memory`: the merge alone, each in a process of its own, files in the page cache, nothing left
to be written. Ours ends when its bytes are on the disk, mergekit's when they are in the page cache.
`merge.ulp`: the largest distance of a merged weight from the float64 result rounded once to bf16, in units of the last
place and negative (0 is identical), against the one that is allowed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from benchmarks.comparing import Comparison, Difference, Outcome, compare, report
from qwen3emb.model.fetch import fetch_model

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3
BLOCK = 1 << 24  # elements that are compared at a time
SHAPE = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
SHAPE |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True}


def write_checkpoints(folder: Path) -> None:
    """Two models whose weights are some ten degrees apart, as checkpoints of one training are."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE)).to(torch.bfloat16)
    tokenizer = fetch_model("smollm2-135m-instruct")
    for name in ("one", "two"):
        model.save_pretrained(folder / name, max_shard_size="10GB")
        for file in tokenizer.glob("tokenizer*"):
            shutil.copyfile(file, folder / name / file.name)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.2 * weight.float().std() * torch.randn_like(weight)


def merged(side: str, folder: Path) -> dict[str, Any]:
    """One merge; the figures that its process printed."""
    out = folder / f"out-{side}"
    shutil.rmtree(out, ignore_errors=True)
    python = sys.executable if side == "ours" else os.environ["PEER_PYTHON"]
    command = [python, str(ROOT / "benchmarks/merge_sides.py"), side, str(folder), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    os.sync()  # what the other side left to be written is not this one's to wait for
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"merge, {side}: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def units_off(folder: Path, side: str) -> int:
    """The largest distance from the reference over all tensors, in units of bf16's last place."""
    worst = 0
    with ExitStack() as files:
        one, two = (files.enter_context(safe_open(folder / n / "model.safetensors", "pt")) for n in ("one", "two"))
        for part in sorted((folder / f"out-{side}").glob("model*.safetensors")):
            result = files.enter_context(safe_open(part, "pt"))
            for name in result.keys():  # noqa: SIM118 - not iterable
                a, b, found = (file.get_tensor(name).reshape(-1) for file in (one, two, result))
                share = _share(a.double(), b.double())
                for x, y, z in zip(a.split(BLOCK), b.split(BLOCK), found.split(BLOCK), strict=True):
                    worst = max(worst, _distance(z, _rounded(share * x.double() + share * y.double())))
    return worst


def _share(a: torch.Tensor, b: torch.Tensor) -> float:
    """SLERP's coefficient of both at one half, in float64."""
    norm = (a.norm() * b.norm()).item()
    theta = math.acos(max(-1.0, min(1.0, (a @ b).item() / norm))) if norm else 0.0
    return math.sin(theta / 2) / math.sin(theta) if theta > 1e-8 else 0.5


def _rounded(exact: torch.Tensor) -> torch.Tensor:
    """Float64 rounded once: the nearest, or even, of torch's bf16 (which went through float32) and its neighbours."""
    best = exact.bfloat16()
    bits = best.view(torch.int16)
    for step in (-1, 1):
        other = (bits + step).view(torch.bfloat16)
        off, least = (other.double() - exact).abs(), (best.double() - exact).abs()
        best = torch.where((off < least) | ((off == least) & ((bits + step) % 2 == 0)), other, best)
    return best


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> int:
    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = x.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((ordered(found) - ordered(wanted)).abs().max())


def main() -> int:
    """Measure and report."""
    folder = Path(tempfile.mkdtemp())
    peaks: dict[str, list[float]] = {"ours": [], "theirs": []}

    def side(name: str) -> float:
        figures = merged(name, folder)
        peaks[name].append(figures["peak"])
        return float(figures["seconds"])

    try:
        write_checkpoints(folder)
        speed = Comparison("merge.seconds", must=1.0, aim=2.0, higher_is_better=False)
        timed = compare(speed, lambda: side("ours"), lambda: side("theirs"), ROUNDS)
        medians = [statistics.median(peaks[name]) for name in ("ours", "theirs")]
        memory = Outcome(Comparison("merge.memory", must=2.0, aim=5.0, higher_is_better=False), *medians)
        off = {name: units_off(folder, name) for name in ("ours", "theirs")}
        print(f"merge: units of the last place from the reference, at most: {off}", file=sys.stderr)
        exact = Difference("merge.ulp", must=0.0, aim=1.0, ours=0.0 - off["ours"], theirs=-1.0)  # one is allowed
        return report([timed, memory, exact])
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
