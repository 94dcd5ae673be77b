"""Statements that the event loop waits for: nobody holds up another, and every wait has an end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
import uvloop

import database
from database import TimeLimits
from greenlets import in_thread
from loop_connections import LoopConnections
from statements import PooledSender, Statement
from tests.support.postgres_proxy import PostgresProxy

T = TypeVar("T")
PID = Statement("SELECT pg_backend_pid() WHERE %(any)s")
SLEEP = Statement("SELECT pg_sleep(%(seconds)s)")
END = Statement("SELECT pg_terminate_backend(%(pid)s)")
SYNC = b"S\x00\x00\x00\x04"  # a message to PostgreSQL; a backend reads none while it works
SLEEPERS = Statement(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
    " AND query = format('SELECT pg_sleep(%%s)', %(seconds)s)"
)


class Send:
    """Sends statements in the loop that it was made in."""

    def __init__(self, engine: sa.Engine, size: int) -> None:
        self.connections = LoopConnections(engine, size)
        self.engine = engine
        self._sender = PooledSender(engine)

    async def __call__(self, statement: Statement, **parameters: Any) -> list[Any]:
        return await self.run(self._sender.rows, statement=statement, **parameters)

    async def run(self, function: Callable[..., T], **arguments: Any) -> T:
        return await self.connections.run(function, arguments)


Work = Callable[[Send], Awaitable[None]]


@pytest.fixture(scope="module")
def url(make_database: Callable[[], str]) -> str:
    return make_database()


@pytest.fixture
def proxy(url: str) -> Iterator[PostgresProxy]:
    with PostgresProxy(url) as proxy:
        yield proxy


def in_loop(
    url: str, work: Work, size: int = 2, run: Callable[..., None] = asyncio.run, **options: Any
) -> None:
    """Run it in a loop of its own, with what sends a statement there."""
    engine = database.create_engine(url, **options)

    async def main() -> None:
        send = Send(engine, size)
        await work(send)
        send.connections.close()

    try:
        run(main())
    finally:
        engine.dispose()


async def asleep(send: Send, seconds: int) -> int:
    """The backend that sleeps so long, once there is one. Those of canceled statements sleep on."""
    while not (found := await send(SLEEPERS, seconds=seconds)):  # noqa: ASYNC110 - it asks the server
        await asyncio.sleep(0.01)
    pid: int = found[0][0]
    return pid


def test_a_slow_statement_holds_up_no_other(url: str) -> None:
    async def work(send: Send) -> None:
        slow = asyncio.create_task(send(SLEEP, seconds=60))
        await asleep(send, 60)
        assert not slow.done()
        slow.cancel()
        await asyncio.wait([slow])

    in_loop(url, work)


def test_who_is_canceled_leaves_room_for_others(url: str) -> None:
    async def work(send: Send) -> None:
        for seconds in (61, 62, 63):  # more often than there are connections
            running = asyncio.create_task(send(SLEEP, seconds=seconds))
            await asleep(send, seconds)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        await asyncio.gather(*[send(PID, any=True) for _ in range(5)])

    in_loop(url, work)


def test_who_is_canceled_in_the_queue_is_passed_over(url: str) -> None:
    async def work(send: Send) -> None:
        running = asyncio.create_task(send(SLEEP, seconds=0.2))
        waiting = [asyncio.create_task(send(PID, any=True)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await running
        assert len(await asyncio.gather(*waiting[1:])) == 2
        assert waiting[0].cancelled()

    in_loop(url, work, size=1)


def test_who_is_canceled_as_its_turn_comes_gives_it_on(url: str) -> None:
    async def work(send: Send) -> None:
        async def run() -> None:
            await send(SLEEP, seconds=0.2)
            waiting.cancel()  # at the moment at which it has become its turn

        running = asyncio.create_task(run())
        await asyncio.sleep(0)
        waiting = asyncio.create_task(send(PID, any=True))
        await asyncio.wait([running, waiting])
        await asyncio.wait_for(send(PID, any=True), 30)

    in_loop(url, work, size=1)


def test_a_connection_that_the_server_ended_meanwhile_is_replaced(url: str) -> None:
    async def work(send: Send) -> None:
        [[idle]] = await send(PID, any=True)
        with sa.create_engine(url, poolclass=sa.NullPool).begin() as other:
            other.exec_driver_sql(END.sql, {"pid": idle})
        while send.connections._idle:  # noqa: ASYNC110 - the end has to arrive
            await asyncio.sleep(0.01)
        assert await send(PID, any=True) != [(idle,)]

    in_loop(url, work, size=1)


def test_a_connection_that_dies_while_it_is_waited_for_fails_that_statement_only(url: str) -> None:
    async def work(send: Send) -> None:
        running = asyncio.create_task(send(SLEEP, seconds=64))
        await send(END, pid=await asleep(send, 64))
        with pytest.raises(sa.exc.OperationalError) as lost:
            await running
        assert lost.value.connection_invalidated
        await asyncio.gather(*[send(PID, any=True) for _ in range(5)])

    in_loop(url, work)


@pytest.mark.parametrize("kind", ["alone", "in_transaction"])
def test_the_end_of_a_backend_that_has_left_bytes_unread_is_noticed_at_once(
    url: str, kind: str
) -> None:
    """The system calls that an error of the socket, and uvloop stops watching one that has one."""

    async def work(send: Send) -> None:
        for seconds in (67, 68, 69):
            await end_with_bytes_unread(send, seconds, kind)
            await asyncio.gather(*[send(PID, any=True) for _ in range(5)])

    in_loop(url, work, run=uvloop.run)


async def end_with_bytes_unread(send: Send, seconds: int, kind: str) -> None:
    sleeping = (
        send(SLEEP, seconds=seconds)
        if kind == "alone"
        else send.run(in_transaction, engine=send.engine, seconds=seconds)
    )
    running = asyncio.create_task(sleeping)
    pid = await asleep(send, seconds)
    [waited_for] = send.connections._answers
    os.write(waited_for.fileno(), SYNC)
    await send(END, pid=pid)
    with pytest.raises(sa.exc.OperationalError) as lost:
        await running
    assert database.UNRESPONSIVE not in str(lost.value)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_connection_is_used_again(url: str, run: Callable[..., None]) -> None:
    async def work(send: Send) -> None:
        backends = set()
        for _ in range(20):
            [[backend]] = await send(PID, any=True)
            backends.add(backend)
            await asyncio.sleep(0)  # the loop may have more to tell about it
        assert len(backends) == 1

    in_loop(url, work, run=run)


def test_a_server_that_does_not_answer_fails_the_statement_in_time(proxy: PostgresProxy) -> None:
    async def work(send: Send) -> None:
        await send(PID, any=True)
        proxy.switch("mute")
        with pytest.raises(sa.exc.OperationalError, match="does not answer") as missed:
            await send(PID, any=True)
        assert missed.value.connection_invalidated
        proxy.switch("forward")
        await send(PID, any=True)

    in_loop(proxy.url, work, limits=TimeLimits(statement=0.5))


def test_the_wait_for_a_connection_ends(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "POOL_WAIT_SECONDS", 0.2)

    async def work(send: Send) -> None:
        running = asyncio.create_task(send(SLEEP, seconds=60))
        await asyncio.sleep(0)
        with pytest.raises(sa.exc.TimeoutError):
            await send(PID, any=True)
        running.cancel()
        await asyncio.wait([running])

    in_loop(url, work, size=1, limits=TimeLimits(statement=None))


def test_a_refused_statement_leaves_its_connection_as_it_was(url: str) -> None:
    async def work(send: Send) -> None:
        [[before]] = await send(PID, any=True)
        with pytest.raises(sa.exc.DBAPIError, match="division by zero"):
            await send(Statement("SELECT 1 / %(zero)s"), zero=0)
        assert await send(PID, any=True) == [(before,)]

    in_loop(url, work)


def test_loops_of_several_threads_use_greenlets_of_their_own(url: str) -> None:
    async def work(send: Send) -> None:
        await asyncio.gather(*[send(PID, any=True) for _ in range(5)])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: in_loop(url, work), range(4)))


def test_outside_its_loop_a_statement_waits_in_its_thread(url: str) -> None:
    engine = database.create_engine(url)

    async def connections() -> LoopConnections:
        return LoopConnections(engine, 1)

    sender, of_other_loop = PooledSender(engine), asyncio.run(connections())
    assert len(sender.rows(PID, any=True)) == 1
    sent = of_other_loop.run(sender.rows, {"statement": PID, "any": True})
    assert len(asyncio.run(sent)) == 1
    engine.dispose()


# Transactions -----------------------------------------------------------------------------------


def in_transaction(engine: sa.Engine, seconds: float = 0) -> list[int]:
    """The backends of a transaction, both ways to send something in it."""
    with database.new_session(engine) as session, database.phase(session):
        [[first]] = session.rows(PID, any=True)
        session.rows(SLEEP, seconds=seconds)
        second = session.scalar(sa.text("SELECT pg_backend_pid()"))
        assert isinstance(second, int)
        return [first, second]


def test_a_transaction_has_one_connection_and_holds_up_nobody(url: str) -> None:
    async def work(send: Send) -> None:
        slow = asyncio.create_task(send.run(in_transaction, engine=send.engine, seconds=0.5))
        [[other]] = await send(PID, any=True)
        assert not slow.done()
        assert len({*await slow, other}) == 2

    in_loop(url, work)


def test_what_is_canceled_in_a_transaction_is_rolled_back(url: str) -> None:
    with sa.create_engine(url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE written (number int)")

    def write(engine: sa.Engine) -> None:
        with database.new_session(engine) as session, database.phase(session):
            session.rows(Statement("INSERT INTO written VALUES (1) RETURNING 1"))
            session.rows(SLEEP, seconds=65)

    async def work(send: Send) -> None:
        running = asyncio.create_task(send.run(write, engine=send.engine))
        pid = await asleep(send, 65)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await send(END, pid=pid)  # it would find out when it has slept
        assert await send(Statement("SELECT count(*) FROM written")) == [(0,)]

    in_loop(url, work)


def test_a_connection_that_is_lost_in_a_transaction_is_replaced(url: str) -> None:
    async def work(send: Send) -> None:
        running = asyncio.create_task(send.run(in_transaction, engine=send.engine, seconds=66))
        await send(END, pid=await asleep(send, 66))
        with pytest.raises(sa.exc.OperationalError):
            await running
        assert send.connections._watched.keys() == {*send.connections._idle}
        for _ in range(3):
            assert len(await send.run(in_transaction, engine=send.engine)) == 2

    in_loop(url, work)


def test_a_connection_that_sqlalchemy_gives_up_is_closed(url: str) -> None:
    def lose(engine: sa.Engine) -> None:
        with database.new_session(engine) as session, database.phase(session):
            session.connection().invalidate()

    async def work(send: Send) -> None:
        [[before]] = await send(PID, any=True)
        with pytest.raises(sa.exc.InvalidRequestError):
            await send.run(lose, engine=send.engine)
        assert await send(PID, any=True) != [(before,)]

    in_loop(url, work, size=1)


# Calls that block -------------------------------------------------------------------------------


def test_who_waits_for_a_thread_leaves_its_turn_to_others(url: str) -> None:
    async def work(send: Send) -> None:
        goes_on = threading.Event()

        def ask() -> str:
            in_thread(goes_on.wait)
            [[pid]] = PooledSender(send.engine).rows(PID, any=True)
            return f"backend {pid}"

        asking = asyncio.create_task(send.run(ask))
        for _ in range(3):
            await send(PID, any=True)
        assert not asking.done()
        goes_on.set()
        assert (await asking).startswith("backend")

    in_loop(url, work, size=1)


def test_who_is_back_from_a_thread_waits_for_its_turn(url: str) -> None:
    order: list[str] = []

    async def work(send: Send) -> None:
        def ask() -> None:
            in_thread(lambda: None)
            order.append("asked")
            PooledSender(send.engine).rows(PID, any=True)
            order.append("sent")

        async def sleep() -> None:
            await send(SLEEP, seconds=0.3)
            order.append("slept")

        await asyncio.gather(send.run(ask), sleep())
        assert order == ["asked", "slept", "sent"]
        assert send.connections._free == 1

    in_loop(url, work, size=1)


def test_whose_turn_does_not_come_after_a_thread_has_its_result_and_no_connection(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway's answer is not lost, and those that come back open no connections of their own."""
    monkeypatch.setattr(database, "POOL_WAIT_SECONDS", 0.2)

    async def work(send: Send) -> None:
        def ask() -> str:
            answer = in_thread(lambda: "charged")
            for _ in range(2):
                with pytest.raises(sa.exc.TimeoutError):
                    PooledSender(send.engine).rows(PID, any=True)
            return answer

        asking = [asyncio.create_task(send.run(ask)) for _ in range(3)]
        sleeping = asyncio.create_task(send(SLEEP, seconds=60))
        assert await asyncio.gather(*asking) == ["charged"] * 3
        assert len(send.connections._watched) == 1
        sleeping.cancel()
        await asyncio.wait([sleeping])
        assert send.connections._free == 1
        await send(PID, any=True)

    in_loop(url, work, size=1, limits=TimeLimits(statement=None))


def test_who_is_canceled_while_a_thread_works_takes_no_place(url: str) -> None:
    async def work(send: Send) -> None:
        goes_on = threading.Event()
        asking = asyncio.create_task(send.run(lambda: in_thread(goes_on.wait)))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        goes_on.set()
        assert send.connections._free == 1

    in_loop(url, work, size=1)


def test_a_call_outside_a_greenlet_is_made_right_here() -> None:
    assert in_thread(threading.current_thread) is threading.current_thread()
