"""Reapers forget what nobody needs any more, a batch at a time, and nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import database
import leases
from config import ConfigurationError, Settings, load_settings
from gateways.base import ChargeLookup, ChargeRequest
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway, delete_leftovers
from services.lookups import LookupRules
from workers import roles
from workers.roles import Resources

KEPT = {"gateway_events": 90, "sandbox": 30}  # days


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Iterator[sa.Engine]:
    """A database that no role works on but those of the tests."""
    assert settings.database_url is not None
    url = database.database_url(settings)
    database.migrate(url)
    engine = database.create_engine(url)
    yield engine
    engine.dispose()


def resources_of(settings: Settings, engine: sa.Engine, gateways: Gateways) -> Resources:
    return Resources(engine, gateways, LookupRules.from_settings(settings, gateways), settings)


@pytest.fixture(scope="module")
def resources(settings: Settings, engine: sa.Engine) -> Resources:
    return resources_of(settings, engine, Gateways.from_settings(settings, engine))


@pytest.fixture
def sandbox(engine: sa.Engine) -> SandboxGateway:
    return SandboxGateway(engine, timeout=1)


@pytest.fixture
def connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def run(connection: sa.Connection, statement: str, **values: Any) -> list[Any]:
    result = connection.execute(sa.text(statement), values)
    return list(result.scalars()) if result.returns_rows else []


def add_events(connection: sa.Connection, days: float, count: int = 1) -> set[str]:
    """Events that a gateway sent so many days ago; their ids."""
    names = {f"evt_{secrets.token_hex(8)}" for _ in range(count)}
    run(
        connection,
        "INSERT INTO gateway_events (gateway, event_id, type, created_at) "
        "SELECT 'sandbox', unnest(cast(:names AS text[])), 'charge.captured', now() - :age",
        names=list(names),
        age=timedelta(days=days),
    )
    return names


def events(connection: sa.Connection) -> set[str]:
    return set(run(connection, "SELECT event_id FROM gateway_events WHERE event_id ~ '^evt_'"))


def charge_request(key: str) -> ChargeRequest:
    return ChargeRequest(
        key=key,
        payment_id=1,
        order_id=1,
        amount=1099,
        currency="USD",
        token="tok_success",
        capture=True,
        return_url="https://shop.example/",
    )


def look_up(sandbox: SandboxGateway, key: str) -> str | None:
    """The reference of the charge behind a key."""
    charge = sandbox.look_up(ChargeLookup(charge_request(key), None, datetime.now(timezone.utc)))
    return None if charge is None else charge.reference


def drain(role: Any, resources: Resources) -> int:
    """Run a role as its loop does: until it has nothing to do."""
    total = 0
    while done := role(resources):
        total += done
    return total


# Events of gateways -----------------------------------------------------------------------------


def test_events_that_no_gateway_sends_again_are_forgotten(
    connection: sa.Connection, resources: Resources
) -> None:
    old = add_events(connection, KEPT["gateway_events"] + 0.01)
    young = add_events(connection, KEPT["gateway_events"] - 0.01) | add_events(connection, 0)
    drain(roles.reap_gateway_events, resources)
    assert not events(connection) & old
    assert events(connection) >= young


def test_a_batch_is_limited_and_the_oldest_go_first(
    connection: sa.Connection, engine: sa.Engine, resources: Resources
) -> None:
    drain(roles.reap_gateway_events, resources)
    oldest, older = add_events(connection, 300, 3), add_events(connection, 200, 2)
    with database.new_session(engine) as session, database.phase(session):
        (old,) = leases.find_old_gateway_events(session, 90, limit=3)
        assert database.delete_old(session, old) == 3
    assert events(connection) & (oldest | older) == older
    assert drain(roles.reap_gateway_events, resources) == 2


def test_more_than_a_batch_is_forgotten_by_and_by(
    connection: sa.Connection, resources: Resources
) -> None:
    drain(roles.reap_gateway_events, resources)
    add_events(connection, 100, 2 * roles.DELETE_BATCH_SIZE + 1)
    batches = [roles.reap_gateway_events(resources) for _ in range(4)]
    assert batches == [roles.DELETE_BATCH_SIZE, roles.DELETE_BATCH_SIZE, 1, 0]


def test_two_reapers_do_not_wait_for_each_other(
    connection: sa.Connection, engine: sa.Engine, resources: Resources
) -> None:
    drain(roles.reap_gateway_events, resources)
    add_events(connection, 100, 4)
    with database.new_session(engine) as first, database.phase(first):
        (old,) = leases.find_old_gateway_events(first, 90, limit=3)
        assert database.delete_old(first, old) == 3
        assert roles.reap_gateway_events(resources) == 1


# The sandbox ------------------------------------------------------------------------------------


def add_webhook(connection: sa.Connection, delivered: float | None) -> int:
    """A webhook that was due a year ago, and delivered so many days ago, or never."""
    (webhook_id,) = run(
        connection,
        "INSERT INTO sandbox.webhooks (payload, due_at, delivered_at) "
        "VALUES ('{}', now() + interval '1 year', now() - cast(:age AS interval)) RETURNING id",
        age=None if delivered is None else timedelta(days=delivered),
    )
    assert isinstance(webhook_id, int)
    return webhook_id


def test_delivered_webhooks_are_forgotten_and_others_wait(
    connection: sa.Connection, resources: Resources
) -> None:
    old = add_webhook(connection, KEPT["sandbox"] + 0.01)
    young = add_webhook(connection, KEPT["sandbox"] - 0.01)
    waiting = add_webhook(connection, None)
    drain(roles.reap_sandbox, resources)
    left = set(run(connection, "SELECT id FROM sandbox.webhooks"))
    assert left & {old, young, waiting} == {young, waiting}


def test_keys_that_nobody_came_with_are_forgotten(
    connection: sa.Connection, sandbox: SandboxGateway, resources: Resources
) -> None:
    old, young = f"old-{secrets.token_hex(4)}", f"young-{secrets.token_hex(4)}"
    for key, days in ((old, KEPT["sandbox"] + 0.01), (young, KEPT["sandbox"] - 0.01)):
        assert look_up(sandbox, key) is None
        run(
            connection,
            "UPDATE sandbox.requests SET created_at = now() - :age WHERE key = :key",
            key=key,
            age=timedelta(days=days),
        )
    drain(roles.reap_sandbox, resources)
    left = set(run(connection, "SELECT key FROM sandbox.requests"))
    assert left & {old, young} == {young}


def test_a_charge_is_found_by_its_key_however_old_it_is(
    connection: sa.Connection, engine: sa.Engine, sandbox: SandboxGateway
) -> None:
    """A key that is forgotten would be taken for a request that never came: money lost."""
    key = f"key-{secrets.token_hex(4)}"
    charge = sandbox.charge(charge_request(key))
    run(connection, "UPDATE sandbox.requests SET created_at = now() - interval '9 years'")
    while delete_leftovers(engine, 30, 100):
        pass
    assert look_up(sandbox, key) == charge.reference


def test_a_sandbox_that_is_off_has_nothing_to_forget(settings: Settings, engine: sa.Engine) -> None:
    assert roles.reap_sandbox(resources_of(settings, engine, Gateways([]))) == 0


# Settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", ["34", "0", "-1", "soon", "1e3", "36501"])
def test_events_are_kept_for_longer_than_any_gateway_sends_them_again(days: str) -> None:
    with pytest.raises(ConfigurationError, match="RETENTION_GATEWAY_EVENTS_DAYS"):
        load_settings(_env_file=None, retention_gateway_events_days=days)


@pytest.mark.parametrize("days", ["7", "0", "-1", "36501"])
def test_the_sandbox_keeps_what_may_still_be_asked(days: str) -> None:
    with pytest.raises(ConfigurationError, match="RETENTION_SANDBOX_DAYS"):
        load_settings(_env_file=None, retention_sandbox_days=days)


def test_the_defaults_are_those_that_are_documented(resources: Resources) -> None:
    assert resources.settings.retention_gateway_events_days == KEPT["gateway_events"]
    assert resources.settings.retention_sandbox_days == KEPT["sandbox"]


@pytest.mark.parametrize("days", ["35", "36500"])
def test_the_shortest_and_the_longest_retention_work(
    days: str, engine: sa.Engine, tmp_path: Path
) -> None:
    settings = load_settings(
        _env_file=None,
        data_dir=tmp_path,
        retention_gateway_events_days=days,
        retention_sandbox_days=days,
    )
    gateways = Gateways.from_settings(settings, engine)
    resources = resources_of(settings, engine, gateways)
    drain(roles.reap_gateway_events, resources)
    drain(roles.reap_sandbox, resources)


def test_each_kind_has_a_reaper_with_a_long_pause(resources: Resources) -> None:
    found = {name: role.pause for name, role in roles.roles(resources).items() if "reap" in name}
    assert found == {"reap_keys": 300.0, "reap_gateway_events": 300.0, "reap_sandbox": 300.0}
