"""A proxy before an S3 server that answers a share of the requests with 503 SlowDown, and others late.

`python -m tests.multinode.faulty_s3 PORT UPSTREAM CONTROL`: CONTROL is a JSON file, read for every request:
`{"errors": 0.2, "delay": 0.05}`; what was answered with an error is counted in CONTROL.count.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please slow down.</Message></Error>"
_OF_ONE_HOP = {"connection", "transfer-encoding", "keep-alive", "expect", "content-length"}
_lock = threading.Lock()


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream = ""
    control = Path()

    def _forward(self) -> None:
        body = self._body()
        wanted = json.loads(self.control.read_text())
        time.sleep(random.uniform(0, 2 * wanted.get("delay", 0)))
        if random.random() < wanted.get("errors", 0):
            self._refuse()
            return
        connection = http.client.HTTPConnection(self.upstream, timeout=120)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_HOP}
        if body or self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _OF_ONE_HOP or (name.lower() == "content-length" and self.command == "HEAD"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def _body(self) -> bytes:
        """The whole body, also of a request that is sent in chunks."""
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return body

    def _refuse(self) -> None:
        with _lock:
            count = self.control.with_suffix(".count")
            count.write_text(str(int(count.read_text() or 0) + 1 if count.exists() else 1))
        self.send_response_only(503)
        content = b"" if self.command == "HEAD" else _SLOW_DOWN
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no fault of the proxy."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main() -> None:
    """Serve until killed."""
    port, upstream, control = sys.argv[1:]
    _Proxy.upstream, _Proxy.control = urlsplit(upstream).netloc, Path(control)
    _Server(("127.0.0.1", int(port)), _Proxy).serve_forever()


if __name__ == "__main__":
    main()
