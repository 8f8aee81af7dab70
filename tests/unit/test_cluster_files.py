"""The cluster files: Ray's own launcher schema, KubeRay's own CRDs, and the rules neither of them knows."""

from __future__ import annotations

import fnmatch
import gzip
import re
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.config import AutoscalingConfig

from qwen3emb import __version__
from qwen3emb.pipeline.supply import read_node_types

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ["cluster/aws.yaml", "cluster/gcp.yaml"]
KUBERAY = {
    "cluster/kuberay/rayjob.yaml": "rayjobs",
    "cluster/kuberay/rayjob-stage.yaml": "rayjobs",
    "cluster/kuberay/rayservice.yaml": "rayservices",
}
RUNS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "examples").glob("qwen3-*.yaml"))


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
def test_launcher_starts_with_a_head_alone_and_all_nodes_have_the_image_and_credentials(path: str) -> None:
    config = read(path)
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    workers = {name: node for name, node in types.items() if node is not head}
    assert head["resources"] == {"CPU": 0}
    assert [node["min_workers"] for node in workers.values()] == [0] * len(workers)
    # Each type may have all of its nodes: no type takes another's place.
    assert sum(node["max_workers"] for node in workers.values()) <= config["max_workers"]
    assert config["docker"]["image"] == f"YOUR-REGISTRY/qwen3emb:{__version__}"
    assert config["setup_commands"] == []
    credentials = {"aws": "IamInstanceProfile", "gcp": "serviceAccounts"}[config["provider"]["type"]]
    assert all(node["node_config"][credentials] for node in workers.values())


def is_spot(node: dict[str, Any]) -> bool:
    config = node["node_config"]
    market, scheduling = config.get("InstanceMarketOptions", {}), config.get("scheduling", {})
    return market.get("MarketType") == "spot" or scheduling.get("provisioningModel") == "SPOT"


@pytest.mark.parametrize("path", LAUNCHER)
def test_gpu_nodes_are_spot_and_all_others_are_not(path: str) -> None:
    types = read(path)["available_node_types"]
    assert {name for name, node in types.items() if is_spot(node)} == {"gpu1", "gpu8"}
    assert {name for name, node in types.items() if node["resources"].get("GPU")} == {"gpu1", "gpu8"}


@pytest.mark.parametrize("path", LAUNCHER)
def test_images_have_a_driver_for_the_pinned_cuda(path: str) -> None:
    config = read(path)
    nodes = [node["node_config"] for node in config["available_node_types"].values()]
    images = {
        node.get("ImageId") or node["disks"][0]["initializeParams"]["sourceImage"] for node in nodes
    }  # one image for all
    assert images in (
        {
            "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
        },
        {"projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2404-nvidia-580"},
    )
    [cuda] = re.findall(r"^cuda-toolkit==(\d+)\.", (ROOT / "constraints/gpu.txt").read_text(), re.MULTILINE)
    assert cuda == "13"  # whose driver is 580 or newer; another one needs other images
    assert any("-ge 580" in command for command in config["initialization_commands"])


@pytest.mark.parametrize("path", KUBERAY)
def test_ray_is_the_pinned_version(path: str) -> None:
    [pinned] = re.findall(r"^ray==(.+)$", (ROOT / "constraints/gpu.txt").read_text(), re.MULTILINE)
    spec = read(path)["spec"]
    assert (spec.get("rayClusterSpec") or spec["rayClusterConfig"])["rayVersion"] == pinned


