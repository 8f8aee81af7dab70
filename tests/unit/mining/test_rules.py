"""Hard negatives against a literal double loop over texts."""

from __future__ import annotations

from functools import reduce

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3emb.config.data import MineConfig
from qwen3emb.mining.rules import MinePair, merged_hits, mining_plan, query_blocks, search_vectors, select_negatives

# Multiples of 1/4 in few dimensions: products are exact in float32, and equal scores are common.
WORDS = ["a b", "a  b", "c", " c", "d", "e", "f", "g", "h"]
texts = st.sampled_from(WORDS)
vectors = st.lists(st.integers(-3, 3), min_size=3, max_size=3).map(lambda v: [x / 4 for x in v])


def normal(text: str) -> str:
    return " ".join(text.split())


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[MinePair], dict[str, list[str]], dict, MineConfig]:
    datasets = st.sampled_from(["docstrings", "synthetic"])
    drawn = draw(st.lists(st.tuples(texts, texts, datasets), min_size=1, max_size=8))
    pairs = [MinePair(str(i), q, d, dataset) for i, (q, d, dataset) in enumerate(drawn)]
    corpora = {dataset: draw(st.lists(texts, max_size=9)) for dataset in ("docstrings", "synthetic")}
    space = {(kind, normal(w)): draw(vectors) for w in WORDS for kind in ("query", "document")}
    negatives, skip = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    rules = MineConfig(
        negatives=negatives,
        skip_top=skip,
        top_k=max(1, negatives + skip + draw(st.integers(0, 2))),
        min_positive=draw(st.sampled_from([-1.0, -0.25, 0.0, 0.5])),
        margin=draw(st.sampled_from([-0.5, 0.0, 0.25, 2.0])),
        relative_margin=draw(st.sampled_from([None, 0.0, 0.5])),
    )
    return pairs, corpora, space, rules


def mined(pairs, corpora, space, rules, block, shard):
    """For each pair None or [(negative, score)], as the stage does it: blocks of queries, shards of documents."""
    work = mining_plan(pairs, corpora)
    queries = np.array([space["query", normal(t)] for t in work.queries], dtype=np.float32)
    documents = np.array([space["document", normal(t)] for t in work.documents], dtype=np.float32)
    found = {}
    for dataset, search in work.searches.items():
        for asked in query_blocks(search, block):
            shards = [
                search_vectors(queries[asked.rows], first, documents[first : first + shard], asked, rules.top_k)
                for first in range(0, len(documents), shard)
            ]
            chosen = select_negatives(asked, reduce(merged_hits, shards), rules)
            for query, negatives in zip(asked.rows, chosen, strict=True):
                named = negatives and [work.documents[r] for r in negatives.rows]
                found[dataset, query] = negatives and list(zip(named, negatives.scores, strict=True))
    return [found[p.dataset, q] for p, (q, _) in zip(pairs, work.pairs, strict=True)]


def reference(pairs, corpora, space, rules):
    """The rules word by word."""
    seen = [normal(t) for corpus in corpora.values() for t in corpus]
    out = []
    for pair in pairs:
        query = np.array(space["query", normal(pair.query)])
        positives = []
        for other in pairs:
            if normal(other.query) == normal(pair.query) and normal(other.document) not in positives:
                positives.append(normal(other.document))
        scores = [float(query @ np.array(space["document", p])) for p in positives]
        if not any(s > rules.min_positive for s in scores):
            out.append(None)
            continue
        candidates = {}
        for text in corpora[pair.dataset]:
            if normal(text) not in positives and normal(text) != normal(pair.query):
                candidates[normal(text)] = float(query @ np.array(space["document", normal(text)]))
        ranked = sorted(candidates.items(), key=lambda c: (-c[1], seen.index(c[0])))
        negatives = []
        mean = sum(scores) / len(scores)
        near = np.inf if rules.relative_margin is None else mean - rules.relative_margin * abs(mean)
        for rank, (text, score) in enumerate(ranked):
            inside = rules.skip_top <= rank < rules.top_k
            if inside and score < min(mean + rules.margin, near) and len(negatives) < rules.negatives:
                negatives.append((text, score))
        out.append(negatives)
    return out


@settings(max_examples=300, deadline=None)
@given(worlds(), st.integers(1, 9), st.integers(1, 12))
def test_negatives_follow_the_rules(world, block, shard) -> None:
    got = mined(*world, block, shard)
    assert [n and [(normal(text), score) for text, score in n] for n in got] == reference(*world)


def test_each_text_is_embedded_once_and_code_queries_get_code() -> None:
    pairs = [
        MinePair("1", "sort a list", "def s(x): return sorted(x)", "docstrings"),
        MinePair("2", "sort a list", "Sorting puts items in order.", "synthetic"),
        MinePair("3", "add", "def a(x, y): return x + y", "docstrings"),
    ]
    corpora = {
        "docstrings": [pairs[0].document, pairs[2].document],
        "synthetic": ["Sorting puts items in order.", "Sorting  puts items in order.", "Cats sleep."],
    }
    work = mining_plan(pairs, corpora)
    assert work.queries == ["sort a list", "add"]
    assert sorted(work.documents) == sorted({*corpora["docstrings"], "Sorting puts items in order.", "Cats sleep."})
    code = work.searches["docstrings"]
    assert [work.documents[r] for r in code.corpus] == corpora["docstrings"]
    # the answers of both datasets count, and only the one in this corpus has to be kept out of it
    assert [work.documents[r] for r in code.positives[0]] == [pairs[0].document, pairs[1].document]
    assert code.excluded == [(code.corpus[0],), (code.corpus[1],)]


def test_a_text_with_two_instructions_is_two_queries() -> None:
    pairs = [
        MinePair("1", "Paris", "a city", "docstrings"),
        MinePair("2", "Paris", "a city", "same"),
        MinePair("3", "Paris", "Parigi", "other"),
    ]
    corpora = {name: ["a city", "Parigi", "a cat"] for name in ("docstrings", "same", "other")}
    work = mining_plan(pairs, corpora, {"docstrings": "find", "same": "find", "other": "translate"})
    assert list(zip(work.queries, work.instructions, strict=True)) == [("Paris", "find"), ("Paris", "translate")]
    assert [query for query, _ in work.pairs] == [0, 0, 1]
    city, parigi = (work.documents.index(text) for text in ("a city", "Parigi"))
    found = {name: (s.queries, s.positives, s.excluded) for name, s in work.searches.items()}
    barred = tuple(sorted((city, parigi)))
    assert found["docstrings"] == found["same"] == ([0], [(city,)], [barred]), "an answer elsewhere is no safe negative"
    assert found["other"] == ([1], [(parigi,)], [barred])
    assert mining_plan(pairs, corpora).queries == ["Paris"] and mining_plan(pairs, corpora).instructions == [None]
