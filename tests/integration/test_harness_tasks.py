"""mteb's harness with our models: its scores on local folders, the cache, the two stages, the bootstrap."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3emb.config.serving import EvaluateConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.evaluation.comparison import baseline_figures, compared
from qwen3emb.evaluation.harness_model import HarnessEncoder, Instructions, TwoStageSearch, leave_out_own, model_meta
from qwen3emb.evaluation.harness_scores import Scored, reached_tasks, score_tasks
from qwen3emb.evaluation.harness_tasks import open_tasks
from qwen3emb.evaluation.per_query import main_first, of_split
from qwen3emb.evaluation.vector_cache import VectorCache
from qwen3emb.metrics.bootstrap import paired_bootstrap
from qwen3emb.metrics.retrieval import retrieval_metrics
from qwen3emb.text.retrieval_set import RetrievalSet, named_set, read_beir

pytestmark = pytest.mark.integration  # importing mteb takes as long as a sixth of the unit tests

CORPUS = {"a": "cats sleep", "b": "dogs bark", "c": "cats and dogs", "d": "stones", "e": "a cat barks"}
QUERIES = {"q1": "what do cats do", "q2": "barking dogs", "q3": "silent stones"}
QRELS = {"q1": {"a": 2, "c": 1}, "q2": {"b": 1}, "q3": {"d": 1}}


def letters(texts: list[str], instruction: str | None) -> np.ndarray:
    """Unit vectors of how often each letter is in a text; an instruction counts as text."""
    counts = [Counter((instruction or "") + text) for text in texts]
    vectors = np.array([[count[chr(97 + i)] for i in range(26)] for count in counts], dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": i, "title": "", "text": text}) for i, text in CORPUS.items()]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": i, "text": t}) for i, t in QUERIES.items()))
    judged = [f"{q}\t{d}\t{grade}" for q, found in QRELS.items() for d, grade in found.items()]
    (folder / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    return folder


def encoder(cache: VectorCache | None = None, given: dict[str, Any] | None = None) -> HarnessEncoder:
    return HarnessEncoder(letters, cache, Instructions(given or {}, {}), model_meta("test/letters", "1", 26))


def score(model: Any, task: Any) -> float:
    import mteb

    return float(mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results[0].get_score())


def test_a_folder_scores_as_our_own_metrics_say(tmp_path: Path) -> None:
    [task] = open_tasks(["pets"], {"pets": beir(tmp_path / "pets")})
    data = read_beir(Storage(str(tmp_path / "pets")), "test")
    scores = letters(list(data.queries.values()), None) @ letters(data.texts(), None).T
    assert score(encoder(), task) == pytest.approx(retrieval_metrics(data, scores, [1])["ndcg@10"], abs=1e-4)
    asked = letters(list(data.queries.values()), "zzz") @ letters(data.texts(), None).T
    instructed = score(encoder(given={"pets": "zzz"}), task)
    assert instructed == pytest.approx(retrieval_metrics(data, asked, [1])["ndcg@10"], abs=1e-4)


def test_the_reranker_orders_the_first_documents_only(tmp_path: Path) -> None:
    [task] = open_tasks(["pets"], {"pets": beir(tmp_path / "pets")})
    seen: list[list[str]] = []

    def judge(queries: list[str], documents: list[list[str]], instruction: str | None) -> list[np.ndarray]:
        seen.extend(documents)
        ids = {text: name for name, text in QUERIES.items()}
        names = {text: name for name, text in CORPUS.items()}
        grades = [
            [QRELS[ids[q]].get(names[d], 0) / 2 for d in found] for q, found in zip(queries, documents, strict=True)
        ]
        return [np.array(row) for row in grades]

    def two_stages(top: int) -> float:
        meta = model_meta("test/two", "1", 26)
        return score(TwoStageSearch(encoder(), judge, Instructions({}, {}), top, meta), task)

    assert two_stages(5) == pytest.approx(1.0)
    assert {len(found) for found in seen} == {5}
    assert two_stages(1) == pytest.approx(score(encoder(), task)), "one document cannot change its place"


def itself(folder: Path) -> Path:
    """A folder whose queries are documents too, under the same ids."""
    beir(folder)
    rows = [{"_id": i, "text": text} for i, text in QUERIES.items()]
    with (folder / "corpus.jsonl").open("a") as file:
        file.writelines("\n" + json.dumps(row | {"title": ""}) for row in rows)
    return folder


@pytest.mark.parametrize("name", ["ArguAna", "pets"])
def test_a_query_does_not_find_itself(tmp_path: Path, name: str) -> None:
    folder, said = itself(tmp_path / name), []
    [task] = open_tasks([name], {name: folder})
    leave_out_own(task, said.append)
    assert len(said) == (name == "pets"), "mteb's own tasks are as mteb says"
    data = read_beir(Storage(str(folder)), "test")
    told = task.metadata.prompt and task.metadata.prompt["query"]
    scores = letters(list(data.queries.values()), told) @ letters(data.texts(), None).T
    alone = []
    for place, (query, text) in enumerate(data.queries.items()):  # a corpus without the query, for each of them
        kept = [i for i, name in enumerate(data.corpus) if name != query]
        corpus = {name: document for name, document in data.corpus.items() if name != query}
        one = RetrievalSet({query: text}, corpus, {query: data.qrels[query]})
        alone.append(retrieval_metrics(one, scores[place : place + 1, kept], [1])["ndcg@10"])
    wanted = sum(alone) / len(alone)
    assert score(encoder(), task) == pytest.approx(wanted, abs=1e-4)
    assert retrieval_metrics(data, scores, [1])["ndcg@10"] == pytest.approx(wanted, abs=1e-4)
    read: list[tuple[str, str]] = []

    def judge(queries: list[str], documents: list[list[str]], instruction: str | None) -> list[np.ndarray]:
        read.extend((query, text) for query, found in zip(queries, documents, strict=True) for text in found)
        return [np.zeros(len(found)) for found in documents]

    meta = model_meta("test/two", "1", 26)
    score(TwoStageSearch(encoder(), judge, Instructions({}, {}), 1, meta, [name]), task)
    assert len(read) == 3 and all(query != text for query, text in read)


def test_ids_that_are_equal_by_chance_count(tmp_path: Path) -> None:
    folder, said = beir(tmp_path / "pets"), []
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    (folder / "queries.jsonl").write_text("\n".join(json.dumps(r | {"_id": r["_id"].replace("q1", "a")}) for r in rows))
    (folder / "qrels/test.tsv").write_text((folder / "qrels/test.tsv").read_text().replace("q1", "a"))
    [task] = open_tasks(["pets"], {"pets": folder})
    leave_out_own(task, said.append)
    [without] = open_tasks(["pets too"], {"pets too": beir(tmp_path / "too")})
    assert said == [] and score(encoder(), task) == score(encoder(), without)


def test_sts_classification_and_bitext_folders_are_told_apart(tmp_path: Path) -> None:
    sts, labels, pairs = (tmp_path / name for name in ("sts", "labels", "pairs"))
    for folder in (sts / "en", sts / "de", labels, pairs):
        folder.mkdir(parents=True)
    rows = [("cats sleep", "a cat sleeps", "5"), ("cats sleep", "stones", "0"), ("dogs", "barking dogs", "3")]
    for language in ("en", "de"):
        lines = ["\t".join(row) for row in (("sentence1", "sentence2", "score"), *rows)]
        (sts / language / "test.tsv").write_text("\n".join(lines))
    for split in ("train", "test"):
        texts = [{"text": f"{word} {i}", "label": word} for i in range(20) for word in ("cats", "dogs")]
        (labels / f"{split}.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (pairs / "pairs.tsv").write_text("lang\tsentence1\tsentence2\nfra\tchats\tcats\nfra\tpierres\tstones\n")
    folders = {"likeness": sts, "pets or not": labels, "translated": pairs}
    found = {task.metadata.name: task for task in open_tasks(list(folders), folders)}
    kinds = {name: (task.metadata.type, sorted(task.hf_subsets)) for name, task in found.items()}
    assert kinds["likeness"] == ("STS", ["de", "en"])
    assert kinds["pets or not"][0] == "Classification"
    assert kinds["translated"] == ("BitextMining", ["fra-eng"])
    assert score(encoder(), found["likeness"]) == pytest.approx(1.0)
    assert score(encoder(), found["pets or not"]) == pytest.approx(1.0)
    assert 0 <= score(encoder(), found["translated"]) <= 1


def labels_of(folder: Path, *rows: dict[str, Any] | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines, b"", b""]))
    return folder


def test_labels_are_compared_as_text(tmp_path: Path) -> None:
    spellings = [1, "1", 1.0, " 1 ", 2, "two", True]
    rows = [{"text": f"t{i}", "label": label, "id": i} for i, label in enumerate(spellings)]
    [task] = open_tasks(["kinds"], {"kinds": labels_of(tmp_path, *rows)})
    assert task.dataset["test"]["label"] == [0, 0, 0, 0, 1, 3, 2]


@pytest.mark.parametrize("label", [None, "", "  ", ["a"], float("nan")])
def test_a_row_without_a_label_is_no_class_of_its_own(tmp_path: Path, label: Any) -> None:
    folder = labels_of(tmp_path, {"text": "a", "label": "x"}, {"text": "b", "label": label})
    with pytest.raises(UserError, match=r"train\.jsonl, line 2: .*'label'"):
        open_tasks(["kinds"], {"kinds": folder})


def test_bad_rows_of_tables_are_told_with_file_and_line(tmp_path: Path) -> None:
    head, good = b"\xef\xbb\xbfsentence1\tsentence2\tscore\r\n", b"a\tb\t3\r\n\r\n"
    wrong = [(b"a\tb\thigh", "bad_grade"), (b"a\tb\t", "bad_grade"), (b"a\tb", "invalid_csv"), (b"\xe9\tb\t1", "utf8")]
    for bad, said in wrong:
        (tmp_path / "test.tsv").write_bytes(head + good + bad)
        with pytest.raises(UserError, match=rf"test\.tsv, line 4: .*{said}"):
            open_tasks(["likeness"], {"likeness": tmp_path})
    (tmp_path / "test.tsv").write_bytes(head + good)
    [task] = open_tasks(["likeness"], {"likeness": tmp_path})
    assert task.dataset["test"].to_list() == [{"sentence1": "a", "sentence2": "b", "score": 3.0}]
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "all.tsv").write_bytes(b"lang\tsentence1\tsentence2\nfra\tchats\tcats\n\tpierres\tstones\n")
    with pytest.raises(UserError, match=r"all\.tsv, line 3: .*'lang'"):
        open_tasks(["translated"], {"translated": pairs})
    for row in ({"text": None, "label": "x"}, {"text": 5, "label": "x"}, {"label": "x"}, b"{", b'{"text": "\xe9"}'):
        with pytest.raises(UserError, match=r"train\.jsonl, line 2: "):
            open_tasks(["kinds"], {"kinds": labels_of(tmp_path / "kinds", {"text": "a", "label": "x"}, row)})


def test_the_only_language_of_a_folder_is_taken_and_several_are_named(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    labels_of(tmp_path / "banking" / "en", *rows)
    [task] = open_tasks(["Banking77Classification"], {"Banking77Classification": tmp_path / "banking"})
    assert task.dataset["test"]["text"] == ["a", "b"]
    beir(tmp_path / "pets" / "en")
    [task] = open_tasks(["SciFact"], {"SciFact": tmp_path / "pets"})
    assert len(task.dataset["default"]["test"]["corpus"]) == len(CORPUS)
    labels_of(tmp_path / "banking" / "de", *rows)
    with pytest.raises(UserError, match=r"data in de, en; name one of these folders"):
        open_tasks(["Banking77Classification"], {"Banking77Classification": tmp_path / "banking"})
    with pytest.raises(UserError, match=r"none of the layouts.*; en in it can"):
        open_tasks(["my pets"], {"my pets": tmp_path / "pets"})


def test_judgments_of_documents_that_are_not_there_are_said(tmp_path: Path) -> None:
    folder, said = beir(tmp_path / "pets"), list[str]()
    with (folder / "qrels/test.tsv").open("a") as file:
        file.write("\nq1\tnowhere\t1\n")
    [task] = open_tasks(["pets"], {"pets": folder}, (), said.append)
    assert len(said) == 1 and "1 judgments" in said[0] and "'nowhere'" in said[0]
    assert task.dataset["default"]["test"]["relevant_docs"]["q1"]["nowhere"] == 1


def likeness(folder: Path, *grades: float) -> Path:
    folder.mkdir()
    lines = [f"{'abcde'[i % 5]} x\tb{i} y\t{grade}" for i, grade in enumerate(grades)]
    (folder / "test.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]))
    return folder


def test_a_task_that_fails_or_has_no_number_costs_itself_only(tmp_path: Path) -> None:
    def embed(texts: list[str], instruction: str | None) -> np.ndarray:
        if any(text.startswith("boom") for text in texts):
            raise RuntimeError("the worker died\nwith a long trace")
        return letters(texts, instruction)

    folders = {
        "boom": beir(tmp_path / "boom"),
        "flat": likeness(tmp_path / "flat", 1, 2, 3),
        "pets": beir(tmp_path / "pets"),
    }
    rows = (folders["boom"] / "corpus.jsonl").read_text().replace("stones", "boom")
    (folders["boom"] / "corpus.jsonl").write_text(rows)
    scored, said = Scored(), list[str]()
    model = HarnessEncoder(embed, None, Instructions({}, {}), model_meta("test/letters", "1", 26))
    reached, none = reached_tasks(open_tasks(list(folders), folders), said.append)
    flat = reached[1]
    flat.dataset = {split: part.map(lambda row: {"score": 1.0}) for split, part in flat.dataset.items()}
    score_tasks(scored, model, reached, tmp_path / "out", kept=True, say=said.append)
    assert list(scored.splits["test/letters"]) == ["pets"] and none == {} and scored.failed == ["boom"]
    assert scored.skipped["boom"] == "its evaluation failed (RuntimeError: the worker died)"
    assert "no finite number (test nan)" in scored.skipped["flat"]
    assert any("boom is skipped" in line for line in said) and any("flat is skipped" in line for line in said)
    assert (tmp_path / "out/per_query/test__letters/pets.json").is_file()
    second = HarnessEncoder(embed, None, Instructions({}, {}), model_meta("test/letters+reranker", "1", 26))
    score_tasks(scored, second, reached[:1], tmp_path / "out", kept=True, say=said.append)
    assert scored.skipped["boom"].startswith("test/letters+reranker: ") and scored.failed == ["boom"]


def test_figures_by_query_of_a_split_stay_when_another_is_added(tmp_path: Path) -> None:
    folder, said = beir(tmp_path / "pets"), list[str]()
    (folder / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t1\n")

    def splits_kept(revision: str, *splits: str) -> set[str]:
        model = HarnessEncoder(letters, None, Instructions({}, {}), model_meta("test/letters", revision, 26))
        tasks = open_tasks(["pets"], {"pets": folder}, splits)
        score_tasks(Scored(), model, tasks, tmp_path / "out", kept=True, say=said.append)
        figures = json.loads((tmp_path / "out/per_query/test__letters/pets.json").read_text())
        return {key.split("/")[1] for key in figures}

    assert splits_kept("1", "test") == {"test"}
    assert splits_kept("1", "test", "dev") == {"test", "dev"}
    assert splits_kept("2", "dev") == {"dev"}, "of another revision"


def test_grades_that_are_all_the_same_or_too_large_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"same.test\.tsv: all 3 scores are 2"):
        open_tasks(["flat"], {"flat": likeness(tmp_path / "same", 2, 2.0, 2)})
    for huge in ("1" * 400, "1e999"):
        (tmp_path / "same/test.tsv").write_text(f"sentence1\tsentence2\tscore\na\tb\t1\na\tc\t{huge}\n")
        with pytest.raises(UserError, match=r"test\.tsv, line 3: .*bad_grade"):
            open_tasks(["flat"], {"flat": tmp_path / "same"})
    (tmp_path / "same/test.tsv").unlink()
    rows = [{"sentence1": "a", "sentence2": "b", "score": score} for score in (1, 10**400)]
    (tmp_path / "same/test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"test\.jsonl, line 2: .*bad_grade"):
        open_tasks(["flat"], {"flat": tmp_path / "same"})


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("corpus.jsonl", "", r"corpus\.jsonl: 3 queries and 0 documents"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", r"qrels/test\.tsv: 0 queries"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\ta\t0\nq2\tb\t-1\n", r"test\.tsv: no grade above 0"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\tnowhere\t1\n", r"test\.tsv: no relevant document"),
        ("qrels/test.tsv", f"query-id\tcorpus-id\tscore\nq1\ta\t{2**31}\n", r"test\.tsv, line 2: bad_grade"),
        ("queries.jsonl", "", r"queries\.jsonl: 3 of 3 queries"),
    ],
)
def test_a_retrieval_set_that_tells_nothing_is_refused(tmp_path: Path, file: str, content: str, said: str) -> None:
    folder = beir(tmp_path / "pets")
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=said):
        open_tasks(["pets"], {"pets": folder})
    with pytest.raises(UserError, match=said):
        named_set(EvaluateConfig(dataset=str(folder), split="test"))


@pytest.mark.parametrize("content", ["", "sentence1\tsentence2\tscore\n", "lang\tsentence1\tsentence2\n"])
@pytest.mark.parametrize("name", ["test", "all"])
def test_tables_without_rows_are_named(tmp_path: Path, content: str, name: str) -> None:
    (tmp_path / f"{name}.tsv").write_text(content)
    with pytest.raises(UserError, match=rf"{name}\.tsv: no rows"):
        open_tasks(["mine"], {"mine": tmp_path})


def test_a_classification_needs_two_classes_and_all_those_of_the_test(tmp_path: Path) -> None:
    one = labels_of(tmp_path / "one", {"text": "a", "label": "x"}, {"text": "b", "label": "x"})
    with pytest.raises(UserError, match=r"one.train\.jsonl: one class, 'x'"):
        open_tasks(["kinds"], {"kinds": one})
    both = labels_of(tmp_path / "both", {"text": "a", "label": "x"}, {"text": "b", "label": "y"})
    with (both / "test.jsonl").open("a") as file:
        file.write(json.dumps({"text": "c", "label": "z"}))
    with pytest.raises(UserError, match=r"both.test\.jsonl: the class 'z' is not in the split train"):
        open_tasks(["kinds"], {"kinds": both})
    (tmp_path / "both/en").mkdir()
    for split in ("train", "test"):
        (both / f"{split}.jsonl").rename(both / f"en/{split}.jsonl")
    with pytest.raises(UserError, match=r"en.test\.jsonl: the class 'z' is not in the split train"):
        open_tasks(["Banking77Classification"], {"Banking77Classification": both})


@pytest.mark.parametrize("there", ["dev", "validation"])
def test_a_task_of_ones_own_has_the_splits_that_are_there(tmp_path: Path, there: str) -> None:
    sts, labels, pets = likeness(tmp_path / "sts", 1, 2, 3), tmp_path / "labels", beir(tmp_path / "pets")
    labels_of(labels, {"text": "a", "label": "x"}, {"text": "b", "label": "y"})
    for folder, suffix in ((sts, "tsv"), (labels, "jsonl"), (pets / "qrels", "tsv")):
        (folder / f"test.{suffix}").rename(folder / f"{there}.{suffix}")
    folders = {"likeness": sts, "kinds": labels, "pets": pets}
    for splits in ((), (there,)):
        tasks = open_tasks(list(folders), folders, splits)
        assert [task.metadata.type for task in tasks] == ["STS", "Classification", "Retrieval"]
        assert [list(task.eval_splits) for task in tasks] == [[there]] * 3
    for name, folder in folders.items():
        with pytest.raises(UserError, match=rf"extra.*{there}"):
            open_tasks([name], {name: folder}, ["extra"])
    (labels / f"{there}.jsonl").unlink()
    with pytest.raises(UserError, match="only the split train"):
        open_tasks(["kinds"], {"kinds": labels})


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    file = likeness(tmp_path / "sts", 1, 2, 3) / "test.tsv"
    for name in ("mine", "SciFact"):
        with pytest.raises(UserError, match="no such folder"):
            open_tasks([name], {name: tmp_path / "nowhere"})
        with pytest.raises(UserError, match="is a file"):
            open_tasks([name], {name: file})


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task SciFaxt: mteb knows none of that name.*did you mean SciFact"):
        open_tasks(["SciFaxt"], {})
    with pytest.raises(UserError, match="no such folder"):
        open_tasks(["SciFact"], {"SciFact": tmp_path / "nowhere"})
    with pytest.raises(UserError, match="none of the layouts"):
        open_tasks(["mine"], {"mine": tmp_path})
    with pytest.raises(UserError, match=r"corpus\.jsonl|qrels"):
        open_tasks(["SciFact"], {"SciFact": tmp_path})


def test_known_vectors_are_not_made_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def embed(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return letters(texts, None)

    first = VectorCache(Storage(str(tmp_path))).encode(["b", "a", "b"], "prompt", embed)
    again = VectorCache(Storage(str(tmp_path)))
    assert np.array_equal(again.encode(["a", "c", "b"], "prompt", embed), letters(["a", "c", "b"], None))
    assert np.array_equal(first, letters(["b", "a", "b"], None))
    assert asked == ["b", "a", "c"]
    again.encode(["a"], "another prompt", embed)
    assert asked == ["b", "a", "c", "a"]


def test_instructions_come_from_the_file_then_the_task_then_its_type() -> None:
    [scifact, sts] = open_tasks(["SciFact", "STSBenchmark"], {})
    own = Instructions({}, {"STSBenchmark": "of the type"})
    assert own.of(scifact.metadata, "query") == scifact.metadata.prompt["query"]
    assert own.of(scifact.metadata, "document") is None
    assert own.of(sts.metadata, None) == "of the type"
    given = Instructions({"SciFact": {"query": "q", "document": "d"}, "STSBenchmark": "both"}, {})
    assert [given.of(scifact.metadata, side) for side in ("query", "document")] == ["q", "d"]
    assert given.of(sts.metadata, None) == "both"


def test_the_bootstrap_is_sure_of_what_is_always_so_and_of_nothing_else() -> None:
    rng = np.random.default_rng(1)
    base = {str(i): float(x) for i, x in enumerate(rng.random(200))}
    better = {query: value + 0.1 for query, value in base.items()}
    gain = paired_bootstrap(better, base)
    assert gain is not None
    assert (round(gain.mean, 6), round(gain.low, 6), round(gain.high, 6)) == (0.1, 0.1, 0.1) and gain.sure
    noise = {query: value + float(rng.normal(0, 0.2)) for query, value in base.items()}
    other = paired_bootstrap(noise, base | {"only here": 1.0})
    assert gain is not None and other is not None
    error = np.std([noise[q] - base[q] for q in base]) / len(base) ** 0.5
    assert other.queries == 200
    assert (other.high - other.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_results_that_share_no_query_are_not_compared_and_it_is_said(tmp_path: Path) -> None:
    assert paired_bootstrap({"a": 1.0}, {"b": 0.5}) is None
    assert paired_bootstrap({}, {}) is None
    out, earlier = Storage(str(tmp_path / "out")), Storage(str(tmp_path / "earlier"))
    tests = {f"default/test/q{i}": 0.5 for i in range(20)}
    for place, figures in ((out, {key: 0.75 for key in tests}), (earlier, tests)):
        place.write_json(
            "per_query/test__model/same.json", figures | {f"default/validation/q{i}": 0.0 for i in range(9)}
        )
    out.write_json("per_query/test__model/other.json", {"default/test/q1": 1.0})
    earlier.write_json("per_query/test__model/other.json", {"default/test/another": 1.0})
    out.write_json("per_query/test__model/new.json", {"default/test/q1": 1.0})
    splits = {"test/model": {task: {"test": 75.0} for task in ("same", "other", "new", "an STS task")}}
    found, left_out = compared(splits, out, "test/model", baseline_figures(tmp_path / "earlier"))
    assert found == {"test/model": {"same": {"mean": 25.0, "low": 25.0, "high": 25.0, "queries": 20, "sure": True}}}
    assert left_out["test/model"].keys() == {"other", "new"}
    assert "no query of the split test is in" in left_out["test/model"]["other"]
    with pytest.raises(UserError, match="no per_query/ there"):
        baseline_figures(tmp_path / "nothing")


def test_the_main_split_is_test_and_else_the_first() -> None:
    assert main_first(["validation", "test", "dev"]) == ["test", "validation", "dev"]
    assert main_first(["dev", "validation"]) == ["dev", "validation"]
    assert of_split({"s/test/a/b": 1.0, "s/dev/test": 0.5}, "test") == {"s/test/a/b": 1.0}
