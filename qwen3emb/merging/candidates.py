"""Which merges of named checkpoints are compared on the dev set (`merge.keep: best`, `merge.search`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qwen3emb.config.merging import MergeConfig

__all__ = ["Candidate", "Method", "Probed", "configured_weights", "merges", "runs", "singles", "weighted"]

Probed = Literal["cocktail", "self_position"]
"""Methods that find the weights by the loss on dev rows."""
Method = Literal["slerp"] | Probed
"""As of `merge.method`."""


@dataclass(frozen=True)
class Candidate:
    """A checkpoint by itself, or a merge of some.

    Attributes:
        name: e.g. "step_000040", "slerp last 2", "cocktail last 2 + distill".
        checkpoints: names of the checkpoints, in their order.
        weights: one of each; None for equal weights, or those of the method.
        method: as of `merge.method`; any for a single checkpoint.
    """

    name: str
    checkpoints: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    method: Method = "slerp"

    @property
    def single(self) -> bool:
        """Whether nothing is merged."""
        return len(self.checkpoints) == 1


def singles(names: Sequence[str]) -> list[Candidate]:
    """Each checkpoint by itself."""
    return [Candidate(name, (name,)) for name in names]


def merges(cfg: MergeConfig, run: Sequence[str], further: Sequence[str] = ()) -> list[Candidate]:
    """The merges that `merge.keep: best` compares, the configured one first.

    By each method all checkpoints of the run are merged together with the further models, by `slerp` also the last of
    the run with them; then the same without further models, by `slerp` also the last two.

    Args:
        cfg: the stage's settings.
        run: names of the run's checkpoints, oldest first.
        further: names of other models of the same architecture.
    """
    found = []
    for added in dict.fromkeys((tuple(further), ())):
        for method in dict.fromkeys((cfg.method, *cfg.candidates)):
            counts = (len(run), 1 if added else 2) if method == "slerp" else (len(run),)
            for count in dict.fromkeys(count for count in counts if count <= len(run)):
                configured = method == "slerp" and count == len(run)
                weights = configured_weights(cfg, count, len(added)) if configured else None
                found.append(_merge(method, run, count, added, weights))
    return [candidate for candidate in found if not candidate.single]


def configured_weights(cfg: MergeConfig, count: int, further: int) -> tuple[float, ...] | None:
    """`merge.weights` of the last `count` checkpoints; each further model weighs what they weigh on average."""
    if not cfg.weights:
        return None
    weights = cfg.weights[-count:]
    return (*weights, *[sum(weights) / len(weights)] * further)


def runs(run: Sequence[str]) -> list[Candidate]:
    """The last two by `slerp`, the last three, and so on to all."""
    return [_merge("slerp", run, count) for count in range(2, len(run) + 1)]


def weighted(candidate: Candidate) -> list[Candidate]:
    """`candidate` with one of its checkpoints weighing twice, or half, as much as each other."""
    found = []
    for number, checkpoint in enumerate(candidate.checkpoints):
        for factor, word in ((2.0, "2 x"), (0.5, "half")):
            weights = tuple(factor if i == number else 1.0 for i in range(len(candidate.checkpoints)))
            found.append(Candidate(f"{candidate.name}, {word} {checkpoint}", candidate.checkpoints, weights))
    return found


def _merge(
    method: Method,
    run: Sequence[str],
    count: int,
    added: tuple[str, ...] = (),
    weights: tuple[float, ...] | None = None,
) -> Candidate:
    checkpoints = (*run[-count:], *added)
    word = "karcher" if method == "slerp" and len(checkpoints) > 2 else method  # SLERP is of two
    return Candidate(" + ".join([f"{word} last {count}", *added]), checkpoints, weights, method)
