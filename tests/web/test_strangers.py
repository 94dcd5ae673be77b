"""Requests without a token: what they cost, and who waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

import auth
import main
from config import Settings
from database import POOL_SIZE
from tests.support.asgi import JSON, Reply, Wire, wire
from web.route import PUBLIC_THREADS

STRANGERS = 3 * POOL_SIZE


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """No worker uses the database."""
    return settings.model_copy(update={"run_workers": False})


@pytest.fixture(scope="module")
def direct(base_url: str, app: FastAPI) -> Iterator[Wire]:
    with wire(app) as opened:
        yield opened


@pytest.fixture
def used(engine: sa.Engine) -> Iterator[list[Any]]:
    """The connections that were taken from the pool."""
    taken: list[Any] = []

    def note(connection: Any, _record: Any, _proxy: Any) -> None:
        taken.append(connection)

    sa.event.listen(engine, "checkout", note)
    yield taken
    sa.event.remove(engine, "checkout", note)


def test_a_webhook_that_is_not_signed_costs_nothing_of_the_database(
    direct: Wire, used: list[Any]
) -> None:
    forged = ("Sandbox-Signature", "t=1,v1=00")
    assert direct.send("POST", "/webhooks/sandbox", b"{}", [JSON, forged]).status == 400
    used.clear()  # the secret was read, once
    for _ in range(STRANGERS):
        assert direct.send("POST", "/webhooks/sandbox", b"{}", [JSON, forged]).status == 400
        assert direct.send("POST", "/webhooks/nobody", b"{}", [JSON]).status == 404
    assert used == []


def test_metrics_are_read_once_however_many_ask(
    direct: Wire, app: FastAPI, used: list[Any]
) -> None:
    app.state.metrics.seconds = 3600
    for _ in range(STRANGERS):
        assert direct.send("GET", "/metrics").status == 200
    assert len(used) <= 1


def test_however_many_ask_whether_it_is_ready_one_looks(
    base_url: str, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes used to stand in line behind strangers, and to find the service not ready."""
    looks: list[object] = []
    begun, go_on = threading.Event(), threading.Event()

    def look(probe: sa.Engine) -> bool:
        looks.append(probe)
        begun.set()
        return go_on.wait(60)

    monkeypatch.setattr("routers.health.is_migrated", look)

    async def ask(direct: Wire) -> list[Reply]:
        first = asyncio.create_task(direct.ask("GET", "/readyz"))
        await asyncio.to_thread(begun.wait, 60)
        others = [asyncio.create_task(direct.ask("GET", "/readyz")) for _ in range(STRANGERS)]
        await asyncio.sleep(0)  # all of them ask
        go_on.set()
        return [await first, *[await other for other in others]]

    with wire(app) as direct:
        assert {reply.status for reply in direct.run(ask(direct))} == {200}
    assert len(looks) == 1


@pytest.mark.parametrize("path", ["/sandbox", "/sandbox/actions/nobody"])
def test_no_user_waits_for_strangers(
    direct: Wire, settings: Settings, engine: sa.Engine, used: list[Any], path: str
) -> None:
    """Strangers wait for a table that somebody has locked; each wait ends after five seconds."""
    bearer = ("Authorization", f"Bearer {auth.mint(settings, 'alice')}")

    async def ask() -> tuple[Reply, list[Reply]]:
        strangers = [asyncio.create_task(direct.ask("GET", path)) for _ in range(STRANGERS)]
        while len(used) < 1 + PUBLIC_THREADS:  # noqa: ASYNC110 (threads take the connections)
            await asyncio.sleep(0.01)
        user = await direct.ask("GET", "/orders", headers=[bearer])
        assert not any(stranger.done() for stranger in strangers), "the user waited for them"
        locks.rollback()
        return user, [await stranger for stranger in strangers]

    with engine.connect() as locks:
        locks.execute(sa.text("LOCK TABLE sandbox.charges IN ACCESS EXCLUSIVE MODE"))
        user, replies = direct.run(ask())
    assert user.status == 200
    assert {reply.status for reply in replies} <= {200, 404}


def test_the_openapi_document_is_made_once_and_not_on_the_event_loop(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes a third of a second, in which nobody else would be answered."""
    makers: list[threading.Thread] = []
    generate = FastAPI.openapi

    def note(app: FastAPI) -> dict[str, Any]:
        makers.append(threading.current_thread())
        return generate(app)

    monkeypatch.setattr(FastAPI, "openapi", note)
    app = main.create_app(settings)
    with wire(app) as direct:
        answers = [direct.send("GET", "/openapi.json") for _ in range(3)]
    assert len(makers) == 1
    assert makers[0] is not threading.current_thread()
    assert [answer.json() for answer in answers] == [app.openapi()] * 3


def test_a_long_path_of_a_file_is_not_looked_up(
    direct: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*_: object) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(StaticFiles, "lookup_path", look_up)
    assert direct.send("GET", "/docs/assets" + "/a" * 7000).status == 404
