"""What every test stands on: a real PostgreSQL, the real service over HTTP, users of its own.

Each module has a service and a database to itself, so that it may check, and break, the whole.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

import auth
import database
import main
import postgres_server
from config import Settings, load_settings
from tests.support.blocking import BlockingWatch
from tests.support.clients import Api
from tests.support.paths import ROOT
from tests.support.statements import WATCH

pytest_plugins = ["tests.support.shop", "tests.support.quiet"]

WATCH.listen()
BLOCKING = BlockingWatch()
BLOCKING.listen()


@pytest.fixture(autouse=True)
def every_statement_names_its_user() -> Iterator[None]:
    """Also those of the background roles, whichever test is running."""
    yield
    assert WATCH.take() == []


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """Whichever request a test makes: a call that waits belongs into a thread."""
    yield
    assert BLOCKING.take() == []


# What takes longest begins first, so that no worker is left alone with it at the end.
LONGEST = [
    "proof/test_proof.py",
    "conformance/test_contract_external.py",
    "proof/test_guards_under_kills.py",
    "proof/test_guards.py",
    "conformance/test_contract_paypal.py",
    "conformance/test_contract_stripe.py",
    "conformance/test_contract_adyen.py",
    "web/test_naughty_strings.py",
    "workers/test_quiet.py",
    "database/test_dead_connections.py",
    "services/test_two_gateways.py",
    "services/test_outside.py",
    "settlement/test_faults.py",
    "services/test_reconcile.py",
    "benchmarks/test_benchmarks.py",
    "test_startup.py",
    "services/test_gateway_outside.py",
    "web/test_fuzz.py",
    "test_postgres_server.py",
    "database/test_releases.py",
]


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores: most tests wait for somebody."""
    return 2 + (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest; mark what needs a database."""
    rank = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
    for item in items:
        if "postgres_url" in getattr(item, "fixturenames", ()):
            item.add_marker("database")


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A server to make databases on: the one of DATABASE_URL, or an embedded one."""
    url = os.environ.get("DATABASE_URL")
    if url is None:
        return postgres_server.ensure_running(tmp_path_factory.mktemp("postgres"))
    return database.database_url(load_settings(_env_file=None, database_url=url))


@pytest.fixture(scope="session")
def make_database(postgres_url: str) -> Iterator[Callable[[], str]]:
    """Makes empty databases, and drops them at the end."""
    server = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    names: list[str] = []

    def make() -> str:
        name = f"estore_test_{secrets.token_hex(6)}"
        with server.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        names.append(name)
        url = sa.make_url(postgres_url).set(database=name)
        return url.render_as_string(hide_password=False)

    yield make
    with server.connect() as connection:
        for name in names:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="module")
def settings(
    make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    return load_settings(
        _env_file=None,
        environment="development",
        database_url=make_database(),
        data_dir=tmp_path_factory.mktemp("data"),
        reconcile_after=1,
        gateway_timeout=2,
        log_level="INFO",
    )


@pytest.fixture(scope="module")
def app(settings: Settings) -> FastAPI:
    return main.create_app(settings)


@pytest.fixture(scope="module")
def base_url(app: FastAPI) -> Iterator[str]:
    """The service, listening on a port of its own."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        assert time.monotonic() < deadline, "the service took too long to start"
        time.sleep(0.01)  # polls; the loop ends as soon as the service is up
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def engine(base_url: str, app: FastAPI) -> sa.Engine:
    """The database behind the running service."""
    engine: sa.Engine = app.state.engine
    return engine


@pytest.fixture
def api(base_url: str, settings: Settings) -> Iterator[Api]:
    """`api("alice", "orders:manage")` is an HTTP client with that user's token."""
    clients: list[httpx.Client] = []

    def make(user: str | None = None, scope: str = "") -> httpx.Client:
        headers = {}
        if user is not None:
            headers["Authorization"] = f"Bearer {auth.mint(settings, user, scope)}"
        # Shorter than the server's five seconds: never a request on a connection it just closed.
        limits = httpx.Limits(keepalive_expiry=2)
        client = httpx.Client(base_url=base_url, headers=headers, timeout=60, limits=limits)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def user() -> str:
    """A user nobody else has."""
    return f"user-{secrets.token_hex(4)}x{secrets.token_hex(4)}"


@pytest.fixture
def alice(api: Api, user: str) -> httpx.Client:
    """A shopper without scopes."""
    return api(user)


@pytest.fixture
def manager(api: Api) -> httpx.Client:
    """A service that may do everything."""
    return api("manager", "orders:manage payments:manage webhooks:manage")
