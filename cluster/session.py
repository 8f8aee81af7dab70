"""The only place that starts or joins a Ray cluster from a driver."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qwen3emb.config.run import OWN_CLUSTER, ClusterConfig
from qwen3emb.core.errors import UserError

__all__ = ["connected", "own_cluster_environment", "ray_environment"]


def ray_environment() -> dict[str, str]:
    """Environment variables for the project's Ray processes, without those that the user has set.

    Token authentication must be the same on both sides, else clients fail with InvalidAuthToken; so it is off unless
    the user turns it on.
    """
    defaults = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line twice
        "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # a line for every resource it asks for
        "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",  # and for every checkpoint
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "1",
        "DS_ACCELERATOR": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    return {key: value for key, value in defaults.items() if key not in os.environ}


def own_cluster_environment() -> dict[str, str]:
    """Further environment variables for a cluster that only this process uses, without those that the user has set."""
    defaults = {
        OWN_CLUSTER: "1",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes the only node away
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # it takes one report per check, so 2 s each add up at the end
    }
    return {key: value for key, value in defaults.items() if key not in os.environ}


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[None]:
    """Connect to the configured cluster, or start a local one that ends with the block.

    `cluster.address` comes before `RAY_ADDRESS`; without both a local Ray is started. If this process is connected to a
    Ray already (a notebook, several stages in a row), that one is used as it is, and stays connected.

    Raises:
        UserError: no cluster answers at the given address.
    """
    import ray

    environment = ray_environment()
    if not (ray.is_initialized() or cluster.address or os.environ.get("RAY_ADDRESS")):
        environment |= own_cluster_environment()
    if cluster.gpus_per_worker:
        environment.pop("DS_ACCELERATOR", None)
    os.environ.update(environment)
    try:
        with _ray(cluster, environment):
            yield
    finally:
        # Left behind, RAY_AUTH_MODE=disabled would open the next private head of this process to everybody.
        for name in environment:
            os.environ.pop(name, None)


@contextmanager
def _ray(cluster: ClusterConfig, environment: dict[str, str]) -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    # Ray's own actors chat at INFO and WARNING (one asks every second for a dashboard we do not start here).
    quiet = ray.LoggingConfig(encoding="TEXT", log_level="ERROR")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "logging_config": quiet}
    try:
        if address:
            ray.init(address=address, runtime_env={"env_vars": environment}, **options)
        else:
            ray.init(address="local", num_cpus=cluster.num_cpus, include_dashboard=False, **options)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at {address!r}; start one with `ray start --head`") from error
    try:
        yield
    finally:
        ray.shutdown()
