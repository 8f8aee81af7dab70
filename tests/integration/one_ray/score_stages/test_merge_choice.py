"""What `merge` makes of checkpoints: what dev scores decide, weights found from a loss, pieces merged by Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qwen3emb.config.run import load_config
from qwen3emb.core.errors import UserError
from qwen3emb.merging import pieces
from qwen3emb.merging.checkpoint import merge_checkpoints
from qwen3emb.merging.stage import _on_this_node, merge_models
from qwen3emb.merging.weights import probe_rows
from qwen3emb.metrics.retrieval import per_query, retrieval_metrics
from qwen3emb.model.reranker import Reranker
from qwen3emb.objective.losses import ContrastiveBatch
from qwen3emb.pipeline.stages import reuse_stages
from qwen3emb.text.identity import content_id
from qwen3emb.text.retrieval_set import write_retrieval_set
from tests.integration.one_ray.score_stages.conftest import checkpoint
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


def dev_score(run: Any, folder: Path) -> float:
    """Mean nDCG@10 of an embedding model on the dev set, by the encoder in this process."""
    data, cfg = run.heldout, run.cfg.evaluate
    encoder = run.encoder(folder)
    asked = encoder.encode(list(data.queries.values()), max_tokens=cfg.max_query_tokens, instruction=run.instruction)
    cosines = asked @ encoder.encode(data.texts(), max_tokens=cfg.max_document_tokens).T
    return retrieval_metrics(data, cosines, [10])["ndcg@10"]


def same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for tensor, value in first.items():
        torch.testing.assert_close(value, second[tensor], atol=1e-6, rtol=1e-5)


def test_the_search_merges_the_checkpoints_and_weights_that_are_best_on_the_dev_set(
    upstream: Any, names: list[str], variant: Callable[..., Any]
) -> None:
    run, said = variant("merge.search=true"), []
    result = merge_models(run.context("merge"), said.append)
    scores = result.metrics["dev_ndcg@10"]
    parts = [f"slerp last 2, {word} step_00000{n}" for n in (1, 2) for word in ("2 x", "half")]
    assert list(scores) == ["step_000001", "step_000002", "slerp last 2", *parts]
    for name, found in list(scores.items())[:2]:
        assert found == pytest.approx(dev_score(run, Path(names[int(name[-1]) - 1])), abs=0.02)
    best = max(scores, key=lambda name: (scores[name], name.startswith("slerp")))
    report = run.folder("merge").read_json("report.json")["embedding"]
    assert report["checkpoints"] == (names if best.startswith("slerp") else [names[int(best[-1]) - 1]])
    wanted = {"2 x step_000001": 2 / 3, "half step_000001": 1 / 3, "2 x step_000002": 1 / 3, "half step_000002": 2 / 3}
    assert report["weights"][0] == pytest.approx(wanted.get(best.partition(", ")[2], 1 / len(report["checkpoints"])))
    assert "comparison" not in report and not run.folder("merge").exists("card.json")


def test_a_merge_is_kept_only_where_it_is_not_worse_on_the_dev_set(
    upstream: Any, names: list[str], variant: Callable[..., Any], tmp_path: Path
) -> None:
    settings = ("merge.keep=best", "merge.candidates=[cocktail]", "evaluate.rerank_dev_top=5")
    run, said = variant(*settings), []
    out, ctx = run.folder("merge"), run.context("merge")
    further = run.folder("distill")
    checkpoint(run.base, further.local("checkpoints/step_000002"), 7, reranker=False)
    steps = ["checkpoints/step_000002"]
    further.write_json("artifact.json", {"metrics": {"model": steps[0], "checkpoints": steps}})
    ctx = replace(ctx, inputs={**ctx.inputs, "distill": further})
    result = merge_models(ctx, said.append)

    # The table against merges and scores of our own.
    folders = {f"step_00000{n}": Path(names[n - 1]) for n in (1, 2)} | {"distill": Path(further.local(steps[0]))}
    rows = {row["name"]: row for row in out.read_json("report.json")["embedding"]["comparison"]["candidates"]}
    first, second, third = folders
    made: dict[str, tuple[list[str], bool]] = {
        "karcher last 2 + distill": ([first, second, third], False),
        "slerp last 1 + distill": ([second, third], False),
        "cocktail last 2 + distill": ([first, second, third], True),
        "slerp last 2": ([first, second], False),
        "cocktail last 2": ([first, second], True),
    }
    assert list(rows) == [*folders, *made]
    losses = reference_losses(run, [str(folder) for folder in folders.values()])
    for name, (parts, linear) in made.items():
        share = torch.softmax(-torch.tensor(losses) / 5.0, dim=0).tolist()
        weights = [share[list(folders).index(part)] for part in parts] if linear else None
        base = {} if linear else {"base": run.base, "on": "task_vectors"}
        target = tmp_path / name.replace(" ", "_")
        merge_checkpoints([folders[part] for part in parts], target, weights=weights, linear=linear, **base)
        folders[name] = target
    for name, row in rows.items():
        assert row["dev_ndcg@10"] == pytest.approx(dev_score(run, folders[name]), abs=0.02), name
    [kept] = [name for name, row in rows.items() if row["chosen"]]
    assert result.metrics["embedding"]["method"] == ("cocktail" if kept.startswith("cocktail") else "slerp")
    same_weights(Path(out.local("embedding")), folders[kept])

    # The decision, from the figures of each query that lie beside the report.
    figures = {name: facts["ndcg@10"] for name, facts in out.read_json("candidates/embedding.json").items()}
    assert {name: round(sum(f.values()) / len(f), 5) for name, f in figures.items()} == {
        name: row["dev_ndcg@10"] for name, row in rows.items()
    }
    best = max(list(rows)[:3], key=lambda name: rows[name]["dev_ndcg@10"])
    assert kept in made or rows[kept]["dev_ndcg@10"] > rows[best]["dev_ndcg@10"] - 0.001
    assert rows[kept]["difference"] >= 0
    card = out.read_json("card.json")
    assert card["embedding_on_6_dev_queries"][kept]["chosen"] and kept in card["embedding_kept"]
    assert any(line == f"merge: embedding: {card['embedding_kept']}" for line in said)

    # The reranker, by the documents that the last checkpoint ranks first.
    table = out.read_json("report.json")["reranker"]["comparison"]
    assert [row["name"] for row in table["candidates"]] == ["step_000001", "step_000002", "slerp last 2"]
    for row in table["candidates"][:2]:
        folder = run.folder("reranker").local(f"checkpoints/{row['name']}")
        assert row["dev_ndcg@10"] == pytest.approx(reranked_score(run, Path(folder), folders["distill"]), abs=0.02)
    assert out.exists("reranker/sequence_classifier/config.json")
    assert not out.names("candidate"), "merged candidates are deleted"

    # Killed after the scores: nothing is scored again.
    before = out.read_bytes("candidates/embedding.json"), out.read_bytes("embedding/model.safetensors")
    out.delete("report.json")
    again: list[str] = []
    merge_models(ctx, again.append)
    assert [line for line in again if "loss" in line or ("dev nDCG@10" in line and " kept" not in line)] == []
    assert before == (out.read_bytes("candidates/embedding.json"), out.read_bytes("embedding/model.safetensors"))


def reranked_score(run: Any, folder: Path, embedding: Path) -> float:
    """Mean dev nDCG@10 of the order that a reranker gives to the five documents that an embedding model ranks first."""
    data, cfg = run.heldout, run.cfg.evaluate
    encoder, reranker = run.encoder(embedding), Reranker(folder, dtype="float32")
    documents = encoder.encode(data.texts(), max_tokens=cfg.max_document_tokens)
    found = {}
    for query, text in data.queries.items():
        asked = encoder.encode([text], max_tokens=cfg.max_query_tokens, instruction=run.instruction)
        top = np.argsort(-(asked @ documents.T)[0], kind="stable")[:5]
        texts = [data.texts()[place] for place in top]
        scores = reranker.score(text, texts, max_tokens=cfg.rerank_max_tokens, instruction=run.instruction)
        found[query] = {list(data.corpus)[place]: float(score) for place, score in zip(top, scores, strict=True)}
    return float(np.mean([row["ndcg@10"] for row in per_query(data, found, [10]).values()]))


def test_without_a_dev_set_nothing_is_chosen(upstream: Any, logs: dict[str, str], variant: Callable[..., Any]) -> None:
    messages = {
        "merge.search=true": "merge.search: ",
        "merge.keep=best": "merge.keep: best: ",
        "merge.method=cocktail": "merge.method cock",
    }
    for setting, message in messages.items():
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
