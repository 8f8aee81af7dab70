"""Whether a run can work on a cluster, asked of the cluster itself before anything costs money.

One sentence for each thing that would stop a stage: room that no node has and none that may be added, storage that a
node cannot write or read, versions that differ from node to node, models that nobody can reach.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qwen3emb import __version__
from qwen3emb.config.resources import COUNTER
from qwen3emb.config.run import RunConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.location import is_uri, redacted
from qwen3emb.core.storage import Storage
from qwen3emb.model.fetch import is_endpoint, is_hub_id
from qwen3emb.model.mirror import is_in_run
from qwen3emb.pipeline.demand import stage_demands
from qwen3emb.pipeline.fit import unmet
from qwen3emb.pipeline.run_models import models_of
from qwen3emb.pipeline.supply import NodeType, node_types_of, read_node_types

__all__ = ["problems"]

_log = logging.getLogger(__name__)

_FOLDER = "preflight"
_VERSIONS = ("ray", "torch", "vllm", "deepspeed", "pyarrow", "transformers")
_ANSWER_SECONDS = 180.0  # a worker's process has to be started there, and the project unpacked
_HUB_SECONDS = 20.0
_CONFIG = "--autoscaling-config="
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_SHOWN = 3
_HEAD = "node:__internal_head__"
_GROUP = "ray.io/node-group"


@dataclass(frozen=True)
class _Node:
    """A node that is up: its id in Ray, the group that an autoscaler started it in, and what it offers."""

    id: str
    name: str
    group: str
    cpus: float
    gpus: float


def problems(cfg: RunConfig, names: Sequence[str], have: Sequence[str] = ()) -> list[str]:
    """What would stop these stages of a run on the cluster that this process is connected to, a sentence each.

    Args:
        cfg: the run.
        names: of its stages.
        have: models that will be there when the run starts.
    """
    nodes = list(_nodes())
    demands = [demand for name in names for demand in stage_demands(cfg, name)]
    return [*unmet(demands, _supply(nodes)), *_unlike(cfg, nodes), *_unreachable(cfg, names, have)]


def _nodes() -> Iterator[_Node]:
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            has, labels = node["Resources"], node.get("Labels") or {}
            name = f"{'the head' if _HEAD in has else 'node'} {node['NodeManagerHostname']} ({node['NodeID'][:8]})"
            yield _Node(node["NodeID"], name, labels.get(_GROUP, ""), has.get("CPU", 0.0), has.get("GPU", 0.0))


def _supply(nodes: Sequence[_Node]) -> list[NodeType]:
    """The nodes that are up, and those that the autoscaler may add to each group."""
    there = [NodeType(node.name, node.cpus, node.gpus, 1, 1) for node in nodes]
    for group in _groups():
        more = group.max_count - sum(node.group == group.name for node in nodes)
        if more > 0 and (group.cpus or group.gpus):
            there.append(replace(group, min_count=0, max_count=more))
    return there


def _groups() -> list[NodeType]:
    """The groups that this cluster's autoscaler adds nodes to; none where nothing grows by itself.

    Ray keeps them to itself, but its autoscaler runs beside this driver, on the head: started by `ray up` it names its
    file on its command line, and KubeRay's reads the cluster's own record.
    """
    for process in psutil.process_iter(["cmdline"]):
        for word in process.info["cmdline"] or ():
            if word.startswith(_CONFIG) and Path(word.removeprefix(_CONFIG)).is_file():
                return read_node_types(word.removeprefix(_CONFIG))
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not (name and _NAMESPACE.is_file()):
        return []
    try:
        record = KubernetesHttpApiClient(_NAMESPACE.read_text().strip()).get(f"rayclusters/{name}")
    except Exception as error:  # whatever its client raises; the nodes that are up are known all the same
        _log.warning("preflight: KubeRay does not say how far %s may grow: %s", name, _line(error))
        return []
    return node_types_of({"kind": "RayCluster", "apiVersion": "ray.io/v1"} | record, f"RayCluster {name}")


def _unlike(cfg: RunConfig, nodes: Sequence[_Node]) -> Iterator[str]:
    """Nodes that do not answer, cannot use the storage, or have other versions than this one."""
    storage, mark = Storage(cfg.storage) / f"{_FOLDER}/{secrets.token_hex(4)}", secrets.token_hex(8)
    try:
        try:
            storage.write_bytes("driver", mark.encode())
        except (OSError, UserError) as error:
            yield f"storage {redacted(cfg.storage)}: cannot be written from the head: {_line(error)}; {_CREDENTIALS}"
            return
        yield from _compared(_looked_at(nodes, storage.uri, mark), storage, mark)
    finally:
        with suppress(OSError, UserError):  # what cannot be deleted could not be written either
            storage.delete()


_CREDENTIALS = "give its nodes credentials for it, and name an address that they reach (docs/cluster.md)"


def _looked_at(nodes: Sequence[_Node], uri: str, mark: str) -> dict[str, dict[str, str] | str]:
    """Node's name -> its versions and what it says about the storage, or why it does not answer."""
    look: Any = ray.remote(_look)
    asked = {}
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node.id, soft=False)
        asked[node.name] = look.options(**COUNTER.options(), scheduling_strategy=here).remote(uri, node.id, mark)
    found: dict[str, dict[str, str] | str] = {}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    for name, reference in asked.items():
        try:
            found[name] = ray.get(reference, timeout=1)
        except GetTimeoutError:
            found[name] = f"no answer within {_ANSWER_SECONDS:.0f} s"
        except RayError as error:
            found[name] = _line(error)
    return found


