"""Labelled sets from files to training rows, on a real Ray: read, checked against the held-out set, mined."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from qwen3emb.config.run import load_config
from qwen3emb.core.artifact import StageResult, complete, read_record, start
from qwen3emb.core.errors import UserError
from qwen3emb.core.records import PAIR, PASSAGE, REJECT, TRAINING_ROW
from qwen3emb.model.encoder import Encoder
from qwen3emb.pipeline.stages import identity, stage_folder
from qwen3emb.text.identity import content_hash
from qwen3emb.text.retrieval_set import RetrievalSet, read_retrieval_set, write_retrieval_set
from qwen3emb.training.selection import evaluated_queries

pytestmark = pytest.mark.integration

HELDOUT = "how do bees find their way home over many kilometres of open fields"
FLAG = [
    {"query": "who flies", "pos": ["a bird flies"], "neg": ["a stone lies"]},
    {"query": "who swims", "pos": ["a fish swims", "a whale swims"], "neg": []},
    {"query": "who swims", "pos": ["a fish swims"], "neg": []},
    {"query": HELDOUT, "pos": ["by the sun"], "neg": []},
    {"query": "", "pos": ["nobody asked"], "neg": []},
]
STS = [{"sentence1": "a cat", "sentence2": "a tomcat", "score": 4.5}, {"sentence1": "a", "sentence2": "b", "score": ""}]
CLASSES = [{"text": "boil water", "label": "kitchen"}, {"text": "saw wood", "label": "workshop"}]


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


MakeRun = Callable[[Path, dict[str, Any], RetrievalSet], Path]


@pytest.fixture(scope="module")
def make_run(tiny_qwen3: Path, minimal_run: Callable[[Path, Path], dict[str, Any]]) -> MakeRun:
    """(folder, labelled datasets, held-out set) -> config of a run whose stages before `labelled` are complete."""

    def made(folder: Path, sets: dict[str, Any], heldout: RetrievalSet) -> Path:
        content = minimal_run(folder, tiny_qwen3)
        content["models"]["end_token"] = "<|im_end|>"
        content["mine"] = {"model": str(tiny_qwen3), "negatives": 2, "top_k": 4, "margin": 2.0, "max_tokens": 32}
        content["mine"]["workers"] = 1
        content["labelled"] = {"sets": sets, "skip_missing": True}
        return finished_before(folder, content, heldout)

    return made


def finished_before(folder: Path, content: dict[str, Any], heldout: RetrievalSet) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    cfg = load_config(path)
    for stage in ("corpus", "synthesize", "weak", "filter"):
        out = stage_folder(cfg, stage)
        start(out, identity(cfg, stage))
        if stage == "corpus":
            write_retrieval_set(out / "heldout", heldout)
            write_retrieval_set(out / "dev", RetrievalSet({}, {}, {}))
            out.write_table("passages/0.parquet", pa.Table.from_pylist([], schema=PASSAGE))
        if stage in ("corpus", "filter"):
            out.write_table("pairs/0.parquet", pa.Table.from_pylist([], schema=PAIR))
        complete(out, identity(cfg, stage), StageResult(0, 0), 0.0)
    return path


@pytest.fixture(scope="module")
def config(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    sets = {
        "animals": {"path": lines(folder / "animals.jsonl", FLAG), "instruction": "find the animal"},
        "similar": {"path": lines(folder / "similar.jsonl", STS), "task": "sts"},
        "rooms": {"path": lines(folder / "rooms.jsonl", CLASSES), "task": "classification"},
        "gone": {"path": str(folder / "gone.jsonl")},
    }
    return make_run(folder, sets, RetrievalSet({"q": HELDOUT}, {"d": ("", "they smell it")}, {"q": {}}))


def test_labelled_sets_become_rows_with_mined_negatives_behind_their_own(
    config: Path, run_here: Callable[..., str]
) -> None:
    said = run_here("labelled", config)
    assert "gone" in said and "does not exist" in said
    out = stage_folder(load_config(config), "labelled")
    record = read_record(out)
    assert (record["rows_in"], record["rows_out"]) == (10, 6)
    assert record["rejected"] == {"duplicate": 1, "empty_field": 1, "heldout_overlap": 1, "missing_grade": 1}
    rejects = out.read_table("rejects", REJECT).to_pylist()
    assert {r["reason"].partition(":")[0] for r in rejects} == set(record["rejected"])
    card = out.read_json("card.json")
    assert (card["animals"]["rows"], card["animals"]["instruction"]) == (3, "find the animal")
    rows = {r["id"]: r for r in out.read_table("rows", TRAINING_ROW).to_pylist()}
    assert rows["similar/1"]["grade"] == 4.5
    assert rows["rooms/1"]["negatives"] == ["workshop"]

    run_here("mine", config)
    mined = stage_folder(load_config(config), "mine")
    found = {r["id"]: r for r in mined.read_table("rows", TRAINING_ROW).to_pylist()}
    assert found.keys() == rows.keys()
    assert found["similar/1"] == rows["similar/1"] | {"negative_scores": []}
    assert found["rooms/1"]["negatives"] == ["workshop"]
    animals = {"a bird flies", "a stone lies", "a fish swims", "a whale swims"}
    bird = found["animals/1"]
    assert bird["negatives"][0] == "a stone lies", "the set's own negative comes first"
    assert bird["negative_scores"][0] is None and bird["negative_scores"][1] is not None
    assert len(bird["negatives"]) == 2 and set(bird["negatives"]) < animals - {"a bird flies"}
    fish = found["animals/2#0"]
    assert set(fish["negatives"]) == {"a bird flies", "a stone lies"}, "the other positive is no negative"
    assert read_record(mined)["rows_in"] == 6
    cfg = load_config(config)
    encoder = Encoder(Path(cfg.mine.model), end_token="<|im_end|>", dtype="float32")
    asked = [found["animals/1"], found["animals/2#0"]]
    queries = encoder.encode([row["query"] for row in asked], max_tokens=32, instruction="find the animal")
    for row, vector in zip(asked, queries, strict=True):
        cosines = encoder.encode([row["positive"], *row["negatives"]], max_tokens=32) @ vector
        assert row["positive_score"] == pytest.approx(cosines[0], abs=1e-5), "the set's instruction, as in training"
        for given, wanted in zip(row["negative_scores"], cosines[1:], strict=True):
            assert given is None or given == pytest.approx(wanted, abs=1e-5)


def test_a_set_that_is_missing_is_one_sentence(config: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jsonl"):
        identity(load_config(config, ["labelled.skip_missing=false"]), "labelled")


NOTHING = RetrievalSet({}, {}, {})


def test_sets_are_read_where_nothing_is_held_out_and_one_has_rejects_only(
    make_run: MakeRun, run_here: Callable[..., str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('[{"query": "tea", "positive": "leaves"}]')
    sets = {"rooms": {"path": lines(tmp_path / "rooms.jsonl", CLASSES), "task": "classification"}}
    config = make_run(tmp_path, sets | {"bad": {"path": str(bad)}}, NOTHING)
    said = run_here("labelled", config)
    assert "rooms: 2 rows, 0 rejected" in said and "bad: 0 rows, 1 rejected (invalid_json: 1)" in said
    out = stage_folder(load_config(config), "labelled")
    assert [r["dataset"] for r in out.read_table("rows", TRAINING_ROW).to_pylist()] == ["rooms", "rooms"]
    [reject] = out.read_table("rejects", REJECT).to_pylist()
    assert (reject["source"], reject["row"]) == (str(bad), 1) and "list instead of an object" in reject["reason"]

    run_here("mine", config)  # nothing to search for: all rows pass
    mined = stage_folder(load_config(config), "mine").read_table("rows", TRAINING_ROW)
    assert mined.column("dataset").to_pylist() == ["rooms", "rooms"]


def test_drawn_queries_become_sets_and_nothing_like_them_is_left_to_train_on(
    make_run: MakeRun, run_here: Callable[..., str], tmp_path: Path
) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(400)]
    asked = [" ".join(draw.sample(words, 9)) for _ in range(60)]
    first = [{"query": q, "pos": [f"answer {n}", f"more {n}"], "neg": [f"wrong {n}"]} for n, q in enumerate(asked)]
    again = [{"query": f"{q} {words[n]}", "pos": [f"other {n}"]} for n, q in enumerate(asked)]
    sets = {
        "first": {"path": lines(tmp_path / "first.jsonl", first), "heldout_share": 0.3, "dev_share": 0.2},
        "again": {"path": lines(tmp_path / "again.jsonl", again), "format": "flagembedding"},
    }
    sets["first"] |= {"max_dev_queries": 4, "languages": ["en"]}
    config = make_run(tmp_path, sets, NOTHING)
    said = run_here("labelled", config)
    out = stage_folder(load_config(config), "labelled")
    found = {split: read_retrieval_set(out / f"{split}/first") for split in ("heldout", "dev")}
    sizes = {split: len(data.queries) for split, data in found.items()}
    assert 10 <= sizes["heldout"] <= 26 and sizes["dev"] == 4 and not (out / "dev/again").exists()
    drawn = {text for data in found.values() for text in data.queries.values()}
    assert drawn < set(asked) and len(drawn) == sum(sizes.values())
    documents = {text for record in first for text in (*record["pos"], *record["neg"])}
    for data in found.values():
        assert set(data.texts()) == documents and set(data.languages.values()) == {"en"}
        for query, text in data.queries.items():
            assert {data.corpus[d][1] for d in data.qrels[query]} == set(first[asked.index(text)]["pos"])
    rows = out.read_table("rows", TRAINING_ROW).to_pylist()
    left = [q for q in asked if q not in drawn]
    assert sorted(r["query"] for r in rows if r["dataset"] == "first") == sorted([*left, *left])
    assert sorted(r["query"] for r in rows if r["dataset"] == "again") == sorted(
        record["query"] for n, record in enumerate(again) if asked[n] in left
    )
    assert f"first: {2 * len(left)} rows" in said and f"{sizes['heldout']} held-out queries; 4 dev queries" in said
    assert f"again: {len(drawn)} rows are like a held-out or dev query" in said
    record = read_record(out)
    assert (record["rows_in"], record["rows_out"]) == (180, len(rows))
    assert record["rejected"] == {
        "dev_query": 8,
        "heldout_overlap": len(drawn),
        "heldout_query": 2 * sizes["heldout"],
    }
    assert record["metrics"]["heldout_queries"] == {"first": sizes["heldout"]}
    card = out.read_json("card.json")
    assert (card["again"]["rows"], card["again"]["rejected"]) == (len(left), {"heldout_overlap": len(drawn)})
    rejects = out.read_table("rejects", REJECT).to_pylist()
    assert {r["id"] for r in rejects} == {f"again/{n + 1}" for n, query in enumerate(asked) if query in drawn}
    assert not evaluated_queries({"labelled": out}) & {content_hash(r["query"]) for r in rows}


def test_where_no_set_has_a_row_the_sets_and_reasons_are_named_and_the_rejects_stay(
    make_run: MakeRun, run_here: Callable[..., str], tmp_path: Path
) -> None:
    sets = {
        "empty": {"path": lines(tmp_path / "empty.jsonl", [{"query": " ", "positive": "p"}])},
        "held": {"path": lines(tmp_path / "held.jsonl", [{"query": HELDOUT, "positive": "by the sun"}])},
    }
    config = make_run(tmp_path, sets, RetrievalSet({"q": HELDOUT}, {}, {"q": {}}))
    with pytest.raises(AssertionError, match=r"empty \(empty_field: 1\), held \(heldout_overlap: 1\).*rejects"):
        run_here("labelled", config)
    rejects = stage_folder(load_config(config), "labelled").read_table("rejects", REJECT).to_pylist()
    assert sorted(r["id"] for r in rejects) == ["empty/1", "held/1"]


def test_a_positive_of_one_set_is_no_negative_in_another(
    make_run: MakeRun, run_here: Callable[..., str], tmp_path: Path
) -> None:
    one = [{"query": "capital", "pos": ["Port", "Mill"], "neg": ["Town", "a goat"]}]
    two = [{"query": "capital ", "pos": ["Town"], "neg": ["Port ", "a hen"]}]
    three = [{"query": "capital", "pos": ["Castle"], "neg": ["Mill", "a cow"]}]
    sets = {
        "one": {"path": lines(tmp_path / "one.jsonl", one), "max_positives": 1},
        "two": {"path": lines(tmp_path / "two.jsonl", two)},
        "three": {"path": lines(tmp_path / "three.jsonl", three), "mine": False},
    }
    config = make_run(tmp_path, sets, NOTHING)
    said = run_here("labelled", config)
    assert said.count("by what other sets say, 1 negatives left out: 1 are positives of their query") == 3
    out = stage_folder(load_config(config), "labelled")
    rows = {r["dataset"]: r for r in out.read_table("rows", TRAINING_ROW).to_pylist()}
    assert {name: r["negatives"] for name, r in rows.items()} == {
        "one": ["a goat"],
        "two": ["a hen"],
        "three": ["a cow"],
    }
    assert read_record(out)["metrics"]["negatives_that_are_positives"] == 3
    assert out.read_json("card.json")["one"]["negatives_left_out"] == {"negatives_that_are_positives": 1}

    run_here("mine", config)
    mined = stage_folder(load_config(config), "mine").read_table("rows", TRAINING_ROW).to_pylist()
    answers = {"Port", "Mill", "Town", "Castle"}
    assert len(mined) == 3 and all(answers.isdisjoint(r["negatives"]) and r["negatives"] for r in mined)
