"""Ray Jobs: submit a command to a cluster, follow its log, bring its exit code back."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import tenacity

from cluster.session import ray_environment
from qwen3emb.config.run import RunConfig
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.storage import absolute_uri

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

__all__ = [
    "Target",
    "cluster_target",
    "connect",
    "exit_code",
    "follow",
    "is_this_machine",
    "local_target",
    "preflight",
    "submit",
]

_EXCLUDED = [
    ".git",
    ".venv*",
    "runs",
    "node_modules",
    "**/__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
]

_CHATTY = (  # a line per closed log, per file that is left out, per package that is there already
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.working_dir",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)

_Answer = TypeVar("_Answer")
_UNREACHED = (RuntimeError, OSError, ValueError)  # of Ray, of requests, of an answer that is a proxy's page
_FINAL = re.compile(r"status code 4(?!08|29)\d\d")
_PATIENCE = tenacity.Retrying(
    stop=tenacity.stop_after_attempt(13),
    wait=tenacity.wait_exponential(multiplier=0.5, max=30),
    retry=tenacity.retry_if_exception(lambda error: isinstance(error, _UNREACHED) and not _FINAL.search(str(error))),
    reraise=True,
)
"""About four minutes: a dashboard that restarts, a network that changes."""


@dataclass(frozen=True)
class Target:
    """A cluster that runs modules of this project as Ray jobs, with the parts of their command lines.

    Attributes:
        client: of the cluster's job server.
        python: shell text up to the interpreter.
        options: `--config` and `--set` of every module.
        runtime_env: Ray's runtime environment.
    """

    client: JobSubmissionClient
    python: str
    options: tuple[str, ...]
    runtime_env: dict[str, Any]

    def command(self, module: str, arguments: Sequence[str] = ()) -> str:
        """The shell command that runs `module` on the cluster."""
        return f"{self.python} -m {module} {shlex.join([*self.options, *arguments])}"

    def start(self, module: str, arguments: Sequence[str] = ()) -> str:
        """Submit `module` and return the job's id."""
        return submit(self.client, self.command(module, arguments), self.runtime_env, module)

    def run(self, module: str, arguments: Sequence[str] = ()) -> int:
        """Submit `module`, show its log on standard error, and return its exit code."""
        job = self.start(module, arguments)
        follow(self.client, job)
        return exit_code(self.client, job)


def preflight(target: Target, stages: Sequence[str], have: Sequence[str] = ()) -> None:
    """Ask the cluster whether it can run these stages (`jobs.preflight`, a job of some seconds).

    Args:
        target: the cluster.
        stages: names.
        have: models that this machine has, and would copy to the run's storage.

    Raises:
        UserError: it cannot; the log that was shown has a sentence for each reason.
        StageFailure: the question failed.
    """
    if code := target.run("jobs.preflight", [*stages, *(word for name in have for word in ("--have", name))]):
        kind = UserError if code == UserError.exit_code else StageFailure
        raise kind("nothing was started, since the preflight failed; its message is above")


def local_target(client: JobSubmissionClient, config: str, overrides: Sequence[str]) -> Target:
    """The target of a private head: jobs run in the current folder with this interpreter, nothing is uploaded."""
    python = f"cd {shlex.quote(os.getcwd())} && exec {shlex.quote(sys.executable)}"
    return Target(client, python, _options(config, overrides), {})


def cluster_target(client: JobSubmissionClient, cfg: RunConfig, config: str, overrides: Sequence[str]) -> Target:
    """The target of a cluster: the current folder is uploaded, and jobs run with the cluster's `python`.

    Raises:
        UserError: the current folder is not the project, the config lies outside it, or the run's storage is
            a folder of this machine while the cluster is elsewhere.
    """
    root, address = Path.cwd().resolve(), client.get_address()
    if not (root / "jobs" / "entry.py").is_file():
        raise UserError(f"{root}: no jobs/ here; run this in the project's folder, which is sent to the cluster")
    try:
        inside = Path(config).resolve().relative_to(root)
    except ValueError as error:
        raise UserError(f"config {config}: not below {root}, which is what the cluster receives") from error
    storage = cfg.storage
    if "://" not in storage and is_this_machine(address):
        storage = absolute_uri(storage)
    elif "://" not in storage:
        raise UserError(
            f"storage {storage!r} is a folder, which the nodes of {address} do not share; "
            "give a URI, e.g. --set storage=s3://bucket/run"
        )
    options = _options(str(inside), [*overrides, f"storage={storage}"])
    return Target(client, "python", options, {"working_dir": str(root), "excludes": _EXCLUDED})


def _options(config: str, overrides: Sequence[str]) -> tuple[str, ...]:
    # A job joins the cluster it runs in; the address is for those outside.
    pairs = [("--set", value) for value in [*overrides, "cluster.address=null"]]
    return ("--config", config, *(part for pair in pairs for part in pair))


def connect(address: str, wait_seconds: float = 30) -> JobSubmissionClient:
    """A client of the cluster's job server.

    Args:
        address: dashboard (`http://host:8265`), cluster (`host:6379`) or `auto`.
        wait_seconds: how long a cluster may take to answer.

    Raises:
        UserError: nothing answers there, or it wants another token.
    """
    os.environ.update(ray_environment())
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    missing = (ConnectionError, RuntimeError)
    try:
        with _without_ray_address():
            patience = _retrying(wait_seconds, lambda error: isinstance(error, missing))
            return patience(JobSubmissionClient, address)
    except AuthenticationError as error:
        raise UserError(
            f"Ray at {address!r} wants another token; set RAY_AUTH_MODE=token, RAY_AUTH_TOKEN "
            "(or RAY_AUTH_TOKEN_PATH) to those of its head"
        ) from error
    except missing as error:
        raise UserError(
            f"no Ray job server answers at {address!r}; start one with `ray start --head`, or leave "
            "cluster.address and RAY_ADDRESS empty"
        ) from error


