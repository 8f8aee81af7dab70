"""A private Ray head: a subprocess with its own ports and folder, whose processes and files are removed at the end."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil

from cluster.session import own_cluster_environment, ray_environment
from qwen3emb.config.run import ClusterConfig, RunConfig
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.pipeline.demand import stage_demands
from qwen3emb.pipeline.fit import unmet
from qwen3emb.pipeline.supply import NodeType

__all__ = ["free_ports", "private_head", "refuse_unmet"]

_MARK = "QWEN3EMB_PRIVATE_HEAD"
_LONGEST_FOLDER = 40
"""Ray's socket paths are the folder and some 60 characters more; the kernel's limit is 107."""

_PORTS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--ray-client-server-port",
    "--metrics-export-port",
)


def refuse_unmet(cfg: RunConfig, stages: Sequence[str]) -> None:
    """Refuse stages that the Ray started here (a private head or an embedded one) could never hold.

    Raises:
        UserError: a sentence for each.
    """
    here = NodeType("this machine", cfg.cluster.num_cpus, _gpus_here(), 1, 1)
    problems = unmet([demand for name in stages for demand in stage_demands(cfg, name)], [here])
    if problems:
        raise UserError("\n".join([*problems, _LOGICAL] if any("CPU" in line for line in problems) else problems))


def _gpus_here() -> int:
    """GPUs that this process may use. Asked without Ray, which must not be imported before a head's token is set."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


_LOGICAL = "the CPUs of this machine are cluster.num_cpus, logical ones, which may exceed its cores"


@contextmanager
def private_head(cluster: ClusterConfig, start_seconds: float = 90) -> Iterator[str]:
    """Start a Ray head on this machine, yield its dashboard address, and end all of its processes with the block.

    It also ends when this process is killed. Ray listens on all interfaces, so the head is protected by a token, unless
    the user has set RAY_AUTH_MODE; the token is in the environment of this process while the head lives.

    Args:
        cluster: `num_cpus` logical CPUs; with `gpus_per_worker` = 0 it is a CPU machine.
        start_seconds: how long to wait for the dashboard.

    Raises:
        StageFailure: it does not come up in three attempts; the message ends with its last line of output.
    """
    folder, token = _short_folder(), _token()
    os.environ.update(token)
    try:
        head, address = _started(cluster, folder, start_seconds)
        try:
            yield address
        finally:
            _end(head, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for name in token:
            del os.environ[name]


def _token() -> dict[str, str]:
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token_of_this_process()}


@cache
def _token_of_this_process() -> str:
    """The same token for every head: Ray's client reads it once in the life of a process."""
    return secrets.token_hex(32)


def _short_folder() -> Path:
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="q3e-", dir=base if len(base) <= _LONGEST_FOLDER - 14 else "/tmp"))


def _started(cluster: ClusterConfig, folder: Path, seconds: float) -> tuple[subprocess.Popen[bytes], str]:
    """The head's process and dashboard address. Three attempts, as a free port may be taken before Ray opens it."""
    for _ in range(3):
        ports = free_ports(len(_PORTS))
        head = _launch(cluster, folder, ports)
        try:
            if _is_reachable(head, ports[1], seconds):
                return head, f"http://127.0.0.1:{ports[1]}"
        except BaseException:
            _end(head, folder)
            raise
        _end(head, folder)
    lines = (folder / "head.log").read_text(errors="replace").strip().splitlines()
    raise StageFailure(f"Ray does not start on this machine: {lines[-1] if lines else 'it printed nothing'}")


def _launch(cluster: ClusterConfig, folder: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    environment = os.environ | ray_environment() | own_cluster_environment() | {_MARK: str(folder)}
    environment.pop("RAY_ADDRESS", None)
    if cluster.gpus_per_worker:
        environment.pop("DS_ACCELERATOR", None)
    command = [
        sys.executable,
        "-c",
        "from ray.scripts.scripts import main; main()",
        "start",
        "--head",
        "--block",
    ]
    for option, port in zip(_PORTS, ports, strict=True):
        command.append(f"{option}={port}")
    # 0, 0: the system picks worker ports, since the default range may meet that of another Ray on this host.
    command += ["--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"]
    command += [f"--temp-dir={folder}", f"--num-cpus={cluster.num_cpus}", "--dashboard-host=127.0.0.1"]
    command += ["--include-dashboard=true", "--disable-usage-stats"]
    with (folder / "head.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when our process dies in a way that runs no clean-up (kill -9)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, each another; one may be taken before it is opened."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for opened in sockets:
        opened.close()
    return ports


def _is_reachable(head: subprocess.Popen[bytes], port: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and head.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.2)
    return False


def _end(head: subprocess.Popen[bytes], folder: Path, grace: float = 6) -> None:
    """SIGTERM the head, wait, then SIGKILL all processes that have this head's folder in their environment (`_MARK`).

    Ray's clean-up sometimes leaves processes behind (a job's driver runs in another session). Every process of the head
    inherits the variable, and no process of another Ray on this host has it.
    """
    family = _marked(folder)
    if head.poll() is None:
        head.terminate()
    _, alive = psutil.wait_procs(family, timeout=grace)
    for process in {*alive, *_marked(folder)}:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    head.wait(timeout=grace)
    psutil.wait_procs(_marked(folder), timeout=grace)


def _marked(folder: Path) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(_MARK) == str(folder):
                processes.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or gone meanwhile
    return processes
