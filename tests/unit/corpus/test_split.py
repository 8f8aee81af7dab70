from __future__ import annotations

import random
from typing import Any

import pyarrow as pa

from qwen3emb.config.data import CorpusConfig
from qwen3emb.corpus.candidates import CANDIDATE, KEYS
from qwen3emb.corpus.split import Verdict, decide
from qwen3emb.text.identity import content_hash
from qwen3emb.text.near_duplicates import minhash

WORDS = [f"word{i}" for i in range(3000)]


def text(seed: int, changed: int = 0) -> str:
    """100 random words, of which the last `changed` are others; 2 of 100 leave a similarity of 0.96."""
    words = random.Random(seed).choices(WORDS, k=100)
    return " ".join(words[: 100 - changed] + random.Random(-seed).choices(WORDS, k=changed))


def row(role: str, name: str, content: str, query: str = "", split: str = "train", reason: str = "") -> dict:
    hashes = {"text_hash": content_hash(content), "query_hash": content_hash(query) if query else ""}
    signatures = {
        "text_signature": minhash(content).tobytes(),
        "query_signature": minhash(query).tobytes() if query else bytes(512),
    }
    base = {name: "" for name in CANDIDATE.names} | {"row": -1, "role": role, "split": split, "id": name}
    return base | hashes | signatures | {"reason": reason}


def judged(rows: list[dict[str, Any]], **options: Any) -> tuple[Verdict, dict[str, str]]:
    cfg = CorpusConfig(sources=[{"kind": "text", "path": "."}], **options)
    verdict = decide(pa.Table.from_pylist(rows, schema=CANDIDATE).select(KEYS), cfg, seed=0)
    codes = {rows[i]["id"]: reason.partition(":")[0] for i, reason in verdict.reasons.items()}
    return verdict, codes


def test_duplicates_of_passages_are_dropped_and_the_first_kept() -> None:
    rows = [
        row("passage", "a", text(1)),
        row("passage", "same", "  " + text(1).replace(" ", "\n")),
        row("passage", "near", text(1, changed=2)),
        row("passage", "other", text(2)),
        row("passage", "a", text(3)),
    ]
    verdict, _ = judged(rows)
    assert {i: reason.partition(":")[0] for i, reason in verdict.reasons.items()} == {
        1: "exact_duplicate",
        2: "near_duplicate",
        4: "duplicate_id",
    }


def test_pairs_are_compared_by_code_and_by_query_but_not_with_passages() -> None:
    rows = [
        row("passage", "p", text(1)),
        row("pair", "a", text(1), text(11)),
        row("pair", "same code", text(1), text(12)),
        row("pair", "same query", text(3), text(11)),
        row("pair", "near code", text(1, changed=2), text(14)),
        row("pair", "near query", text(5), text(11, changed=2)),
        row("pair", "other", text(6), text(16)),
        row("pair", "after a dropped one", text(3), text(17)),
    ]
    _, codes = judged(rows)
    assert codes == {
        "same code": "exact_duplicate",
        "same query": "exact_duplicate",
        "near code": "near_duplicate",
        "near query": "near_duplicate",
    }


def test_nothing_of_evaluation_is_trained_on() -> None:
    rows = [
        row("passage", "docstring of it", text(1, changed=2)),
        row("pair", "code of it", text(2, changed=2), text(20)),
        row("pair", "query of it", text(21), text(3, changed=2)),
        row("pair", "code of dev", text(4), text(22)),
        row("passage", "half of it", text(1, changed=50)),
        row("pair", "fine", text(23), text(24)),
        row("shadow", "module", text(1), split="heldout"),
        row("function", "f", text(2), text(3), split="heldout"),
        row("function", "g", text(4), "", split="dev"),
    ]
    verdict, codes = judged(rows)
    expected = ("docstring of it", "code of it", "query of it", "code of dev")
    assert codes == dict.fromkeys(expected, "heldout_overlap")
    assert verdict.reasons[0] == "heldout_overlap: its text is like module"
    assert verdict.queries == {"heldout": {7}, "dev": set()}


def test_evaluation_functions_that_are_not_used_are_protected_too() -> None:
    functions = [row("function", f"f{i}", text(i), text(100 + i), split="heldout") for i in range(10)]
    copies = [row("pair", f"copy{i}", text(i), text(200 + i)) for i in range(10)]
    _, codes = judged([*functions, *copies], max_heldout_documents=3, max_heldout_queries=1)
    assert [codes[f"copy{i}"] for i in range(10)] == ["heldout_overlap"] * 10
    assert sum(codes.get(f"f{i}") == "over_max_heldout_documents" for i in range(10)) == 7


