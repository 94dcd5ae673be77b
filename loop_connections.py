"""Database connections that the event loop waits for, so that a statement needs no thread.

The code that sends a statement is a plain function, in a greenlet of its own: it stands still until
PostgreSQL has answered, and the loop goes on meanwhile. docs/adr/0007 says what that saves.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import sqlalchemy
from psycopg2 import OperationalError, extensions

from database import UNRESPONSIVE, Connection
from greenlets import in_greenlet, wait_for

T = TypeVar("T")


class LoopConnections:
    """The connections of one event loop, each in autocommit: BEGIN and COMMIT are statements.

    As many functions run at once as there are connections, so none waits for another's; the rest
    stand in line before they have a greenlet. A function uses one connection at a time.
    """

    def __init__(self, engine: sqlalchemy.Engine, size: int) -> None:
        self.engine = engine
        self._size = size
        self._longest: float = engine.pool.timeout()  # type: ignore[attr-defined] # wait in the line
        self._loop = asyncio.get_running_loop()
        self._free = size  # how many more functions may run
        self._line: deque[asyncio.Future[None]] = deque()  # first come, first served
        self._idle: list[Connection] = []
        self._watched: dict[Connection, int] = {}  # by their numbers for the system
        self._answers: dict[Connection, asyncio.Future[None]] = {}  # that are waited for
        # Of their own, so that nobody who connects waits for others: a lost server takes a second.
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="connect")

    async def run(self, function: Callable[..., T], arguments: dict[str, Any]) -> T:
        """Run it in a greenlet. Raises TimeoutError when its turn does not come in time."""
        if asyncio.get_running_loop() is not self._loop:
            return function(**arguments)  # its statements block this thread
        return await in_greenlet(function, arguments, self)

    async def enter(self) -> None:
        """Wait until a function may run. Raises TimeoutError, and CancelledError."""
        if self._free > 0:
            self._free -= 1
            return
        turn = self._loop.create_future()
        self._line.append(turn)
        timer = self._loop.call_later(self._longest, _fail, turn, _no_turn())
        try:
            await turn
        except BaseException:
            if not turn.cancelled() and turn.exception() is None:
                self.leave()  # its turn had come
            raise
        finally:
            timer.cancel()

    def leave(self) -> None:
        """A function has ended, or waits for something else: it is the next one's turn."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def acquire(self) -> Connection:
        """A connection, in a greenlet. Raises OperationalError."""
        return self._idle.pop() if self._idle else self._open()

    def release(self, connection: Connection, *, broken: bool = False) -> None:
        """Take it back, with no transaction open. One that was lost takes the idle ones with it."""
        if not broken and not connection.closed:
            self._idle.append(connection)
            if len(self._idle) > self._size:
                self._close(connection)
            return
        self._unwatch(connection)
        connection.close()
        for idle in list(self._idle):
            self._close(idle)

    def close(self) -> None:
        """Close the idle ones, at the end of the service."""
        self._threads.shutdown(wait=False)
        for connection in list(self._idle):
            self._close(connection)

    def _open(self) -> Connection:
        # Looking up the server's name blocks, so connecting stays in a thread.
        connection = wait_for(self._loop.run_in_executor(self._threads, self._connect))
        connection.suspend = partial(self._wait, connection)
        self._watch(connection)
        return connection

    def _connect(self) -> Connection:
        pooled = self.engine.raw_connection()
        connection = pooled.driver_connection
        assert isinstance(connection, Connection)
        pooled.detach()  # it stays with this loop, and the pool may open another
        connection.autocommit = True
        connection.detached = pooled
        return connection

    def _wait(self, connection: Connection) -> None:
        """What psycopg2 calls to wait for an answer. It closes the connection if this raises."""
        number = connection.fileno()
        timer = None
        try:
            while (state := connection.poll()) != extensions.POLL_OK:
                if connection not in self._watched:
                    self._watch(connection)
                answer = self._answers[connection] = self._loop.create_future()
                if timer is None and connection.seconds is not None:
                    timer = self._loop.call_later(connection.seconds, self._missed, connection)
                if state == extensions.POLL_WRITE:
                    self._loop.add_writer(number, _succeed, answer)
                try:
                    wait_for(answer)
                finally:
                    del self._answers[connection]
                    if state == extensions.POLL_WRITE:
                        self._loop.remove_writer(number)
        except BaseException:
            self._unwatch(connection)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _missed(self, connection: Connection) -> None:
        connection.server.missed()
        _fail(self._answers[connection], OperationalError(UNRESPONSIVE))

    def _watch(self, connection: Connection) -> None:
        self._watched[connection] = number = connection.fileno()
        self._loop.add_reader(number, self._readable, connection)

    def _readable(self, connection: Connection) -> None:
        news = _news(self._watched[connection])
        if news & select.POLLERR:
            self._unwatch(connection)  # uvloop tells of a failure once, and watches no longer
        answer = self._answers.get(connection)
        if answer is not None:
            _succeed(answer)
        elif news and connection in self._idle:  # the server has ended it
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._idle.remove(connection)
        self._unwatch(connection)
        connection.close()

    def _unwatch(self, connection: Connection) -> None:
        """Before it is closed, for then somebody else may get its number."""
        number = self._watched.pop(connection, None)
        if number is not None:
            self._loop.remove_reader(number)


def _news(number: int) -> int:
    """What there is to read now, and whether the other end is gone. Nothing, when asyncio tells of
    an answer that has been read meanwhile."""
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return sum(events for _, events in poll.poll(0))


def _no_turn() -> Exception:
    return sqlalchemy.exc.TimeoutError("no connection was free in time")


def _succeed(answer: asyncio.Future[None]) -> None:
    if not answer.done():
        answer.set_result(None)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
