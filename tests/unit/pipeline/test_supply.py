"""Node types of cluster files, against what Ray's own autoscaler reads in them; and values still to be filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen3emb.core.errors import UserError
from qwen3emb.pipeline.supply import HEAD_GROUP, NodeType, placeholders, read_node_types, serves_only, unfilled

ROOT = Path(__file__).resolve().parents[3]

LAUNCHER = """
max_workers: 6
head_node_type: head
available_node_types:
  small: {min_workers: 1, max_workers: 9, resources: {CPU: 16}, node_config: {}}
  head: {resources: {CPU: 0}, node_config: {}}
  big: {resources: {CPU: 0, GPU: 8}, max_workers: 2, node_config: {}}
"""


def group(name: str, container: dict[str, Any], **others: Any) -> dict[str, Any]:
    template = {"spec": {"containers": [{"name": "ray", "resources": container}]}}
    return {"groupName": name, "minReplicas": 0, "maxReplicas": 3, "template": template} | others


GROUPS = [
    group("limits", {"limits": {"cpu": "1500m", "nvidia.com/gpu": "2"}, "requests": {"cpu": "1"}}),
    group("requests", {"requests": {"cpu": 4, "memory": "1Gi"}}, numOfHosts=2, minReplicas=1),
    group("params", {"limits": {"cpu": "64", "nvidia.com/gpu": 8}}, rayStartParams={"num-cpus": "0", "num-gpus": "4"}),
    group("own", {"limits": {"cpu": "8"}}, resources={"CPU": "3", "GPU": "1"}, rayStartParams={"num-cpus": "9"}),
    group("fraction", {"limits": {"cpu": "0.5"}}, maxReplicas=0),
]
SPEC = {"headGroupSpec": group("", {"limits": {"cpu": "8"}}, rayStartParams={"num-cpus": "0"})}
MANIFESTS = [
    {"kind": "RayCluster", "spec": SPEC | {"workerGroupSpecs": GROUPS}},
    {"kind": "RayJob", "spec": {"entrypoint": "x", "rayClusterSpec": SPEC | {"workerGroupSpecs": GROUPS}}},
    {"kind": "RayService", "spec": {"rayClusterConfig": SPEC | {"workerGroupSpecs": GROUPS}}},
]


def written(folder: Path, content: str) -> Path:
    (folder / "cluster.yaml").write_text(content)
    return folder / "cluster.yaml"


def test_types_of_a_launcher_file_head_first(tmp_path: Path) -> None:
    assert read_node_types(written(tmp_path, LAUNCHER)) == [
        NodeType("head", 0, 0, 1, 1),
        NodeType("small", 16, 0, 1, 6),  # not more than max_workers of the file
        NodeType("big", 0, 8, 0, 2),
    ]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda m: str(m["kind"]))
def test_groups_of_a_manifest_offer_what_ray_reads_in_them(manifest: dict[str, Any], tmp_path: Path) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec

    of_ray = _generate_available_node_types_from_ray_cr_spec(SPEC | {"workerGroupSpecs": GROUPS})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "x"}}
    file = written(tmp_path, yaml.safe_dump_all([account, {"apiVersion": "ray.io/v1"} | manifest]))
    found = read_node_types(file)
    assert [node.name for node in found] == [HEAD_GROUP, "limits", "requests", "params", "own", "fraction"]
    for node in found:
        said = of_ray[node.name]
        assert (node.cpus, node.gpus) == (said["resources"]["CPU"], said["resources"].get("GPU", 0))
        if node.name != HEAD_GROUP:
            assert (node.min_count, node.max_count) == (said["min_workers"], said["max_workers"])
    assert serves_only(file) == (manifest["kind"] == "RayService")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: [", "cannot be read"),
        ("a: 1", "neither a file for `ray up`"),
        ("available_node_types: {x: {resources: {GPU: 1}}}", "available_node_types.x does not say what a node offers"),
        ("{apiVersion: ray.io/v1, kind: RayJob, spec: {clusterSelector: {a: b}}}", "names no node types"),
        (
            yaml.safe_dump({"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": {"headGroupSpec": group("", {})}}),
            "group headgroup does not say how many CPUs",
        ),
        (
            yaml.safe_dump(
                {
                    "apiVersion": "ray.io/v1",
                    "kind": "RayCluster",
                    "spec": {"headGroupSpec": group("", {"limits": {"cpu": "many"}})},
                }
            ),
            "'many' is no number of CPUs",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(content: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        read_node_types(written(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        read_node_types(tmp_path / "nowhere.yaml")


def test_what_is_still_to_be_filled_in_is_said_with_its_place(tmp_path: Path) -> None:
    content = (
        "docker: {image: YOUR-REGISTRY/x:1}\n# YOUR-COMMENT\nnodes: [{arn: 'a:YOUR-ACCOUNT:b/YOUR-ROLE'}]\nYOUR-KEY: 1"
    )
    file = written(tmp_path, content + "\n---\nsecond: YOUR-ACCOUNT\n")
    assert unfilled(file) == [
        f"{file}: replace YOUR-REGISTRY in docker.image by the registry that you have pushed the image of "
        "cluster/Dockerfile to (docs/cluster.md)",
        f"{file}: replace YOUR-ACCOUNT in nodes[0].arn and 1 more place by the number of your AWS account "
        "(docs/cluster.md)",
        f"{file}: replace YOUR-ROLE in nodes[0].arn by the role or service account that may read and write your bucket "
        "(docs/cluster.md)",
        f"{file}: replace YOUR-KEY in YOUR-KEY by a value of yours (docs/cluster.md)",
    ]
    assert unfilled(written(tmp_path, content.replace("YOUR-", "MY-"))) == []
    assert placeholders({"storage": "s3://YOUR-BUCKET/x"}, "run.yaml") == [
        "run.yaml: replace YOUR-BUCKET in storage by the bucket of your runs (docs/cluster.md)"
    ]
