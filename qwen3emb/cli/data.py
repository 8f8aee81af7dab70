"""`qwen3emb data describe`: what a labelled dataset would be trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3emb.cli.options import Debug, Json, finish, print_json
from qwen3emb.core.errors import UserError

if TYPE_CHECKING:
    from qwen3emb.config.labelled import LabelledDatasetConfig
    from qwen3emb.labelled.rows import LabelledRow

__all__ = ["data_app", "describe"]

data_app = typer.Typer(help="Labelled datasets.", no_args_is_help=True, pretty_exceptions_enable=False)

_CATALOGUE = Path("examples/datasets.yaml")
_SHOWN = 160


@data_app.callback()
def _group() -> None:
    """Labelled datasets."""


@data_app.command("describe")
def describe(
    name: Annotated[str, typer.Argument(help="A file, a BEIR folder, or an entry of the catalogue.")],
    catalogue: Annotated[Path, typer.Option(help="YAML of labelled datasets.")] = _CATALOGUE,
    task: Annotated[str, typer.Option(help="Task of a file: retrieval, bitext, classification or sts.")] = "retrieval",
    split: Annotated[str, typer.Option(help="Judgments of a BEIR folder.")] = "train",
    model: Annotated[str | None, typer.Option(help="Model whose tokenizer counts tokens.", show_default=False)] = None,
    min_grade: Annotated[
        float | None, typer.Option(help="Pairs of a file with a lower grade are no positives.", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option(help="Look at this many rows at most.", min=1)] = 10_000,
    examples: Annotated[int, typer.Option(help="Rendered examples.", min=0)] = 2,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a labelled dataset would be trained on: rows, rejects, token lengths, and rendered examples.

    Example: qwen3emb data describe ../shared/data/flagembedding_examples/embedder/example_data/sts/sts.jsonl --task sts
    """

    def body() -> None:
        content = _described(name, _set_of(name, catalogue, task, split, min_grade), rows, examples, model)
        if as_json:
            print_json(content)
        else:
            _print(content)

    finish(body, debug)


def _set_of(name: str, catalogue: Path, task: str, split: str, min_grade: float | None) -> LabelledDatasetConfig:
    """The dataset's config: an entry of the catalogue, or one made for a file or folder."""
    from pydantic import ValidationError

    from qwen3emb.config.catalogue import read_catalogue
    from qwen3emb.config.labelled import LabelledDatasetConfig

    place = Path(name).expanduser()
    if not place.exists() and "://" not in name and not any(c in name for c in "*?["):
        entries = read_catalogue(str(catalogue)) if catalogue.is_file() else {}
        if name in entries:
            return entries[name]
        raise UserError(
            f"{name}: no such file, and {catalogue} has no such entry; it has {', '.join(entries) or 'none'}"
        )
    try:
        beir = place.is_dir() and (place / "qrels").is_dir()
        form = {"format": "beir", "split": split} if beir else {}
        return LabelledDatasetConfig.model_validate({"path": name, "task": task, "min_grade": min_grade, **form})
    except ValidationError as error:
        raise UserError(f"--task {task}: {error.errors()[0]['msg']}") from error


def _described(name: str, cfg: LabelledDatasetConfig, most: int, examples: int, model: str | None) -> dict[str, Any]:
    from qwen3emb.core.rejects import Reject
    from qwen3emb.labelled.rows import LabelledRow, read_labelled

    items = list(read_labelled(name, cfg, 0, most))
    rows = [row for row in items if isinstance(row, LabelledRow)]
    refused = [item for item in items if isinstance(item, Reject)]
    rejects = Counter(item.code for item in refused)
    if not rows:
        first = f"; the first, row {refused[0].row} of {refused[0].source}: {refused[0].reason}" if refused else ""
        hint = "; mend the rows, or say what their fields mean: --task, --min-grade, or `columns` in the config"
        raise UserError(
            f"{name}: no row can be used; rejected: {dict(rejects) or 'nothing, it is empty'}"
            + (first + hint if refused else "")
        )
    about = {"path": cfg.path, "task": cfg.task, "instruction": cfg.instruction or "(the run's)"}
    about |= {k: v for k, v in {"licence": cfg.licence, "homepage": cfg.homepage}.items() if v}
    counts = {
        "rows": len(rows),
        "complete": len(items) < most,
        "rejected": dict(rejects),
        **sum((Counter(row.left_out) for row in rows), Counter[str]()),
        "negatives_per_row": round(sum(len(row.negatives) for row in rows) / len(rows), 2),
    }
    return {
        "set": name,
        **about,
        **counts,
        "lengths": _lengths(rows, model),
        "examples": _examples(cfg, rows, examples),
    }


def _lengths(rows: list[LabelledRow], model: str | None) -> dict[str, Any]:
    """Median, 95th percentile and longest of queries and documents, in tokens, or words without a model."""
    import numpy as np

    def measured(texts: list[str]) -> dict[str, float]:
        counts = _words(texts) if model is None else _tokens(texts, model)
        return dict(zip(("median", "p95", "longest"), np.percentile(counts, [50, 95, 100]).tolist(), strict=True))

    queries = [row.query for row in rows]
    documents = [text for row in rows for text in (row.positive, *row.negatives)]
    unit = "words" if model is None else "tokens"
    return {"unit": unit, "query": measured(queries), "document": measured(documents)}


def _words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def _tokens(texts: list[str], model: str) -> list[int]:
    from qwen3emb.model.fetch import resolve_model
    from qwen3emb.model.loading import load_tokenizer
    from qwen3emb.text.templates import TextTokenizer

    return [len(ids) for ids in TextTokenizer(load_tokenizer(resolve_model(model))).ids(texts)]


def _examples(cfg: LabelledDatasetConfig, rows: list[LabelledRow], count: int) -> list[dict[str, Any]]:
    """Rows as the model sees them, the end token left out."""
    from qwen3emb.text.templates import query_prompt

    prompt = query_prompt(cfg.instruction) if cfg.instruction else query_prompt("{models.instruction}")
    return [
        {
            "id": row.id,
            "query": prompt + row.query,
            "positive": (prompt if cfg.task == "sts" else "") + row.positive,
            "negatives": list(row.negatives[:2]),
            "grade": row.grade,
        }
        for row in rows[:count]
    ]


def _print(content: dict[str, Any]) -> None:
    for key, value in content.items():
        if key == "examples":
            continue
        typer.echo(f"{key}: {value}")
    for example in content["examples"]:
        typer.echo("")
        for key, value in example.items():
            texts = value if isinstance(value, list) else [value]
            for text in texts:
                shown = str(text).replace("\n", "\\n")
                typer.echo(f"  {key}: {shown[:_SHOWN]}{'...' if len(shown) > _SHOWN else ''}")
