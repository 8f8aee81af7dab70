"""The rules of imports (AGENTS.md): rooms stand on one another in one order, and Ray is known to a few of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]

GROUND = ("core", "config", "text", "metrics", "model", "objective", "encoding", "export")
"""Rooms that others stand on; each imports only itself and those before it."""

STAGES = (
    *("corpus", "synthesis", "filtering", "labelled", "mining"),
    *("training", "merging", "evaluation", "search"),
)
"""One room per stage: imports what is in `GROUND`, never another stage."""

TOP = ("pipeline", "cluster", "registry", "cli", "serve", "jobs")
"""Rooms that put stages to use; each imports itself, everything above, and those before it."""

RAY = ("encoding/", "synthesis/sets.py", "synthesis/tally.py", "training/loop.py", "cluster/", "jobs/", "serve/")
"""Where Ray may be imported, besides the `stage.py` of every stage."""


def room(module: str) -> str | None:
    """The room that a dotted module name is in; None for what is not ours."""
    first, *rest = module.split(".")
    if first == "qwen3emb":
        return rest[0] if rest else None
    return first if first in TOP else None


def lower(name: str) -> set[str]:
    """The rooms that a room may import, besides itself."""
    if name in GROUND:
        return set(GROUND[: GROUND.index(name)])
    if name in STAGES:
        return set(GROUND)
    return {*GROUND, *STAGES, *TOP[: TOP.index(name)]}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            # `from qwen3emb import NAME` imports the room NAME
            yield from ((node.lineno, f"qwen3emb.{n.name}") for n in node.names if node.module == "qwen3emb")
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def broken_rules(path: str, source: str) -> list[str]:
    """Each import of a file that breaks a rule, as `path:line: why`. `path` is relative to the project."""
    parts = PurePosixPath(path).parts
    own = parts[1] if parts[0] == "qwen3emb" else parts[0]
    place = path.removeprefix("qwen3emb/")
    ray = place.startswith(RAY) or (own in STAGES and parts[-1] == "stage.py")
    found = []
    for line, module in imports(source):
        if module.split(".")[0] == "ray" and not ray:
            found.append(f"{path}:{line}: {own} imports Ray outside of stage.py")
        other = room(module)
        if other in {*GROUND, *STAGES, *TOP} and other != own and other not in lower(own):
            found.append(f"{path}:{line}: {own} imports {module}, which does not stand below it")
    return found


def files() -> list[str]:
    """Every module of the product, relative to the project."""
    tops = (ROOT / name for name in ("qwen3emb", "cluster", "jobs", "serve"))
    return sorted(p.relative_to(ROOT).as_posix() for top in tops for p in top.rglob("*.py"))


def test_no_import_breaks_a_rule() -> None:
    paths = [path for path in files() if path != "qwen3emb/__init__.py"]
    assert len(paths) > 150
    assert not [line for path in paths for line in broken_rules(path, (ROOT / path).read_text(encoding="utf-8"))]


def test_every_folder_has_its_place() -> None:
    rooms = {p.name for p in (ROOT / "qwen3emb").iterdir() if (p / "__init__.py").is_file()}
    assert rooms == {*GROUND, *STAGES, *TOP} - {"cluster", "serve", "jobs"}
    assert not [p for p in (ROOT / "qwen3emb").glob("*.py") if p.name != "__init__.py"]
    assert all((ROOT / "qwen3emb" / stage / "stage.py").is_file() for stage in STAGES)


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("qwen3emb/mining/rules.py", "import ray", True),
        ("qwen3emb/mining/rules.py", "def f():\n    from ray.data import Dataset", True),
        ("qwen3emb/mining/stage.py", "import ray", False),
        ("qwen3emb/core/storage.py", "from qwen3emb.config.run import RunConfig", True),
        ("qwen3emb/core/storage.py", "from qwen3emb import config", True),
        ("qwen3emb/config/run.py", "from qwen3emb.core.errors import UserError", False),
        ("qwen3emb/config/run.py", "from qwen3emb.text.identity import content_id", True),
        ("qwen3emb/mining/stage.py", "from qwen3emb.search.index import SearchIndex", True),
        ("qwen3emb/mining/stage.py", "from qwen3emb.pipeline.stages import STAGES", True),
        ("qwen3emb/training/loop.py", "from cluster.session import connected", True),
        ("jobs/mine.py", "from qwen3emb.mining.stage import mine_negatives", False),
        ("serve/app.py", "from jobs.entry import say", True),
    ],
)
def test_a_broken_rule_is_seen(path: str, source: str, broken: bool) -> None:
    assert bool(broken_rules(path, source)) == broken
