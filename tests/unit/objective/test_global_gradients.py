"""The gradient of a step equals a slow, obvious reference: any token budget, uneven negatives; one process here.

The reference runs every text alone through the model of the transformers library with its own attention, in one
process, and lets autograd differentiate the loss of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen3emb.config.training import LossConfig, OptimizerConfig, TeacherConfig, TrainRerankerConfig
from qwen3emb.model.loading import load_causal, load_tokenizer, load_trunk
from qwen3emb.objective.distillation import Teacher, VectorScores, document_scores
from qwen3emb.objective.embedding_step import StepSettings, embedding_step
from qwen3emb.objective.losses import ContrastiveBatch, cosent_loss
from qwen3emb.objective.microbatch import PlainEngine
from qwen3emb.objective.reranker_step import reranker_step
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.identity import content_id
from qwen3emb.text.templates import EmbeddingTemplate, RerankTemplate, TextLimits, query_prompt
from tests.unit.objective.test_distillation import dense
from tests.unit.objective.whole_batch import matryoshka_loss

ROWS = [
    TrainingRow("a", "how do I read a file?", "def read(path): ...", ("yes",), grade=2),
    TrainingRow("b", "comment ouvrir un fichier ?", "def ouvrir(): ...", ("no", "maybe not", "texts"), grade=5),
    TrainingRow("c", "lines of the file", "The lines of the file as a list", (), grade=0),
    TrainingRow("d", "如何打开文件?", "def read(path): ...", ("line endings removed", "no"), grade=1),
    TrainingRow("e", "lines of the file", "The lines of the file as a list " * 9, ("no",), grade=3),
]
SETTINGS = StepSettings("find it", "retrieval", 3, TextLimits(64, 96), LossConfig(mrl_dims=[16]), 100_000, 2)
RERANKER = TrainRerankerConfig(
    steps=1, num_workers=1, queries_per_step=5, negatives=3, optimizer=OptimizerConfig(dtype="float32")
)
TEACHER = TeacherConfig(model="-", weight=0.75, temperature=2.0)
TAUGHT = [replace(row, teacher=tuple(2.0 - 1.5 * n for n in range(1 + len(row.negatives)))) for row in ROWS]
RERANKERS = (("sft", "sft", None), ("group", "group", None), ("both", "both", None), ("taught", "both", TEACHER))
"""Names, losses and teachers of the reranker steps that are compared."""
TASKS = {task: replace(SETTINGS, task=task) for task in ("retrieval", "classification", "sts")} | {
    "added": replace(SETTINGS, loss=LossConfig(mrl_dims=[16], hardness=5.0, spread_out=0.5))
}
"""Names and settings of the embedding steps that are compared."""
# (token_budget, pack_tokens): all at once; gradient cache; a few texts at a time, graphs kept; every text alone
BUDGETS = ((100_000, 4096), (60, 60), (100_000, 60), (1, 60))


def steps() -> Iterator[tuple[str, StepSettings]]:
    """(name, settings) of the embedding steps that are compared."""
    for name, settings in TASKS.items():
        for budget, packed in BUDGETS if name == "retrieval" else BUDGETS[:2]:
            yield f"{name} {budget}/{packed}", replace(settings, token_budget=budget, pack_tokens=packed)


def teachers() -> dict[str, Teacher]:
    """Teachers of the retrieval step: a reranker's scores, some of them missing, and an embedding model's vectors."""
    scored = [replace(row, teacher=row.teacher[:3] if row.id != "e" else ()) for row in TAUGHT]
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(n, 11, generator=generator) for n in (5, 5 + sum(len(row.negatives) for row in ROWS))]
    units = [torch.nn.functional.normalize(t, dim=-1) for t in vectors]
    return {
        "scored": document_scores(scored, SETTINGS.hard_negatives, 0.6, 2.0, torch.device("cpu")),
        "followed": VectorScores(0.3, 0.2, *units),
    }


def flat(model: torch.nn.Module) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


def gradients(folder: str) -> dict[str, tuple[float, torch.Tensor]]:
    """(loss, this rank's gradient) of every step that is compared."""
    path, found = Path(folder), {}
    trunk, causal = load_trunk(path, "float32").train(), load_causal(path, "float32").train()
    tokenizer = load_tokenizer(path)
    template = EmbeddingTemplate(tokenizer, "<|endoftext|>")
    for name, settings in steps():
        metrics = embedding_step(PlainEngine(trunk), template, ROWS, settings)
        found[name] = metrics["loss"], flat(trunk)
    for name, teacher in teachers().items():
        for budget, packed in BUDGETS[:2]:
            settings = replace(SETTINGS, token_budget=budget, pack_tokens=packed)
            metrics = embedding_step(PlainEngine(trunk), template, ROWS, settings, teacher)
            found[f"{name} {budget}/{packed}"] = metrics["loss"], flat(trunk)
    for budget, packed in BUDGETS:
        cfg = RERANKER.model_copy(update={"token_budget": budget, "pack_tokens": packed})
        for name, loss, taught in RERANKERS:
            own = cfg.model_copy(update={"loss": loss, "teacher": taught})
            metrics = reranker_step(PlainEngine(causal), RerankTemplate(tokenizer), TAUGHT, own, "find it")
            found[f"{name} {budget}/{packed}"] = metrics["loss"], flat(causal)
    return found


def reference(folder: Path) -> dict[str, tuple[float, torch.Tensor]]:
    """The same figures the slow way, by task."""
    from transformers import AutoModel, AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    trunk, causal = (auto.from_pretrained(folder).float() for auto in (AutoModel, AutoModelForCausalLM))
    prompt = query_prompt("find it")

    def vector(text: str, limit: int) -> torch.Tensor:
        ids = tokenizer.encode(text, add_special_tokens=False)[: limit - 1]
        end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        return trunk(torch.tensor([[*ids, end]])).last_hidden_state[0, -1]

    def stacked(vectors: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(vectors) if vectors else torch.empty(0, 64)

    found = {}
    negatives = [(i, n) for i, row in enumerate(ROWS) for n in row.negatives]
    for name, settings in (TASKS | dict.fromkeys(teachers(), SETTINGS)).items():
        queries = stacked([vector(prompt + r.query, 64) for r in ROWS])
        if settings.task == "sts":
            seconds = stacked([vector(prompt + r.positive, 64) for r in ROWS])
            grades = torch.tensor([float(r.grade) for r in ROWS])
            loss = torch.zeros(())
            for width in (64, 16):
                cut = [torch.nn.functional.normalize(t[:, :width], dim=-1) for t in (queries, seconds)]
                loss = loss + cosent_loss(*cut, grades, 0.05)
        else:
            batch = ContrastiveBatch(
                queries,
                stacked([vector(r.positive, 96) for r in ROWS]),
                stacked([vector(n, 96) for _, n in negatives]),
                torch.tensor([i for i, _ in negatives]),
                torch.tensor([content_id(r.query) for r in ROWS]),
                torch.tensor([content_id(r.positive) for r in ROWS]),
                torch.tensor([content_id(n) for _, n in negatives]),
            )
            if name in teachers():
                loss = dense(batch, teachers()[name], settings.loss, False)
            else:
                loss, _ = matryoshka_loss(batch, settings.loss, settings.task == "classification")
        loss.backward()
        found[name] = float(loss), flat(trunk)
    for name, kind, taught in RERANKERS:
        losses, groups = [], []
        weight = taught.weight if taught else 0.0
        for row in TAUGHT:
            margins = []
            texts = [(row.positive, "yes"), *((n, "no") for n in row.negatives)]
            for (document, word), teacher in zip(texts, row.teacher, strict=True):
                text = RerankTemplate.text(row.query, document, "find it")
                logits = causal(torch.tensor([tokenizer.encode(text, add_special_tokens=False)])).logits[0, -1]
                yes, no = (tokenizer.convert_tokens_to_ids(answer) for answer in ("yes", "no"))
                label = -torch.log_softmax(logits, dim=0)[yes if word == "yes" else no]
                student = torch.log_softmax(logits[[yes, no]] / TEACHER.temperature, dim=0)
                soft = torch.softmax(torch.tensor([teacher, 0.0]) / TEACHER.temperature, dim=0)
                distilled = -(TEACHER.temperature**2) * (soft * student).sum()
                losses.append((1 - weight) * label * (kind != "group") + weight * distilled)
                margins.append(logits[yes] - logits[no])
            groups.append(-torch.log_softmax(torch.stack(margins), dim=0)[0] * (kind != "sft"))
        loss = torch.stack(losses).mean() + (1 - weight) * torch.stack(groups).mean()
        loss.backward()
        found[name] = float(loss), flat(causal)
    return found


@pytest.fixture(scope="module")
def expected(tiny_qwen3: Path) -> dict[str, tuple[float, torch.Tensor]]:
    return reference(tiny_qwen3)


def check(found: dict[str, tuple[float, torch.Tensor]], expected: dict[str, tuple[float, torch.Tensor]]) -> None:
    for name, (loss, gradient) in found.items():
        wanted_loss, wanted = expected[name.split()[0]]
        assert loss == pytest.approx(wanted_loss, rel=1e-4), name
        assert float(wanted.norm()) > 1e-3
        torch.testing.assert_close(
            gradient, wanted, atol=2e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_one_process_gives_the_reference(tiny_qwen3: Path, expected: dict[str, tuple[float, torch.Tensor]]) -> None:
    check(gradients(str(tiny_qwen3)), expected)
