"""The cluster files: Ray's own launcher schema, KubeRay's own CRDs, and the rules neither of them knows."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ["cluster/aws.yaml", "cluster/gcp.yaml"]
KUBERAY = {"cluster/kuberay/rayjob.yaml": "rayjobs", "cluster/kuberay/rayservice.yaml": "rayservices"}


def read(path: str) -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def launcher_problem(config: dict[str, Any]) -> str | None:
    """What Ray's launcher says against `config`, if anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(config))
    except (jsonschema.ValidationError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


@pytest.mark.parametrize("path", LAUNCHER)
def test_launcher_accepts_the_file_and_would_reject_a_typo(path: str) -> None:
    assert launcher_problem(read(path)) is None
    assert launcher_problem({**read(path), "idle_timeout_minute": 10}) is not None


@pytest.mark.parametrize("path", LAUNCHER)
def test_launcher_scales_gpu_workers_from_zero_and_installs_the_pinned_set(path: str) -> None:
    config = read(path)
    types = config["available_node_types"]
    assert "GPU" not in types[config["head_node_type"]]["resources"]
    workers = [node for name, node in types.items() if name != config["head_node_type"]]
    assert [node["min_workers"] for node in workers] == [0]
    assert all(0 < node["max_workers"] <= config["max_workers"] and node["resources"]["GPU"] for node in workers)
    assert any("--no-deps -r constraints/gpu.txt" in command for command in config["setup_commands"])


@pytest.mark.parametrize("path", [*LAUNCHER, *KUBERAY, "cluster/kuberay/Dockerfile"])
def test_ray_is_the_pinned_version(path: str) -> None:
    [pinned] = re.findall(r"^ray==(.+)$", (ROOT / "constraints/gpu.txt").read_text(), re.MULTILINE)
    named = re.findall(r"rayproject/ray:([\d.]+)-|rayVersion: \"(.+?)\"", (ROOT / path).read_text())
    assert named
    assert {a or b for a, b in named} == {pinned}


def closed(schema: Any) -> Any:
    """Kubernetes' OpenAPI dialect as JSON Schema in which unknown fields are errors."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: closed(value) for key, value in schema.items() if key != "properties"}
    if isinstance(schema.get("properties"), dict):
        out["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("anyOf", None)
        out["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(out.get("type"), str):
        out["type"] = [out["type"], "null"]
    return out


def defaulted(value: Any, schema: dict[str, Any]) -> Any:
    """`value` with the schema's defaults filled in, which the API server does before it checks."""
    if isinstance(value, list):
        return [defaulted(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    missing = {k: s["default"] for k, s in properties.items() if "default" in s and k not in value}
    return {k: defaulted(v, properties.get(k, {})) for k, v in {**value, **missing}.items()}


def crd_validator(plural: str) -> tuple[jsonschema.Draft7Validator, dict[str, Any]]:
    folder = ROOT.parent / "shared" / "kuberay"
    file = folder / f"ray.io_{plural}.yaml.gz"
    if not file.is_file():
        pytest.skip(f"no KubeRay CRDs at {folder}; they are needed to check manifests offline")
    crd = yaml.load(gzip.decompress(file.read_bytes()), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    [version] = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    strict = closed(schema)
    strict["properties"]["metadata"] = {"type": "object"}  # the CRD leaves it to Kubernetes
    return jsonschema.Draft7Validator(strict), schema


@pytest.mark.parametrize(("path", "plural"), KUBERAY.items())
def test_kuberay_accepts_the_manifest_and_would_reject_a_typo(path: str, plural: str) -> None:
    validator, schema = crd_validator(plural)
    manifest = read(path)
    assert [error.message for error in validator.iter_errors(defaulted(manifest, schema))] == []
    manifest["spec"]["rayClusterSpecs"] = {}
    assert any("rayClusterSpecs" in error.message for error in validator.iter_errors(manifest))


@pytest.mark.parametrize("path", KUBERAY)
def test_rules_that_the_crds_do_not_know(path: str) -> None:
    spec = read(path)["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    if "ttlSecondsAfterFinished" in spec:
        assert spec["shutdownAfterJobFinishes"] is True
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert all(group["template"]["spec"]["restartPolicy"] == "Never" for group in groups)
