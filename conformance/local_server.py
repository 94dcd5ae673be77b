"""An HTTP server on a loopback port: the base of the doubles, the fault proxy and the relay."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LocalServer:
    """Listens on a free port, a thread for each request."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.handle(self, body)

            do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = do

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """Answer one request, with `write`."""
        raise NotImplementedError


def write(
    handler: BaseHTTPRequestHandler,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    length: int | None = None,
) -> None:
    """Send a whole answer; `length` is a Content-Length that is not the body's."""
    handler.send_response_only(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    # One write for all: no pause of the kernel between the head and the body.
    handler._headers_buffer.append(b"\r\n" + body)  # type: ignore[attr-defined]
    handler.flush_headers()
