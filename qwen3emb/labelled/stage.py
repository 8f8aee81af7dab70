"""The stage `labelled`: datasets with human labels into training rows, each set a Ray task of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray

from qwen3emb.config.catalogue import chosen_datasets
from qwen3emb.config.labelled import LabelledConfig, LabelledDatasetConfig
from qwen3emb.config.resources import TASK
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.card import write_card
from qwen3emb.core.context import StageContext
from qwen3emb.core.draws import chosen_by_hash
from qwen3emb.core.errors import NotThere, UserError
from qwen3emb.core.records import REJECT, TRAINING_ROW
from qwen3emb.core.rejects import Reject
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import gather
from qwen3emb.labelled.across import drop_false_negatives, drop_like_held_out, held_out_queries, lengths, shared_answers
from qwen3emb.labelled.beir import beir_documents
from qwen3emb.labelled.checks import Evaluation, decontaminated, evaluation_of, without_duplicates
from qwen3emb.labelled.holdout import SPLITS, Split, drawn_queries, drawn_set, without_drawn
from qwen3emb.labelled.row import answers_in
from qwen3emb.labelled.rows import LabelledRow, read_labelled
from qwen3emb.text.evaluation_sets import evaluation_texts
from qwen3emb.text.false_negatives import ANSWERS, FALSE, SEARCHED, left_out_sentence, write_answers
from qwen3emb.text.retrieval_set import write_retrieval_set

__all__ = ["read_datasets"]

_SHARD = 50_000
_Say = Callable[[str], None]
_SETS = {"heldout_queries": "held-out", "dev_queries": "dev"}  # key of a card -> word for the log


def read_datasets(ctx: StageContext[RunConfig], say: _Say) -> StageResult:
    """Read every configured set into `rows/`, `rejects/` and `card.json` (`card.md` to read).

    Raises:
        UserError: a set that cannot be reached (unless `labelled.skip_missing`) or read, or none has a row.
    """
    cfg, out = ctx.cfg.labelled, ctx.out
    sets = chosen_datasets(cfg)
    evaluation = evaluation_of(evaluation_texts(ctx.cfg, ctx.inputs), cfg)
    for folder in ("rows", "rejects", ANSWERS, *SPLITS):
        out.delete(folder)  # of a run that was killed
    task: Any = ray.remote(_one_dataset).options(**TASK.options())
    shared = ray.put(evaluation)
    pending = {name: task.remote(name, dataset, ctx.cfg.seed, out.uri, shared) for name, dataset in sets.items()}
    cards: dict[str, Any] = {}
    for name, reference in pending.items():
        [card] = gather([reference], f"labelled: {name}")
        if "error" in card and not (cfg.skip_missing and card["missing"]):
            raise UserError(card["error"])
        say(f"labelled: {name}: {card.get('error') or _counted(card)}")
        cards[name] = card
    _drop_held_out(out, [name for name in sets if "error" not in cards[name]], cards, cfg, say)
    _settle_across(out, {name: dataset for name, dataset in sets.items() if "error" not in cards[name]}, cards, say)
    write_card(out, "Labelled datasets", cards)
    rejected = Counter[str]()
    for card in cards.values():
        rejected.update(card.get("rejected", {}))
    rows = sum(card.get("rows", 0) for card in cards.values())
    if not rows:
        why = ", ".join(f"{name} ({card.get('error') or _reasons(card)})" for name, card in cards.items())
        raise UserError(f"labelled.sets: no set gives a row: {why}; see {out.uri}/rejects")
    skipped = [name for name, card in cards.items() if "error" in card]
    left_out = sum((Counter(card.get("negatives_left_out", {})) for card in cards.values()), Counter[str]())
    metrics: dict[str, Any] = {
        "rows": {name: card.get("rows", 0) for name, card in cards.items()},
        "skipped_datasets": skipped,
    }
    metrics |= {
        key: {name: card[key] for name, card in cards.items() if key in card}
        for key in _SETS
        if any(key in card for card in cards.values())
    }
    metrics |= {reason: left_out[reason] for reason in FALSE}
    return StageResult(rows + sum(rejected.values()), rows, dict(sorted(rejected.items())), metrics)


def _drop_held_out(out: Storage, names: list[str], cards: dict[str, Any], cfg: LabelledConfig, say: _Say) -> None:
    """Remove the rows of all sets that are like a query which some set holds out, and count them in the cards."""
    queries = held_out_queries(out, names)
    if not queries:
        return
    task: Any = ray.remote(drop_like_held_out).options(**TASK.options())
    shared = ray.put(evaluation_of(queries, cfg))
    pending = {name: task.remote(out.uri, name, shared) for name in names}
    for name, reference in pending.items():
        [(dropped, means)] = gather([reference], f"labelled: {name}: held-out queries")
        if dropped:
            say(f"labelled: {name}: {dropped} rows are like a held-out or dev query of a set and are rejected")
            card = cards[name]
            card["rows"] -= dropped
            card["rejected"] = dict(Counter(card["rejected"]) + Counter({"heldout_overlap": dropped}))
            card |= means


def _settle_across(
    out: Storage, sets: dict[str, LabelledDatasetConfig], cards: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Remove negatives that answer their query in another set, and count them in the cards."""
    names = [name for name, dataset in sets.items() if dataset.task in SEARCHED]
    answers = shared_answers(out, names)
    if not answers:
        return
    task: Any = ray.remote(drop_false_negatives).options(**TASK.options())
    shared = ray.put(answers)
    pending = {name: task.remote(out.uri, name, shared) for name in names}
    for name, reference in pending.items():
        left_out: Counter[str]
        [left_out] = gather([reference], f"labelled: {name}: false negatives")
        if left_out:
            say(f"labelled: {name}: by what other sets say, {left_out_sentence(left_out)}")
            cards[name]["negatives_left_out"] = dict(Counter(cards[name]["negatives_left_out"]) + left_out)


