"""Whether a merge is kept, by its scores on the dev set against those of the single checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qwen3emb.merging.candidates import Candidate
from qwen3emb.metrics.bootstrap import gain_on_unseen, simultaneous_halves

__all__ = ["NEARLY_EQUAL", "Choice", "Row", "choose"]

NEARLY_EQUAL = 0.001
"""Means of nDCG@10 that differ by less than a tenth of a point are not told apart."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Row:
    """A candidate's line in the table.

    Attributes:
        name: of the candidate.
        ndcg: its mean dev nDCG@10.
        difference: to the best single checkpoint.
        low, high: 95 % interval of the difference, wide enough to hold for all candidates at once.
        chosen: whether it is kept.
    """

    name: str
    ndcg: float
    difference: float
    low: float
    high: float
    chosen: bool

    def as_json(self) -> dict[str, Any]:
        """The fields, rounded to five digits."""
        facts = {name: round(value, 5) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return {("dev_ndcg@10" if name == "ndcg" else name): value for name, value in facts.items()}


@dataclass(frozen=True)
class Choice:
    """What is kept, and the evidence.

    Attributes:
        kept: name of the candidate.
        single: name of the best single checkpoint.
        merge: name of the best merge; None without merges.
        unseen: gain of the best merge over the best single checkpoint on queries that the two were not chosen on
            (`gain_on_unseen`); 0 without merges.
        queries: of the dev set.
        rows: the table, in the order of the candidates.
    """

    kept: str
    single: str
    merge: str | None
    unseen: float
    queries: int
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """The table and what it was decided by, for `report.json`."""
        facts = {"dev_queries": self.queries, "best_single": self.single, "best_merge": self.merge}
        unseen = {"gain_on_unseen": round(self.unseen, 5)}
        return {
            "kept": self.kept,
            **facts,
            **unseen,
            "sentence": self.sentence(),
            "candidates": [r.as_json() for r in self.rows],
        }

    def sentence(self) -> str:
        """What is kept and why, with the figures."""
        rows = {row.name: row for row in self.rows}
        single = rows[self.single]
        if self.merge is None:
            return f"{self.kept} is kept, the best of {len(rows)} single checkpoints: dev nDCG@10 {single.ndcg:.4f}"
        merge = rows[self.merge]
        figures = (
            f"dev nDCG@10 {merge.ndcg:.4f} against {single.ndcg:.4f} of {self.single}, the best single checkpoint: "
            f"{merge.difference:+.4f} [{merge.low:+.4f}, {merge.high:+.4f}], and {self.unseen:+.4f} on queries that "
            f"the choice did not see"
        )
        sure = merge.low > 0 or merge.high < 0
        doubt = "" if sure else f"; on {self.queries} dev queries so small a difference may be chance"
        if self.kept == self.merge:
            return f"{self.merge} is kept: {figures}{doubt}"
        return f"no merge is kept, but {self.single} as it is; {self.merge} is the best merge: {figures}{doubt}"


def choose(candidates: Sequence[Candidate], figures: Mapping[str, Mapping[str, float]]) -> Choice:
    """Keep the best merge where it is not worse than the best single checkpoint, else that checkpoint.

    Not worse: its mean is at least that of the checkpoint, and so is what choices of both among the same candidates
    gain on queries that they did not see (`gain_on_unseen`). The second rule takes away the advantage of having more
    merges than checkpoints to choose from. Of nearly equal merges (`NEARLY_EQUAL`) the first one counts as the best, of
    nearly equal checkpoints the last.

    Args:
        candidates: at least one single checkpoint; merges in the order of preference.
        figures: name -> dev query -> nDCG@10; two queries at least, the same for all.
    """
    queries = sorted(figures[candidates[0].name])
    alone = [candidate.name for candidate in candidates if candidate.single][::-1]
    merged = [candidate.name for candidate in candidates if not candidate.single]
    single_figures, merge_figures = (
        np.array([[figures[name][query] for query in queries] for name in names]) for names in (alone, merged)
    )
    place = int(_first_of_the_best(single_figures.mean(axis=1)[None])[0])
    kept = single = alone[place]
    merge, unseen = None, 0.0
    if merged:
        best = int(_first_of_the_best(merge_figures.mean(axis=1)[None])[0])
        merge, unseen = merged[best], gain_on_unseen(merge_figures, single_figures, _first_of_the_best)
        gain = float((merge_figures[best] - single_figures[place]).mean())
        kept = merge if min(gain, unseen) >= -_ROUNDING else single
    rows = _rows([candidate.name for candidate in candidates], figures, queries, single, kept)
    return Choice(kept, single, merge, unseen, len(queries), rows)


def _first_of_the_best(means: np.ndarray) -> np.ndarray:
    """(samples,) the first of each sample's systems that is nearly as good as the best; means: (samples, systems)."""
    return np.asarray((means > means.max(axis=1, keepdims=True) - NEARLY_EQUAL).argmax(axis=1))


def _rows(
    names: Sequence[str],
    figures: Mapping[str, Mapping[str, float]],
    queries: Sequence[str],
    single: str,
    kept: str,
) -> tuple[Row, ...]:
    table = np.array([[figures[name][query] for query in queries] for name in names])
    gains = table - table[names.index(single)]
    means, halves = gains.mean(axis=1), simultaneous_halves(gains)
    rows = zip(names, table.mean(axis=1).tolist(), means.tolist(), halves.tolist(), strict=True)
    return tuple(Row(name, ndcg, gain, gain - half, gain + half, name == kept) for name, ndcg, gain, half in rows)
