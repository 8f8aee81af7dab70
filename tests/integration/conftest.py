"""What integration tests share: stages run in the process of the test."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from jobs.entry import command_line, run_stage

ROOT = Path(__file__).resolve().parent.parent.parent

RunHere = Callable[..., str]

# What takes longest begins first, so that no worker is left alone with it at the end.
LONGEST = (
    "test_documents",
    "test_synthesize",
    "score_stages",
    "test_training",
    "test_jobs",
    "test_serve",
    "test_zero",
    "test_engine_parity",
    "test_export_readers",
)


def group_of(path: Path) -> str:
    """Tests of one group share fixtures, so they run in one process."""
    return path.parent.name if path.parent.name == "score_stages" else path.stem


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tell pytest-xdist the group; it reads the marks before `pytest_collection_modifyitems` of a conftest."""
    item.add_marker(pytest.mark.xdist_group(group_of(item.path)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest groups first."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(group_of(item.path), len(order)))


@pytest.fixture(scope="session")
def minimal_run() -> Callable[[Path, Path], dict[str, Any]]:
    """`minimal_run(folder, model)`: the sections every config needs, over files in `folder` that no test reads."""

    def made(folder: Path, model: Path) -> dict[str, Any]:
        (folder / "texts.jsonl").write_text('{"text": "made by hand"}\n')
        (folder / "personas.jsonl").write_text('{"persona": "a tester"}\n')
        name = str(model)
        return {
            "name": "tiny",
            "storage": str(folder / "run"),
            "models": {"generator": name, "base": name, "retrieval": name},
            "corpus": {"sources": [{"kind": "jsonl", "path": str(folder / "texts.jsonl")}]},
            "synthesize": {"personas": str(folder / "personas.jsonl")},
            "weak": {"steps": 1},
            "supervised": {"steps": 1},
            "reranker": {"steps": 1, "negatives": 1},
        }

    return made


@pytest.fixture(scope="session")
def run_here() -> RunHere:
    """`run_here("filter", config, "key=value", ...)`: the stage as its command runs it, and what it said.

    In the process of the test, so that it uses the Ray that is there and pays no start of its own.
    """

    def run(stage: str, config: Path, *settings: str) -> str:
        flags = [flag for setting in settings for flag in ("--set", setting)]
        arguments = command_line("").parse_args(["--config", str(config), *flags])
        said = io.StringIO()
        with redirect_stderr(said):
            code = run_stage(stage, importlib.import_module(f"jobs.{stage}").run, arguments)
        assert code == 0, said.getvalue()[-4000:]
        return said.getvalue()

    return run