def _counted(card: dict[str, Any]) -> str:
    rejected = sum(card["rejected"].values())
    reasons, left_out = f" ({_reasons(card)})" if rejected else "", left_out_sentence(card["negatives_left_out"])
    sets = [f"{card[key]} {word} queries" for key, word in _SETS.items() if key in card]
    return "; ".join([f"{card['rows']} rows, {rejected} rejected{reasons}", *sets, *([left_out] if left_out else [])])


def _reasons(card: dict[str, Any]) -> str:
    counts = sorted(card["rejected"].items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{code}: {count}" for code, count in counts) or "it is empty"


def _one_dataset(name: str, cfg: LabelledDatasetConfig, seed: int, uri: str, evaluation: Evaluation) -> dict[str, Any]:
    """Write one set's rows and rejects.

    Returns:
        The set's data card, or {"error": message, "missing": whether nothing is there or it cannot be reached}. Ray
        keeps only the text of an exception that a task raises, so a user's mistake is returned.
    """
    out = Storage(uri)
    try:
        items = list(read_labelled(name, cfg, seed))
    except UserError as error:
        return {"error": str(error), "missing": isinstance(error, NotThere)}
    rows = [item for item in items if isinstance(item, LabelledRow)]
    rejects = [item for item in items if isinstance(item, Reject)]
    left_out = sum((Counter(row.left_out) for row in rows), Counter[str]())
    if cfg.task in SEARCHED:
        write_answers(out, name, answers_in(rows))
    rows = without_duplicates(rows, rejects)
    rows = decontaminated(rows, evaluation, rejects)
    kept = rows if cfg.max_rows is None else _sample(rows, cfg.max_rows, seed)
    counts = Counter(reject.code for reject in rejects)
    if len(kept) < len(rows):
        counts["over_max_rows"] = len(rows) - len(kept)
    drawn = drawn_queries(kept, cfg, seed)
    queries = _write_sets(out, name, cfg, rows, kept, drawn)
    kept, held = without_drawn(kept, drawn)
    counts.update(held)
    records = [_record(row, name) for row in kept]
    out.write_parts(f"rows/{name}", pa.Table.from_pylist(records, schema=TRAINING_ROW), _SHARD)
    out.write_parts(f"rejects/{name}", pa.Table.from_pylist([asdict(r) for r in rejects], schema=REJECT), _SHARD)
    about = cfg.model_dump(include={"path", "homepage", "licence", "languages", "task", "instruction"})
    written = {"rows": len(kept), "rejected": dict(counts), "negatives_left_out": dict(left_out)}
    return about | written | queries | lengths([(r.query, r.positive, r.negatives) for r in kept])


def _write_sets(
    out: Storage,
    name: str,
    cfg: LabelledDatasetConfig,
    rows: Sequence[LabelledRow],
    kept: Sequence[LabelledRow],
    drawn: dict[Split, set[str]],
) -> dict[str, int]:
    """Write the retrieval sets of the drawn queries; the numbers of their queries, for the card.

    All documents of the set are searched: those of a BEIR folder's corpus, or of the rows; under `max_rows` those of
    the rows that are kept, and all that answer the queries.
    """
    if not cfg.heldout_share + cfg.dev_share:
        return {}
    documents = [text for row in kept for text in (row.positive, *row.others, *row.negatives)]
    documents += beir_documents(cfg) if cfg.format == "beir" and cfg.max_rows is None else []
    for split in SPLITS:
        if drawn[split]:
            data = drawn_set(rows, drawn[split], documents, cfg.languages)
            write_retrieval_set(out / f"{split}/{name}", data)
    return {f"{split}_queries": len(drawn[split]) for split in SPLITS}


def _sample(rows: Sequence[LabelledRow], limit: int, seed: int) -> list[LabelledRow]:
    chosen = chosen_by_hash([row.id for row in rows], limit, seed)
    return [row for row in rows if row.id in chosen]


def _record(row: LabelledRow, name: str) -> dict[str, Any]:
    texts = {"query": row.query, "positive": row.positive, "negatives": list(row.negatives)}
    return {"id": row.id, "dataset": name, **texts, "positive_score": None, "negative_scores": [], "grade": row.grade}
