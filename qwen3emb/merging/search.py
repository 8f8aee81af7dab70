"""Scores single checkpoints and merges of them on the dev set, and picks one (`merge.keep: best`, `merge.search`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from qwen3emb.config.merging import MergeConfig
from qwen3emb.config.run import RunConfig
from qwen3emb.core.context import StageContext
from qwen3emb.core.storage import Storage
from qwen3emb.merging.candidates import Candidate, Probed, merges, runs, singles, weighted
from qwen3emb.merging.checkpoint import merge_checkpoints
from qwen3emb.merging.choice import Choice, choose
from qwen3emb.merging.dev_scores import DevScores

__all__ = ["SCRATCH", "Comparison", "FindWeights", "Picked", "pick"]

FindWeights = Callable[[Probed, Sequence[str]], list[float]]
"""(method, URIs of checkpoints) -> their weights."""

SCRATCH = "candidate"
"""Folder of the merged models while they are scored."""


@dataclass(frozen=True)
class Picked:
    """The candidate to merge, with its weights.

    Attributes:
        candidate: single or merge.
        models: name -> URI of the models that it was chosen from.
        means: mean dev nDCG@10 of each candidate.
        choice: by which it was picked; None for `merge.search` alone, which takes the best.
    """

    candidate: Candidate
    models: Mapping[str, str]
    means: dict[str, float]
    choice: Choice | None


class Comparison:
    """The candidates of one model: their weights and scores, each computed once.

    All of it is in a file on storage, with which a run that was killed goes on.
    """

    def __init__(
        self,
        ctx: StageContext[RunConfig],
        kind: str,
        models: Mapping[str, str],
        base: Path | None,
        score: DevScores,
        say: Callable[[str], None],
    ) -> None:
        """Read what an interrupted run has computed.

        Args:
            ctx: the stage `merge`.
            kind: `embedding` or `reranker`.
            models: name -> URI of the checkpoints, oldest first.
            base: of the task vectors; None merges the weights themselves.
            score: see `DevScores`.
            say: called with each line of progress.
        """
        self.models = models
        self._out, self._kind, self._base, self._score, self._say = ctx.out, kind, base, score, say
        self._on, self._merges = ctx.cfg.merge.on, 0
        self._out.delete(f"{SCRATCH}/{kind}")  # of a run that was killed
        self._file = f"candidates/{kind}.json"
        self._kept: dict[str, dict[str, Any]] = self._out.read_json(self._file) if self._out.exists(self._file) else {}

    def with_weights(self, candidates: Iterable[Candidate], find: FindWeights) -> list[Candidate]:
        """The candidates, those of methods that look for their weights with what they found."""
        cocktail: dict[str, float] = {}
        found = []
        for candidate in candidates:
            if candidate.method == "slerp":
                found.append(candidate)
                continue
            weights = self._kept.get(candidate.name, {}).get("weights")
            if weights is None and candidate.method == "cocktail":
                # softmax over some of the checkpoints: that over all of them, made to sum to 1 again
                cocktail = cocktail or dict(zip(self.models, find("cocktail", list(self.models.values())), strict=True))
                shares = [cocktail[name] for name in candidate.checkpoints]
                weights = [share / sum(shares) for share in shares]
            elif weights is None:
                weights = find(candidate.method, [self.models[name] for name in candidate.checkpoints])
            self._keep(candidate.name, weights=list(weights))
            found.append(replace(candidate, weights=tuple(weights)))
        return found

    def figures(self, candidate: Candidate) -> dict[str, float]:
        """Dev query -> nDCG@10 of the candidate, which is merged for it where it is not a single checkpoint."""
        known: dict[str, float] | None = self._kept.get(candidate.name, {}).get("ndcg@10")
        if known is not None:
            return known
        self._merges += 1  # an actor loads what it holds already no second time, so each needs a name of its own
        scratch = self._out / f"{SCRATCH}/{self._kind}/{self._merges}"
        figures = self._score(self._merged(candidate, scratch))
        self._keep(candidate.name, **{"ndcg@10": figures})
        scratch.delete()
        self._say(f"merge: {self._kind}: {candidate.name}: dev nDCG@10 {fmean(figures.values()):.4f}")
        return figures

    def _keep(self, name: str, **facts: Any) -> None:
        self._kept[name] = self._kept.get(name, {}) | facts
        self._out.write_json(self._file, self._kept)

    def _merged(self, candidate: Candidate, out: Storage) -> str:
        """Merge a candidate's checkpoints into `out` and return the URI; a single checkpoint is not copied."""
        if candidate.single:
            return self.models[candidate.checkpoints[0]]
        folders = [Storage(self.models[name]).local() for name in candidate.checkpoints]
        with tempfile.TemporaryDirectory() as folder:
            target = out.local() if out.is_local else Path(folder) / "model"
            linear = candidate.method != "slerp"
            merge_checkpoints(folders, target, weights=candidate.weights, base=self._base, on=self._on, linear=linear)
            out.upload(target, "")
        return out.uri


def pick(cfg: MergeConfig, comparison: Comparison, further: Sequence[str], find: FindWeights) -> Picked:
    """Score the candidates and pick one.

    `merge.search` adds every run of the latest models, then the best of those runs with each of its checkpoints
    weighing twice and half as much as the others. With `merge.keep: best` `choose` decides, else the highest mean; of
    equal ones that with most checkpoints.

    Args:
        cfg: the stage's settings.
        comparison: of the models to choose from.
        further: those of them that are no checkpoints of the run.
        find: the weights of methods that look for them.
    """
    names = list(comparison.models)
    candidates, run = singles(names), names
    if cfg.keep == "best":
        run = [name for name in names if name not in further]
        candidates += comparison.with_weights(merges(cfg, run, further), find)
    searched = runs(run) if cfg.search else []
    known = {candidate.name for candidate in candidates}
    candidates += [candidate for candidate in searched if candidate.name not in known]
    figures = {candidate.name: comparison.figures(candidate) for candidate in candidates}
    means = {name: round(fmean(values.values()), 5) for name, values in figures.items()}
    if searched:
        for candidate in weighted(max(searched, key=lambda candidate: means[candidate.name])):
            candidates.append(candidate)
            figures[candidate.name] = comparison.figures(candidate)
            means[candidate.name] = round(fmean(figures[candidate.name].values()), 5)
    if cfg.keep == "best":
        choice = choose(candidates, figures)
        kept = next(candidate for candidate in candidates if candidate.name == choice.kept)
        return Picked(kept, comparison.models, means, choice)
    best = max(candidates, key=lambda candidate: (means[candidate.name], len(candidate.checkpoints)))
    return Picked(best, comparison.models, means, None)
