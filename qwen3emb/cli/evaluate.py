"""`qwen3emb evaluate` and `promote`: any model on tasks of mteb, and the gate before a model is used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qwen3emb.cli.options import Debug, Json, finish, print_json
from qwen3emb.core.errors import UserError
from qwen3emb.registry.promotion import TOLERANCE

__all__ = ["evaluate", "promote"]


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="Model directory (ours or of sentence-transformers), the name of a model of ours, or an "
            "OpenAI-compatible server, http://HOST:PORT/v1?model=NAME.",
            show_default=False,
        ),
    ],
    task: Annotated[
        list[str],
        typer.Option(help='Task or benchmark of mteb, e.g. SciFact or "MTEB(eng, v2)"; may be repeated.'),
    ],
    out: Annotated[Path, typer.Option(help="Folder of results, in mteb's layout, and of cached vectors.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=DIR",
            help="Data of a task from a folder: BEIR (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), STS "
            "([LANG/]SPLIT.tsv: sentence1, sentence2, score), classification ([LANG/]SPLIT.jsonl: text, label) or "
            "bitext (one .tsv: lang, sentence1, sentence2). A name that mteb does not know becomes a task.",
        ),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Evaluate on this split only; may be repeated.")] = None,
    instructions: Annotated[
        Path | None, typer.Option(help="YAML or JSON: task -> instruction, where it is not mteb's.")
    ] = None,
    reranker: Annotated[str | None, typer.Option(help="Reranker for the best documents of retrieval tasks.")] = None,
    rerank_top: Annotated[int, typer.Option(min=1, help="Documents that it reads of each query.")] = 100,
    baseline: Annotated[
        Path | None, typer.Option(help="Results (--out) of another model, compared query by query.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="ORGANISATION/MODEL in the results.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option(min=8, help="Longer texts lose their end.")] = 512,
    end_token: Annotated[str | None, typer.Option(help="For decoders that are not ours.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Ray workers that embed.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="GPUs of each.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Scores of a model on tasks of mteb, with mteb's own metrics; results are ready for its leaderboard.

    A task whose data cannot be reached, or without a finite score, is skipped with the reason. So is one whose
    evaluation fails; the others go on, and the exit code is 1, as it is where no task has a score.

    Example: qwen3emb evaluate all-minilm-l6-v2 --task SciFact --data SciFact=../data/scifact --out runs/minilm
    """

    def body() -> int:
        from cluster.session import connected
        from qwen3emb.config.run import ClusterConfig
        from qwen3emb.core.storage import external_fingerprint
        from qwen3emb.evaluation.harness import HarnessSettings, evaluate_tasks
        from qwen3emb.evaluation.harness_tasks import open_tasks
        from qwen3emb.model.fetch import is_endpoint, resolve_model

        def place(reference: str) -> str:
            return reference if is_endpoint(reference) else str(resolve_model(reference))

        folders = _folders(data or [])
        settings = HarnessSettings(
            place(model),
            out,
            name or f"local/{Path(model.rpartition('=')[2].rstrip('/')).name}",
            end_token,
            max_tokens,
            workers,
            gpus_per_worker,
            place(reranker) if reranker else None,
            rerank_top,
            _instructions(instructions),
            baseline,
            {name: external_fingerprint(str(folder)) for name, folder in folders.items()},
        )
        say = partial(print, file=sys.stderr, flush=True)
        tasks = open_tasks(task, folders, split or [], say)
        with connected(ClusterConfig()):
            summary = evaluate_tasks(tasks, settings, say)
        if as_json:
            print_json(summary)
        else:
            _show(summary)
        return 1 if summary["failed"] or not any(summary["scores"].values()) else 0

    finish(body, debug)


def promote(
    registry: Annotated[Path, typer.Argument(help="Folder of promoted models; `current` in it is the current one.")],
    model: Annotated[Path | None, typer.Option(help="Directory of the model to promote.")] = None,
    scores: Annotated[Path | None, typer.Option(help="What `qwen3emb evaluate --out` wrote of it.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Task of the gate; default all there are.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Points that may be lost in a task.")] = TOLERANCE,
    rollback: Annotated[bool, typer.Option("--rollback", help="Make the model before the current one.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a model the current one if it is no worse than the present one on the tasks of the gate.

    Retrieval tasks are compared query by query: a model passes where the lower end of the 95 % interval of its gain
    (paired bootstrap) is at least -TOLERANCE; where the interval reaches below, it is worse or undecided, and not
    promoted. Others are compared by their scores. In each task the best model of all that were promoted is a second
    one to compare with, so that small losses do not add up. Exit code 1 where the model is not promoted.

    Example: qwen3emb promote runs/models --model runs/demo/merge/embedding --scores runs/scores
    """

    def body() -> int:
        from qwen3emb.registry import promotion

        if rollback:
            print(f"current is {promotion.roll_back(registry)} again")
            return 0
        if model is None or scores is None:
            raise UserError("give --model and --scores of the model to promote, or --rollback")
        verdicts = promotion.promote(model, scores, registry, task or [], tolerance)
        good = all(verdict.passed for verdict in verdicts)
        if as_json:
            gate = [asdict(verdict) | {"passed": verdict.passed} for verdict in verdicts]
            print_json({"promoted": good, "tolerance": tolerance, "gate": gate})
            return 0 if good else 1
        for verdict in verdicts:
            interval = "" if verdict.low is None else f" ({verdict.low:+.2f} to {verdict.high:+.2f})"
            word = verdict.outcome if verdict.passed else verdict.outcome.upper()
            comparison = f"{verdict.gain:+.2f} points{interval} against {verdict.against}"
            print(f"{word}  {verdict.task}: {comparison}: {verdict.reason}")
        print(f"{registry}/current is {model} now" if good else f"not promoted; {registry}/current is as it was")
        return 0 if good else 1

    finish(body, debug)


def _folders(pairs: list[str]) -> dict[str, Path]:
    folders = {}
    for pair in pairs:
        task, equals, folder = pair.partition("=")
        if not equals or not folder:
            raise UserError(f"--data {pair}: expected TASK=DIR")
        folders[task] = Path(folder)
    return folders


def _instructions(file: Path | None) -> Mapping[str, Any]:
    if file is None:
        return {}
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--instructions {file}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"--instructions {file}: expected a mapping of tasks to instructions")
    return content


def _show(summary: Mapping[str, Any]) -> None:
    """The scores as a table, a row for each split, the main one first; tasks that were skipped below."""
    by_model = summary["splits"]
    table = Table("task", "split", *by_model)
    rows = dict.fromkeys(
        (task, split) for by_task in by_model.values() for task, points in by_task.items() for split in points
    )
    shown: set[str] = set()
    for task, split in rows:
        cells = []
        for name, scores in by_model.items():
            score = scores.get(task, {}).get(split)
            gain = summary["differences"].get(name, {}).get(task) if task not in shown else None
            interval = f" ({gain['mean']:+.2f}, {gain['low']:+.2f} to {gain['high']:+.2f})" if gain else ""
            cells.append("-" if score is None else f"{score:.2f}{interval}")
        table.add_row("" if task in shown else task, split, *cells)
        shown.add(task)
    console = Console()
    console.print(table)
    for task, reason in summary["skipped"].items():
        console.print(f"{task}: skipped, {reason}", markup=False, highlight=False)
    if any(summary["differences"].values()):
        console.print("In brackets: points of nDCG@10 over what it is compared with, and the 95 % confidence interval.")
