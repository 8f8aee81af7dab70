"""The end of the stage `synthesize`: repeated and contaminated rows go, rows are counted, the data card is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from qwen3emb.config.datasets import dataset_of
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.card import write_card
from qwen3emb.core.records import PAIR, REJECT
from qwen3emb.core.rejects import escaped
from qwen3emb.core.storage import Storage
from qwen3emb.synthesis.gates import duplicate_queries, word_count
from qwen3emb.text.decontamination import EvaluationNgrams

__all__ = ["drop_overlapping", "drop_repeated", "result"]

_ASKED_FOR = re.compile(r"wrong_language: .*?, asked for ([\w-]+)")
_KINDS = ("dataset", "question_type", "difficulty", "language", "words")
_LENGTHS = (0, 5, 10, 15, 20, 30, 50, 100)
_PROJECTED = 1_000_000
_SENTENCES = {dataset_of("bitext"), dataset_of("sts")}  # their queries are the corpus's sentences, nobody wrote them


def drop_repeated(out: Storage, threshold: float) -> int:
    """Move pairs whose query repeats an earlier one, in the order of the files, to the rejects; how many.

    The driver holds all queries.

    Args:
        out: folder of the stage.
        threshold: of `gates.duplicate_queries`.
    """
    written = [row for name in out.names("pairs", ".parquet") for row in _pairs(out, name, ["id", "query", "dataset"])]
    own = [row for row in written if row["dataset"] not in _SENTENCES]
    repeated = duplicate_queries([row["id"] for row in own], [row["query"] for row in own], threshold)
    _reject_rows(out, repeated)
    return len(repeated)


def drop_overlapping(out: Storage, evaluation: EvaluationNgrams) -> int:
    """Move rows with a text that holds a query or document of the evaluation sets to the rejects; how many.

    Args:
        out: folder of the stage.
        evaluation: what no training text may hold.
    """
    held: dict[str, str] = {}
    for name in out.names("pairs", ".parquet"):
        for row in _pairs(out, name, ["id", "query", "document", "dataset"]):
            found = evaluation.held(row["query"]) or evaluation.held(row["document"])
            if found:
                held[_row_of(row)] = f"heldout_overlap: {found}"
    _reject_rows(out, held)
    return len(held)


def _pairs(out: Storage, name: str, columns: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = out.read_table(name, PAIR).select(columns).to_pylist()
    return found


def _reject_rows(out: Storage, reasons: Mapping[str, str]) -> None:
    """Move rows, by `_row_of` of their pairs, to the rejects, each once.

    A run that is killed in between leaves a pair in both; the next call mends that.
    """
    for name in out.names("pairs", ".parquet") if reasons else []:
        table = out.read_table(name)
        rows = [_row_of(row) for row in table.select(["id", "dataset"]).to_pylist()]
        bad = {row: pair for row, pair in zip(rows, table.to_pylist(), strict=True) if row in reasons}
        if not bad:
            continue
        place = name.replace("pairs/", "rejects/", 1)
        before = out.read_table(place, REJECT).to_pylist()
        there = {row["id"] for row in before}
        added = [_reject(row, pair, reasons[row]) for row, pair in bad.items() if _row_id(row) not in there]
        out.write_table(place, pa.Table.from_pylist([*before, *added], schema=REJECT))
        out.write_table(name, table.filter(pa.array([row not in bad for row in rows])))


def _row_id(row: str) -> str:
    """The id that a row has among the rejects: the passage's, with the number of a further query."""
    return row.removesuffix("#0")


def _row_of(pair: Mapping[str, Any]) -> str:
    """What tells the row of a pair from others: STS rows have several pairs."""
    name = str(pair["id"])
    return name.rpartition("/")[0] if pair["dataset"] == dataset_of("sts") else name


def _reject(row: str, pair: Mapping[str, Any], reason: str) -> dict[str, Any]:
    where = {"id": _row_id(row), "stage": "synthesize", "source": "", "row": -1}
    return where | {"reason": f"{reason}: {pair['query']}", "payload": escaped(str(pair["document"]))}


def result(rows: int, out: Storage, metrics: dict[str, Any]) -> StageResult:
    """Count what lies on storage, whatever run wrote it, and write the card.

    Args:
        rows: rows that were to be written.
        out: folder of the stage.
        metrics: figures of this run.
    """
    kinds: dict[str, Counter[str]] = {kind: Counter() for kind in _KINDS}
    lengths: list[float] = []
    pairs, done, rejected, foreign = 0, 0, Counter[str](), Counter[str]()
    for name in out.names("pairs", ".parquet"):
        table = out.read_table(name, PAIR)
        pairs += table.num_rows
        done += len({_row_of(row) for row in table.select(["id", "dataset"]).to_pylist()})
        for column, counts in kinds.items():
            counts.update(table.column(column).to_pylist())
        lengths += [word_count(query) for query in table.column("query").to_pylist()]
    for name in out.names("rejects", ".parquet"):
        reasons = out.read_table(name, REJECT).column("reason").to_pylist()
        rejected.update(reason.partition(":")[0] for reason in reasons)
        foreign.update(hit[1] for hit in map(_ASKED_FOR.match, reasons) if hit)
    shares = {f"pairs_by_{column}": dict(sorted(counts.items())) for column, counts in kinds.items()}
    found = dict(sorted(rejected.items()))
    card = {"asked": rows, "pairs": pairs, "rejected": found, **shares, **_card(lengths, metrics)}
    card["refused_as_another_language_by_language"] = dict(sorted(foreign.items()))
    write_card(out, "Synthetic pairs", card)
    return StageResult(rows, done, found, metrics | shares | {"pairs": pairs})


def _card(lengths: list[float], metrics: dict[str, Any]) -> dict[str, Any]:
    """Histogram of query lengths, and what a thousand pairs cost; costs are those of the run that ended the stage."""
    counts, _ = np.histogram(lengths, bins=[*_LENGTHS, np.inf])
    edges = [f"{low}-{high}" for low, high in zip(_LENGTHS, (*_LENGTHS[1:], ""), strict=True)]
    card: dict[str, Any] = {"query_words": dict(zip(edges, counts.tolist(), strict=True))}
    rate, made = metrics.get("pairs_per_engine_s"), metrics.get("pairs_written", 0)
    if rate and made:
        card["per_1000_pairs"] = {
            "prompt_tokens": round(1000 * metrics["prompt_tokens"] / made),
            "generated_tokens": round(1000 * metrics["generated_tokens"] / made),
            "engine_seconds": round(1000 / rate, 1),
        }
        card["prefix_cache_hit_rate"] = metrics["prefix_cache_hit_rate"]
        card[f"engine_hours_for_{_PROJECTED}_pairs"] = round(_PROJECTED / rate / 3600, 1)
    return card
