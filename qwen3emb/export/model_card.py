"""The model card (`README.md`) of an exported model: its usage, training data, licences and evaluation.

It states only what the records of the run contain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen3emb.model.contract import Contract
from qwen3emb.text.templates import query_prompt

__all__ = ["CardFacts", "model_card"]


@dataclass(frozen=True)
class CardFacts:
    """What the model card reports, from the records of a run.

    Attributes:
        name: of the model.
        base: model that it was trained from.
        generator: model that wrote the synthetic pairs.
        datasets: dataset -> rows that the model was trained on.
        licences: labelled dataset -> its licence as the catalogue or config states it.
        merged: number of checkpoints that were merged.
        evaluated: `results.json` of `evaluate`: {"dataset", "queries", "documents", "models": {name: {metric: x}}}, and
            "sets" with the same of further sets.
        scores: task of mteb -> main score in points.
        config: name of the run's config file.
        method: of the merge.
    """

    name: str
    base: str
    generator: str
    datasets: Mapping[str, int]
    licences: Mapping[str, str] = field(default_factory=dict)
    merged: int = 1
    evaluated: Mapping[str, Any] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    config: str = "run.yaml"
    method: str = "SLERP"


def model_card(contract: Contract, facts: CardFacts) -> str:
    """The card as Markdown, with the metadata that model hubs read at its top."""
    embedding = contract.kind == "embedding"
    head = {
        "library_name": "sentence-transformers" if embedding else "transformers",
        "pipeline_tag": "feature-extraction" if embedding else "text-ranking",
        "tags": ["qwen3emb", "sentence-transformers", "embedding" if embedding else "reranker"],
    }
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    kind = "embedding model" if embedding else "yes/no reranker"
    parts = [
        f"---\n{front}\n---\n\n# {facts.name}",
        f"A text {kind}, trained from {facts.base} with the Qwen3 Embedding recipe by qwen3emb.",
        _contract(contract),
        _usage(contract),
        _data(facts),
        _figures(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _contract(contract: Contract) -> str:
    rows = {"instruction": f"`{contract.instruction}`", "longest input": f"{contract.max_tokens} tokens"}
    if contract.kind == "embedding":
        cut = ", ".join(map(str, contract.mrl_dims))
        prompt = query_prompt(contract.instruction).replace("\n", "\\n")
        rows |= {
            "query": f"`{prompt}` before the text; documents are given as they are",
            "pooling": f"the last token, `{contract.end_token}`, which the tokenizer appends; normalised",
            "dimensions": f"{contract.dimensions}" + (f", may be cut to {cut} and normalised again" if cut else ""),
        }
    else:
        rows["input"] = f"`{contract.template}`".replace("\n", "\\n")
        rows["score"] = f"sigmoid(logit of `yes` - logit of `no`) at the last position; ids {contract.yes_no}"
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"## Contract\n\n| | |\n|---|---|\n{lines}".replace("\n\nQuery:", " / Query:").replace(
        "\nQuery:", "\\nQuery:"
    )


def _usage(contract: Contract) -> str:
    if contract.kind == "embedding":
        cut = f", truncate_dim={contract.mrl_dims[0]}" if contract.mrl_dims else ""
        code = (
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("FOLDER"{cut})\n'
            'queries = model.encode(["..."], prompt_name="query", normalize_embeddings=True)\n'
            'documents = model.encode(["..."], normalize_embeddings=True)\n'
            "print(model.similarity(queries, documents))"
        )
        served = "vLLM: `vllm serve FOLDER --runner pooling`, with the prompt before each query."
    else:
        code = (
            "from sentence_transformers import CrossEncoder  # 6 or newer\n\n"
            'model = CrossEncoder("FOLDER/sequence_classifier")\n'
            'print(model.predict([("query", "document"), ("query", "another")]))'
        )
        served = (
            "`sequence_classifier/` below is the same model with one label. vLLM: `vllm serve "
            "FOLDER/sequence_classifier --runner pooling "
            "--chat-template FOLDER/sequence_classifier/chat_template.jinja`; without the template its scores are "
            "almost random."
        )
    return f"## Usage\n\nFOLDER is the directory of this file.\n\n```python\n{code}\n```\n\n{served}"


def _data(facts: CardFacts) -> str:
    rows = "\n".join(
        f"| {dataset} | {count:,} | {facts.licences.get(dataset) or 'not stated'} |"
        for dataset, count in sorted(facts.datasets.items())
    )
    written = f"Pairs of the datasets `synthetic...` were written by {facts.generator}." if facts.generator else ""
    merged = "one checkpoint" if facts.merged == 1 else f"{facts.merged} checkpoints, merged by {facts.method}"
    return (
        "## Training data\n\n| dataset | rows | licence |\n|---|---|---|\n"
        f"{rows}\n\n{written} The weights are those of {merged}."
    )


def _figures(facts: CardFacts) -> str:
    parts = []
    results = facts.evaluated or {}
    for found in (results, *results.get("sets", {}).values()) if results.get("models") else ():
        models = found["models"]
        metrics = list(next(iter(models.values())))
        head = f"| model | {' | '.join(metrics)} |\n|---|{'---|' * len(metrics)}"
        rows = "\n".join(
            f"| {name} | {' | '.join(f'{scores[m]:.4f}' for m in metrics)} |" for name, scores in models.items()
        )
        kind = "synthetic queries, written by the generator," if found.get("synthetic_queries") else "queries"
        about = f"{found['queries']} {kind} over {found['documents']} documents"
        source = f"{found['dataset']}" if found is results else f"{found['dataset']}, {found['set']}"
        command = f"python -m jobs.evaluate --config {facts.config}"
        parts.append(f"Retrieval, {about} (`{source}`), by `{command}`:\n\n{head}\n{rows}")
    if facts.scores:
        tasks = " ".join(f"--task {task}" for task in facts.scores)
        rows = "\n".join(f"| {task} | {score:.2f} |" for task, score in facts.scores.items())
        command = f"qwen3emb evaluate {facts.name} {tasks} --out DIR"
        parts.append(f"Tasks of mteb, main scores, by `{command}`:\n\n| task | score |\n|---|---|\n{rows}")
    return "## Evaluation\n\n" + "\n\n".join(parts) if parts else ""
