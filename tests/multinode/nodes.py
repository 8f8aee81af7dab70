"""Real Ray nodes on one machine that share nothing but the network and the project's files.

Each node is a mount namespace with a HOME, a TMPDIR and a /dev/shm of its own; the folders of the other nodes are
hidden from it. So a path of one node handed to another is a missing file, as on a real cluster.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from cluster.private_head import free_ports

__all__ = ["LAPTOP", "ROOT", "Nodes", "why_not"]

LAPTOP = "laptop"
ROOT = Path(__file__).resolve().parents[2]
_SHELL = """
set -eu
for folder in $HIDDEN; do mount -t tmpfs tmpfs "$folder"; done
mount -t tmpfs -o size=1g tmpfs /dev/shm
exec "$@"
"""
_PROJECT = ("cluster", "docs", "examples", "jobs", "qwen3emb", "serve")
_AGENTS = (
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
)
_AUTOSCALER = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
}
_OBJECT_STORE = 300_000_000  # bytes, below the node's /dev/shm


@cache
def why_not() -> str:
    """Why no nodes can be isolated on this machine; empty where they can."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "isolated nodes need Linux and unshare"
    with tempfile.TemporaryDirectory() as folder:
        words = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", folder]
        tried = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"isolated nodes need mount namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Nodes:
    """A cluster of isolated nodes, which end with the `with` block: a head without CPUs, what `add` adds, and a laptop.

    The laptop is no node of Ray: it is where a user types.
    """

    def __init__(
        self,
        names: Sequence[str],
        environment: Mapping[str, str],
        head_cpus: int = 0,
        grows_to: int = 0,
    ) -> None:
        """Start the head.

        Args:
            names: of all nodes that there will be beside the head, whose folders are hidden from one another.
            environment: further variables of every node, e.g. of an S3 server.
            head_cpus: logical CPUs of the head; none, as in the cloud, where it runs drivers and nothing else.
            grows_to: most nodes with 1 CPU that Ray's autoscaler adds by itself, on the head's side of the isolation;
                they end after a quarter of a minute without work.
        """
        self.root = Path(tempfile.mkdtemp(prefix="n-", dir="/tmp"))  # short: Ray's sockets lie below it
        self._names, self._environment = ("head", LAPTOP, *names), dict(environment)
        self._started: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._namespaces: dict[str, set[str]] = {name: set() for name in self._names}
        for name in self._names:
            for part in ("home", "tmp"):
                (self.root / name / part).mkdir(parents=True)
        self.project = self.root / LAPTOP / "project"
        for part in _PROJECT:
            shutil.copytree(ROOT / part, self.project / part, ignore=shutil.ignore_patterns("__pycache__"))
        ports = free_ports(3 + len(_AGENTS))
        self._gcs, dashboard = f"127.0.0.1:{ports[0]}", ports[1]
        self.address = f"http://127.0.0.1:{dashboard}"
        words = ["--head", f"--port={ports[0]}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
        words += [f"--ray-client-server-port={ports[2]}", f"--num-cpus={head_cpus}", "--include-dashboard=true"]
        words += [f"--temp-dir={self.root}/head/ray", *_pairs(_AGENTS, ports[3:])]
        known = {}
        if grows_to:
            words.append(f"--autoscaling-config={self._autoscaling(grows_to)}")
            known = _AUTOSCALER
        try:
            self._ray("head", words, **known)
            self._until(lambda: bool(self._alive()), "the head")
        except BaseException:
            self.close()
            raise

    def add(self, name: str, cpus: int, python: str = sys.executable, **environment: str) -> None:
        """Start a node with some logical CPUs, another Python, and further variables in its environment."""
        if name not in self._names:
            self._names = (*self._names, name)
            self._namespaces[name] = set()
            for part in ("home", "tmp"):
                (self.root / name / part).mkdir(parents=True)
        ports, mark = _pairs(_AGENTS, free_ports(len(_AGENTS))), f"{name}-{secrets.token_hex(4)}"
        words = [f"--address={self._gcs}", f"--num-cpus={cpus}", f"--labels=start={mark}", *ports]
        self._ray(name, words, python, **environment)
        self._until(lambda: any(labels.get("start") == mark for labels in self._alive()), f"node {name}")

    def environment(self, name: str) -> dict[str, str]:
        """What the processes of a node have in their environment."""
        here, path = self.root / name, f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST_", "AWS_", "QWEN3EMB_"))}
        own = {"HOME": f"{here}/home", "TMPDIR": f"{here}/tmp", "PATH": path}
        ray = {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_V2_ENABLED": "1",
            "DS_ACCELERATOR": "cpu",
        }
        return kept | own | ray | self._environment

    def folder(self, name: str) -> Path:
        """A folder that only this node sees."""
        return self.root / name

    def type(self, words: Sequence[str], seconds: float, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder on the laptop, which finds the cluster in RAY_ADDRESS.

        Raises:
            subprocess.TimeoutExpired: it does not end in time.
        """
        return subprocess.run(
            self._isolated(LAPTOP, words),
            cwd=self.project,
            env=self._hiding(LAPTOP) | {"RAY_ADDRESS": self.address, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )

    def popen(self, name: str, words: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command as on the node, its output in `log`."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                self._isolated(name, words),
                env=self._hiding(name) | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while (own := _namespace(process.pid)) == _namespace(os.getpid()):
            time.sleep(0.01)
        if not own:
            raise RuntimeError(f"{name}: {log.read_text(errors='replace')}")
        self._namespaces[name].add(own)
        self._started.setdefault(name, []).append(process)
        return process

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes of a node: those in its mount namespaces, however they have renamed themselves."""
        return [p for p in psutil.process_iter() if _namespace(p.pid) in self._namespaces[name]]

    def lose(self, name: str) -> None:
        """End a node as a power cut does."""
        while found := self.processes(name):
            for process in found:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(found, timeout=10)
        for started in self._started.pop(name, []):
            started.wait(10)

    def log(self) -> str:
        """What the nodes printed, for the message of a test that fails."""
        return "\n".join(f"{file.name}: {file.read_text(errors='replace')[-2000:]}" for file in self.root.glob("*.log"))

    def close(self) -> None:
        """End all nodes and remove their folders."""
        for name in self._names:
            self.lose(name)
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Nodes:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the nodes."""
        self.close()

    def _autoscaling(self, most: int) -> Path:
        """A file for Ray's own provider of nodes that are processes of this machine."""
        provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
        commands = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
        commands += ("head_start_ray_commands", "worker_start_ray_commands")
        config = {key: [] for key in commands} | {
            "cluster_name": "fake",
            "upscaling_speed": 1.0,
            "docker": {},
            "auth": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            "max_workers": most,
            "idle_timeout_minutes": 0.25,
            "provider": {
                "type": "external",
                "module": provider,
                "gcs_address": self._gcs,
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
            },
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": most},
            },
        }
        file = self.root / "autoscaling.json"
        file.write_text(json.dumps(config))
        return file

    def up(self) -> int:
        """Nodes that the head counts as alive, without itself."""
        return len(self._alive()) - 1

    def _alive(self) -> list[dict[str, str]]:
        """The labels of each node that the head counts as alive."""
        with urllib.request.urlopen(f"{self.address}/nodes?view=summary", timeout=10) as answer:
            summary = json.load(answer)["data"]["summary"]
        return [node["raylet"].get("labels") or {} for node in summary if node["raylet"].get("state") == "ALIVE"]

    def _until(self, holds: Callable[[], bool], what: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while True:
            with suppress(OSError):
                if holds():
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} is not there after {seconds:g} s\n{self.log()}")
            time.sleep(0.2)

    def _isolated(self, name: str, words: Sequence[str]) -> list[str]:
        return ["unshare", "--mount", "--propagation", "private", "bash", "-c", _SHELL, name, *words]

    def _hiding(self, name: str) -> dict[str, str]:
        hidden = " ".join(f"{self.root}/{other}" for other in self._names if other != name)
        return self.environment(name) | {"HIDDEN": hidden}

    def _ray(self, name: str, words: Sequence[str], python: str = sys.executable, **environment: str) -> None:
        ray = [python, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
        ray += ["--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"]
        ray += ["--disable-usage-stats", f"--object-store-memory={_OBJECT_STORE}", *words]
        self.popen(name, ray, self.root / f"{name}.log", **environment)


def _namespace(pid: int) -> str:
    """The mount namespace of a process; empty where it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def _pairs(options: Sequence[str], ports: Sequence[int]) -> list[str]:
    return [f"{option}={port}" for option, port in zip(options, ports, strict=True)]
