"""The `qwen3emb` command: help, exit codes, JSON, and answers checked against the models themselves."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from qwen3emb.cli.main import app
from qwen3emb.config.run import json_schema, load_config
from qwen3emb.core.artifact import StageResult, complete, start
from qwen3emb.metrics.verdict import compare
from qwen3emb.pipeline.stages import STAGES, identity, stage_folder

COMMANDS = ["plan", "run", "submit", "status", "report", "ablate", "embed", "search", "fetch-model", "check-config"]
METRICS = {"ndcg@10": {"base": 0.1, "merged": 0.6}, "mrr@10": {"base": 0.2, "merged": 0.7}}


def call(*words: str, stdin: str | None = None) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    done = CliRunner().invoke(app, list(words), input=stdin, env={"COLUMNS": "200", "RAY_ADDRESS": ""})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def finish(file: Path, name: str, metrics: dict[str, object] | None = None) -> None:
    cfg = load_config(file)
    start(stage_folder(cfg, name), identity(cfg, name))
    result = StageResult(5, 4, {"empty": 1}, metrics or {})
    complete(stage_folder(cfg, name), identity(cfg, name), result, 2.5)


def cpu_seconds() -> float:
    """CPU time of the commands started so far, which does not depend on what else the machine does."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Example: qwen3emb {command} " in out


def test_the_help_lists_every_command_and_is_quick() -> None:
    began = cpu_seconds()
    done = subprocess.run([sys.executable, "-m", "qwen3emb.cli", "--help"], capture_output=True, text=True, check=True)
    assert cpu_seconds() - began < 2
    assert all(command in done.stdout for command in COMMANDS)


def test_checking_a_config_is_quick_and_starts_nothing(run_file: Path) -> None:
    began = cpu_seconds()
    command = [sys.executable, "-m", "qwen3emb.cli", "check-config", str(run_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert cpu_seconds() - began < 2
    first, second = done.stdout.splitlines()
    assert first == f"{run_file}: ok"
    assert second.startswith("  evaluation set synthetic: up to 200 held-out queries and up to 50 dev queries")


def test_one_bad_config_among_good_ones_ends_with_2_and_all_are_reported(run_file: Path) -> None:
    bad = run_file.with_name("bad.yaml")
    bad.write_text(run_file.read_text().replace("steps: 1", "stepz: 1", 1))
    code, out, err = call("check-config", str(bad), str(run_file))
    assert code == 2
    assert f"{run_file}: ok" in out
    assert "did you mean 'weak.steps'?" in err
    code, out, _ = call("check-config", str(bad), str(run_file), "--json")
    assert code == 2
    assert [row["valid"] for row in json.loads(out)] == [False, True]
    assert json.loads(out)[0]["evaluation"] == [] and "synthetic queries" in json.loads(out)[1]["evaluation"][0]


def test_overrides_are_checked_too(run_file: Path) -> None:
    assert call("check-config", str(run_file), "--set", "weak.steps=3")[0] == 0
    assert call("check-config", str(run_file), "--set", "weak.steps=0")[0] == 2


def test_the_schema_is_printed() -> None:
    code, out, _ = call("check-config", "--schema")
    assert (code, json.loads(out)) == (0, json_schema())
    assert call("check-config")[0] == 2


def test_status_shows_states_rows_and_seconds(run_file: Path) -> None:
    finish(run_file, "corpus")
    code, out, _ = call("status", str(run_file), "--json")
    rows = {row["stage"]: row for row in json.loads(out)}
    assert code == 0
    assert list(rows) == [
        name for name in STAGES if name not in ("labelled", "reranker_weak", "distill")
    ]  # it has none
    assert rows["corpus"].pop("silent_seconds") < 60
    assert {key: value for key, value in rows["corpus"].items() if value is not None} == {
        "stage": "corpus",
        "state": "done",
        "rows": 4,
        "rejected": 1,
        "seconds": 2.5,
        "fingerprint": identity(load_config(run_file), "corpus").fingerprint,
    }
    assert (rows["weak"]["state"], rows["weak"]["rows"]) == ("new", None)
    code, out, _ = call("status", str(run_file), "--set", "corpus.max_tokens=99")
    assert code == 0
    assert "different" in next(line for line in out.splitlines() if "corpus" in line)


def test_report_shows_what_evaluate_recorded(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = call("report", str(run_file))
    assert code == 2
    assert "evaluate: not complete" in err
    finish(run_file, "evaluate", {**METRICS, "queries": 3})
    assert json.loads(call("report", str(run_file), "--json")[1]) == METRICS | {"verdict": None}
    monkeypatch.setenv("COLUMNS", "80")
    assert "+0.500" in call("report", str(run_file))[1]


@pytest.mark.parametrize(("gain", "even", "win"), [(0.1, 0, 0), (0.0, 0, 1), (-0.1, 1, 1)])
def test_report_ends_with_the_verdict_and_its_exit_code(run_file: Path, gain: float, even: int, win: int) -> None:
    finish(run_file, "evaluate", METRICS)
    code, _, err = call("report", str(run_file), "--at-least", "even")
    assert code == 2 and "add base to evaluate.compare" in err
    figures = {"base": dict.fromkeys("abcdef", 0.5), "merged": dict.fromkeys("abcdef", 0.5 + gain)}
    verdict = compare("ndcg@10", "merged", "base", figures)
    assert verdict is not None
    folder = stage_folder(load_config(run_file), "evaluate")
    folder.write_json("results.json", {"verdict": verdict.as_json()})
    code, out, _ = call("report", str(run_file))
    assert code == 0 and out.splitlines()[-1] == verdict.line()
    assert [call("report", str(run_file), "--at-least", word)[0] for word in ("even", "win")] == [even, win]
    assert json.loads(call("report", str(run_file), "--json")[1])["verdict"]["verdict"] == verdict.word


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "nothing.yaml"], "no such file"),
        (["status", "nothing.yaml"], "no such file"),
        (["report", "nothing.yaml"], "no such file"),
        (["search", "x", "--config", "nothing.yaml"], "no such file"),
        (["search", " ", "--config", "nothing.yaml"], "the query is empty"),
        (["embed", "x", "--model", "no-such-model"], "fetch-model no-such-model"),
        (["embed", "x", "--instruction", "find"], "--query"),
        (["embed"], "no text to embed"),
        (["fetch-model", "no-such-model"], "neither a local path"),
    ],
)
def test_mistakes_are_one_sentence_and_end_with_2(words: list[str], said: str) -> None:
    code, out, err = call(*words, stdin="")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1


