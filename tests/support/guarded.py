"""A guarded uvicorn around an application without a database."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, Literal

import uvicorn
from starlette.types import Receive, Scope, Send

from middleware.connection_limits import Connections
from tests.support.processes import HANG, wait_for
from tests.support.raw import read_all

BIG = b"x" * 32_000_000  # more than two sockets hold


class Guarded:
    """The server. `later()` is what its watch does at a later time."""

    def __init__(self, connections: Connections, parser: Literal["auto", "h11"]) -> None:
        self.connections = connections
        self.answer = threading.Event()  # /slow waits for it
        self.requests: list[str] = []  # what reached the application
        self.headers: dict[bytes, bytes] = {}  # of the last request, when it was answered
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            host="127.0.0.1",
            port=0,
            http=parser,
            log_config=None,
            access_log=False,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> Guarded:
        self.thread.start()
        wait_for(lambda: self.server.started, "the server")
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.set()
        self.server.should_exit = True
        self.thread.join(30)
        kept = [getattr(one, "scope", one) for one in self.server.server_state.connections]
        assert not self.thread.is_alive(), f"connections kept the server from ending: {kept}"

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        connection = socket.socket()
        connection.settimeout(HANG)
        connection.bind((address, 0))
        connection.connect(("127.0.0.1", self.port))
        return connection

    def ask(self, request: bytes) -> bytes:
        """Everything that is answered on a new connection, to its end."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_all(connection)

    def later(self, seconds: float) -> None:
        """Look after the deadlines as if so many seconds had passed."""

        async def look() -> None:
            self.connections.end_overdue(self.loop.time() + seconds)

        asyncio.run_coroutine_threadsafe(look(), self.loop).result(HANG)

    def wait_for_bytes(self) -> None:
        wait_for(lambda: any(each.received for each in self.connections.all), "the first byte")

    def wait_for_connections(self, number: int) -> None:
        wait_for(lambda: len(self.connections.all) == number, f"{number} connections")

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            self.loop = asyncio.get_running_loop()
            scope["state"]["connections"] = self.connections
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.requests.append(scope["path"])
        body = b""
        more = scope["path"] not in ("/unread", "/big", "/slow")
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        if scope["path"] == "/slow":
            await asyncio.to_thread(self.answer.wait, HANG)
        if scope["path"] == "/big":
            body = BIG
        self.headers = dict(scope["headers"])
        length = str(len(body)).encode()
        headers = [(b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def guarded(parser: Literal["auto", "h11"] = "auto", **limits: Any) -> Iterator[Guarded]:
    rules: dict[str, Any] = {"per_address": 256, "trusted": []}
    with Guarded(Connections(**rules | limits), parser) as server:
        yield server
