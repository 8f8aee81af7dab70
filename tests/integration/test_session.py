"""Joining Ray leaves nothing in the environment: a private head started afterwards must still get its token."""

from __future__ import annotations

import os

import pytest

from cluster.session import connected
from qwen3emb.config import ClusterConfig

pytestmark = pytest.mark.integration


def test_the_environment_is_as_before_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")  # the user's own setting stays
    before = dict(os.environ)
    with connected(ClusterConfig(num_cpus=4)):
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
    after = dict(os.environ)
    assert "RAY_AUTH_MODE" not in after
    assert {k: after.get(k) for k in before if not k.startswith("RAY_")} == {
        k: v for k, v in before.items() if not k.startswith("RAY_")
    }
