"""`filter`, `mine`, `merge` and `evaluate` where there is little to work on, and after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from qwen3emb.config.data import VetoConfig
from qwen3emb.config.run import load_config
from qwen3emb.core.artifact import read_record
from qwen3emb.core.errors import UserError
from qwen3emb.core.records import PAIR
from qwen3emb.core.storage import Storage
from qwen3emb.evaluation.stage import evaluate_models
from qwen3emb.filtering.stage import filter_pairs
from qwen3emb.merging.stage import merge_models
from qwen3emb.mining.rules import MinePair, Negatives, mining_plan
from qwen3emb.mining.stage import mine_negatives
from qwen3emb.mining.veto import judged_rules, veto
from qwen3emb.model.reranker import Reranker
from qwen3emb.model.stored import checkpoints, final_model
from qwen3emb.text.evaluation_sets import NO_SETS
from qwen3emb.text.retrieval_set import RetrievalSet, write_retrieval_set

pytestmark = pytest.mark.integration


def test_evaluation_goes_on_from_the_runs_that_are_there(upstream: Any, logs: dict[str, str]) -> None:
    said: list[str] = []
    result = evaluate_models(upstream.context("evaluate"), said.append)
    assert said and not [line for line in said if "embedded" in line or "reranked" in line]
    assert result.metrics == read_record(upstream.folder("evaluate"))["metrics"]


@pytest.fixture(scope="module")
def elsewhere(upstream: Any, logs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same run in another folder, where little is left."""
    changes = [f"storage={tmp_path_factory.mktemp('other')}", "filter.threshold=1.0", "filter.sample=null"]
    cfg = load_config(upstream.config, [*changes, "filter.workers=1", "merge.weights=[0.25, 0.75]"])
    run = replace(upstream, cfg=cfg)
    names = ["checkpoints/step_000002"]
    for stage in ("weak", "supervised", "reranker"):
        run.folder(stage).upload(upstream.folder(stage).local(names[0]), names[0])
        run.finish(stage, {"model": names[0], "checkpoints": names})
    return run


def test_filter_where_nothing_passes_finishes_and_shows_quantiles(elsewhere: Any) -> None:
    elsewhere.folder("synthesize").write_table(
        "pairs/a.parquet", pa.Table.from_pylist(elsewhere.synthetic, schema=PAIR)
    )
    said: list[str] = []
    result = filter_pairs(elsewhere.context("filter"), said.append)
    assert (result.rows_in, result.rows_out) == (24, 0)
    assert result.rejected == {"below_threshold": 24, "not_sampled": 0}
    out = elsewhere.folder("filter")
    assert out.read_table("pairs").schema == PAIR and len(out.read_table("pairs")) == 0
    median = round(float(np.median(out.read_table("dropped")["score"].to_numpy())), 4)
    assert "no pair scores above filter.threshold 1.0" in said[-1] and f"'0.5': {median}" in said[-1]


def test_filter_asks_as_training_does(elsewhere: Any, tmp_path: Path) -> None:
    """Each set's instruction, and a text of two sets with two instructions is embedded twice."""
    changes = [f"storage={tmp_path}", "supervised.datasets={synthetic: {instruction: find the passage}}"]
    run = replace(elsewhere, cfg=load_config(elsewhere.config, [*changes, "filter.sample=null", "filter.threshold=-1"]))
    run.folder("weak").upload(elsewhere.folder("weak").local("checkpoints/step_000002"), "checkpoints/step_000002")
    run.finish("weak", {"model": "checkpoints/step_000002", "checkpoints": ["checkpoints/step_000002"]})
    given = elsewhere.synthetic[:3]
    bitext = [row | {"id": f"b{i}", "dataset": "synthetic_bitext"} for i, row in enumerate(given)]
    run.folder("synthesize").write_table("pairs/a.parquet", pa.Table.from_pylist([*given, *bitext], schema=PAIR))
    filter_pairs(run.context("filter"), print)
    kept = {row["id"]: row["score"] for row in run.folder("filter").read_table("pairs", PAIR).to_pylist()}
    weak = elsewhere.encoder(elsewhere.folder("weak").local("checkpoints/step_000002"))
    for rows, ask in ((given, "find the passage"), (bitext, "Given a sentence, retrieve its translation")):
        queries = weak.encode([row["query"] for row in rows], max_tokens=64, instruction=ask)
        cosines = (queries * weak.encode([row["document"] for row in rows], max_tokens=64)).sum(axis=1)
        assert [kept[row["id"]] for row in rows] == pytest.approx(cosines.tolist(), abs=1e-5)


def test_one_checkpoint_is_what_there_is_to_merge(elsewhere: Any) -> None:
    said: list[str] = []
    result = merge_models(elsewhere.context("merge"), said.append)
    assert "merge: supervised kept 1 checkpoints, merge.last is 2; merging what there is" in said
    assert result.metrics["embedding"]["checkpoints"] == 1
    for name, stage in (("embedding", "supervised"), ("reranker", "reranker")):
        merged = load_file(elsewhere.folder("merge").local(f"{name}/model.safetensors"))
        kept = load_file(elsewhere.folder(stage).local("checkpoints/step_000002/model.safetensors"))
        assert merged.keys() == kept.keys() and all(torch.equal(merged[n], kept[n]) for n in kept)


