"""The gradient of W ranks over gloo equals that of one process with the whole batch, with uneven negatives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from qwen3emb.config_train import LossConfig, OptimizerConfig, TrainEmbeddingConfig, TrainRerankerConfig
from qwen3emb.model.loading import load_causal, load_tokenizer, load_trunk
from qwen3emb.templates import EmbeddingTemplate, RerankTemplate
from qwen3emb.train.embedding_step import embedding_loss
from qwen3emb.train.reranker_step import reranker_loss
from qwen3emb.train.rows import TrainingRow

ROWS = [
    TrainingRow("a", "how do I read a file?", "def read(path): ...", ("yes",)),
    TrainingRow("b", "comment ouvrir un fichier ?", "def ouvrir(): ...", ("no", "maybe not", "texts")),
    TrainingRow("c", "lines of the file", "The lines of the file as a list", ()),
    TrainingRow("d", "如何打开文件?", "def read(path): ...", ("line endings removed", "no")),
]
FP32 = OptimizerConfig(dtype="float32")


def gradient(kind: str, folder: str, rows: list[TrainingRow]) -> torch.Tensor:
    """Flattened gradient of this process's part of the loss."""
    path = Path(folder)
    if kind == "embedding":
        model = load_trunk(path, "float32")
        cfg = TrainEmbeddingConfig(
            steps=1, num_workers=1, batch_size=4, hard_negatives=3, optimizer=FP32, loss=LossConfig(mrl_dims=[16])
        )
        template = EmbeddingTemplate(load_tokenizer(path), "<|endoftext|>")
        loss, _ = embedding_loss(model, template, rows, cfg, "find it")
    else:
        model = load_causal(path, "float32")
        reranker_cfg = TrainRerankerConfig(steps=1, num_workers=1, queries_per_step=4, negatives=3, optimizer=FP32)
        loss, _ = reranker_loss(model, RerankTemplate(load_tokenizer(path)), rows, reranker_cfg, "find it")
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def worker(rank: int, world: int, kind: str, folder: str, rendezvous: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    share = len(ROWS) // world
    flat = gradient(kind, folder, ROWS[rank * share : (rank + 1) * share])
    dist.all_reduce(flat)
    if rank == 0:
        torch.save(flat, result)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", ["embedding", "reranker"])
def test_sum_over_ranks_is_the_gradient_of_one_process(kind: str, world: int, tiny_qwen3: Path, tmp_path: Path) -> None:
    result, rendezvous = str(tmp_path / "gradient.pt"), str(tmp_path / "rendezvous")
    mp.spawn(worker, args=(world, kind, str(tiny_qwen3), rendezvous, result), nprocs=world)
    expected = gradient(kind, str(tiny_qwen3), ROWS)
    torch.testing.assert_close(torch.load(result), expected, atol=1e-5, rtol=1e-3)
    assert float(expected.norm()) > 1e-3
