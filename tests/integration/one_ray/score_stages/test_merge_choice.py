"""What `merge` makes of checkpoints: the search, weights found from a loss, and pieces merged by Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qwen3emb.config.run import load_config
from qwen3emb.core.errors import UserError
from qwen3emb.merging import pieces
from qwen3emb.merging.checkpoint import merge_checkpoints
from qwen3emb.merging.search import best_checkpoints
from qwen3emb.merging.stage import _on_this_node, merge_models
from qwen3emb.merging.weights import probe_rows
from qwen3emb.metrics.retrieval import retrieval_metrics
from qwen3emb.objective.losses import ContrastiveBatch
from qwen3emb.pipeline.stages import reuse_stages
from qwen3emb.text.identity import content_id
from qwen3emb.text.retrieval_set import write_retrieval_set
from tests.unit.objective.whole_batch import contrastive_loss

pytestmark = pytest.mark.integration


@pytest.fixture
def names(upstream: Any, logs: dict[str, str]) -> Iterator[list[str]]:
    """The supervised checkpoints, while there is a dev set."""
    write_retrieval_set(upstream.folder("corpus") / "dev", upstream.heldout)
    yield [str(upstream.folder("supervised").local(f"checkpoints/step_00000{step}")) for step in (1, 2)]
    upstream.folder("corpus").delete("dev")


@pytest.fixture
def variant(upstream: Any, tmp_path: Path) -> Callable[..., Any]:
    """`variant("merge.method=cocktail")`: the run with other settings, in a folder of its own."""

    def made(*settings: str) -> Any:
        cfg = load_config(upstream.config, [f"storage={tmp_path}/variant", *settings])
        assert "supervised" in reuse_stages(cfg, upstream.cfg)
        return replace(upstream, cfg=cfg)

    return made


def test_the_checkpoints_and_weights_that_are_best_on_the_dev_set_are_merged(upstream: Any, names: list[str]) -> None:
    data, said = upstream.heldout, []
    chosen, weights, scores = best_checkpoints(upstream.context("merge"), names, upstream.base, said.append)
    parts = [f"last 2, {word} step_00000{n}" for n in (1, 2) for word in ("2 x", "half")]
    assert list(scores) == ["step_000001", "step_000002", "last 2", *parts]
    cfg, ask = upstream.cfg.evaluate, upstream.instruction
    for name, found in list(scores.items())[:2]:
        encoder = upstream.encoder(Path(names[int(name[-1]) - 1]))
        asked = encoder.encode(list(data.queries.values()), max_tokens=cfg.max_query_tokens, instruction=ask)
        cosines = asked @ encoder.encode(data.texts(), max_tokens=cfg.max_document_tokens).T
        assert found == pytest.approx(retrieval_metrics(data, cosines, [10])["ndcg@10"], abs=0.02)
    best = max(scores, key=lambda name: (scores[name], name.startswith("last")))
    assert chosen == (names if best.startswith("last") else [names[int(best[-1]) - 1]])
    wanted = {"2 x step_000001": [2, 1], "half step_000001": [0.5, 1]}
    wanted |= {"2 x step_000002": [1, 2], "half step_000002": [1, 0.5]}
    assert weights == wanted.get(best.partition(", ")[2])


def test_without_a_dev_set_nothing_is_chosen(upstream: Any, logs: dict[str, str], variant: Callable[..., Any]) -> None:
    for setting, message in (("merge.search=true", "merge.search: "), ("merge.method=cocktail", "merge.method cock")):
        with pytest.raises(UserError, match=f"{message}.*no dev queries"):
            merge_models(variant(setting).context("merge"), lambda line: None)


def reference_losses(run: Any, names: list[str]) -> list[float]:
    """Of each checkpoint on the probe rows, in one batch, from vectors of the encoder."""
    rows, cfg = probe_rows(run.context("merge")), run.cfg.supervised
    ids = [torch.tensor([content_id(r.query) for r in rows]), torch.tensor([content_id(r.positive) for r in rows])]
    losses = []
    for name in names:
        encoder = run.encoder(Path(name))
        queries = encoder.encode([r.query for r in rows], max_tokens=cfg.max_query_tokens, instruction=run.instruction)
        documents = encoder.encode([r.positive for r in rows], max_tokens=cfg.max_document_tokens)
        none = torch.empty(0, dtype=torch.long)
        batch = ContrastiveBatch(
            torch.tensor(queries), torch.tensor(documents), torch.empty(0, queries.shape[1]), none, *ids, none
        )
        losses.append(float(contrastive_loss(batch, cfg.loss)[0]))
    return losses


def test_cocktail_is_the_sum_weighted_by_the_losses(
    upstream: Any, names: list[str], variant: Callable[..., Any]
) -> None:
    run, said = variant("merge.method=cocktail", "merge.temperature=0.5"), []
    result = merge_models(run.context("merge"), said.append)
    wanted = torch.softmax(-torch.tensor(reference_losses(run, names)) / 0.5, dim=0)
    assert result.metrics["embedding"]["weights"] == pytest.approx(wanted.tolist(), abs=2e-3)
    assert result.metrics["embedding"]["slerp"] == 0
    assert result.metrics["reranker"]["weights"] == [0.5, 0.5] and result.metrics["reranker"]["lerp"] == 0
    first, second = (load_file(f"{name}/model.safetensors") for name in names)
    share = run.folder("merge").read_json("report.json")["embedding"]["weights"]
    for tensor, value in load_file(run.folder("merge").local("embedding/model.safetensors")).items():
        torch.testing.assert_close(value, share[0] * first[tensor] + share[1] * second[tensor], atol=1e-6, rtol=1e-5)
    assert any("step_000002: loss" in line for line in said)


def test_self_positioning_lowers_the_loss_on_the_probe_rows(
    upstream: Any, names: list[str], variant: Callable[..., Any]
) -> None:
    run, said = variant("merge.method=self_position", "merge.probe_steps=6", "merge.probe_lr=0.5"), []
    result = merge_models(run.context("merge"), said.append)
    losses = [float(line.partition("loss ")[2].split(" ")[0]) for line in said if "merge: step " in line]
    assert len(losses) == 6
    middle = merge_checkpoints([Path(name) for name in names], run.folder("merge").local("middle"), linear=True)
    assert middle.weights == (0.5, 0.5)
    folders = [run.folder("merge").local(name) for name in ("middle", "embedding")]
    before, after = reference_losses(run, [str(folder) for folder in folders])
    assert losses[0] == pytest.approx(before, abs=2e-3)
    assert min(losses) == pytest.approx(after, abs=2e-3)
    assert after < before
    assert sum(result.metrics["embedding"]["weights"]) == pytest.approx(1, abs=1e-3)


def test_pieces_merged_by_ray_tasks_are_the_same_to_the_bit(
    upstream: Any, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [Path(name) for name in names]
    whole = merge_checkpoints(folders, tmp_path / "whole")
    monkeypatch.setattr(pieces, "PIECE_BYTES", 40_000)
    apart = merge_checkpoints(folders, tmp_path / "apart", run_pieces=_on_this_node)
    assert whole.rows == apart.rows
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "apart/model.safetensors").read_bytes()
