"""A database that is reached and never answers: every wait ends, and the service comes back."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from psycopg2 import errors

import database
import main
from config import Settings
from database import TimeLimits
from tests.support.clients import Api
from tests.support.factories import card, order, place_order, save_card
from tests.support.postgres_proxy import Mode, PostgresProxy
from tests.support.processes import HANG, wait_for

# As with the service's own, connecting takes half of what a statement may: who stands in line while
# both are missed, and then a trial, still learns why there is no connection.
LIMITS = TimeLimits(connect=1.5, statement=3)
SLACK = 2.0  # what a busy machine may take on top of what the limits add up to
SILENT: list[Mode] = ["stall", "mute"]

Connect = Callable[..., sa.Engine]


@pytest.fixture(scope="module")
def url(make_database: Callable[[], str]) -> str:
    return make_database()


@pytest.fixture
def proxy(url: str) -> Iterator[PostgresProxy]:
    with PostgresProxy(url) as proxy:
        yield proxy


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause before the next connection is tried."""
    monkeypatch.setattr(database, "TRIAL_PAUSE", 0.0)


@pytest.fixture
def connect(proxy: PostgresProxy) -> Iterator[Connect]:
    """Makes engines that reach the database through the proxy."""
    engines: list[sa.Engine] = []

    def make(**options: Any) -> sa.Engine:
        engines.append(database.create_engine(proxy.url, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


# The service: these override the fixtures of conftest.py -----------------------------------------


@pytest.fixture(scope="module")
def way(url: str) -> Iterator[PostgresProxy]:
    """The proxy between the service and its database."""
    with PostgresProxy(url) as way:
        yield way
        way.switch("forward")


@pytest.fixture(scope="module")
def settings(settings: Settings, way: PostgresProxy) -> Settings:
    return settings.model_copy(update={"database_url": way.url})


@pytest.fixture(scope="module")
def app(settings: Settings) -> FastAPI:
    return main.create_app(settings, LIMITS)


def raw(connection: sa.Connection) -> Any:
    """The connection of psycopg2."""
    return connection.connection.dbapi_connection


def timed(request: Callable[[], httpx.Response]) -> tuple[float, httpx.Response]:
    began = time.monotonic()
    answer = request()
    return time.monotonic() - began, answer


def is_unavailable(answer: httpx.Response) -> bool:
    return (
        answer.status_code == 503
        and answer.json()["code"] == "database_unavailable"
        and int(answer.headers["retry-after"]) > 0
    )


@pytest.mark.parametrize("mode", SILENT)
def test_every_request_ends_in_time_and_the_service_comes_back_by_itself(
    api: Api, user: str, way: PostgresProxy, mode: Mode
) -> None:
    client = api(user, "orders:manage payments:manage")
    method, placed = save_card(client), place_order(client)
    place, pay = order(payment_method_id=method["id"]), f"/orders/{placed['id']}/payments"
    requests: list[Callable[[], httpx.Response]] = [
        lambda: client.get(f"/orders/{placed['id']}"),
        lambda: client.get("/orders"),
        lambda: client.get("/metrics"),
        lambda: client.get("/readyz"),
        lambda: client.post("/orders", json=place),
        lambda: client.post("/payment-methods", json=card("5555555555554444")),
        lambda: client.post(pay, json={"payment_method_id": method["id"]}),
        lambda: client.post("/orders", json=place, headers={"Idempotency-Key": user}),
    ]
    with ThreadPoolExecutor(80) as crowd:

        def all_at_once() -> list[tuple[float, httpx.Response]]:
            return list(crowd.map(timed, requests * 10))  # many more than there are threads

        way.switch(mode)
        for _ in range(2):  # on connections from before; and then on new ones
            for seconds, answer in all_at_once():
                assert is_unavailable(answer), answer.text
                assert LIMITS.statement
                assert seconds < LIMITS.statement + 2 + SLACK, answer.request.url
        assert client.get("/healthz").status_code == 200

    way.switch("forward")
    wait_for(lambda: client.get("/readyz").status_code == 200, "the service to be ready", 30)
    wait_for(lambda: client.get("/orders").status_code == 200, "the service to serve", 30)
    # The gateway's answer is lost, so it takes a background role to settle this one.
    lost = {"Sandbox-Fault": "timeout_after_charge"}
    paid = client.post(pay, json={"payment_method_id": method["id"]}, headers=lost)
    assert paid.status_code == 202, paid.text
    address = f"/payments/{paid.json()['id']}"
    wait_for(lambda: client.get(address).json()["status"] == "captured", "the workers", 30)


def test_what_a_request_may_take_behind_a_stall_is_its_statement_and_two_seconds() -> None:
    # The missing answer, and then the first new connection. Who waits in line waits no longer.
    assert database.RESPONSE_GRACE_SECONDS + database.TRIAL_SECONDS < 2
    assert database.POOL_WAIT_SECONDS == 2
    assert database.SERVING.statement == 10


def test_readiness_is_told_while_every_connection_is_in_use(
    base_url: str, engine: sa.Engine
) -> None:
    with ExitStack() as held:
        for _ in range(database.POOL_SIZE):
            held.enter_context(engine.connect())
        assert httpx.get(f"{base_url}/readyz", timeout=HANG).status_code == 200


# One engine -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", SILENT)
def test_a_server_that_accepts_and_never_answers_fails_the_connection(
    connect: Connect, proxy: PostgresProxy, mode: Mode
) -> None:
    proxy.switch(mode)
    began = time.monotonic()
    with pytest.raises(sa.exc.OperationalError, match="does not answer"):
        connect(limits=TimeLimits(connect=1)).connect()
    assert 1 <= time.monotonic() - began < 1 + SLACK


@pytest.mark.parametrize("mode", SILENT)
def test_a_connection_without_an_answer_is_closed_and_older_ones_are_given_up(
    connect: Connect, proxy: PostgresProxy, mode: Mode
) -> None:
    engine = connect(limits=TimeLimits(statement=0.5))

    def pids() -> set[int]:
        with ExitStack() as held:
            connections = [held.enter_context(engine.connect()) for _ in range(3)]
            return {c.execute(sa.text("SELECT pg_backend_pid()")).scalar_one() for c in connections}

    old = pids()
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        driver = raw(connection)
        proxy.switch(mode)
        with pytest.raises(sa.exc.OperationalError, match="does not answer") as missed:
            connection.execute(sa.text("SELECT 2"))
        assert missed.value.connection_invalidated
        assert driver.closed
    proxy.switch("forward")
    assert not pids() & old


def test_the_server_ends_a_slow_statement_itself_and_the_connection_stays(
    connect: Connect,
) -> None:
    with connect(limits=TimeLimits(statement=0.5)).connect() as connection:
        before = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        with pytest.raises(sa.exc.OperationalError) as caught:
            connection.execute(sa.text("SELECT pg_sleep(60)"))
        assert isinstance(caught.value.orig, errors.QueryCanceled)
        connection.rollback()
        assert connection.scalar(sa.text("SELECT pg_backend_pid()")) == before


@pytest.mark.usefixtures("eager")
def test_while_one_connection_is_tried_others_fail_at_once(
    connect: Connect, proxy: PostgresProxy
) -> None:
    engine = connect(limits=TimeLimits(connect=2))
    proxy.switch("stall")
    for _ in range(2):  # from now on the database is known to be gone
        with pytest.raises(sa.exc.OperationalError):
            engine.connect()
    before = proxy.accepted
    with ThreadPoolExecutor(1) as thread:
        tried = thread.submit(engine.connect)
        wait_for(lambda: proxy.accepted > before, "the one that is tried")
        for _ in range(20):
            with pytest.raises(sa.exc.OperationalError, match="does not answer"):
                engine.connect()
        assert not tried.done()
        with pytest.raises(sa.exc.OperationalError):
            tried.result(HANG)
    assert proxy.accepted == before + 1
    proxy.switch("forward")
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1


def test_who_has_waited_for_an_answer_is_not_the_next_one_to_try(
    connect: Connect, proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "TRIAL_PAUSE", HANG)
    engine = connect(limits=TimeLimits(connect=0.1))
    proxy.switch("stall")
    for _ in range(5):
        with pytest.raises(sa.exc.OperationalError, match="does not answer"):
            engine.connect()
    # The one that missed the answer, and the first that was tried.
    wait_for(lambda: proxy.accepted >= 2, "both connections")
    assert proxy.accepted == 2


def test_one_dead_connection_among_good_ones_fails_nobody_else(
    connect: Connect, proxy: PostgresProxy
) -> None:
    engine = connect(limits=TimeLimits(statement=0.5))
    with engine.connect() as connection:
        proxy.switch("stall")
        with pytest.raises(sa.exc.OperationalError):
            connection.execute(sa.text("SELECT 1"))
    before = proxy.accepted
    with ThreadPoolExecutor(5) as threads:
        connecting = [threads.submit(engine.connect) for _ in range(5)]
        wait_for(lambda: proxy.accepted > before, "the first one")
        proxy.switch("forward")
        for connected in connecting:
            connected.result(HANG).close()


@pytest.mark.usefixtures("eager")
def test_a_server_that_only_takes_longer_to_let_us_in_is_reached_at_last(
    connect: Connect, proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "TRIAL_SECONDS", 0.1)
    engine = connect(limits=TimeLimits(connect=0.5))
    proxy.switch("stall")
    for longest in (0.5, 0.1, 0.2, 0.4, 0.5, 0.5):
        began = time.monotonic()
        with pytest.raises(sa.exc.OperationalError):
            engine.connect()
        assert longest <= time.monotonic() - began


@pytest.mark.usefixtures("eager")
def test_an_outage_may_last_as_long_as_it_likes(connect: Connect, proxy: PostgresProxy) -> None:
    engine = connect(limits=TimeLimits(connect=0.001))
    proxy.switch("stall")
    for _ in range(1100):  # 2 ** 1024 is no float any more
        with pytest.raises(sa.exc.OperationalError, match="does not answer"):
            engine.connect()


@pytest.mark.usefixtures("eager")
def test_a_pooler_that_lets_us_in_without_a_server_is_no_answer(
    connect: Connect, proxy: PostgresProxy
) -> None:
    engine = connect(limits=TimeLimits(connect=1, statement=0.5))
    with engine.connect() as connection:
        proxy.switch("greet")
        with pytest.raises(sa.exc.OperationalError):
            connection.execute(sa.text("SELECT 1"))
    with pytest.raises(sa.exc.OperationalError, match="does not answer"):
        engine.connect()
    proxy.switch("forward")
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a full backlog is refused elsewhere")
def test_of_several_hosts_one_that_drops_packets_leaves_time_for_the_next(
    proxy: PostgresProxy,
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full, ExitStack() as waiting:
        port = full.getsockname()[1]
        for _ in range(2):  # nobody accepts them, and then the kernel drops who else comes
            waiting.enter_context(closing(client := socket.socket()))
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        target = sa.make_url(proxy.url)
        hosts = {"host": "127.0.0.1,127.0.0.1", "port": f"{port},{proxy.port}"}
        url = target.set(host=None, port=None, query=hosts).render_as_string(hide_password=False)
        engine = database.create_engine(url, pool_size=1)
        with engine.connect() as connection:
            assert connection.scalar(sa.text("SELECT 1")) == 1
        engine.dispose()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the options of a socket")
def test_the_kernel_watches_over_connections(connect: Connect) -> None:
    with connect().connect() as connection:
        connected = socket.socket(fileno=raw(connection).fileno())
        options = {
            name: connected.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        }
        alive = connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        connected.detach()  # it is still the connection's
    assert alive
    assert list(options.values()) == [30, 5, 3, 4000]


def test_migrations_may_take_as_long_as_they_need(connect: Connect) -> None:
    with connect(limits=database.MIGRATING).connect() as connection:
        assert connection.scalar(sa.text("SHOW statement_timeout")) == "0"
        assert raw(connection).seconds is None
