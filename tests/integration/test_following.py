"""Submitting and following a job whose server fails for a while, or for good: over real HTTP, without a cluster."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tenacity import wait_none

from cluster import submission
from cluster.submission import connect, exit_code, follow, submit
from qwen3emb.core.errors import StageFailure

pytestmark = pytest.mark.integration

JOB = "raysubmit_1"
LOG = "first line\nsecond line\n"


class JobServer:
    """Answers like Ray's job server: `status` to the n-th question for the job's status, `taken` to the n-th order."""

    def __init__(self) -> None:
        import ray

        self.status: Callable[[int], tuple[int, str]] = lambda n: (200, "SUCCEEDED")
        self.asked = self.stopped = 0
        self.taken: Callable[[int, str], tuple[int, str]] = lambda n, job: (200, "")
        self.jobs: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/api/version":
                    return self.say(200, {"version": "4", "ray_version": ray.__version__, "ray_commit": "x"})
                if self.path.endswith("/logs/tail"):
                    return self.say(502, {})  # a proxy without web sockets
                if self.path.endswith("/logs"):
                    return self.say(200, {"logs": LOG})
                code, status = outer.status(outer.asked)
                outer.asked += 1
                job = {"type": "SUBMISSION", "submission_id": JOB, "status": status, "entrypoint": "x"}
                return self.say(code, job | ({"driver_exit_code": 3} if status == "FAILED" else {}))

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
                if not self.path.endswith("/stop"):
                    job = content["submission_id"]
                    outer.jobs.append(job)
                    code, words = outer.taken(len(outer.jobs) - 1, job)
                    return self.say(code, {"submission_id": job, "job_id": job} if code == 200 else {"error": words})
                outer.stopped += 1
                self.say(200, {"stopped": True})

            def say(self, code: int, content: dict[str, Any]) -> None:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.setattr(submission, "_PATIENCE", submission._PATIENCE.copy(wait=wait_none()))
    one = JobServer()
    yield one
    one.server.shutdown()
    one.server.server_close()


def test_a_server_that_fails_for_a_while_costs_nothing(server: JobServer) -> None:
    def status(n: int) -> tuple[int, str]:
        return (503, "") if n in (0, 1, 2, 4) else (200, "RUNNING" if n < 4 else "FAILED")

    server.status = status
    client, log = connect(server.address), []
    follow(client, JOB, log.append)
    assert "".join(log) == LOG and server.asked == 6
    server.asked, server.status = 0, lambda n: (200 if n == 3 else 503, "FAILED")
    assert exit_code(client, JOB) == 3 and server.asked == 4, "asked again here too"
    assert server.stopped == 0


@pytest.mark.parametrize("code", [503, 404])
def test_a_job_that_is_out_of_sight_is_not_stopped(server: JobServer, code: int) -> None:
    server.status = lambda n: (code, "")
    client = connect(server.address)
    with pytest.raises(StageFailure, match=rf"was not stopped.*ray job logs --follow --address {server.address} {JOB}"):
        follow(client, JOB, print)
    assert server.stopped == 0 and (server.asked == 1) == (code == 404), "no such job is no matter of time"


def test_a_server_that_is_gone_does_not_stop_the_job_either(server: JobServer) -> None:
    client = connect(server.address)
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(StageFailure, match="was not stopped"):
        follow(client, JOB, print)
    with pytest.raises(StageFailure, match="was not stopped"):
        exit_code(client, JOB)


def test_ctrl_c_stops_the_job(server: JobServer) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(connect(server.address), JOB, interrupted)
    assert server.stopped == 1


def test_an_order_is_one_job_however_often_it_is_sent(server: JobServer) -> None:
    client = connect(server.address)
    server.taken = lambda n, job: (500, "No available agent") if n == 0 else (400, f"Job {job} already exists.\n")
    job = submit(client, "true", {}, "corpus")
    assert server.jobs == [job, job]


def test_an_order_that_is_refused_is_not_sent_again(server: JobServer) -> None:
    server.taken = lambda n, job: (400, "no such field")
    with pytest.raises(StageFailure, match=r"corpus: the cluster did not take the job: .*no such field"):
        submit(connect(server.address), "true", {}, "corpus")
    assert len(server.jobs) == 1
