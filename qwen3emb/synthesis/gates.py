"""Quality gates: which written queries are not worth training on, each gate switchable and counted by its code.

`Gates` see one query at a time, so an item that fails is asked again with another seed. What can only be seen over the
whole stage is dropped at its end: queries that repeat others, and texts that overlap with what is evaluated on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from qwen3emb.config.data import GatesConfig
from qwen3emb.config.datasets import dataset_of
from qwen3emb.core.records import PAIR, REJECT
from qwen3emb.core.rejects import escaped
from qwen3emb.core.storage import Storage
from qwen3emb.synthesis.question_type import wrong_type
from qwen3emb.synthesis.tasks.item import Requirement, item_key, reject_id
from qwen3emb.text.decontamination import EvaluationNgrams
from qwen3emb.text.identity import content_hash
from qwen3emb.text.languages import language_identifier
from qwen3emb.text.near_duplicates import is_unspaced, minhash, near_duplicates

__all__ = ["Gates", "copies_passage", "drop_overlapping", "drop_repeated", "duplicate_queries", "word_count"]

_REFUSAL = re.compile(
    r"\b(i am|i'm|i’m|as) (sorry|unable|not able|an? (ai|language model|assistant))\b"
    r"|\bi (cannot|can't|can’t|won't|must decline)\b|\bas an ai\b",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"\[[^\]]*\b(insert|your|name|topic|query|text|subject)\b[^\]]*\]|<(insert|your|name|topic|query|text|subject)\b[^>]*>"
    r"|\{\w*\}|\blorem ipsum\b|\byour (query|question|text) here\b|\bxxx+\b|_{3,}|\.\.\.\.+",
    re.IGNORECASE,
)
_SENTENCES = {dataset_of("bitext"), dataset_of("sts")}  # their queries are the corpus's sentences, nobody wrote them
_COPIED_RUN = 12  # words; a query that holds a longer run of the passage was copied, not written
_CHARACTERS_PER_WORD = 1.7  # of scripts written without spaces, roughly what word segmenters give for Chinese


def word_count(text: str) -> float:
    """Words of a text; in a script without spaces an estimate from its characters."""
    if is_unspaced(text):
        return sum(c.isalnum() for c in text) / _CHARACTERS_PER_WORD
    return float(len(text.split()))


class Gates:
    """The gates of a run.

    Codes: wrong_language (identified with confidence as another one than was asked for), wrong_length (outside the
    drawn range by more than the tolerance), copied_words (a share of the query's runs of three words stands in the
    passage), refusal (an apology instead of a query), placeholder (a gap that was left to be filled), wrong_type (a
    question where keywords were asked for, and the like: `question_type.wrong_type`).
    """

    def __init__(self, cfg: GatesConfig) -> None:
        """Load what the switched-on gates need."""
        self._cfg = cfg
        self._identifier: Any = None
        if cfg.language:
            self._identifier = language_identifier()
            self._known = set(self._identifier.labels)

    def problem(self, query: str, passage: str, requirement: Requirement, question_type: str = "") -> str | None:
        """Why a query cannot be used, as `<code>: <detail>`, or None.

        Args:
            query: as written.
            passage: as it was shown to the generator.
            requirement: the length and language that were asked for.
            question_type: the type that was asked for; "" where it is no query.
        """
        cfg = self._cfg
        if cfg.refusals and (refusal := _REFUSAL.search(query)):
            return f"refusal: {refusal[0]!r} in {query}"
        if cfg.placeholders and (placeholder := _PLACEHOLDER.search(query)):
            return f"placeholder: {placeholder[0]!r} in {query}"
        return (
            self._wrong_length(query, requirement)
            or self._copied(query, passage)
            or self._wrong_language(query, requirement)
            or self._wrong_type(query, requirement, question_type)
        )

    def _wrong_length(self, query: str, requirement: Requirement) -> str | None:
        if self._cfg.length_tolerance is None:
            return None
        low, high = (int(n) for n in requirement.words.split("-"))
        slack, words = self._cfg.length_tolerance, word_count(query)
        if low * (1 - slack) <= words <= high * (1 + slack):
            return None
        return f"wrong_length: {words:.0f} words, asked for {requirement.words}: {query}"

    def _copied(self, query: str, passage: str) -> str | None:
        limit = self._cfg.copied_share
        if limit is None:
            return None
        runs, passage_runs = _runs(query), set(_runs(passage))
        share = sum(run in passage_runs for run in runs) / len(runs) if runs else 0.0
        return f"copied_words: {share:.0%} of its runs of words are the passage's: {query}" if share > limit else None

    def _wrong_language(self, query: str, requirement: Requirement) -> str | None:
        code = requirement.language.partition("-")[0]
        if self._identifier is None or code not in self._known:
            return None
        identified, confidence = self._identifier.classify(query)
        if identified == code or float(confidence) < self._cfg.language_confidence:
            return None
        identification = f"identified {identified} ({float(confidence):.2f})"
        return f"wrong_language: {identification}, asked for {requirement.language}: {query}"

    def _wrong_type(self, query: str, requirement: Requirement, question_type: str) -> str | None:
        why = wrong_type(query, question_type, requirement.language) if self._cfg.question_type else None
        return f"wrong_type: asked for {question_type}, but {why}: {query}" if why else None


def _runs(text: str) -> list[str]:
    """Runs of three words in lower case; of six characters in scripts without spaces."""
    if is_unspaced(text):
        units, size, joint = [c for c in text if c.isalnum()], 6, ""
    else:
        units, size, joint = re.findall(r"\w+", text.lower()), 3, " "
    return [joint.join(units[i : i + size]) for i in range(len(units) - size + 1)]


def copies_passage(query: str, passage: str) -> bool:
    """Whether a query is its passage, or holds a run of more than 12 of its words; both as `chat.plain` gives them."""
    words = query.split()
    runs = (" ".join(words[i : i + _COPIED_RUN + 1]) for i in range(len(words) - _COPIED_RUN))
    return query == passage or any(f" {run} " in f" {passage} " for run in runs)


def duplicate_queries(ids: Sequence[str], queries: Sequence[str], threshold: float) -> dict[str, str]:
    """Id of each query that repeats an earlier one -> `<code>: <detail>`.

    Codes: duplicate_query (the same text up to case and white space), near_duplicate_query (MinHash similarity of at
    least `threshold`; 1 compares texts only).
    """
    repeated: dict[str, str] = {}
    first: dict[str, str] = {}
    for name, query in zip(ids, queries, strict=True):
        original = first.setdefault(content_hash(query.lower()), name)
        if original != name:
            repeated[name] = f"duplicate_query: of {original}"
    rest = [(name, query) for name, query in zip(ids, queries, strict=True) if name not in repeated]
    if threshold < 1 and rest:
        signatures = np.array([minhash(query, shingle=3) for _, query in rest])
        for name, original in near_duplicates([name for name, _ in rest], signatures, threshold).items():
            repeated[name] = f"near_duplicate_query: of {original}"
    return repeated


def drop_repeated(out: Storage, threshold: float) -> int:
    """Move pairs whose query repeats an earlier one, in the order of the files, to the rejects; how many.

    The driver holds all queries.

    Args:
        out: folder of the stage.
        threshold: of `gates.duplicate_queries`.
    """
    files = out.names("pairs", ".parquet")
    pairs = [pair for name in files for pair in _pairs(out, name, ["id", "query", "dataset"])]
    generated = [pair for pair in pairs if pair["dataset"] not in _SENTENCES]
    repeated = duplicate_queries([pair["id"] for pair in generated], [pair["query"] for pair in generated], threshold)
    _reject_items(out, repeated)
    return len(repeated)


def drop_overlapping(out: Storage, evaluation: EvaluationNgrams) -> int:
    """Move items with a text that holds a query or document of the evaluation sets to the rejects; how many.

    Args:
        out: folder of the stage.
        evaluation: what no training text may hold.
    """
    held: dict[str, str] = {}
    for name in out.names("pairs", ".parquet"):
        for pair in _pairs(out, name, ["id", "query", "document", "dataset"]):
            overlap = evaluation.held(pair["query"]) or evaluation.held(pair["document"])
            if overlap:
                held[item_key(pair)] = f"heldout_overlap: {overlap}"
    _reject_items(out, held)
    return len(held)


def _pairs(out: Storage, name: str, columns: list[str]) -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = out.read_table(name, PAIR).select(columns).to_pylist()
    return pairs


def _reject_items(out: Storage, reasons: Mapping[str, str]) -> None:
    """Move items, by `item_key` of their pairs, to the rejects, each once.

    A run that is killed in between leaves a pair in both; the next call mends that.
    """
    for name in out.names("pairs", ".parquet") if reasons else []:
        table = out.read_table(name)
        keys = [item_key(pair) for pair in table.select(["id", "dataset"]).to_pylist()]
        bad = {key: pair for key, pair in zip(keys, table.to_pylist(), strict=True) if key in reasons}
        if not bad:
            continue
        rejects_file = name.replace("pairs/", "rejects/", 1)
        rejects = out.read_table(rejects_file, REJECT).to_pylist()
        rejected = {reject["id"] for reject in rejects}
        added = [_reject(key, pair, reasons[key]) for key, pair in bad.items() if reject_id(key) not in rejected]
        out.write_table(rejects_file, pa.Table.from_pylist([*rejects, *added], schema=REJECT))
        out.write_table(name, table.filter(pa.array([key not in bad for key in keys])))


def _reject(key: str, pair: Mapping[str, Any], reason: str) -> dict[str, Any]:
    where = {"id": reject_id(key), "stage": "synthesize", "source": "", "row": -1}
    return where | {"reason": f"{reason}: {pair['query']}", "payload": escaped(str(pair["document"]))}
