"""A proxy in front of PostgreSQL: it writes down statements, falls silent, and can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
import threading
from types import TracebackType
from typing import Literal

import sqlalchemy as sa

# forward: as if it was not there. stall: bytes are taken and not passed on, in both directions.
# mute: requests arrive, answers are lost. greet: the same, once somebody has logged in.
# cut: every connection ends, and new ones end at once.
Mode = Literal["forward", "stall", "mute", "greet", "cut"]

# The number of the process that serves a client (BackendKeyData); a pooler tells one of its own.
SERVED_BY = re.compile(rb"K\x00\x00\x00\x0c....", re.DOTALL)
OF_A_POOLER = b"K\x00\x00\x00\x0c\x00\x00\x00\x07"
READY = b"Z\x00\x00\x00\x05I"  # PostgreSQL's message at the end of a login: ReadyForQuery, idle


class PostgresProxy:
    """`url` leads to the database of the URL that it was made with. `accepted` counts clients.

    `statements` is what clients have sent. BEGIN, COMMIT and ROLLBACK are statements like any
    other: what counts is what the server gets.
    """

    def __init__(self, url: str, *, pooler: bool = False) -> None:
        """`pooler`: clients take it for one, and send every statement as it is written."""
        self._pooler = pooler
        self._target = sa.make_url(url)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open = asyncio.Event()
        self._joined: set[asyncio.Task[None]] = set()
        self.accepted = 0
        self.statements: list[str] = []
        self.switch("forward")

    def __enter__(self) -> PostgresProxy:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        # In the open, or there would be nothing to read.
        query = {"sslmode": "disable", "gssencmode": "disable"}
        url = self._target.set(host="127.0.0.1", port=self.port, query=query)
        return url.render_as_string(hide_password=False)

    def switch(self, mode: Mode) -> None:
        """From now on. What a stall has held back is passed on when it ends."""
        self.mode = mode
        self._loop.call_soon_threadsafe(self._open.clear if mode == "stall" else self._open.set)
        if mode == "cut":
            self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for task in self._joined:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._joined.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # cut, or the proxy ends
                await self._join(reader, writer)
        finally:
            self._joined.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            if self.mode == "cut":
                raise asyncio.CancelledError
            await self._open.wait()
            back_reader, back_writer = await self._connect()
        except BaseException:
            writer.transport.abort()
            raise
        ways = [self._send(reader, back_writer), self._answer(back_reader, writer)]
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            writer.transport.abort()
            back_writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host = self._target.host or str(self._target.query["host"])
        port = int(str(self._target.port or self._target.query.get("port", 5432)))
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer, started = b"", False
        while data := await reader.read(65536):
            await self._open.wait()
            # Before it is passed on: who sees its effect finds it written down.
            buffer, started = self._read(buffer + data, started)
            writer.write(data)
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted = False
        while data := await reader.read(65536):
            await self._open.wait()
            if self.mode in ("forward", "stall") or (self.mode == "greet" and not greeted):
                if self._pooler and not greeted:
                    data = SERVED_BY.sub(OF_A_POOLER, data, count=1)
                writer.write(data)
                await writer.drain()
            greeted = greeted or data.endswith(READY)

    def _read(self, buffer: bytes, started: bool) -> tuple[bytes, bool]:
        """Write down the statements in what a client has sent; returns what is not whole yet.

        The first message of a connection has no type; Q is a statement, E runs a prepared one.
        """
        while True:
            kind = buffer[:1] if started else b""
            head = len(kind)
            if len(buffer) < head + 4:
                return buffer, started
            end = head + struct.unpack("!I", buffer[head : head + 4])[0]
            if len(buffer) < end:
                return buffer, started
            if kind in (b"Q", b"E"):
                self.statements.append(buffer[head + 4 : end].rstrip(b"\0").decode())
            buffer, started = buffer[end:], True

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # and the sockets are closed