def test_a_dropped_duplicate_of_evaluation_is_protected_too() -> None:
    # c is like b, b is like a, but c is not like a: a comparison with what was kept would let c through.
    words = text(1).split()
    a, b, c = (" ".join(words[i:] + text(2).split()[:i]) for i in (0, 8, 16))
    rows = [
        row("function", "a", a, split="heldout"),
        row("function", "b", b, split="heldout"),
        row("passage", "c", c),
    ]
    _, codes = judged(rows, near_duplicate=0.78)
    assert codes == {"b": "near_duplicate", "c": "heldout_overlap"}
    assert judged([rows[0], rows[2]], near_duplicate=0.78)[1] == {}


def test_dev_gives_way_to_heldout_whatever_the_order() -> None:
    rows = [
        row("function", "dev copy", text(1), split="dev"),
        row("function", "f", text(1), split="heldout"),
    ]
    assert judged(rows)[1] == {"dev copy": "exact_duplicate"}


def test_queries_that_several_functions_answer_are_not_asked_but_searched() -> None:
    rows = [
        row("function", "a", text(1), "Emit a record.", split="heldout"),
        row("function", "b", text(2), "Emit a record.", split="heldout"),
        row("function", "c", text(3), text(30), split="heldout"),
        row("function", "d", text(4), text(30, changed=2), split="heldout"),
        row("function", "e", text(5), "Emit a record.", split="dev"),
        row("function", "f", text(6), "Close the file.", split="heldout"),
    ]
    verdict, codes = judged(rows)
    assert codes == {}  # all of them are documents
    assert verdict.queries == {"heldout": {5}, "dev": {4}}
    assert verdict.ambiguous == {"heldout": 4, "dev": 0}


def test_evaluation_caps_keep_the_answers_of_the_queries() -> None:
    rows = [row("function", f"f{i}", text(i), text(100 + i) * (i % 2), split="heldout") for i in range(40)]
    for queries, documents in ((5, 12), (12, 12), (30, 10), (100, 100)):
        verdict, codes = judged(rows, max_heldout_queries=queries, max_heldout_documents=documents)
        asked = verdict.queries["heldout"]
        assert len(asked) == min(queries, documents, 20)
        assert not any(rows[i]["id"] in codes for i in asked) and all(rows[i]["query_hash"] for i in asked)
        assert len(rows) - len(codes) == min(documents, 40)


def test_caps_draw_by_id_and_count_only_usable_rows() -> None:
    rows = [row("passage", f"p{i}", text(i)) for i in range(20)]
    rows += [row("passage", "copy", text(0)), row("reject", "bad", "", reason="invalid_json: x")]
    _, codes = judged(rows, max_passages=8)
    kept = {r["id"] for r in rows} - codes.keys()
    assert len(kept) == 8 and codes["copy"] == "exact_duplicate" and codes["bad"] == "invalid_json"
    assert sorted(codes.values()).count("over_max_passages") == 12
    assert {r["id"] for r in rows} - judged([*rows[19::-1], *rows[20:]], max_passages=8)[1].keys() == kept


def test_nothing_to_judge() -> None:
    assert judged([]) == (Verdict({}, {"heldout": set(), "dev": set()}, {"heldout": 0, "dev": 0}), {})


def test_held_out_documents_keep_their_texts_and_training_loses_its_copies() -> None:
    rows = [
        row("passage", "a train", text(1)),
        row("passage", "b dev", text(1, changed=2), split="dev"),
        row("passage", "c heldout", text(1), split="heldout"),
        row("passage", "d train", text(2)),
        row("passage", "e dev", text(2, changed=2), split="dev"),
        row("passage", "f train", text(3)),
        row("passage", "g heldout", text(4), split="heldout"),
        row("passage", "h heldout", text(4), split="heldout"),
        row("pair", "i pair", text(5), text(4, changed=2)),
    ]
    verdict, codes = judged(rows)
    assert codes == {
        "a train": "heldout_overlap",
        "b dev": "near_duplicate",
        "d train": "heldout_overlap",
        "h heldout": "exact_duplicate",
        "i pair": "heldout_overlap",
    }
    assert verdict.reasons[3] == "heldout_overlap: its text is like e dev"


def test_one_cap_is_for_the_passages_of_all_splits() -> None:
    splits = ["train", "heldout", "dev"]
    rows = [row("passage", f"p{n}", text(n), split=splits[n % 3]) for n in range(30)]
    _, codes = judged(rows, max_passages=12)
    assert len(codes) == 18 and set(codes.values()) == {"over_max_passages"}
