"""`filter`, `mine`, `merge` and `evaluate` as their commands run them, against the models in this process."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qwen3emb.core.artifact import read_record
from qwen3emb.core.records import PAIR
from qwen3emb.metrics.retrieval import run_metrics
from qwen3emb.model.loading import load_tokenizer
from qwen3emb.model.reranker import Reranker

pytestmark = pytest.mark.integration


def test_filter_keeps_what_scores_above_the_threshold(upstream: Any, logs: dict[str, str]) -> None:
    out, threshold = upstream.folder("filter"), upstream.cfg.filter.threshold
    want = {
        p["id"]: float(c)
        for p, c in zip(upstream.synthetic, np.diag(upstream.cosines(upstream.synthetic)), strict=True)
    }
    kept, dropped = (out.read_table(name) for name in ("pairs", "dropped"))
    assert kept.schema == dropped.schema == PAIR
    given = {p["id"]: p for p in upstream.synthetic}
    for row in kept.to_pylist() + dropped.to_pylist():
        score = row.pop("score")
        assert score == pytest.approx(want[row["id"]], abs=1e-5)
        assert row == {k: v for k, v in given[row["id"]].items() if k != "score"} | {"negatives": None, "grade": None}
    assert all(s > threshold for s in kept["score"].to_pylist())
    assert all(s <= threshold for s in dropped["score"].to_pylist())
    record = read_record(out)
    assert record["rows_in"] == 24 and record["rows_out"] == len(kept) > 0
    assert record["rejected"] == {"below_threshold": len(dropped), "not_sampled": 4}
    assert len({*kept["id"].to_pylist(), *dropped["id"].to_pylist()}) == 20
    histogram = out.read_json("histogram.json")
    assert sum(histogram["counts"]) == 20 and histogram["kept"] == len(kept)
    assert " * " in logs["filter"] and "####" in logs["filter"]


def test_mined_negatives_are_the_best_allowed_documents_of_their_corpus(upstream: Any, logs: dict[str, str]) -> None:
    assert "mine: documents embedded" in logs["mine"]
    cfg, out = upstream.cfg.mine, upstream.folder("mine")
    pairs = upstream.labelled + upstream.folder("filter").read_table("pairs").to_pylist()
    corpora = {"docstrings": [p["document"] for p in upstream.labelled], "synthetic": upstream.passages}
    weak = upstream.encoder(upstream.folder("weak").local("checkpoints/step_000002"))
    texts = sorted({*corpora["docstrings"], *upstream.passages})
    queries = weak.encode([p["query"] for p in pairs], max_tokens=64, instruction=upstream.instruction)
    cosines = queries @ weak.encode(texts, max_tokens=64).T
    rows = {row["id"]: row for row in out.read_table("rows").to_pylist()}
    rejects = {row["id"]: row for row in out.read_table("rejects").to_pylist()}
    for p, of_query in zip(pairs, cosines, strict=True):
        score = dict(zip(texts, of_query.tolist(), strict=True))
        positives = [o["document"] for o in pairs if o["query"] == p["query"]]
        scores = np.array([score[t] for t in positives])
        if scores.max() <= cfg.min_positive:
            assert rejects[p["id"]]["reason"] == "positive_below_min" and p["id"] not in rows
            assert json.loads(rejects[p["id"]]["payload"])["query"] == p["query"]
            continue
        candidates = [t for t in corpora[p["dataset"]] if t not in positives]
        ranked = sorted(((score[t], t) for t in candidates), reverse=True)[1:6]
        want = [(s, t) for s, t in ranked if s < scores.mean() + cfg.margin][: cfg.negatives]
        row = rows[p["id"]]
        assert (row["query"], row["positive"], row["dataset"]) == (p["query"], p["document"], p["dataset"])
        assert row["negatives"] == [t for _, t in want]
        assert row["negative_scores"] == pytest.approx([s for s, _ in want], abs=1e-5)
        assert row["positive_score"] == pytest.approx(score[p["document"]], abs=1e-5)
    assert not out.exists("vectors"), "vectors are kept only while they are needed"
    record = read_record(out)
    assert record["rows_in"] == len(pairs) == len(rows) + len(rejects)
    assert record["rejected"] == {"positive_below_min": len(rejects)} and rejects
    short = [row for row in rows.values() if len(row["negatives"]) < 3]
    assert record["metrics"]["short"] == len(short) > 0
    assert record["metrics"]["rows"].keys() == {"docstrings", "synthetic"}


def test_merged_models_are_the_slerp_of_task_vectors(upstream: Any, logs: dict[str, str]) -> None:
    out = upstream.folder("merge")
    base = load_file(upstream.base / "model.safetensors")
    report = out.read_json("report.json")
    for name, stage in (("embedding", "supervised"), ("reranker", "reranker")):
        places = [f"checkpoints/step_{n:06d}/model.safetensors" for n in (1, 2)]
        first, second = (load_file(upstream.folder(stage).local(place)) for place in places)
        merged = load_file(out.local(f"{name}/model.safetensors"))
        angles = {row["name"]: (row["path"], row["angle_degrees"]) for row in report[name]["rows"]}
        assert merged.keys() == first.keys() == angles.keys()
        for tensor, value in merged.items():
            a, b = (t[tensor].double() - base[tensor].double() for t in (first, second))
            theta = torch.acos((a * b).sum() / (a.norm() * b.norm()))
            want = base[tensor] + torch.sin(theta / 2) / torch.sin(theta) * (a + b)
            assert torch.allclose(value.double(), want, atol=1e-6), tensor
            path, angle = angles[tensor]
            assert path == "slerp" and angle == pytest.approx(float(torch.rad2deg(theta)), abs=1e-3)
        assert f"merge: {name}: {len(merged)} tensors of step_000001, step_000002" in logs["merge"]
        figures = read_record(out)["metrics"][name]
        assert figures["slerp"] == len(merged) and figures["lerp"] == figures["copy"] == 0
        assert 80 < figures["mean_angle_degrees"] < 100  # noise of its own on each checkpoint


def test_merged_reranker_is_also_a_sequence_classifier(upstream: Any, logs: dict[str, str]) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = upstream.folder("merge").local("reranker")
    reranker = Reranker(folder, dtype="float32")
    document = "def walk_tree(value):\n    return tree.walk(value)"
    probability = float(reranker.score("walk the tree", [document], max_tokens=256)[0])
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "sequence_classifier").float()
    tokens = load_tokenizer(folder / "sequence_classifier")(
        reranker.template.text("walk the tree", document, upstream.instruction),
        add_special_tokens=False,
        return_tensors="pt",
    )
    with torch.inference_mode():
        logit = classifier(**tokens).logits
    assert logit.shape == (1, 1)
    assert float(torch.sigmoid(logit)) == pytest.approx(probability, abs=1e-4)


def test_evaluation_is_that_of_the_models_in_this_process(upstream: Any, logs: dict[str, str]) -> None:
    out, merge = upstream.folder("evaluate"), upstream.folder("merge")
    models = {
        "base": upstream.base,
        "weak": upstream.folder("weak").local("checkpoints/step_000002"),
        "supervised": upstream.folder("supervised").local("checkpoints/step_000002"),
        "merged": merge.local("embedding"),
    }
    orders = {}
    for name, folder in models.items():
        model = upstream.encoder(folder)
        queries = model.encode(list(upstream.heldout.queries.values()), max_tokens=64, instruction=upstream.instruction)
        scores = queries @ model.encode(upstream.heldout.texts(), max_tokens=256).T
        orders[name] = [[f"d{i}" for i in np.argsort(-row)] for row in scores]
    reranker = Reranker(merge.local("reranker"), dtype="float32")
    orders["merged+reranker"] = []
    for query, order in zip(upstream.heldout.queries.values(), orders["merged"], strict=True):
        top = [upstream.heldout.corpus[d][1] for d in order[:5]]
        scores = reranker.score(query, top, max_tokens=256, instruction=upstream.instruction)
        orders["merged+reranker"].append([order[i] for i in np.argsort(-scores)] + order[5:])
    record = read_record(out)
    assert record["rows_in"] == record["rows_out"] == 6
    results = out.read_json("results.json")
    assert list(results["models"]) == list(orders) and results["documents"] == 42
    for name, ranked in orders.items():
        written = out.read_table(f"runs/{name}.parquet").to_pylist()
        got = [[r["corpus_id"] for r in written if r["query_id"] == q] for q in upstream.heldout.queries]
        assert got == ranked, name
        run = {q: {d: -i for i, d in enumerate(o)} for q, o in zip(upstream.heldout.queries, ranked, strict=True)}
        want = run_metrics(upstream.heldout, run, [1, 10])
        assert results["models"][name] == pytest.approx(want, abs=5.1e-5)
        for metric, values in record["metrics"].items():
            assert values[name] == results["models"][name][metric]
    assert record["metrics"].keys() == {"ndcg@10", "mrr@10", "recall@1", "recall@10"}
    verdict = results["verdict"]
    assert (verdict["model"], verdict["baseline"]) == ("merged+reranker", "base")
    gain = results["models"]["merged+reranker"]["ndcg@10"] - results["models"]["base"]["ndcg@10"]
    assert verdict["difference"] == pytest.approx(gain, abs=1.1e-4)
    assert verdict["low"] <= verdict["difference"] <= verdict["high"]
    assert verdict["line"] in logs["evaluate"]


def test_sizes_of_vectors_are_scored_by_their_own_rankings(upstream: Any, logs: dict[str, str]) -> None:
    out = upstream.folder("evaluate")
    results = out.read_json("results.json")
    full, *sizes = results["sizes"]
    assert (full["vectors"], full["ndcg@10"]) == ("float32", results["models"]["merged"]["ndcg@10"])
    assert full["bytes"] == 4 * full["dimensions"]
    assert {row["vectors"]: full["bytes"] // row["bytes"] for row in sizes} == {
        **{"int8": 4, "int8+rescore": 4, "binary": 32, "binary+rescore": 32}
    }
    for row in sizes:
        written = out.read_table(f"sizes/{row['vectors']}.parquet").to_pylist()
        run: dict[str, dict[str, float]] = {q: {} for q in upstream.heldout.queries}
        for hit in written:
            run[hit["query_id"]][hit["corpus_id"]] = -hit["rank"]
        assert {len(hits) for hits in run.values()} == {10}
        assert row["ndcg@10"] == pytest.approx(run_metrics(upstream.heldout, run, [1])["ndcg@10"], abs=5.1e-5)
        assert row["difference"] == pytest.approx(row["ndcg@10"] - full["ndcg@10"], abs=1.1e-4)
        assert row["low"] <= row["difference"] <= row["high"]
    # all 42 documents are rescored, so that all but the precision of float16 is that of float32
    assert [row["difference"] for row in sizes if row["vectors"] == "binary+rescore"] == [pytest.approx(0, abs=0.05)]


def test_languages_are_counted_as_the_data_says_them(upstream: Any, logs: dict[str, str]) -> None:
    results = upstream.folder("evaluate").read_json("results.json")
    per_query = upstream.folder("evaluate").read_json("per_query.json")
    rows = Counter(upstream.folder("mine").read_table("rows")["dataset"].to_pylist())
    languages = results["languages"]
    assert [(code, found["queries"], found["training_rows"]) for code, found in languages.items()] == [
        ("en", 5, rows["docstrings"]),
        ("sw", 1, rows["synthetic"]),
    ]
    assert rows["docstrings"] != rows["synthetic"]
    for model, means in results["models"].items():
        assert languages["sw"]["ndcg@10"][model] == round(per_query[model]["q2"], 4)
        for metric, mean in means.items():
            both = 5 * languages["en"][metric][model] + languages["sw"][metric][model]
            assert both / 6 == pytest.approx(mean, abs=1.1e-4)
    few = f"fewer than 1000 training rows (evaluate.few_rows): en ({rows['docstrings']}), sw ({rows['synthetic']})"
    assert few in logs["evaluate"]


def test_a_second_run_does_nothing(upstream: Any, logs: dict[str, str], run_here: Callable[..., str]) -> None:
    assert "evaluate: reused" in run_here("evaluate", upstream.config)