def test_run_and_submit_refuse_what_is_not_there(run_file: Path) -> None:
    code, _, err = call("run", str(run_file), "--stage", "mime")
    assert code == 2
    assert "there are corpus, labelled, synthesize" in err
    code, _, err = call("submit", str(run_file))
    assert code == 2
    assert "--address" in err


def test_fetch_model_leaves_a_ready_directory_alone(run_file: Path) -> None:
    model = run_file.parent / "model"
    code, out, _ = call("fetch-model", str(model), "--output", str(model), "--json")
    assert (code, json.loads(out)) == (0, {"name": str(model), "path": str(model)})


def test_embed_prints_the_encoders_vectors(tiny_qwen3: Path) -> None:
    from qwen3emb.model.encoder import Encoder

    texts = ["read a file", "close a socket"]
    flags = ["--model", str(tiny_qwen3), "--end-token", "<|endoftext|>", "--json"]
    code, out, err = call("embed", *texts, *flags)
    assert code == 0, err
    answer = json.loads(out)
    encoder = Encoder(tiny_qwen3, end_token="<|endoftext|>")
    np.testing.assert_allclose(
        [row["embedding"] for row in answer["data"]], encoder.encode(texts, max_tokens=512), atol=1e-6
    )
    assert [row["text"] for row in answer["data"]] == texts
    code, out, _ = call(
        "embed", *flags, "--query", "--instruction", "Find", "--dimensions", "8", stdin="read a file\n\n"
    )
    [row] = json.loads(out)["data"]
    expected = encoder.encode(["read a file"], max_tokens=512, instruction="Find", dimensions=8)[0]
    np.testing.assert_allclose(row["embedding"], expected, atol=1e-6)
    assert abs(np.linalg.norm(row["embedding"]) - 1) < 1e-5


def indexed_run(run_file: Path, tiny: Path) -> list[str]:
    """Give the run merged models and an index of three documents; their texts."""
    import shutil

    from qwen3emb.model.contract import Contract, write_contract
    from qwen3emb.model.encoder import Encoder
    from qwen3emb.search.index import SHARDS, IndexInfo, shard_table, write_info

    cfg, texts = load_config(run_file), ["def read(path): ...", "def close(): ...", "def parse(text): ..."]
    merge, index = stage_folder(cfg, "merge"), stage_folder(cfg, "index")
    for kind in ("embedding", "reranker"):
        shutil.copytree(tiny, merge.path(kind))
        contract = Contract(kind, "Find the function", "<|endoftext|>", 128, 64)  # type: ignore[arg-type]
        write_contract(Path(merge.path(kind)), contract)
    rows = pa.Table.from_pylist([{"id": f"d{i}", "title": f"t{i}", "text": t} for i, t in enumerate(texts)])
    vectors = Encoder(Path(merge.path("embedding"))).encode(texts, max_tokens=128)
    index.write_table(f"{SHARDS}/0.parquet", shard_table(rows, vectors))
    write_info(index, IndexInfo(64, len(texts), "x", "Find the function", 128))
    finish(run_file, "merge")
    finish(run_file, "index")
    run_file.write_text(run_file.read_text() + "serve: {max_query_tokens: 128}\n")
    return texts


def test_search_finds_what_the_vectors_say(run_file: Path, tiny_qwen3: Path) -> None:
    from qwen3emb.model.encoder import Encoder
    from qwen3emb.model.reranker import Reranker

    texts, query = indexed_run(run_file, tiny_qwen3), "parse text"
    encoder = Encoder(tiny_qwen3, end_token="<|endoftext|>")
    vector = encoder.encode([query], max_tokens=128, instruction="Find the function")[0]
    cosines = encoder.encode(texts, max_tokens=128) @ vector
    code, out, err = call("search", query, "--config", str(run_file), "--top", "2", "--json")
    assert code == 0, err
    hits = json.loads(out)
    best = np.argsort(-cosines)[:2]
    assert [hit["id"] for hit in hits] == [f"d{i}" for i in best]
    np.testing.assert_allclose([hit["score"] for hit in hits], cosines[best], atol=1e-4)

    code, out, err = call("search", query, "--config", str(run_file), "--rerank", "--json")
    assert code == 0, err
    documents = [f"t{i} {text}" for i, text in enumerate(texts)]
    scores = Reranker(tiny_qwen3).score(query, documents, max_tokens=512, instruction="Find the function")
    hits = json.loads(out)
    assert [hit["id"] for hit in hits] == [f"d{i}" for i in np.argsort(-scores)]
    code, out, _ = call("search", query, "--config", str(run_file), "--top", "1")
    assert out.startswith("1. t")
