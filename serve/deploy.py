"""Build the Ray Serve application from a run's artifacts, and serve it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from qwen3emb.config.resources import GATEWAY, replica_bundle
from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.config.serving import ServeConfig
from qwen3emb.core.artifact import finished, read_record
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.pipeline.stages import stage_folder
from qwen3emb.text.templates import TextLimits
from serve.app import RETRY_AFTER_S, Gateway, Served
from serve.replica import EmbeddingHead, Replica, RerankingHead
from serve.searcher import Searcher

__all__ = ["application", "build", "check_port", "serving", "what_is_served"]


def what_is_served(cfg: RunConfig) -> Served:
    """The models and the index of a run.

    Raises:
        UserError: the stage `merge` or `index` is not complete, the index was made with other models, or a length limit
            is above the model's longest input.
    """
    for stage in ("merge", "index"):
        if not finished(stage_folder(cfg, stage)):
            raise UserError(
                f"{stage_folder(cfg, stage).uri} is not complete, so nothing to serve; run the stage {stage}"
            )
    merge, index = stage_folder(cfg, "merge"), stage_folder(cfg, "index")
    made_with, current = index.read_json("index.json")["model"], read_record(merge)["fingerprint"]
    if made_with != current:
        raise UserError(
            f"{index.uri} was made with other models ({made_with}, now {current}); run the stage index again"
        )
    embedding, reranker = (
        (merge / "embedding").uri,
        (merge / "reranker").uri if merge.exists("reranker") else None,
    )
    limits = TextLimits.of(cfg.serve)
    context = int(Storage(embedding).read_json("config.json")["max_position_embeddings"])
    if max(limits) > context:
        raise UserError(f"serve.max_query_tokens and max_document_tokens may be at most the model's {context}")
    return Served(cfg.name, embedding, reranker, index.uri, limits)


def check_port(host: str, port: int) -> None:
    """Check that a server can listen on the port.

    Raises:
        UserError: the port is in use, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} of {host} is in use; stop what listens there, or give --set serve.port=N"
        else:
            message = f"cannot listen on {host}, port {port} ({error.strerror}); set serve.host and serve.port"
        raise UserError(message) from error


def application(served: Served, options: ServeConfig) -> Any:
    """The Serve application: ingress and embedder, and reranker and search if `served` has them."""
    embedder = _deployed("embedder", EmbeddingHead, served.embedding, options, options.embedder_replicas)
    reranker = None
    if served.reranker:
        reranker = _deployed("reranker", RerankingHead, served.reranker, options, options.reranker_replicas)
    searcher = _plain(Searcher, options).bind(served.index) if served.index else None
    return _plain(Gateway, options).bind(served, embedder, reranker, searcher)


def build(args: dict[str, Any]) -> Any:
    """The application of a Serve config file: `import_path: serve.deploy:build`.

    Args:
        args: `config`, the YAML of a finished run, and where wanted `set`, a list of `key=value` overrides.

    Raises:
        UserError: another argument, or the run cannot be served.
    """
    wrong = set(args) - {"config", "set"}
    if wrong or "config" not in args:
        raise UserError(f"serve.deploy:build takes args config and set, found {sorted(args)}")
    cfg = load_config(args["config"], args.get("set", []))
    return application(what_is_served(cfg), cfg.serve)


def _deployed(name: str, head: Any, model: str, options: ServeConfig, replicas: int) -> Any:
    """A model's deployment: it takes two batches of requests, so that one waits there while the other is computed."""
    actor: dict[str, Any] = {
        **replica_bundle(options).options(),
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(options.threads)}},
    }
    deployment: Any = serve.deployment(
        Replica,
        name=name,
        num_replicas=replicas,
        ray_actor_options=actor,
        max_ongoing_requests=2 * options.max_batch_size,
        max_queued_requests=options.max_queued_requests,
        backpressure_config=_busy(),
        max_constructor_retry_count=2,
    )
    return deployment.bind(head, model, options.threads, options.max_batch_size, options.batch_wait_s)


def _plain(part: Any, options: ServeConfig) -> Any:
    """A deployment without a model; it takes more requests than the models' queues, so that these answer 429."""
    return serve.deployment(
        part,
        ray_actor_options=GATEWAY.options(),
        max_ongoing_requests=4 * (options.max_queued_requests + options.max_batch_size),
        max_queued_requests=options.max_queued_requests,
        backpressure_config=_busy(),
        max_constructor_retry_count=2,
    )


def _busy() -> BackpressureConfig:
    return BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S)


@contextmanager
def serving(served: Served, options: ServeConfig) -> Iterator[str]:
    """Run the application on the connected Ray until the block ends; yields the URL once every model is loaded."""
    logging = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": options.host, "port": options.port}, logging_config=logging)
    try:
        serve.run(application(served, options), name=served.name, route_prefix="/", logging_config=logging)
        yield f"http://{options.host}:{options.port}"
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
