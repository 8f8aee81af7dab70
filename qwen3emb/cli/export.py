"""`qwen3emb export`: the merged models of a run as directories to give away, with their model cards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from qwen3emb.cli.options import Config, Debug, Overrides, finish
from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.errors import UserError

__all__ = ["export"]

_METHODS = {"slerp": "SLERP", "cocktail": "LM-Cocktail", "self_position": "Self-Positioning"}


def export(
    config: Config,
    out: Annotated[Path, typer.Option(help="Folder that gets `embedding/` and `reranker/`.")],
    overrides: Overrides = None,
    scores: Annotated[
        Path | None, typer.Option(help="What `qwen3emb evaluate --out` wrote of the embedding model.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Copy a run's merged models, each with a README.md: contract, usage, data with licences, figures with commands.

    Example: qwen3emb export examples/demo.yaml --out released
    """

    def body() -> None:
        from qwen3emb.export.model_card import model_card
        from qwen3emb.model.contract import read_contract
        from qwen3emb.pipeline.stages import is_enabled

        cfg = load_config(config, overrides)
        for kind in ("embedding", "reranker") if is_enabled(cfg, "reranker") else ("embedding",):
            target, source = out / kind, _merged(cfg, kind)
            if target.exists():
                raise UserError(f"{target}: exists already; remove it or choose another --out")
            contract = read_contract(source)
            if contract is None:
                raise UserError(f"{source}: no model of ours; run the stage merge again with --replace")
            partial = out / f".{kind}"
            shutil.rmtree(partial, ignore_errors=True)  # what a killed export left
            shutil.copytree(source, partial)
            card = model_card(contract, _facts(cfg, kind, config.name, scores if kind == "embedding" else None))
            (partial / "README.md").write_text(card, encoding="utf-8")
            partial.rename(target)
            print(f"{target}")

    finish(body, debug)


def _merged(cfg: RunConfig, kind: str) -> Path:
    from qwen3emb.cli.models import merged_model

    return merged_model(cfg, kind)


def _facts(cfg: RunConfig, kind: str, config: str, scores: Path | None) -> Any:
    """The `CardFacts` from the records of the run; those of stages that it does not have are left out."""
    from qwen3emb.config.catalogue import chosen_datasets
    from qwen3emb.core.artifact import finished, read_record
    from qwen3emb.export.model_card import CardFacts
    from qwen3emb.pipeline.stages import stage_folder

    rows = stage_folder(cfg, "mine").read_table("rows")
    datasets: dict[str, int] = {}
    for dataset in rows.column("dataset").to_pylist():
        datasets[dataset] = datasets.get(dataset, 0) + 1
    licences = {
        name: dataset_config.licence or "not stated" for name, dataset_config in chosen_datasets(cfg.labelled).items()
    }
    evaluated = stage_folder(cfg, "evaluate")
    task_scores: dict[str, float] = {}
    if scores is not None:
        try:
            summary = json.loads((scores / "summary.json").read_text())["scores"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--scores {scores}: no summary.json of `qwen3emb evaluate` there") from error
        task_scores = summary[min(summary, key=len)]
    base = cfg.models.base if kind == "embedding" else cfg.models.reranker_base or cfg.models.base
    merge = read_record(stage_folder(cfg, "merge"))["metrics"][kind]
    return CardFacts(
        name=f"{cfg.name}-{kind}",
        base=Path(base).name,
        generator=Path(cfg.models.generator or "").name,
        datasets=datasets,
        licences=licences,
        merged=merge["checkpoints"],
        method=_METHODS[merge.get("method", cfg.merge.method if kind == "embedding" else "slerp")],
        evaluated=evaluated.read_json("results.json") if finished(evaluated) else None,
        scores=task_scores,
        config=config,
    )