def _retrying(seconds: float, is_transient: Callable[[BaseException], bool]) -> tenacity.Retrying:
    """Call a function every half second, for at most `seconds`, while its error `is_transient`; then raise that."""
    return tenacity.Retrying(
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_fixed(0.5),
        retry=tenacity.retry_if_exception(is_transient),
        reraise=True,
    )


@contextmanager
def _without_ray_address() -> Iterator[None]:
    """Ray's clients would prefer RAY_ADDRESS to the address that is passed to them."""
    kept = os.environ.pop("RAY_ADDRESS", None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ["RAY_ADDRESS"] = kept


def submit(
    client: JobSubmissionClient,
    entrypoint: str,
    runtime_env: dict[str, Any],
    name: str,
    wait_seconds: float = 60,
) -> str:
    """Submit a shell command and return the job's id.

    A head that just started accepts connections before its agent is there or answers, so the submission is repeated;
    as it has its id from the start, it is one job however often it is sent.

    Raises:
        StageFailure: the cluster takes no job within `wait_seconds`.
    """
    job = f"raysubmit_{secrets.token_hex(8)}"
    order = {"entrypoint": entrypoint, "runtime_env": runtime_env, "metadata": {"name": name}, "submission_id": job}
    try:
        _retrying(wait_seconds, _may_pass)(client.submit_job, **order)
    except (RuntimeError, ConnectionError) as error:
        reason = str(error).strip(". \n").splitlines()[-1]
        if f"{job} already exists" not in str(error):  # else the first attempt came through, only its answer did not
            raise StageFailure(f"{name}: the cluster did not take the job: {reason}") from error
    return job


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, RuntimeError | ConnectionError) and not _FINAL.search(str(error))


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], object] = sys.stderr.write) -> None:
    """Pass the job's log to `write` as it grows, until the job ends. Ctrl-C stops the job; lost connections do not.

    Raises:
        StageFailure: the job server does not answer any more; the job goes on.
    """
    shown = 0
    try:
        while True:
            shown = asyncio.run(_tail(client, job, shown, write))
            if _retried(client, job, lambda: client.get_job_status(job)).is_terminal():
                break
            time.sleep(0.5)  # the log connection broke, the job goes on
        write(_retried(client, job, lambda: client.get_job_logs(job))[shown:])
        sys.stderr.flush()
    except KeyboardInterrupt:
        with suppress(*_UNREACHED):  # the cluster may be gone
            client.stop_job(job)
        raise


def _retried(client: JobSubmissionClient, job: str, call: Callable[[], _Answer]) -> _Answer:
    """The result of a call to the job server, which is repeated while it fails.

    Raises:
        StageFailure: it fails for minutes, or knows no such job, or wants another token.
    """
    from ray.exceptions import AuthenticationError

    try:
        return _PATIENCE(call)
    except (AuthenticationError, *_UNREACHED) as error:
        raise _out_of_sight(client, job, error) from error


def _out_of_sight(client: JobSubmissionClient, job: str, error: Exception) -> StageFailure:
    address, reason = client.get_address(), " ".join(str(error).split())[:300]
    return StageFailure(
        f"{job}: the job server at {address} does not say any more how it is ({reason}). The job was not stopped and "
        f"goes on where the cluster is up: ray job logs --follow --address {address} {job}. Run this again when it ends"
    )


async def _tail(client: JobSubmissionClient, job: str, skip: int, write: Callable[[str], object]) -> int:
    """Pass the log after its first `skip` characters to `write`; the number of characters that have been passed."""
    seen = 0
    from aiohttp import ClientError  # of its errors some are no OSError: a proxy's 502, a server that hangs up

    with suppress(ClientError, *_UNREACHED):  # closed early; the caller asks for the job's status and comes back
        async for text in client.tail_job_logs(job):
            write(text[max(skip - seen, 0) :])
            sys.stderr.flush()
            seen += len(text)
    return max(seen, skip)


def exit_code(client: JobSubmissionClient, job: str) -> int:
    """The exit code of the ended job's command; 1 where the cluster lost it, or something killed it.

    Raises:
        StageFailure: the job server does not answer any more.
    """
    details = _retried(client, job, lambda: client.get_job_info(job))
    code = details.driver_exit_code
    if code is None or code < 0:
        print(f"error: job {job} {details.status}: {details.message}", file=sys.stderr, flush=True)
        return 1
    return int(code)


def is_this_machine(address: str) -> bool:
    """Whether all living nodes of the cluster are on this machine, so that local paths mean the same files there.

    The address alone does not tell: 127.0.0.1 may be a tunnel, and a head on this machine may have workers elsewhere.
    """
    from ray.util.state import list_nodes

    local_addresses = {entry.address for interface in psutil.net_if_addrs().values() for entry in interface}
    with _without_ray_address():
        nodes = list_nodes(address=address, filters=[("state", "=", "ALIVE")])
    return all(node.node_ip in local_addresses for node in nodes)
