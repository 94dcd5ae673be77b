"""The load generator: requests that are bytes already, over connections that stay open.

It runs in a process of its own (`apart`), so that its work is not the server's.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import cast

import uvloop

ANSWER_SECONDS = 30.0  # that the last answers may take when the time is over


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: `requests` once each, or again and again, for `seconds` at most."""

    port: int
    requests: list[bytes]
    repeats: bool
    connections: int
    seconds: float
    status: int  # that every answer should have


@dataclass(slots=True)
class Outcome:
    """What became of it. Whatever is not an answer with the expected status is an error."""

    answers: int
    errors: int
    first_error: str
    seconds: float
    latencies: list[float] = field(repr=False)  # in seconds, sorted

    def percentile(self, percent: float) -> float:
        """The latency in seconds that so many percent of the answers did not exceed."""
        if not self.latencies:
            return 0.0
        last = len(self.latencies) - 1
        return self.latencies[min(last, int(len(self.latencies) * percent / 100))]


def end_of(answer: bytes) -> int | None:
    """Where the first answer in these bytes ends; None while it is not whole."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = answer[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        return end + 4
    length = head[at + 17 :].partition(b"\r\n")[0]
    whole = end + 4 + int(length)
    return whole if len(answer) >= whole else None


class _Run:
    """One load, while it goes on."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.source: Iterator[bytes] = cycle(load.requests) if load.repeats else iter(load.requests)
        self.prefix = f"HTTP/1.1 {load.status} ".encode()
        self.latencies: list[float] = []
        self.errors = 0
        self.first_error = ""
        self.began = time.perf_counter()
        self.last = self.began
        self.deadline = self.began + load.seconds

    def take(self) -> bytes | None:
        """The next request; None when the time is over or all have been sent."""
        return None if time.perf_counter() >= self.deadline else next(self.source, None)

    def fail(self, why: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or why


class _Client(asyncio.Protocol):
    """One connection: a request at a time."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.ended = asyncio.get_running_loop().create_future()
        self.buffer = b""
        self.sent: float | None = None  # when, while an answer is due

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._next()

    def _next(self) -> None:
        request = self.run.take()
        if request is None:
            self.transport.close()
            return
        self.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        answer = self.buffer + data if self.buffer else data
        end = end_of(answer)
        if end is None:
            self.buffer = answer
            return
        self.buffer = b""
        assert self.sent is not None
        now = self.run.last = time.perf_counter()
        if answer.startswith(self.run.prefix):
            self.run.latencies.append(now - self.sent)
        else:
            self.run.fail(answer[:1000].decode(errors="replace"))
        self.sent = None
        self._next()

    def connection_lost(self, _error: Exception | None) -> None:
        if self.sent is not None:
            self.run.fail("the connection was closed, or no answer came in time")
        if not self.ended.done():
            self.ended.set_result(None)


async def _run(load: Load) -> Outcome:
    run = _Run(load)
    loop = asyncio.get_running_loop()
    clients: list[_Client] = []
    for _ in range(load.connections):
        try:
            _, client = await loop.create_connection(lambda: _Client(run), "127.0.0.1", load.port)
        except OSError as error:
            run.fail(f"no connection: {error}")
        else:
            clients.append(client)
    ends = [client.ended for client in clients]
    if ends:
        await asyncio.wait(ends, timeout=load.seconds + ANSWER_SECONDS)
    for client in clients:
        client.transport.abort()
    if ends:
        await asyncio.wait(ends)
    latencies = sorted(run.latencies)
    return Outcome(
        len(latencies), run.errors, run.first_error, max(run.last - run.began, 1e-9), latencies
    )


def send(load: Load) -> Outcome:
    """Send it, from this process."""
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(_run(load))
    finally:
        loop.close()


@contextmanager
def apart() -> Iterator[Callable[[Load], Outcome]]:
    """`send`, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        yield lambda load: pool.submit(send, load).result()
