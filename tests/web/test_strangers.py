"""Requests without a token: what they cost, and who waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI

import auth
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
