"""`qwen3emb embed`, `search` and `fetch-model`: using models and indexes from the command line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from qwen3emb.cli.options import Debug, Json, Overrides, finish, print_json
from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.errors import UserError

if TYPE_CHECKING:
    from qwen3emb.search.index import Hit

__all__ = ["embed", "fetch_model", "merged_model", "search"]

_DEMO = Path("examples/demo.yaml")
_ConfigOption = Annotated[Path, typer.Option("--config", help="YAML of the run whose merged models are used.")]


def merged_model(cfg: RunConfig, kind: str) -> Path:
    """The local directory of a run's merged model, `embedding` or `reranker`.

    Raises:
        UserError: the stage `merge` is not complete.
    """
    from qwen3emb.core.artifact import read_record
    from qwen3emb.pipeline.stages import stage_folder

    folder = stage_folder(cfg, "merge")
    read_record(folder)
    if not folder.exists(kind):
        raise UserError(f"{folder.uri}: no {kind} in it; run the stage merge again with --replace")
    return folder.local(kind)


def embed(
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; without them, one per line of standard input.", show_default=False),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Model directory; default the merged model of --config.", show_default=False),
    ] = None,
    config: _ConfigOption = _DEMO,
    query: Annotated[
        bool,
        typer.Option("--query/--document", help="The texts are queries (with an instruction), or documents."),
    ] = False,
    instruction: Annotated[
        str | None, typer.Option(help="Instruction of queries; default the model's own.", show_default=False)
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(help="Keep this many leading dimensions, re-normalised.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest input; longer texts lose their end.")] = 512,
    end_token: Annotated[
        str | None,
        typer.Option(help="Token the embedding is read at, for models of others.", show_default=False),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Texts to normalised vectors.

    Example: qwen3emb embed --query "parse a date" --model runs/demo/merge/embedding --json
    """

    def body() -> None:
        inputs = _texts(texts)
        if instruction and not query:
            raise UserError("--instruction belongs to queries: give --query too, or leave it out")
        directory = _model_directory(model, config)
        from qwen3emb.model.encoder import Encoder
        from qwen3emb.text.templates import DEFAULT_INSTRUCTION

        encoder = Encoder(directory, end_token=end_token)
        default = encoder.contract.instruction if encoder.contract else DEFAULT_INSTRUCTION
        task = (instruction or default) if query else None
        vectors = encoder.encode(inputs, max_tokens=max_tokens, instruction=task, dimensions=dimensions).tolist()
        if as_json:
            rows = [{"text": t, "embedding": v} for t, v in zip(inputs, vectors, strict=True)]
            print_json({"model": str(directory), "instruction": task, "dimensions": len(vectors[0]), "data": rows})
            return
        for text, vector in zip(inputs, vectors, strict=True):
            print(f"{text}\t{len(vector)} dimensions\t{' '.join(f'{x:+.4f}' for x in vector[:6])} ...")

    finish(body, debug)


def _texts(texts: list[str] | None) -> list[str]:
    inputs = texts or ([] if sys.stdin.isatty() else [line.rstrip("\n") for line in sys.stdin])
    inputs = [text for text in inputs if text.strip()]
    if not inputs:
        raise UserError("no text to embed: give texts as arguments, or one per line on standard input")
    return inputs


def _model_directory(model: Path | None, config: Path) -> Path:
    from qwen3emb.model.fetch import resolve_model

    return resolve_model(str(model)) if model else merged_model(load_config(config), "embedding")


def search(
    query: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    config: _ConfigOption = _DEMO,
    overrides: Overrides = None,
    top: Annotated[int, typer.Option(min=1, help="Hits to show.")] = 5,
    rerank: Annotated[bool, typer.Option("--rerank", help="Let the reranker order the best candidates.")] = False,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates for the reranker.")] = 20,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search a run's index with its merged models.

    Example: qwen3emb search "how do I parse json" --config examples/demo.yaml --top 5 --rerank
    """

    def body() -> None:
        if not query.strip():
            raise UserError("the query is empty: say what to look for")
        hits = _search_hits(load_config(config, overrides), query, top, candidates if rerank else None)
        if as_json:
            print_json([{"id": h.id, "score": h.score, "title": h.title, "text": h.text} for h in hits])
            return
        console = Console(highlight=False)
        for rank, hit in enumerate(hits, 1):
            name = escape(hit.title or hit.id)
            console.print(f"[bold]{rank}. {name}[/bold]  {hit.score:.4f}  [dim]{escape(hit.id)}[/dim]")
            console.print(escape(_snippet(hit.text)), style="dim")

    finish(body, debug)


def _search_hits(cfg: RunConfig, query: str, top: int, candidates: int | None) -> list[Hit]:
    """The `top` best hits of a query; with `candidates` so many are retrieved and ordered by the reranker's score."""
    from qwen3emb.core.artifact import read_record
    from qwen3emb.metrics.order import best_first
    from qwen3emb.model.encoder import Encoder
    from qwen3emb.pipeline.stages import stage_folder
    from qwen3emb.search.index import SearchIndex
    from qwen3emb.text.documents import document_text
    from qwen3emb.text.templates import TextLimits

    folder = stage_folder(cfg, "index")
    read_record(folder)
    index = SearchIndex.open(folder)
    encoder = Encoder(merged_model(cfg, "embedding"))
    longest = TextLimits.of(cfg.serve).query
    task, kept = index.info.instruction, index.info.dimension
    vector = encoder.encode([query], max_tokens=longest, instruction=task, dimensions=kept)[0]
    hits = index.search(vector, max(top, candidates or 0))
    if not candidates or not hits:
        return hits[:top]
    from qwen3emb.model.reranker import Reranker

    scores = Reranker(merged_model(cfg, "reranker")).score(
        query,
        [document_text(hit.title, hit.text) for hit in hits],
        max_tokens=cfg.evaluate.rerank_max_tokens,
        instruction=index.info.instruction,
        max_query_tokens=TextLimits.of(cfg.evaluate).query,
    )
    return [replace(hits[i], score=float(scores[i])) for i in best_first(scores, top)]


def _snippet(text: str, lines: int = 3, width: int = 100) -> str:
    shown = [line[:width] for line in text.strip().splitlines() if line.strip()][:lines]
    return "\n".join(f"   {line}" for line in shown)


def fetch_model(
    name: Annotated[
        str,
        typer.Argument(help="smollm2-135m-instruct, all-minilm-l6-v2, a hub id, or a local path.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Where to put it; default the cache of prepared models.", show_default=False),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prepare a model directory: config, safetensors weights and tokenizer.

    Example: qwen3emb fetch-model smollm2-135m-instruct
    """

    def body() -> None:
        from qwen3emb.model import fetch

        directory: Any = fetch.fetch_model(name, output)
        if as_json:
            print_json({"name": name, "path": str(directory)})
        else:
            print(directory)

    finish(body, debug)
