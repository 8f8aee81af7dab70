"""Both sides' training of a reranker, and its ranking of BM25's candidates; each in a process of its own (`side`)."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import data
from benchmarks.quality.side import THREADS, TRIAL_STEPS, peer_arguments, steps_that_fit, trained_in_time

QUERIES = 8  # of each step, on both sides
QUERY_TOKENS, DOCUMENT_TOKENS, TEMPLATE_TOKENS = 48, 160, 112
START_AND_EXPORT = 25.0  # seconds


def ours(
    model: str, settings: dict[str, Any], seed: int, seconds: float, trial: bool, out: str, split: str, depth: int
) -> dict[str, Any]:
    """The reranker's own training on Ray Train and DeepSpeed, and its ranking of a set.

    Args:
        model: directory to start from.
        settings: lr, loss, hard and random (negatives of each query).
        seed: of the order of the rows and of the negatives.
        seconds: of the training.
        trial: count the steps' time alone.
        out: folder.
        split: set that is ranked, a name for `data.of`.
        depth: of BM25's documents that are ranked.
    """
    from cluster.session import connected
    from qwen3emb.config.run import ClusterConfig
    from qwen3emb.config.training import OptimizerConfig, TrainRerankerConfig
    from qwen3emb.core.storage import Storage
    from qwen3emb.model.reranker import Reranker
    from qwen3emb.objective.rows import TrainingRow
    from qwen3emb.training.history import History
    from qwen3emb.training.loop import TrainJob, fit
    from qwen3emb.training.tasks import RerankerTask

    began, folder = time.monotonic(), Path(out)
    found = data.labelled(settings["hard"], seed, others=settings["random"])
    training = [TrainingRow(str(i), q, d, negatives, "scifact") for i, (q, d, negatives) in enumerate(found)]
    limits: dict[str, Any] = {
        "max_tokens": QUERY_TOKENS + DOCUMENT_TOKENS + TEMPLATE_TOKENS,
        "max_query_tokens": QUERY_TOKENS,
    }
    base = TrainRerankerConfig(
        steps=TRIAL_STEPS,
        num_workers=1,
        threads=THREADS,
        queries_per_step=QUERIES,
        loss=settings["loss"],
        negatives=settings["hard"] + settings["random"],
        optimizer=OptimizerConfig(lr=settings["lr"], warmup_steps=5, schedule="wsd", decay_share=0.4),
        **limits,
    )

    def trained(cfg: TrainRerankerConfig, place: Path) -> float:
        fit(TrainJob(RerankerTask(cfg, Path(model), data.INSTRUCTION, ()), {"scifact": training}, seed, str(place), 0))
        return float(History.read(Storage(str(place))).latest()["seconds"])

    with connected(ClusterConfig(num_cpus=4)):
        taken = trained(base, folder / "measured")
        shutil.rmtree(folder / "measured")
        left = seconds if trial else seconds - (time.monotonic() - began) - START_AND_EXPORT
        steps = steps_that_fit(taken, left, 2)
        stepping = trained(base.model_copy(update={"steps": steps}), folder)
    spent = stepping if trial else time.monotonic() - began
    reranker = Reranker(next((folder / "checkpoints").iterdir()), threads=THREADS)

    def scored(query: str, documents: list[str]) -> np.ndarray:
        return reranker.score(query, documents, instruction=data.INSTRUCTION, **limits)

    return _outcome(steps, stepping, spent, ranked(scored, split, depth))


def theirs(
    model: str, settings: dict[str, Any], seed: int, seconds: float, trial: bool, out: str, split: str, depth: int
) -> dict[str, Any]:
    """sentence-transformers' CrossEncoder from the same start; arguments as of `ours`, for `head` see `cross_encoder`.

    `loss` is bce (pairs with labels), lambda (LambdaLoss over each query's list) or mnrl (CachedMultipleNegatives-
    RankingLoss, in-batch and hard negatives). Each step sees as many documents as ours.
    """
    import torch
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, losses

    began, folder = time.monotonic(), Path(out)
    training = data.labelled(settings["hard"], seed, others=settings["random"])
    group = 1 + settings["hard"] + settings["random"]
    columns = _columns(training, settings["loss"])
    kinds = {
        "bce": losses.BinaryCrossEntropyLoss,
        "lambda": losses.LambdaLoss,
        "mnrl": losses.CachedMultipleNegativesRankingLoss,
    }

    def trained(steps: int) -> tuple[Any, float]:
        body = cross_encoder(model, settings["head"])
        body.model_card_data.generate_widget_examples = False  # no part of a training
        arguments = CrossEncoderTrainingArguments(
            **peer_arguments(folder, steps, settings, seed),
            per_device_train_batch_size=QUERIES * group if settings["loss"] == "bce" else QUERIES,
        )
        loss = kinds[settings["loss"]](body)
        trainer = CrossEncoderTrainer(body, arguments, Dataset.from_dict(columns), loss=loss)
        start = time.monotonic()
        trainer.train()
        return body, time.monotonic() - start

    body, steps, stepping, spent = trained_in_time(trained, seconds, began, trial)
    body.bfloat16()  # as ours is stored

    def scored(query: str, documents: list[str]) -> np.ndarray:
        pairs, plain = [(asked(query), document) for document in documents], torch.nn.Identity()
        found = body.predict(pairs, batch_size=len(pairs), show_progress_bar=False, activation_fn=plain)
        return np.asarray(found, dtype=np.float32)

    return _outcome(steps, stepping, spent, ranked(scored, split, depth))


def cross_encoder(model: str, head: str) -> Any:
    """A CrossEncoder on a decoder: `label`, a new head of one label over the last token; or `yes_no`, the library's own
    choice for a decoder, the logit of "yes" minus that of "no" after the chat template."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.sentence_transformer.modules import Transformer

    options: dict[str, Any] = {"model_kwargs": {"dtype": "float32"}}
    longest = QUERY_TOKENS + DOCUMENT_TOKENS
    if head == "yes_no":
        return CrossEncoder(model, max_length=longest, device="cpu", **options)
    body = Transformer(
        model,
        transformer_task="sequence-classification",
        max_seq_length=longest,
        config_kwargs={"num_labels": 1},
        modality_config={"text": {"method": "forward", "method_output_name": "logits"}},
        module_output_name="scores",
        **options,
    )
    body.model.config.pad_token_id = body.tokenizer.pad_token_id
    return CrossEncoder(modules=[body], device="cpu")