def test_no_pairs_to_mine_for_is_the_users_to_mend(elsewhere: Any) -> None:
    with pytest.raises(UserError, match=r"hold no pair to mine for; .* filter\.threshold"):
        mine_negatives(elsewhere.context("mine"), print)


def test_a_reranker_vetoes_what_it_takes_for_an_answer(upstream: Any, logs: dict[str, str]) -> None:
    reranker = upstream.folder("reranker").local("checkpoints/step_000002")
    work = mining_plan(
        [MinePair(p["id"], p["query"], p["document"], "docstrings") for p in upstream.labelled],
        {"docstrings": [p["document"] for p in upstream.labelled]},
    )
    search = work.searches["docstrings"]
    found = {("docstrings", q): Negatives(tuple(search.corpus[:5]), (0.5, 0.4, 0.3, 0.2, 0.1)) for q in search.queries}
    judge = Reranker(reranker, dtype="float32")
    texts = [work.documents[row] for row in search.corpus[:5]]
    options = {"max_tokens": 256, "instruction": upstream.instruction}
    wanted = {q: judge.score(work.queries[q], texts, **options) for q in search.queries}
    middle = float(np.median(np.concatenate(list(wanted.values()))))
    rules = {"model": str(reranker), "above": middle, "max_tokens": 256}
    mine = upstream.cfg.mine.model_copy(update={"veto": VetoConfig.model_validate(rules), "negatives": 2})
    left, out = veto(found, work, upstream.cfg.model_copy(update={"mine": mine}), print)
    assert out == sum(int((scores > middle).sum()) for scores in wanted.values()) > 0
    for (_, query), negatives in left.items():
        assert negatives is not None
        places = np.flatnonzero(wanted[query] <= middle)[:2]
        assert list(negatives.rows) == [search.corpus[place] for place in places]
    assert judged_rules(mine).negatives == 4 and judged_rules(upstream.cfg.mine) == upstream.cfg.mine
    assert veto(found, work, upstream.cfg, print) == (found, None)


def test_without_a_held_out_set_the_evaluation_says_so_and_ends_well(elsewhere: Any) -> None:
    write_retrieval_set(elsewhere.folder("corpus") / "heldout", RetrievalSet({}, {}, {}))
    said: list[str] = []
    context = elsewhere.context("evaluate")
    result = evaluate_models(context, said.append)
    assert (result.rows_in, result.metrics) == (0, {})
    assert said == [f"evaluate: {NO_SETS}"]
    assert context.out.read_json("results.json")["models"] == {}


def test_each_held_out_set_has_its_figures_the_first_one_those_of_the_run(
    upstream: Any, logs: dict[str, str], tmp_path: Path
) -> None:
    """The main set is as in a run that has no other; queries of the written set search all passages."""
    passages = upstream.folder("corpus").read_table("passages").to_pylist()
    written = Storage(str(tmp_path / "synthesize"))
    queries = {f"query:{row['id']}": row["text"][:30] for row in passages[:5]}
    judged = {f"query:{row['id']}": {row["id"]: 1} for row in passages[:5]}
    write_retrieval_set(written / "heldout", RetrievalSet(queries, {}, judged), with_corpus=False)
    before = upstream.context("evaluate")
    context = replace(before, out=Storage(str(tmp_path / "out")), inputs={**before.inputs, "synthesize": written})
    evaluate_models(context, lambda line: None)
    results, alone = context.out.read_json("results.json"), before.out.read_json("results.json")
    assert (results["set"], results["synthetic_queries"]) == ("docstrings", False)
    assert results["models"] == alone["models"] and "sets" not in alone
    assert list(results["sets"]) == ["synthetic"]
    further = results["sets"]["synthetic"]
    assert (further["synthetic_queries"], further["queries"], further["documents"]) == (True, 5, len(passages))
    model = upstream.encoder(upstream.folder("merge").local("embedding"))
    vectors = model.encode(list(queries.values()), max_tokens=64, instruction=upstream.instruction)
    documents = [f"{row['title'] or ''} {row['text']}".strip() for row in passages]
    scores = vectors @ model.encode(documents, max_tokens=256).T
    ranks = [int((scores[n] > scores[n, n]).sum()) for n in range(5)]
    assert further["models"]["merged"]["recall@1"] == sum(rank == 0 for rank in ranks) / 5
    assert context.out.read_json("sets/synthetic/per_query.json").keys() == results["models"].keys()


def test_a_folder_that_is_no_training_stage_is_refused(upstream: Any) -> None:
    with pytest.raises(UserError, match="names no model"):
        final_model(upstream.folder("corpus"))
    last = upstream.folder("supervised").uri + "/checkpoints/step_000002"
    assert final_model(upstream.folder("supervised")).uri == last
    assert [c.uri for c in checkpoints(upstream.folder("supervised"))] == [last[:-1] + "1", last]
