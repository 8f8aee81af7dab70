"""Combine the token ids of several requests into forward passes with a token budget; shared prefixes. No ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwen3emb.model.packing import TOKEN_BUDGET, Tree, budgeted
from serve.inputs import Prepared

__all__ = ["Failure", "Job", "forward_passes", "split"]


@dataclass(frozen=True)
class Job:
    """Work for one call of a replica: a prefix, its leaves, and for embeddings the dimensions to keep."""

    prefix: list[int]
    leaves: list[list[int]]
    dimensions: int | None = None


@dataclass(frozen=True)
class Failure:
    """A job that could not be computed.

    A value and not an exception: Ray Serve hands an exception that a batch returns for one item to the client
    as a result.
    """

    message: str


def split(
    prepared: Prepared, dimensions: int | None = None, budget: int = TOKEN_BUDGET
) -> Iterator[tuple[list[int], Job]]:
    """(indices of inputs, job) pairs with at most `budget` leaf tokens each, so that requests share replicas."""
    for chosen in budgeted([len(leaf) for leaf in prepared.leaves], budget):
        yield chosen, Job(prepared.prefix, [prepared.leaves[i] for i in chosen], dimensions)


def forward_passes(
    jobs: Sequence[Job], budget: int = TOKEN_BUDGET
) -> Iterator[tuple[list[tuple[int, int]], list[Tree]]]:
    """Divide all leaves of `jobs` into forward passes.

    Leaves with the same prefix share it, also across jobs.

    Args:
        jobs: of a batch.
        budget: tokens of a pass at most, unless a single input has more.

    Yields:
        (places, trees): the (job index, leaf index) of each leaf, in the order of the trees' leaves.
    """
    everything = [(i, j) for i, job in enumerate(jobs) for j in range(len(job.leaves))]
    everything.sort(key=lambda p: (jobs[p[0]].prefix, len(jobs[p[0]].leaves[p[1]])))
    places: list[tuple[int, int]] = []
    used = 0
    for i, j in everything:
        new = not places or jobs[places[-1][0]].prefix != jobs[i].prefix
        size = len(jobs[i].leaves[j]) + (len(jobs[i].prefix) if new else 0)
        if places and used + size > budget:
            yield places, _trees(jobs, places)
            places, used = [], 0
            size = len(jobs[i].leaves[j]) + len(jobs[i].prefix)
        places.append((i, j))
        used += size
    if places:
        yield places, _trees(jobs, places)


def _trees(jobs: Sequence[Job], places: Sequence[tuple[int, int]]) -> list[Tree]:
    trees: list[tuple[list[int], list[list[int]]]] = []
    for i, j in places:
        if not trees or trees[-1][0] != jobs[i].prefix:
            trees.append((jobs[i].prefix, []))
        trees[-1][1].append(jobs[i].leaves[j])
    return [(prefix, leaves) for prefix, leaves in trees]
