"""Both sides' training of an embedding model, and its scores; each function runs in a process of its own (`side`)."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import data
from benchmarks.quality.side import THREADS, TRIAL_STEPS, peer_arguments, steps_that_fit, trained_in_time

END_TOKEN = "<|im_end|>"
QUERY_TOKENS = 64
KEPT, PARTS = 5, 9  # checkpoints that are merged, and made: the last five lie in the second half
START_AND_MERGE = 90.0  # seconds for a second start, nine exports with their states, and the merge


def rows_of(rows: dict[str, Any], settings: dict[str, Any], seed: int) -> list[data.Row]:
    """The training rows that an order names: `most` labelled ones, or the synthetic ones of the folder `pairs`."""
    if "pairs" in rows:
        return data.synthetic(Path(rows["pairs"]))
    return data.labelled(settings.get("negatives", 0), seed, rows.get("most"))


def ours(
    model: str, rows: dict[str, Any], settings: dict[str, Any], seed: int, seconds: float, trial: bool, out: str
) -> dict[str, Any]:
    """The supervised stage's own training on Ray Train and DeepSpeed, and the merge of its last checkpoints.

    The rate does not decay: the merge takes its place, and steps of full size keep the checkpoints apart.

    Args:
        model: directory to start from.
        rows: see `rows_of`.
        settings: lr, tokens, batch, negatives.
        seed: of the order of the rows.
        seconds: of the training.
        trial: count the steps' time alone.
        out: folder; the model is in `merged`, the checkpoints in `checkpoints`.
    """
    from cluster.session import connected
    from qwen3emb.config.run import ClusterConfig
    from qwen3emb.config.training import LossConfig, OptimizerConfig, TrainEmbeddingConfig
    from qwen3emb.core.storage import Storage
    from qwen3emb.merging.checkpoint import merge_checkpoints
    from qwen3emb.objective.rows import TrainingRow
    from qwen3emb.training.history import History
    from qwen3emb.training.loop import TrainJob, fit
    from qwen3emb.training.tasks import EmbeddingTask

    began, folder = time.monotonic(), Path(out)
    training = [
        TrainingRow(str(i), q, d, tuple(hard), "scifact")
        for i, (q, d, hard) in enumerate(rows_of(rows, settings, seed))
    ]
    base = TrainEmbeddingConfig(
        steps=TRIAL_STEPS,
        num_workers=1,
        threads=THREADS,
        batch_size=settings["batch"],
        max_query_tokens=QUERY_TOKENS,
        max_document_tokens=settings["tokens"],
        hard_negatives=settings.get("negatives", 0),
        loss=LossConfig(temperature=0.05, query_query=False, document_document=False),
        optimizer=OptimizerConfig(lr=settings["lr"], warmup_steps=8, schedule="constant"),
        keep_checkpoints=KEPT,
    )

    def trained(cfg: TrainEmbeddingConfig, place: Path) -> float:
        task = EmbeddingTask(cfg, Path(model), END_TOKEN, data.INSTRUCTION, None)
        fit(TrainJob(task, {"scifact": training}, seed, str(place), 0))
        return float(History.read(Storage(str(place))).latest()["seconds"])

    with connected(ClusterConfig(num_cpus=4)):
        taken = trained(base, folder / "measured")
        shutil.rmtree(folder / "measured")
        left = seconds if trial else seconds - (time.monotonic() - began) - START_AND_MERGE
        steps = steps_that_fit(taken, left, PARTS)
        steps -= steps % PARTS
        stepping = trained(base.model_copy(update={"steps": steps, "checkpoint_every": steps // PARTS}), folder)
    places = sorted((folder / "checkpoints").iterdir())[-KEPT:]
    merge_checkpoints(places, folder / "merged", base=Path(model), on="task_vectors")
    spent = stepping if trial else time.monotonic() - began
    return _figures(steps, stepping, spent, settings) | {"model": str(folder / "merged")}


def theirs(
    model: str, rows: dict[str, Any], settings: dict[str, Any], seed: int, seconds: float, trial: bool, out: str
) -> dict[str, Any]:
    """sentence-transformers' trainer: MultipleNegativesRankingLoss, batches without duplicates, linear decay.

    Arguments as of `ours`; settings may have `pooling` (mean, lasttoken) and `precision` (bf16: autocast, or fp32). The
    weights are float32 either way: steps of 2e-5 are lost in bf16 weights, as the base's are stored.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import BatchSamplers

    from qwen3emb.text.templates import query_prompt

    began, folder = time.monotonic(), Path(out)
    training = rows_of(rows, settings, seed)
    columns = {"anchor": [q for q, _, _ in training], "positive": [d for _, d, _ in training]}
    for n in range(settings.get("negatives", 0)):
        columns[f"negative_{n}"] = [hard[n] for _, _, hard in training]
    prompt = query_prompt(data.INSTRUCTION)

    def trained(steps: int) -> tuple[Any, float]:
        body = sentence_model(model, settings, prompt)
        body.model_card_data.generate_widget_examples = False  # no part of a training
        arguments = SentenceTransformerTrainingArguments(
            **peer_arguments(folder, steps, settings, seed),
            per_device_train_batch_size=settings["batch"],
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            prompts={"anchor": prompt},
        )
        loss = MultipleNegativesRankingLoss(body)
        trainer = SentenceTransformerTrainer(body, arguments, Dataset.from_dict(columns), loss=loss)
        start = time.monotonic()
        trainer.train()
        return body, time.monotonic() - start

    body, steps, stepping, spent = trained_in_time(trained, seconds, began, trial)
    body.bfloat16().save_pretrained(str(folder / "merged"))  # as ours is stored
    return _figures(steps, stepping, spent, settings) | {"model": str(folder / "merged")}


def sentence_model(model: str, settings: dict[str, Any], prompt: str) -> Any:
    """sentence-transformers on a decoder, with our prompt for queries and no chat template around texts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    body = Transformer(
        model,
        model_kwargs={"dtype": "float32"},
        max_seq_length=settings["tokens"],
        modality_config={"text": text},
        module_output_name="token_embeddings",
    )
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode=settings.get("pooling", "mean"))
    return SentenceTransformer(modules=[body, pooling], device="cpu", prompts={"query": prompt})


def _figures(steps: int, stepping: float, spent: float, settings: dict[str, Any]) -> dict[str, Any]:
    facts = {"steps_per_second": round(steps / stepping, 4), "rows": steps * settings["batch"]}
    return {"steps": steps, "seconds": spent, "facts": facts}


def scores(model: str, sets: list[str], tokens: int, vectors: str | None = None) -> dict[str, Any]:
    """Set -> query -> nDCG@10 of a model, ours or sentence-transformers', by exact inner product.

    Args:
        model: directory.
        sets: names for `data.of`.
        tokens: longest document.
        vectors: file to keep the vectors of the last set in (`queries`, `documents`).
    """
    from qwen3emb.metrics.retrieval import top_run
    from qwen3emb.model.foreign import open_encoder

    encoder, found = open_encoder(model, end_token=END_TOKEN, threads=THREADS), {}
    for name in sets:
        chosen = data.of(name)
        queries = encoder.encode(list(chosen.queries.values()), max_tokens=QUERY_TOKENS, instruction=data.INSTRUCTION)
        documents = encoder.encode(chosen.texts(), max_tokens=tokens)
        found[name] = data.ndcg(chosen, top_run(chosen, queries @ documents.T, 10))
    if vectors:
        np.savez(vectors, queries=queries, documents=documents)
    return found
