"""A TCP proxy in front of PostgreSQL that can stop forwarding without closing anything."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Literal

import sqlalchemy as sa

# forward: as if it was not there. stall: bytes are taken and not passed on, in both directions.
# mute: requests arrive, answers are lost. greet: the same, once somebody has logged in.
Mode = Literal["forward", "stall", "mute", "greet"]

READY = b"Z\x00\x00\x00\x05I"  # PostgreSQL's message at the end of a login: ReadyForQuery, idle


class Proxy:
    """`url` leads to the database of the URL that it was made with. `accepted` counts clients."""

    def __init__(self, url: str) -> None:
        self._target = sa.make_url(url)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open = asyncio.Event()
        self.accepted = 0
        self.switch("forward")

    def __enter__(self) -> Proxy:
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
        url = self._target.set(host="127.0.0.1", port=self.port, query={})
        return url.render_as_string(hide_password=False)

    def switch(self, mode: Mode) -> None:
        """From now on. What a stall has held back is passed on when it ends."""
        self.mode = mode
        self._loop.call_soon_threadsafe(self._open.clear if mode == "stall" else self._open.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the proxy ends
            await self._join(reader, writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            await self._open.wait()
            back_reader, back_writer = await self._connect()
        except BaseException:
            writer.transport.abort()
            raise
        ways = [
            self._pass_on(reader, back_writer),
            self._pass_on(back_reader, writer, answers=True),
        ]
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

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool = False
    ) -> None:
        greeted = False
        while data := await reader.read(65536):
            await self._open.wait()
            if (
                not answers
                or self.mode in ("forward", "stall")
                or (self.mode == "greet" and not greeted)
            ):
                writer.write(data)
                await writer.drain()
            greeted = greeted or data.endswith(READY)

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # and the sockets are closed
