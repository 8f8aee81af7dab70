"""Whether node types can hold what a stage asks for, and one sentence for each demand that they cannot hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwen3emb.pipeline.demand import Demand
from qwen3emb.pipeline.supply import NodeType

__all__ = ["unmet"]

_SLACK = 1e-9
_GPUS = "cluster.gpus_per_worker"


def unmet(demands: Sequence[Demand], node_types: Sequence[NodeType]) -> list[str]:
    """One sentence per demand that the largest cluster of these node types cannot hold: what is asked for, what there
    is, what to change.

    Demands of one stage and phase share the nodes, and every phase has them to itself. Of a demand that is not
    `together`, one bundle has to fit.

    Args:
        demands: of one stage or of many (`run_demands`).
        node_types: of a cluster file, or the nodes of a running cluster and those that may be added.
    """

    at_once: dict[tuple[str, int], list[Demand]] = {}
    for demand in demands:
        at_once.setdefault((demand.stage, demand.phase), []).append(demand)
    return [sentence for group in at_once.values() for sentence in _unmet_at_once(group, node_types)]


@dataclass
class _Room:
    """What is free on one node."""

    cpus: float
    gpus: float

    def take(self, demand: Demand) -> bool:
        """Take one bundle, if there is room for it."""
        fits = _fits(demand, self.cpus, self.gpus)
        if fits:
            self.cpus, self.gpus = self.cpus - demand.cpus, self.gpus - demand.gpus
        return fits


def _unmet_at_once(demands: Sequence[Demand], node_types: Sequence[NodeType]) -> Iterator[str]:
    """A sentence for each demand that finds no place beside the others; the largest bundles are placed first."""
    small_first = sorted(node_types, key=lambda node: (node.gpus, node.cpus))
    rooms = [_Room(node.cpus, node.gpus) for node in small_first for _ in range(node.max_count)]
    for demand in sorted(demands, key=lambda d: (-d.gpus, -d.cpus)):
        needed = demand.count if demand.together else 1
        placed = _place(demand, needed, rooms)
        if placed < needed:
            yield _sentence(demand, placed, node_types)


def _place(demand: Demand, count: int, rooms: Sequence[_Room]) -> int:
    """Take the room of up to `count` bundles; how many found one."""
    placed = 0
    for room in rooms:
        while placed < count and room.take(demand):
            placed += 1
    return placed


def _fits(demand: Demand, cpus: float, gpus: float) -> bool:
    return demand.cpus <= cpus + _SLACK and demand.gpus <= gpus + _SLACK


def _sentence(demand: Demand, placed: int, node_types: Sequence[NodeType]) -> str:
    usable = [node for node in node_types if node.max_count]
    if not any(_fits(demand, node.cpus, node.gpus) for node in usable):
        return f"{_asked(demand)} on one node; {_too_small(demand, usable)}"
    fewer = f"set {demand.count_key} to {placed}, or " if demand.count_key and placed else ""
    beside = " beside what the stage holds at the same time" if not placed else ""
    at_most = ", ".join(f"{n.max_count} {n.name}" for n in usable if _fits(demand, n.cpus, n.gpus))
    return (
        f"{_asked(demand)}, all at the same time; at most {placed} fit on the nodes that there can be "
        f"({at_most}){beside}: {fewer}allow more nodes"
    )


def _asked(demand: Demand) -> str:
    size = " and ".join(
        _number(amount, unit) for amount, unit in ((demand.gpus, "GPU"), (demand.cpus, "CPU")) if amount
    )
    each = ", each with" if demand.count > 1 else " with"
    return f"stage {demand.stage} asks for {_number(demand.count, demand.what)}{each} {size}"


def _too_small(demand: Demand, nodes: Sequence[NodeType]) -> str:
    """Why no node can hold a bundle, and what to change."""
    unit, asked = ("GPU", demand.gpus) if demand.gpus else ("CPU", demand.cpus)
    largest = max(nodes, key=lambda node: node.gpus if unit == "GPU" else node.cpus, default=None)
    has = 0.0 if largest is None else largest.gpus if unit == "GPU" else largest.cpus
    add = f"use nodes with {_number(asked, unit)}"
    if largest is None or not has:
        off = f"set {demand.size_key} to 0 to run on CPUs, or " if unit == "GPU" and demand.size_key == _GPUS else ""
        return f"no node type has a {unit}: {off}{add}"
    lower = f"set {demand.size_key} to {int(has)}, or " if demand.size_key and has >= 1 else ""
    return f"the largest node type {largest.name} has {has:g}: {lower}{add}"


def _number(amount: float, unit: str) -> str:
    return f"{amount:g} {unit if amount <= 1 else unit + 's'}"
