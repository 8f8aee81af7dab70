"""One training of `make bench-quality` in a process of its own: `python -m benchmarks.quality_sides ours|theirs FILE`.

FILE is JSON: `model`, `pairs` (file of [query, document] rows), `seconds`, `out`. The time runs
from the start of the process's work, loading and Ray included, until the last step is done; both sides measure a few
steps first and plan as many as fit, since the peer's learning rate ends with the last. Prints one JSON line.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

INSTRUCTION = "Given a scientific claim, retrieve documents that support or refute the claim"
END_TOKEN = "<|im_end|>"
TRIAL_STEPS = 3
RESERVE = 0.04  # share of the time that may be lost to a machine that slows down
CHECKPOINTS, PARTS = 5, 9  # kept, and made: the last five lie in the second half
START_AND_EXPORTS = 90  # seconds


def steps_that_fit(trial_seconds: float, left: float) -> int:
    """Steps in `left` seconds, where `TRIAL_STEPS` took `trial_seconds`."""
    return max(PARTS, int(left * (1 - RESERVE) * TRIAL_STEPS / trial_seconds))


def ours(order: dict[str, Any]) -> dict[str, Any]:
    """The supervised stage's own training on Ray Train and DeepSpeed, from the base model."""
    from cluster.session import connected
    from qwen3emb.config.run import ClusterConfig
    from qwen3emb.config.training import LossConfig, OptimizerConfig, TrainEmbeddingConfig
    from qwen3emb.core.storage import Storage
    from qwen3emb.objective.rows import TrainingRow
    from qwen3emb.training.history import History
    from qwen3emb.training.loop import TrainJob, fit
    from qwen3emb.training.tasks import EmbeddingTask

    began = time.monotonic()
    rows = [TrainingRow(str(i), q, d, (), "scifact") for i, (q, d) in enumerate(json.loads(_read(order["pairs"])))]
    base = TrainEmbeddingConfig(
        steps=TRIAL_STEPS,
        num_workers=1,
        batch_size=16,
        max_query_tokens=64,
        max_document_tokens=128,
        loss=LossConfig(temperature=0.05, query_query=False, document_document=False),
        # No decay: the merge of the last checkpoints takes its place, and steps at full size keep them apart.
        optimizer=OptimizerConfig(lr=2e-4, warmup_steps=8, schedule="constant"),
        keep_checkpoints=CHECKPOINTS,
    )

    def trained(cfg: TrainEmbeddingConfig, out: Path) -> dict[str, Any]:
        task = EmbeddingTask(cfg, Path(order["model"]), END_TOKEN, INSTRUCTION, None)
        return fit(TrainJob(task, {"scifact": rows}, 0, str(out), 0))

    out = Path(order["out"])
    with connected(ClusterConfig(num_cpus=4)):
        trained(base, out / "trial")
        taken = History.read(Storage(str(out / "trial"))).latest()["seconds"]
        shutil.rmtree(out / "trial")
        steps = steps_that_fit(taken, order["seconds"] - (time.monotonic() - began) - START_AND_EXPORTS)
        steps -= steps % PARTS
        result = trained(base.model_copy(update={"steps": steps, "checkpoint_every": steps // PARTS}), out)
    return {"steps": steps, "rows": steps * base.batch_size, "seconds": time.monotonic() - began, **result}


def theirs(order: dict[str, Any]) -> dict[str, Any]:
    """sentence-transformers' trainer as its documentation recommends: MNRL, batches of 16 without duplicates, 2e-5."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import BatchSamplers

    began = time.monotonic()
    pairs = json.loads(_read(order["pairs"]))
    data = Dataset.from_dict({"anchor": [q for q, _ in pairs], "positive": [d for _, d in pairs]})
    out = Path(order["out"])

    def trained(steps: int) -> tuple[Any, float]:
        model = pooled_decoder(order["model"])
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(out / "run"),
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=2e-5,
            warmup_steps=max(1, steps // 10),
            bf16=True,
            use_cpu=True,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(model, arguments, data, loss=MultipleNegativesRankingLoss(model))
        start = time.monotonic()
        trainer.train()
        return model, time.monotonic() - start

    _, taken = trained(TRIAL_STEPS)
    steps = steps_that_fit(taken, order["seconds"] - (time.monotonic() - began))
    model, _ = trained(steps)
    spent = time.monotonic() - began
    model.bfloat16().save_pretrained(str(out / "model"))  # as ours is stored
    return {"steps": steps, "rows": steps * 16, "seconds": spent, "model": "model"}


def pooled_decoder(model: str) -> Any:
    """sentence-transformers on a decoder: its default, the mean over the tokens, and no chat template around texts.

    The weights are float32 (`bf16=True` is autocast): steps of 2e-5 are lost in bf16 weights, as the base's are stored.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    body = Transformer(
        model,
        model_kwargs={"dtype": "float32"},
        max_seq_length=256,
        modality_config={"text": text},
        module_output_name="token_embeddings",
    )
    return SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension())], device="cpu")


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


if __name__ == "__main__":
    chosen = ours if sys.argv[1] == "ours" else theirs
    print(json.dumps(chosen(json.loads(_read(sys.argv[2])))), flush=True)
