"""Plans of whole runs: rows and tokens against the demo's records, what is computed twice, what cannot fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.artifact import Identity, StageResult, complete
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.pipeline.planning.assumptions import Assumptions, assumptions
from qwen3emb.pipeline.planning.hardware import GPUS, known_gpu, read_prices
from qwen3emb.pipeline.planning.measured import compared, learned
from qwen3emb.pipeline.planning.plan import gpu_demand, planned
from qwen3emb.pipeline.planning.work import StageEstimate

EXAMPLES = Path(__file__).parents[4] / "examples"

# `rows_out` and tokens (prompt_tokens + generated_tokens; the sum over metrics.jsonl) in the records of a run of
# examples/demo.yaml of version 0.2.0 on two cores.
ROWS = {
    "corpus": 1440,
    "synthesize": 103,
    "weak": 103,
    "filter": 90,
    "mine": 730,
    "supervised": 730,
    "reranker": 468,
    "merge": 544,
    "evaluate": 150,
    "index": 520,
}
TOKENS = {"synthesize": 135_113 + 6344, "weak": 38_819, "supervised": 65_006, "reranker": 61_492}
NEGATIVES = 1862 / (730 * 4)  # mine's `negatives` over rows x mine.negatives


def config(name: str, *overrides: str) -> RunConfig:
    return load_config(EXAMPLES / f"{name}.yaml", list(overrides))


def plan(cfg: RunConfig, gpu: str | None = None, gpus: int | None = None, **assumed: float) -> dict[str, StageEstimate]:
    found = planned(cfg, Assumptions().replaced(**assumed), GPUS[gpu] if gpu else None, gpus)
    return {estimate.name: estimate for estimate in found}


def test_the_demos_rows_and_tokens() -> None:
    estimates = plan(config("demo"), negatives_found=NEGATIVES)
    assert list(estimates) == list(ROWS)
    for name, rows in ROWS.items():
        assert estimates[name].rows == pytest.approx(rows, rel=0.05), name
    for name, tokens in TOKENS.items():
        assert estimates[name].tokens == pytest.approx(tokens, rel=0.1), name


@pytest.mark.parametrize("size", ["0.6b", "4b", "8b"])
def test_the_examples_fit_on_the_gpus_that_they_name(size: str) -> None:
    cfg = config(f"qwen3-{size}")
    estimates = plan(cfg, "h100", 64)
    assert not [e.problems for e in estimates.values() if e.problems]
    assert gpu_demand(cfg) == max(e.gpus for e in estimates.values())
    assert all(e.flops > 0 and e.seconds for e in estimates.values() if e.model)


def test_the_gradient_cache_costs_a_forward_pass_and_saves_activations() -> None:
    kept = plan(config("demo"))["supervised"]
    cached = plan(config("demo", "supervised.token_budget=512"))["supervised"]
    assert cached.tokens == pytest.approx(kept.tokens)
    assert cached.flops / kept.flops == pytest.approx(4 / 3, rel=0.05)
    assert kept.memory and cached.memory and cached.memory.activations < 0.5 * kept.memory.activations


def test_checkpointing_and_adapters() -> None:
    whole, again, adapters = (
        plan(config("demo", f"weak={{steps: 30, num_workers: 1{more}}}"))["weak"]
        for more in ("", ", activation_checkpointing: true", ", lora: {}")
    )
    assert again.flops / whole.flops == pytest.approx(4 / 3, rel=0.1)
    assert adapters.flops < whole.flops
    assert whole.memory and again.memory and adapters.memory
    assert again.memory.activations < 0.3 * whole.memory.activations
    assert adapters.memory.optimizer < 0.1 * whole.memory.optimizer


def test_more_documents_of_a_query_are_more_reranker_tokens() -> None:
    few = plan(config("demo", "reranker.random_negatives=0"))["reranker"]
    many = plan(config("demo", "reranker.random_negatives=7"))["reranker"]
    # The query's part is computed once: ten documents in place of three are less than 10/3 times the tokens.
    assert 1.5 * few.tokens < many.tokens < 10 / 3 * few.tokens


@pytest.mark.parametrize(
    ("overrides", "gpu", "gpus", "said"),
    [
        (["weak.optimizer.zero_stage=0"], "h100", None, r"weak needs \d+ GB on each GPU.* the optimizer take"),
        ([], "h100", 8, "weak asks for 32 GPUs, there are 8: lower weak.num_workers"),
        (
            ["synthesize.tensor_parallel=1"],
            "l40s",
            None,
            "65.5 GB of weights of Qwen/Qwen3-32B and a KV cache do not fit",
        ),
        (["synthesize.tensor_parallel=1"], "h100", None, None),
        (
            ["synthesize.tensor_parallel=1", "synthesize.max_model_len=40000"],
            "h100",
            None,
            "fewer than synthesize.max_mod",
        ),
        (["synthesize.tensor_parallel=3"], "h100", None, "which does not divide 64 heads"),
        (["models.base=Qwen/Qwen3-32B"], "l40s", None, "filter needs"),
        (["weak.activation_checkpointing=false"], "l40s", None, "set weak.activation_checkpointing"),
    ],
)
def test_what_cannot_fit_is_said(overrides: list[str], gpu: str, gpus: int | None, said: str | None) -> None:
    import re

    problems = [p for e in plan(config("qwen3-8b", *overrides), gpu, gpus).values() for p in e.problems]
    assert any(re.search(said, p) for p in problems) if said else not problems, problems


def test_rows_that_nothing_limits_are_asked_for() -> None:
    cfg = config("qwen3-8b", "synthesize.max_passages=null")
    with pytest.raises(UserError, match="give --assume passages=NUMBER"):
        plan(cfg, "h100")
    assert plan(cfg, "h100", passages=1000)["index"].rows == 1000


def test_hours_and_the_cores_beside_the_gpus() -> None:
    slow = plan(config("qwen3-8b"), "h100", training_utilisation=0.15)["weak"]
    fast = plan(config("qwen3-8b"), "h100", training_utilisation=0.30)["weak"]
    assert fast.flops == slow.flops
    assert fast.gpu_hours == pytest.approx(32 * (fast.seconds or 0) / 3600)
    assert (slow.seconds or 0) / (fast.seconds or 1) == pytest.approx(2, rel=0.02)
    quick, late = (plan(config("qwen3-8b", f"synthesize.reader_gpus={n}"), "h100")["synthesize"] for n in (1, 0))
    assert any("2 readers with one CPU core each find personas" in note for note in late.notes)
    assert not any("readers" in note for note in quick.notes)
    assert (quick.gpus, late.gpus) == (8 * 2 + 2, 8 * 2) and (late.seconds or 0) > 100 * (quick.seconds or 0)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training_utilization=0.5", "did you mean 'training_utilisation'"),
        ("passages", "expected NAME=VALUE"),
        ("passages=many", "is no number"),
        ("passages=-1", "at least 0"),
    ],
)
def test_an_assumption_that_is_none(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        assumptions([word])


def test_prices_are_a_file_and_gpus_a_table(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("H100: 3.5\nl4: 1\n")
    assert read_prices(file) == {"h100": 3.5, "l4": 1.0}
    for content, said in (
        ("- 3.5", "expected a line"),
        ("h100: cheap", "the price of h100 is 'cheap'"),
        ("a: [", "read"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            read_prices(file)
    with pytest.raises(UserError, match="no such file"):
        read_prices(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="there are h100, h200"):
        known_gpu("b300")


def test_finished_stages_are_compared_and_learned_from(tmp_path: Path) -> None:
    cfg = config("demo", f"storage={tmp_path}")
    run = Storage(str(tmp_path))

    def done(name: str, result: StageResult) -> None:
        complete(run / name, Identity(name, "0", {}, {}), result, 12.0)

    done("corpus", StageResult(300, 200, {"exact_duplicate": 100}, {"passages": 80, "pairs": 100}))
    tokens = {"prompt_tokens": 90_000, "generated_tokens": 4_000}
    done("synthesize", StageResult(80, 60, {"too_long": 20}, tokens))
    done("weak", StageResult(60, 60, {}, {}))
    (run / "weak").write_bytes("metrics.jsonl", b'{"step": 1, "tokens": 1300}\n{"step": 2, "tokens": 1200}\n')
    assert learned(cfg, "corpus") == {"passages": 80, "pairs": 100}
    assert learned(cfg, "synthesize") == {"synthesis_yield": 0.75}
    assert learned(cfg, "mine") == {}
    found = {c.before.name: c for c in compared(cfg, Assumptions(), lambda a: planned(cfg, a))}
    assert list(found) == ["corpus", "synthesize", "weak"]
    assert found["synthesize"].measured.tokens == 94_000
    assert found["weak"].measured.tokens == 2500
    assert found["weak"].later.rows == pytest.approx(60)
    assert found["weak"].before.rows == pytest.approx(120 * 0.86)
    assert found["weak"].measured.seconds == 12.0