def asked(query: str) -> str:
    """The query with what parts it from the document behind it: a decoder's tokenizer puts nothing between them."""
    return f"{query}\nDocument: "


def _columns(training: list[data.Row], loss: str) -> dict[str, list[Any]]:
    """The rows as each of the peer's losses takes them."""
    if loss == "bce":
        pairs = [(asked(q), d, label) for q, p, hard in training for d, label in [(p, 1.0), *((n, 0.0) for n in hard)]]
        return {
            "query": [q for q, _, _ in pairs],
            "document": [d for _, d, _ in pairs],
            "label": [x for *_, x in pairs],
        }
    if loss == "lambda":
        lists = [[p, *hard] for _, p, hard in training]
        labels = [[1.0] + [0.0] * (len(documents) - 1) for documents in lists]
        return {"query": [asked(q) for q, _, _ in training], "documents": lists, "labels": labels}
    columns: dict[str, list[Any]] = {
        "query": [asked(q) for q, _, _ in training],
        "positive": [p for _, p, _ in training],
    }
    for n in range(len(training[0][2])):
        columns[f"negative_{n}"] = [hard[n] for _, _, hard in training]
    return columns


def ranked(scored: Any, split: str, depth: int) -> dict[str, float]:
    """Query -> nDCG@10 of BM25's best documents in the order of the scores; equal ones stay in BM25's."""
    chosen = data.of(split)
    texts = dict(zip(chosen.corpus, chosen.texts(), strict=True))
    run = {}
    for query, documents in data.candidates(chosen, depth).items():
        found = scored(chosen.queries[query], [texts[d] for d in documents])
        assert np.isfinite(found).all(), f"a reranker's scores for query {query} are not numbers"
        run[query] = data.in_order([documents[i] for i in np.argsort(-found, kind="stable")])
    return data.ndcg(chosen, run)


def _outcome(steps: int, stepping: float, spent: float, scores: dict[str, float]) -> dict[str, Any]:
    facts = {"steps_per_second": round(steps / stepping, 4)}
    return {"steps": steps, "seconds": spent, "facts": facts, "scores": scores}