def _look(uri: str, node: str, mark: str) -> dict[str, str]:
    """On a node: its versions, and what is wrong with the storage from there."""
    storage, problem = Storage(uri), ""
    try:
        if storage.read_bytes("driver").decode() != mark:
            problem = "what the head has just written there reads otherwise"
        storage.write_bytes(node, mark.encode())
    except (OSError, UserError) as error:
        problem = _line(error)
    return {"storage": problem, **_versions()}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "qwen3emb": __version__}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


def _compared(found: Mapping[str, dict[str, str] | str], storage: Storage, mark: str) -> Iterator[str]:
    here = _versions()
    for name, answer in found.items():
        if isinstance(answer, str):
            yield f"{name}: does not run a task: {answer}"
            continue
        other = [f"{kind} {answer[kind]}, the head {here[kind]}" for kind in here if answer.get(kind) != here[kind]]
        if other:
            more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
            shown = "; ".join(other[:_SHOWN])
            yield f"{name}: has {shown}{more}; install the same on all nodes (constraints/), or use one image"
        if answer["storage"]:
            yield f"{name}: cannot use {redacted(str(storage))}: {answer['storage']}; {_CREDENTIALS}"
    wrote = [n for n, answer in found.items() if not isinstance(answer, str) and not answer["storage"]]
    files = [name for name in storage.names() if storage.read_bytes(name).decode() == mark]
    if len(files) != len(wrote) + 1:  # the driver's own
        yield (
            f"storage {redacted(str(storage))}: {len(wrote)} nodes wrote a file there, but the head sees "
            f"{max(0, len(files) - 1)}; it must be one place for all nodes, such as s3://bucket/run"
        )


def _unreachable(cfg: RunConfig, names: Sequence[str], have: Sequence[str]) -> Iterator[str]:
    """Models that neither this machine, the run's storage nor the hub has."""
    keys: dict[str, str] = {}
    for name in names:
        for key, model in models_of(cfg, name).items():
            keys.setdefault(model, key)
    for model, key in keys.items():
        if model in have or is_endpoint(model) or is_in_run(cfg.storage, model):
            continue
        why = _missing(model)
        if why:
            yield f"{key} {redacted(model)}: {why}"


def _missing(model: str) -> str:
    """Why a model cannot be had; empty where it can."""
    if is_uri(model):
        return "" if Storage(model).exists("config.json") else "no config.json there, so it is no model's folder"
    if not is_hub_id(model):
        return (
            "not on the head and not in the run's storage; submit from the machine that has it, or name a hub id or a "
            "URI"
        )
    from huggingface_hub import model_info

    repository, _, revision = model.partition("@")
    try:
        model_info(repository, revision=revision or None, timeout=_HUB_SECONDS)
    except Exception as error:  # whatever the hub's client raises without a network, a token or such a model
        return f"the head cannot fetch it from the hub: {_line(error)}"
    return ""


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {redacted(lines[-1] if lines else 'no reason given')}"[:300]
