"""A repeat while the first request runs, or while its outcome is unknown."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from gateways.sandbox import SandboxGateway
from tests.support.keyed_writes import (
    Prepare,
    Write,
    capture,
    every_money_write,
    every_write,
    fault,
    kept,
    new_key,
    place,
    refund,
    same_answer,
    save,
)
from tests.support.shop import (
    ACTION,
    DECLINED,
    Bearer,
    Shop,
    problem,
    settle,
    together,
    unreachable,
    until,
)

pytestmark = pytest.mark.usefixtures("invariants_hold")


# While the first runs ---------------------------------------------------------------------------


@every_write
def test_while_the_first_runs_a_repeat_is_409_and_comes_back_later(
    shop: Shop, prepare: Prepare
) -> None:
    write, key = prepare(shop), new_key()
    settle(shop.engine)
    table = "payment_methods" if prepare is save else "orders"
    with ThreadPoolExecutor(1) as pool:
        with shop.engine.begin() as connection:  # nobody gets past this table meanwhile
            connection.execute(sa.text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))
            running = pool.submit(write.send, key)
            until(lambda: kept(shop, key) == 1, "the first has claimed its key")
            refused = write.send(key)
            assert problem(refused) == (409, "idempotency_in_progress")
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.json()["retryable"] is True
            if write.other != write.body:
                other = write.send(key, json=write.other)
                assert problem(other) == (422, "idempotency_key_reused")
            assert not running.done()
        first = running.result()
    assert first.status_code == write.status, first.text
    same_answer(first, write.send(key))


def test_one_key_fifty_at_once_is_one_charge(
    shop: Shop, crowd: list[httpx.Client], bearer: Bearer, user: str
) -> None:
    token, method = bearer(user), shop.method()
    for _ in range(20):
        order_id, key = shop.place(), new_key()
        path = f"/orders/{order_id}/payments"
        headers = token | {"Idempotency-Key": key}

        def send(number: int, path: str = path, headers: Any = headers) -> httpx.Response:
            return crowd[number].post(path, json={"payment_method_id": method}, headers=headers)

        answers = together(50, send)
        charged = [answer for answer in answers if answer.status_code == 201]
        assert charged, [answer.text for answer in answers]
        assert len({answer.content for answer in charged}) == 1
        assert len({answer.headers["Location"] for answer in charged}) == 1
        firsts = [answer for answer in charged if "Idempotent-Replayed" not in answer.headers]
        assert len(firsts) == 1
        for answer in answers:
            if answer.status_code != 201:
                assert problem(answer) == (409, "idempotency_in_progress")
                assert int(answer.headers["Retry-After"]) >= 1
        assert len(shop.books(order_id)) == 1
        same_answer(firsts[0], send(0))


@pytest.mark.parametrize("prepare", [capture, refund, place, save], ids=lambda w: w.__name__)
def test_one_key_many_at_once_is_one_effect_for_other_writes_too(
    shop: Shop, prepare: Prepare
) -> None:
    write, key = prepare(shop), new_key()
    answers = together(12, lambda _: write.send(key))
    done = [answer for answer in answers if answer.status_code == write.status]
    assert len({answer.content for answer in done}) == 1
    rest = {problem(answer) for answer in answers if answer.status_code != write.status}
    assert rest <= {(409, "idempotency_in_progress")}
    assert sum("Idempotent-Replayed" not in answer.headers for answer in done) == 1


# The outcome is unknown -------------------------------------------------------------------------


@every_money_write
def test_an_open_outcome_is_202_until_it_is_known_and_then_what_the_first_would_have_got(
    shop: Shop, prepare: Prepare, sandbox: SandboxGateway
) -> None:
    write, key = prepare(shop), new_key()
    settle(shop.engine)
    with unreachable(sandbox):
        first = write.send(key, **fault("timeout_after_charge"))
        assert first.status_code == 202, first.text
        assert "Idempotent-Replayed" not in first.headers
        for _ in range(2):
            again = write.send(key)
            assert (again.status_code, again.json()) == (202, first.json())
            assert again.headers["Idempotent-Replayed"] == "true"
        assert write.other == write.body or write.send(key, json=write.other).status_code == 422
    settle(shop.engine)
    final = write.send(key)
    assert final.status_code == write.status, final.text
    assert final.headers["Idempotent-Replayed"] == "true"
    assert final.json()["id"] == first.json()["id"]
    ends = {"pay": "captured", "capture": "captured", "void": "voided", "refund": "succeeded"}
    assert final.json()["status"] == ends[prepare.__name__]
    assert ("Location" in final.headers) == (write.status == 201)
    assert write.send(key).content == final.content


@every_money_write
def test_an_open_outcome_that_never_happened_ends_in_502_and_is_replayed(
    shop: Shop, prepare: Prepare
) -> None:
    write, key = prepare(shop), new_key()
    assert write.send(key, **fault("timeout_before_charge")).status_code == 202
    settle(shop.engine)
    final = write.send(key)
    assert problem(final) == (502, "gateway_unavailable")
    assert final.headers["Idempotent-Replayed"] == "true"
    assert write.send(key).content == final.content
    assert write.send(new_key()).status_code == write.status  # nothing stands in the way


def test_an_open_decline_ends_in_402(shop: Shop) -> None:
    body = {"payment_method_id": shop.method(DECLINED)}
    write = Write(shop.shopper, "POST", f"/orders/{shop.place()}/payments", body, body)
    key = new_key()
    assert write.send(key, **fault("error_after_charge")).status_code == 202
    settle(shop.engine)
    final = write.send(key)
    assert problem(final) == (402, "payment_declined")
    assert final.json()["decline_code"] == "generic_decline"
    assert write.send(key).content == final.content


def test_an_open_cancellation_is_202_with_the_order_and_then_200(
    shop: Shop, sandbox: SandboxGateway
) -> None:
    payment = shop.pay(shop.place(), ACTION)
    body = {"status": "canceled"}
    path = f"/orders/{payment['order_id']}/status"
    write, key = Write(shop.shopper, "PUT", path, body, body), new_key()
    with unreachable(sandbox):
        first = write.send(key, **fault("timeout_after_charge"))
        assert (first.status_code, first.json()["status"]) == (202, "pending")
        again = write.send(key)
        assert (again.status_code, again.json()) == (202, first.json())
    settle(shop.engine)
    final = write.send(key)
    assert (final.status_code, final.json()["status"]) == (200, "canceled")
    assert write.send(key).content == final.content
