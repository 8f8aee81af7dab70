"""Serve a run's models and index over HTTP until Ctrl-C: `python -m jobs.serve --config FILE`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from cluster.session import connected
from jobs.entry import command_line, say
from qwen3emb.config.run import load_config
from qwen3emb.core.exits import guarded


def run(arguments: argparse.Namespace) -> None:
    """Deploy, say how to ask, and wait for Ctrl-C or SIGTERM."""
    cfg = load_config(arguments.config, arguments.set)
    from serve.deploy import check_port, serving, what_is_served

    served = what_is_served(cfg)
    check_port(cfg.serve.host, cfg.serve.port)
    say(f"serve: loading {served.embedding} and what belongs to it")
    stop = threading.Event()
    with connected(cfg.cluster):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        with serving(served, cfg.serve) as url:
            say(f"serve: ready at {url} (Ctrl-C ends it); API description at {url}/docs")
            print(_examples(url, served.reranker is not None), flush=True)
            stop.wait()
            say("serve: shutting down")


def _examples(url: str, reranker: bool) -> str:
    """curl commands to try."""
    post = "curl -s {url}{path} -H 'Content-Type: application/json' -d '{body}'"
    rerank = '{"query": "parse a date", "documents": ["def parse_date(text): ...", "def close(self): ..."]}'
    bodies = {
        "/v1/embeddings": '{"input": "parse a date", "input_type": "query", "dimensions": 64}',
        **({"/v1/rerank": rerank} if reranker else {}),
        "/search": '{"query": "parse a date", "top_k": 3}',
    }
    return "\n".join(post.format(url=url, path=path, body=body) for path, body in bodies.items())


def main() -> int:
    """Entry point."""
    parser: argparse.ArgumentParser = command_line(__doc__ or "")
    parser.epilog = "example: python -m jobs.serve --config examples/demo.yaml --set serve.port=8001"
    arguments = parser.parse_args()
    return guarded(lambda: run(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
