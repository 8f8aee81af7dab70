"""The RayService manifest against Ray Serve's schema, which accepts misspelt keys, and against our code."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

pytestmark = pytest.mark.integration

MANIFEST = Path(__file__).resolve().parents[2] / "cluster" / "kuberay" / "rayservice.yaml"


def test_rayservice_names_only_what_exists() -> None:
    manifest = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    assert set(config) <= set(ServeDeploySchema.model_fields)
    [application] = config["applications"]
    assert set(application) <= set(ServeApplicationSchema.model_fields)
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
