"""The node types of a cluster file, and what is still to be filled in there.

Two kinds of files: those of Ray's cluster launcher (`ray up`), and KubeRay's manifests. Nothing is asked of a cloud.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qwen3emb.core.errors import UserError

__all__ = ["HEAD_GROUP", "NodeType", "node_types_of", "placeholders", "read_node_types", "serves_only", "unfilled"]

HEAD_GROUP = "headgroup"
"""KubeRay's name of the head's group."""

_SPECS = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
}
_UNFILLED = re.compile(r"YOUR(?:-[A-Z]+)+")
_MEANINGS = {
    "YOUR-ACCOUNT": "the number of your AWS account",
    "YOUR-BUCKET": "the bucket of your runs",
    "YOUR-PROJECT": "the id of your Google Cloud project",
    "YOUR-REGISTRY": "the registry that you have pushed the image of cluster/Dockerfile to",
    "YOUR-ROLE": "the role or service account that may read and write your bucket",
    "YOUR-SPOT-LABEL": "the label that your cluster's spot nodes have",
}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(m|k|)")


@dataclass(frozen=True)
class NodeType:
    """Nodes of one kind: what each offers to Ray, and how many there are at least and at most.

    Attributes:
        name: in the cluster file; for a node that is up, any name that a user knows it by.
        cpus, gpus: logical ones of a node.
        min_count, max_count: of nodes; the head is one of exactly one.
    """

    name: str
    cpus: float
    gpus: float
    min_count: int
    max_count: int


def read_node_types(path: str | Path) -> list[NodeType]:
    """The node types of a cluster file, the head's first.

    Raises:
        UserError: it cannot be read, is of neither kind, or does not say what a node offers.
    """
    for document in _documents(path):
        if found := node_types_of(document, path):
            return found
    raise UserError(
        f"{path}: neither a file for `ray up` (available_node_types) nor a RayCluster, RayJob or RayService of KubeRay"
    )


def node_types_of(document: dict[str, Any], place: str | Path) -> list[NodeType]:
    """The node types of one document, the head's first; none where it is of neither kind.

    Args:
        document: as parsed.
        place: where it comes from, for messages.

    Raises:
        UserError: it does not say what a node offers.
    """
    if "available_node_types" in document:
        return list(_of_launcher(document, place))
    keys = _SPECS.get(str(document.get("kind")))
    if keys and str(document.get("apiVersion", "")).startswith("ray.io/"):
        return list(_of_kuberay(document, keys, place))
    return []


def serves_only(path: str | Path) -> bool:
    """Whether the file is a RayService, on whose cluster no stage of a run is meant to run.

    Raises:
        UserError: the file cannot be read.
    """
    return any(document.get("kind") == "RayService" for document in _documents(path))


def unfilled(path: str | Path) -> list[str]:
    """A sentence for each placeholder such as `YOUR-BUCKET` that a cluster file still holds; see `placeholders`.

    Raises:
        UserError: the file cannot be read.
    """
    return placeholders({f"[{i}]": d for i, d in enumerate(_documents(path))}, str(path))


def placeholders(content: Mapping[str, Any], name: str) -> list[str]:
    """A sentence for each placeholder in keys and values, however deep.

    Args:
        content: of a file, e.g. `RunConfig.model_dump()`.
        name: of the file.
    """
    places: dict[str, list[str]] = {}
    for place, text in _texts(content):
        for word in _UNFILLED.findall(text):
            places.setdefault(word, []).append(re.sub(r"^\[\d+\]\.", "", place))
    return [
        f"{name}: replace {word} in {_listed(where)} by {_MEANINGS.get(word, 'a value of yours')} (docs/cluster.md)"
        for word, where in places.items()
    ]


def _documents(path: str | Path) -> list[dict[str, Any]]:
    try:
        found = list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"cluster file {path}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cluster file {path}: cannot be read: {' '.join(str(error).split())}") from error
    return [document for document in found if isinstance(document, dict)]


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(dotted place, text) of every key and every value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            below = f"{place}.{key}" if place else str(key)
            yield below, str(key)
            yield from _texts(inner, below)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{number}]")
    else:
        yield place, str(value)


def _listed(places: list[str]) -> str:
    distinct = list(dict.fromkeys(places))
    more = len(distinct) - 1
    return distinct[0] + (f" and {more} more place{'s' * (more > 1)}" if more else "")


def _of_launcher(config: dict[str, Any], path: str | Path) -> Iterator[NodeType]:
    """A type's largest count is also limited by the file's `max_workers`, which is of all types together."""
    head, most = config.get("head_node_type"), config.get("max_workers")
    types = config["available_node_types"]
    for name in sorted(types, key=lambda name: name != head):
        node = types[name]
        offered = node.get("resources") or {}
        if "CPU" not in offered:
            raise UserError(
                f"{path}: available_node_types.{name} does not say what a node offers; add e.g. "
                "resources: {CPU: 16, GPU: 1}"
            )
        least, largest = int(node.get("min_workers", 0)), int(node.get("max_workers", most or 0))
        if name == head:
            least = largest = 1
        elif most is not None:
            largest = min(largest, int(most))
        yield NodeType(str(name), float(offered["CPU"]), float(offered.get("GPU", 0)), least, largest)


def _of_kuberay(manifest: dict[str, Any], keys: tuple[str, ...], path: str | Path) -> Iterator[NodeType]:
    spec: Any = manifest
    for key in keys:
        spec = (spec or {}).get(key)
    if not spec:
        raise UserError(f"{path}: a {manifest['kind']} without {'.'.join(keys)} names no node types")
    yield _of_group(spec["headGroupSpec"], HEAD_GROUP, (1, 1), path)
    for group in spec.get("workerGroupSpecs") or ():
        hosts = int(group.get("numOfHosts", 1))
        counts = int(group.get("minReplicas", 0)) * hosts, int(group.get("maxReplicas", 0)) * hosts
        yield _of_group(group, str(group["groupName"]), counts, path)


def _of_group(group: dict[str, Any], name: str, counts: tuple[int, int], path: str | Path) -> NodeType:
    """What Ray takes a pod to offer: its group's `resources`, else `rayStartParams`, else its first container's."""
    own, params = group.get("resources") or {}, group.get("rayStartParams") or {}
    container = (group["template"]["spec"]["containers"][0].get("resources")) or {}
    cpus = own.get("CPU", params.get("num-cpus", _limit(container, "cpu")))
    gpus = own.get("GPU", params.get("num-gpus", _limit(container, "gpu")))
    if cpus is None:
        raise UserError(f"{path}: group {name} does not say how many CPUs a pod has; give the container a limit of cpu")
    place = f"{path}: group {name}"
    return NodeType(name, _whole(cpus, place), _whole(gpus or 0, place), *counts)


def _limit(container: dict[str, Any], resource: str) -> Any:
    """A container's limit, else its request, of `cpu`, or of whatever ends with `gpu` (`nvidia.com/gpu`)."""
    for kind in ("limits", "requests"):
        for key, value in (container.get(kind) or {}).items():
            if key == resource or (resource == "gpu" and key.endswith("gpu")):
                return value
    return None


def _whole(quantity: Any, place: str) -> float:
    """A Kubernetes quantity of CPUs or GPUs, rounded up as Ray does."""
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None:
        raise UserError(f"{place}: {quantity!r} is no number of CPUs or GPUs")
    return float(math.ceil(float(match[1]) * {"m": 0.001, "k": 1000, "": 1}[match[2]]))
