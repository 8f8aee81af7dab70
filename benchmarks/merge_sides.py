"""One SLERP of two checkpoints in a process of its own: `python benchmarks/merge_sides.py ours|theirs FOLDER OUT`.

FOLDER holds `one/` and `two/`. Prints one JSON line: seconds of the merge without imports, and the process's peak
memory in bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.comparing import peak_bytes


def ours(folder: Path, out: Path) -> Callable[[], object]:
    """Our merge."""
    from qwen3emb.merging.checkpoint import merge_checkpoints

    return lambda: merge_checkpoints([folder / "one", folder / "two"], out)


def theirs(folder: Path, out: Path) -> Callable[[], object]:
    """mergekit's, as its command runs it on a machine without a GPU."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    text = f"""
merge_method: slerp
base_model: {folder / "one"}
models:
  - model: {folder / "one"}
  - model: {folder / "two"}
parameters: {{t: 0.5}}
dtype: bfloat16
"""
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions(device="cpu", copy_tokenizer=True, lazy_unpickle=False, low_cpu_memory=False, quiet=True)
    return lambda: run_merge(config, str(out), options)


def main() -> None:
    """Merge once and print."""
    side, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    merge = (ours if side == "ours" else theirs)(folder, out)
    began = time.perf_counter()
    merge()
    took = time.perf_counter() - began
    print(json.dumps({"seconds": took, "peak": peak_bytes()}))


if __name__ == "__main__":
    main()
