"""Which candidate rows are used: no overlap of training with evaluation, no duplicates, caps.

Content hashes, MinHash signatures and ids are enough for it, so no texts are read; the cost is less than quadratic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qwen3emb.config.data import CorpusConfig
from qwen3emb.core.draws import chosen_by_hash
from qwen3emb.corpus.candidates import PLACES
from qwen3emb.text.decontamination import near_matches
from qwen3emb.text.near_duplicates import near_duplicates

__all__ = ["Verdict", "decide"]


@dataclass
class Verdict:
    """Which candidate rows are used, and why the others are not.

    Attributes:
        reasons: row -> "<code>: <detail>" for each row that is not used, except shadows.
        queries: split -> the `function` rows whose query is one of the split's queries.
        ambiguous: split -> number of functions whose query is none, since another function's query is nearly the same.
    """

    reasons: dict[int, str] = field(default_factory=dict)
    queries: dict[str, set[int]] = field(default_factory=dict)
    ambiguous: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Keys:
    """The columns of the candidates, unpacked; hashes and signatures by "text" and "query"."""

    ids: list[str]
    hashes: dict[str, list[str]]
    signatures: dict[str, NDArray[np.uint64]]
    has_query: NDArray[np.bool_]
    threshold: float


def decide(candidates: pa.Table, cfg: CorpusConfig, seed: int) -> Verdict:
    """Decide on the candidates, a table with the columns `candidates.KEYS`; earlier rows win over later ones.

    Evaluation functions (held-out before dev): duplicates of another, then those beyond `max_*_documents`.
    A query is used only where no other function of its split has a similar one, as a query has one right answer.
    Passages of dev and held-out documents: duplicates among them, held-out before dev. Training rows: texts or queries
    like anything in a dev or held-out module or document ("heldout_overlap": the evaluation keeps its text and training
    loses its copy), then duplicates. Last the rows beyond `max_passages` and `max_pairs`. Caps draw by a hash of ids.

    Reason codes: heldout_overlap, exact_duplicate, near_duplicate, duplicate_id, over_max_passages,
    over_max_pairs, over_max_dev_documents, over_max_heldout_documents, and the reasons that rejects already have.
    """
    roles = np.array(candidates.column("role").to_pylist(), dtype=object)
    splits = np.array(candidates.column("split").to_pylist(), dtype=object)
    keys = _unpacked(candidates, cfg.near_duplicate)
    verdict = Verdict()
    reasons = candidates.column("reason")
    verdict.reasons.update((int(i), reasons[int(i)].as_py()) for i in np.flatnonzero(roles == "reject"))

    heldout, dev = (np.flatnonzero((roles == "function") & (splits == s)).tolist() for s in ("heldout", "dev"))
    functions = set(_without_duplicates(keys, [*heldout, *dev], ("text",), verdict))
    limits = {
        "heldout": (cfg.max_heldout_queries, cfg.max_heldout_documents),
        "dev": (cfg.max_dev_queries, cfg.max_dev_documents),
    }
    for split, rows in (("heldout", heldout), ("dev", dev)):
        kept = [row for row in rows if row in functions]
        _choose_evaluation(keys, split, kept, limits[split], seed, verdict)

    shadows = np.flatnonzero(roles == "shadow").tolist()
    passages = roles == "passage"
    documents = [row for s in ("heldout", "dev") for row in np.flatnonzero(passages & (splits == s)).tolist()]
    forbidden = [*heldout, *dev, *shadows, *documents]
    for role, columns, cap in (("passage", ("text",), "passages"), ("pair", ("text", "query"), "pairs")):
        rows = np.flatnonzero((roles == role) & (splits == "train")).tolist()
        rows = _without_overlap(keys, rows, columns, forbidden, verdict)
        rows = [*documents, *rows] if role == "passage" else rows
        rows = _without_duplicates(keys, rows, columns, verdict)
        _cap(keys, rows, getattr(cfg, f"max_{cap}"), f"over_max_{cap}", seed, verdict)
    return verdict


def _unpacked(candidates: pa.Table, threshold: float) -> _Keys:
    hashes = {name: candidates.column(f"{name}_hash").to_pylist() for name in ("text", "query")}
    signatures = {name: _signatures(candidates.column(f"{name}_signature")) for name in ("text", "query")}
    has_query = np.array([value != "" for value in hashes["query"]], dtype=np.bool_)
    return _Keys(candidates.column("id").to_pylist(), hashes, signatures, has_query, threshold)


def _signatures(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """(rows, places) of a column of packed signatures."""
    parts = [np.empty((0, PLACES), dtype=np.uint64)]
    for chunk in column.chunks:
        values = np.frombuffer(chunk.buffers()[1], dtype=np.uint64).reshape(-1, PLACES)
        parts.append(values[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate(parts)


def _without_overlap(
    keys: _Keys, rows: list[int], columns: Sequence[str], forbidden: list[int], verdict: Verdict
) -> list[int]:
    """The rows that are not like any text or query of `forbidden`."""
    with_query = [row for row in forbidden if keys.has_query[row]]
    against = np.concatenate([keys.signatures["text"][forbidden], keys.signatures["query"][with_query]])
    names = [keys.ids[row] for row in [*forbidden, *with_query]]
    for column in columns:
        matches = near_matches(keys.signatures[column][rows], against, keys.threshold).tolist()
        for row, match in zip(rows, matches, strict=True):
            if match >= 0:
                verdict.reasons[row] = f"heldout_overlap: its {column} is like {names[match]}"
        rows = [row for row in rows if row not in verdict.reasons]
    return rows


def _without_duplicates(keys: _Keys, rows: list[int], columns: Sequence[str], verdict: Verdict) -> list[int]:
    """The rows that are, in each of the columns, not like an earlier one that is kept."""
    rows = _without_exact_duplicates(keys, rows, columns, verdict)
    for column in columns:
        ids = [keys.ids[row] for row in rows]
        duplicates = near_duplicates(ids, keys.signatures[column][rows], keys.threshold)
        for row in rows:
            if keys.ids[row] in duplicates:
                verdict.reasons[row] = f"near_duplicate: its {column} is like {duplicates[keys.ids[row]]}"
        rows = [row for row in rows if row not in verdict.reasons]
    return rows


def _without_exact_duplicates(keys: _Keys, rows: list[int], columns: Sequence[str], verdict: Verdict) -> list[int]:
    first: dict[tuple[str, str], str] = {}
    ids: set[str] = set()
    kept = []
    for row in rows:
        contents = [(column, keys.hashes[column][row]) for column in columns]
        same = next((content for content in contents if content in first), None)
        if same is not None:
            verdict.reasons[row] = f"exact_duplicate: its {same[0]} is that of {first[same]}"
        elif keys.ids[row] in ids:
            verdict.reasons[row] = "duplicate_id: another text has the same id"
        else:
            ids.add(keys.ids[row])
            first.update((content, keys.ids[row]) for content in contents)
            kept.append(row)
    return kept


def _choose_evaluation(
    keys: _Keys, split: str, rows: list[int], limits: tuple[int, int], seed: int, verdict: Verdict
) -> None:
    """Draw the queries; the documents are their functions and others, drawn up to the limit."""
    most_queries, most_documents = limits
    with_query = [row for row in rows if keys.has_query[row]]
    names = [keys.ids[row] for row in with_query]
    alike = near_duplicates(names, keys.signatures["query"][with_query], keys.threshold)
    ambiguous = alike.keys() | set(alike.values())
    queries = chosen_by_hash(set(names) - ambiguous, min(most_queries, most_documents), seed)
    others = {keys.ids[row] for row in rows} - queries
    documents = queries | chosen_by_hash(others, most_documents - len(queries), seed)
    verdict.queries[split] = {row for row in with_query if keys.ids[row] in queries}
    verdict.ambiguous[split] = len(ambiguous)
    for row in rows:
        if keys.ids[row] not in documents:
            verdict.reasons[row] = f"over_max_{split}_documents: {most_documents}"


def _cap(keys: _Keys, rows: list[int], most: int | None, reason: str, seed: int, verdict: Verdict) -> None:
    kept = chosen_by_hash((keys.ids[row] for row in rows), most, seed)
    verdict.reasons.update((row, f"{reason}: {most}") for row in rows if keys.ids[row] not in kept)
