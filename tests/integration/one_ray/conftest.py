"""The Ray that all tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cluster.session import connected
from qwen3emb.config.run import ClusterConfig


@pytest.fixture(scope="package", autouse=True)
def one_ray() -> Iterator[None]:
    """An embedded Ray, which leaves nothing in the environment: a private head started later must get its token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE", raising=False)
        patch.setenv("TOKENIZERS_PARALLELISM", "true")  # a user's own setting stays
        before = dict(os.environ)
        with connected(ClusterConfig(num_cpus=4)):
            assert os.environ["RAY_AUTH_MODE"] == "disabled"
            yield
        after = dict(os.environ)
        assert "RAY_AUTH_MODE" not in after
        ours = {k: v for k, v in before.items() if not k.startswith(("RAY_", "PYTEST_"))}
        assert {k: after.get(k) for k in ours} == ours
