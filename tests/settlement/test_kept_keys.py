"""Keys of several processes, over restarts, for 72 hours, and without secrets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

import main
from config import Settings
from gateways import base
from gateways.sandbox import SandboxGateway
from settlement import idempotency
from settlement.context import ClaimedKey
from tests.support.database import sql
from tests.support.factories import VISA
from tests.support.keyed_writes import (
    Write,
    fault,
    kept,
    new_key,
    pay,
    place,
    same_answer,
    save,
)
from tests.support.shop import (
    Bearer,
    Shop,
    problem,
    serve,
    settle,
    together,
    unreachable,
)
from workers import roles

pytestmark = pytest.mark.usefixtures("invariants_hold")


# Several processes, restarts, time --------------------------------------------------------------


@pytest.fixture(scope="module")
def second_url(settings: Settings, base_url: str) -> Iterator[str]:
    """A second service on the same database."""
    with serve(main.create_app(settings.model_copy(update={"run_workers": False}))) as url:
        yield url


def test_two_services_share_keys(shop: Shop, second_url: str, bearer: Bearer, user: str) -> None:
    token, method = bearer(user), shop.method()
    with httpx.Client(base_url=second_url, headers=token, timeout=60) as second:
        for _ in range(10):
            order_id = shop.place()
            body = {"payment_method_id": method}
            path, key = f"/orders/{order_id}/payments", new_key()
            clients = [shop.shopper, second]
            writes = [Write(client, "POST", path, body, {}) for client in clients] * 5
            answers = together(10, lambda number, writes=writes, key=key: writes[number].send(key))  # type: ignore[misc]
            charged = {answer.content for answer in answers if answer.status_code == 201}
            assert len(charged) == 1
            rest = {problem(answer) for answer in answers if answer.status_code != 201}
            assert rest <= {(409, "idempotency_in_progress")}
            assert len(shop.books(order_id)) == 1
            assert {writes[0].send(key).content, writes[1].send(key).content} == charged


def test_a_restart_keeps_keys(
    shop: Shop, settings: Settings, bearer: Bearer, user: str, base_url: str
) -> None:
    quiet = settings.model_copy(update={"run_workers": False})
    order_id, key = shop.place(), new_key()
    body, path = {"payment_method_id": shop.method()}, f"/orders/{order_id}/payments"
    answers = []
    for _ in range(2):
        with (
            serve(main.create_app(quiet)) as url,
            httpx.Client(base_url=url, headers=bearer(user), timeout=60) as client,
        ):
            answers.append(Write(client, "POST", path, body, {}).send(key))
    assert answers[0].status_code == 201
    same_answer(*answers)


def age(shop: Shop, key: str, hours: int) -> None:
    sql(
        shop.engine,
        "UPDATE idempotency_keys SET created_at = now() - make_interval(hours => :hours) "
        "WHERE key = :key",
        hours=hours,
        key=key,
    )


def test_a_key_is_forgotten_after_72_hours_and_not_before(shop: Shop) -> None:
    write, key = place(shop), new_key()
    first = write.send(key)
    age(shop, key, 71)
    same_answer(first, write.send(key))
    assert problem(write.send(key, json=write.other)) == (422, "idempotency_key_reused")
    age(shop, key, 73)
    new = write.send(key, json=write.other)
    assert new.status_code == 201
    assert "Idempotent-Replayed" not in new.headers
    assert new.json()["id"] != first.json()["id"]
    same_answer(new, write.send(key, json=write.other))


def test_an_expired_key_fifty_at_once_is_one_new_request(
    shop: Shop, crowd: list[httpx.Client], bearer: Bearer, user: str
) -> None:
    write, key = place(shop), new_key()
    first = write.send(key)
    age(shop, key, 73)
    headers = bearer(user) | {"Idempotency-Key": key}
    answers = together(50, lambda n: crowd[n].post("/orders", json=write.body, headers=headers))
    made = {answer.content for answer in answers if answer.status_code == 201}
    assert len(made) == 1
    assert first.content not in made
    assert len(shop.shopper.get("/orders").json()) == 2


def test_the_reaper_deletes_expired_keys_except_those_that_wait(
    shop: Shop, app: FastAPI, settings: Settings, engine: sa.Engine, sandbox: SandboxGateway
) -> None:
    resources = roles.Resources(engine, app.state.gateways, app.state.lookup_rules, settings)
    old, young, open_key = new_key(), new_key(), new_key()
    assert place(shop).send(old).status_code == 201
    assert place(shop).send(young).status_code == 201
    write = pay(shop)
    with unreachable(sandbox):
        assert write.send(open_key, **fault("timeout_after_charge")).status_code == 202
        for key, hours in ((old, 73), (young, 71), (open_key, 73)):
            age(shop, key, hours)
        assert roles.reap_keys(resources) >= 1
        assert [kept(shop, key) for key in (old, young, open_key)] == [0, 1, 1]
    settle(engine)
    roles.reap_keys(resources)
    assert kept(shop, open_key) == 0


# Secrets ----------------------------------------------------------------------------------------


def test_a_card_number_in_a_keyed_body_is_nowhere_in_the_keys(
    shop: Shop, settings: Settings
) -> None:
    key, write = new_key(), save(shop)
    assert write.send(key).status_code == 201
    assert write.send(key, json=write.other).status_code == 422
    (row,) = sql(shop.engine, "SELECT * FROM idempotency_keys WHERE key = :key", key=key)
    text = " ".join(
        bytes(value).decode() if isinstance(value, memoryview) else str(value) for value in row
    )
    assert VISA not in text
    assert VISA[:12] not in text
    assert "4242" in text  # the last four, as the answer shows them
    # An unkeyed hash of so few possible bodies would be as good as the number itself.
    canonical = json.dumps(write.body, sort_keys=True, separators=(",", ":"))
    plain = f"idempotency\nPOST\n/payment-methods\n{canonical}".encode()
    assert row.fingerprint != hashlib.sha256(plain).hexdigest()

    def fingerprint(*keys: bytes) -> list[str]:
        read = idempotency.read_key([key], "POST", "/payment-methods", write.body, keys)
        assert isinstance(read, ClaimedKey)
        return read.fingerprints

    assert fingerprint(*settings.fingerprint_keys) == [row.fingerprint]
    assert fingerprint(b"another key") != [row.fingerprint]
    # While FINGERPRINT_KEY is rotated, a repeat is still known by the older key.
    assert row.fingerprint in fingerprint(b"the newest", *settings.fingerprint_keys)


def test_a_gateway_that_fails_in_a_way_nobody_foresaw_is_unknown(
    shop: Shop, sandbox: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, key, charge = pay(shop), new_key(), sandbox.charge

    def broken(request: base.ChargeRequest) -> base.Charge:
        charge(request)
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "charge", broken)
        assert write.send(key).status_code == 202
    settle(shop.engine)
    final = write.send(key)
    assert (final.status_code, final.json()["status"]) == (201, "captured")