def dockerfile() -> list[str]:
    text = (ROOT / "cluster/Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_image_is_cuda_13_runs_as_nobody_special_and_copies_code_last() -> None:
    lines = dockerfile()
    assert re.fullmatch(r"FROM nvidia/cuda:13\.\d+\.\d+-runtime-ubuntu24\.04", lines[0])
    [user] = [line for line in lines if line.startswith("USER ")]
    assert user == "USER ray"
    assert "--uid 1000" in lines[lines.index(user) - 1]  # KubeRay's runAsUser, and the owner of files on cloud nodes
    assert not any(word in " ".join(lines) for word in ("sudo", "TOKEN", "SECRET", "KEY="))
    copies = [line for line in lines if line.startswith("COPY")]
    assert copies == ["COPY --chown=ray constraints/gpu.txt constraints/gpu.txt", "COPY --chown=ray . ."]
    installs = [line for line in lines if "pip install" in line]
    assert lines.index(copies[0]) < lines.index(installs[0]) < lines.index(copies[1]) < lines.index(installs[1])
    assert "--no-deps" in installs[0]
    assert "-r constraints/gpu.txt" in installs[0]
    assert all(tool in lines[1] for tool in ("gcc", "python3-dev", "rsync", "wget"))


def is_ignored(path: str) -> bool:
    """Whether `.dockerignore` leaves a file out, by the patterns that it has: names, `*`, `**/` before a name."""
    patterns = [p for p in (ROOT / ".dockerignore").read_text().splitlines() if p and not p.startswith("#")]
    parts = PurePosixPath(path).parts
    prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for pattern in patterns:
        name = pattern.removeprefix("**/")
        depth = len(PurePosixPath(name).parts)
        tried = parts if pattern.startswith("**/") else [p for p in prefixes if p.count("/") + 1 == depth]
        if any(fnmatch.fnmatchcase(part, name) for part in tried):
            return True
    return False


def test_the_image_has_what_a_run_needs_and_no_more() -> None:
    needed = ["pyproject.toml", "README.md", "LICENSE", "constraints/gpu.txt", "jobs/pipeline.py", "serve/deploy.py"]
    needed += ["cluster/session.py", "qwen3emb/config/run.py", *RUNS, "examples/personas.jsonl"]
    assert [path for path in needed if is_ignored(path) or not (ROOT / path).exists()] == []
    kept_out = [".git/config", ".venv/bin/python", ".ci/check", "runs/demo/x", "tests/conftest.py", "docs/cluster.md"]
    kept_out += ["qwen3emb/__pycache__/x.pyc", "cluster/aws.yaml", "benchmarks/run.sh", ".env"]
    assert [path for path in kept_out if not is_ignored(path)] == []


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


def cluster_spec(path: str) -> dict[str, Any]:
    spec = read(path)["spec"]
    found = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("path", KUBERAY)
def test_rules_that_the_crds_do_not_know(path: str) -> None:
    spec, cluster = read(path)["spec"], cluster_spec(path)
    if "ttlSecondsAfterFinished" in spec or "suspend" in spec:
        assert spec["shutdownAfterJobFinishes"] is True
    assert "submitterPodTemplate" not in spec or spec.get("submissionMode") != "SidecarMode"
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"]
    assert cluster["enableInTreeAutoscaling"] is True
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert all(group["template"]["spec"]["restartPolicy"] == "Never" for group in groups)


@pytest.mark.parametrize("path", KUBERAY)
def test_pods_have_the_service_account_and_no_rights_and_name_secrets_only(path: str) -> None:
    account = read("cluster/kuberay/serviceaccount.yaml")["metadata"]["name"]
    cluster = cluster_spec(path)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert pod["serviceAccountName"] == account
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000  # the image's
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["image"] == f"YOUR-REGISTRY/qwen3emb:{__version__}"
        assert container["envFrom"] == [{"secretRef": {"name": "qwen3emb", "optional": True}}]
        assert "env" not in container


def asks_for_spot(group: dict[str, Any]) -> bool | None:
    """True for spot nodes only, False for any others, None where a pod may be on either."""
    node = group["template"]["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = node.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    found = [e["operator"] for term in terms for e in term["matchExpressions"] if e["key"] == "YOUR-SPOT-LABEL"]
    return {"In": True, "NotIn": False}[found[0]] if found else None


def test_a_stage_alone_gets_the_cluster_of_the_pipeline() -> None:
    pipeline, stage = (cluster_spec(f"cluster/kuberay/rayjob{name}.yaml") for name in ("", "-stage"))
    assert pipeline == stage
    assert asks_for_spot(pipeline["headGroupSpec"]) is False
    spot = {group["groupName"] for group in pipeline["workerGroupSpecs"] if asks_for_spot(group)}
    assert spot == {"gpu1", "gpu8"}
    assert {group["minReplicas"] for group in pipeline["workerGroupSpecs"]} == {0}


def test_the_service_may_start_as_many_replicas_as_its_cluster_holds() -> None:
    from ray.serve.schema import ServeDeploySchema

    content = yaml.safe_load(read("cluster/kuberay/rayservice.yaml")["spec"]["serveConfigV2"])
    [app] = ServeDeploySchema.model_validate(content).applications
    [raw] = content["applications"]
    assert {d.name for d in app.deployments} == {"embedder", "reranker"}
    for deployment, given in zip(app.deployments, raw["deployments"], strict=True):
        assert given.keys() == {"name", "num_replicas", "autoscaling_config"}
        scaling = AutoscalingConfig(**given["autoscaling_config"])
        assert given["autoscaling_config"].keys() <= AutoscalingConfig.model_fields.keys()
        assert deployment.num_replicas == "auto"
        assert scaling.min_replicas == 1
    most = sum(d["autoscaling_config"]["max_replicas"] for d in raw["deployments"])
    [cpu, gpu] = [node for node in read_node_types(ROOT / "cluster/kuberay/rayservice.yaml") if node.max_count > 1]
    assert (gpu.gpus * gpu.max_count, gpu.gpus * gpu.min_count) == (most, 2)
    assert cpu.min_count == 1
