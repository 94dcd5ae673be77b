"""The same key is the same request, done once: each row of the contract's table, to the byte."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.orm import Session

import database
import idempotency_keys
import main
import schemas
from config import Settings
from errors import IdempotencyInProgress, IdempotencyKeyInvalid
from gateways import base
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from permissions import PAYMENTS_MANAGE, Principal
from services import orders, payments, refunds
from settlement import idempotency
from settlement.context import CallContext, ClaimedKey, StoredResponse
from settlement.gateway_calls import GatewayAccess
from tests.support.clients import Api
from tests.support.database import sql
from tests.support.factories import VISA, card, order
from tests.support.shop import (
    ACTION,
    DECLINED,
    MANAGES,
    Bearer,
    Shop,
    problem,
    serve,
    settle,
    together,
    unreachable,
    until,
)
from workers import roles

pytestmark = pytest.mark.usefixtures("invariants_hold")


@dataclass(frozen=True)
class Write:
    """A write that a token authenticates."""

    client: httpx.Client
    method: str
    path: str
    body: dict[str, Any]
    other: dict[str, Any]  # another body that is as good
    status: int = 201

    def send(self, key: str, **changes: Any) -> httpx.Response:
        headers = {"Idempotency-Key": key} | changes.pop("headers", {})
        options = {"method": self.method, "url": self.path, "json": self.body} | changes
        return self.client.request(**options, headers=headers)


def save(shop: Shop) -> Write:
    return Write(shop.shopper, "POST", "/payment-methods", card(), card("5555555555554444"))


def place(shop: Shop) -> Write:
    return Write(shop.shopper, "POST", "/orders", order(), order(quantity=2))


def cancel(shop: Shop) -> Write:
    path = f"/orders/{shop.place()}/status"
    return Write(shop.shopper, "PUT", path, {"status": "canceled"}, {"status": "pending"}, 200)


def pay(shop: Shop) -> Write:
    path, body = f"/orders/{shop.place()}/payments", {"payment_method_id": shop.method()}
    return Write(shop.shopper, "POST", path, body, body | {"capture_method": "manual"})


def capture(shop: Shop) -> Write:
    path = f"/payments/{shop.authorized()['id']}/capture"
    return Write(shop.manager, "POST", path, {"amount": 900}, {"amount": 901}, 200)


def void(shop: Shop) -> Write:
    path = f"/payments/{shop.authorized()['id']}/void"
    return Write(shop.manager, "POST", path, {}, {}, 200)


def refund(shop: Shop) -> Write:
    path = f"/payments/{shop.paid()['id']}/refunds"
    return Write(shop.manager, "POST", path, {"amount": 300, "reason": "é"}, {"amount": 300})


WRITES = [save, place, cancel, pay, capture, void, refund]
AT_A_GATEWAY = [pay, capture, void, refund]
every_write = pytest.mark.parametrize("prepare", WRITES, ids=lambda write: write.__name__)
every_money_write = pytest.mark.parametrize(
    "prepare", AT_A_GATEWAY, ids=lambda write: write.__name__
)
Prepare = Callable[[Shop], Write]


def new_key() -> str:
    return f"key-{secrets.token_hex(8)}"


def same_answer(first: httpx.Response, again: httpx.Response) -> None:
    """`again` is a replay of `first`, to the byte."""
    assert (again.status_code, again.content) == (first.status_code, first.content)
    for name in ("Location", "Content-Type"):
        assert again.headers.get(name) == first.headers.get(name)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]


def fault(name: str) -> dict[str, Any]:
    return {"headers": {"Sandbox-Fault": name}}


def effects(shop: Shop) -> tuple[Any, ...]:
    """How much there is, of everything."""
    return tuple(
        sql(
            shop.engine,
            "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM payment_methods), "
            "(SELECT count(*) FROM payments), (SELECT count(*) FROM refunds), "
            "(SELECT count(*) FROM events), (SELECT count(*) FROM sandbox.charges), "
            "(SELECT count(*) FROM sandbox.requests WHERE NOT fenced)",
        )[0]
    )


# Finished ---------------------------------------------------------------------------------------


@every_write
def test_a_repeat_gets_the_first_answer_to_the_byte(shop: Shop, prepare: Prepare) -> None:
    write, key = prepare(shop), new_key()
    first = write.send(key)
    assert first.status_code == write.status, first.text
    assert ("Location" in first.headers) == (write.status == 201)
    settle(shop.engine)
    before = effects(shop)
    for _ in range(3):
        same_answer(first, write.send(key))
    assert effects(shop) == before


@every_write
def test_key_order_and_white_space_do_not_make_another_request(
    shop: Shop, prepare: Prepare
) -> None:
    write, key = prepare(shop), new_key()
    first = write.send(key)
    assert first.status_code == write.status, first.text
    backwards = dict(reversed(write.body.items()))
    text = json.dumps(backwards, indent=3, ensure_ascii=True) + "\r\n\t "
    headers = {"Content-Type": "application/json; charset=utf-8"}
    same_answer(first, write.send(key, json=None, content=text.encode(), headers=headers))


@every_write
def test_another_method_path_or_body_is_422(shop: Shop, prepare: Prepare, api: Api) -> None:
    write, key = prepare(shop), new_key()
    reused = (422, "idempotency_key_reused")
    first = write.send(key)
    assert first.status_code == write.status, first.text
    if write.other != write.body:
        assert problem(write.send(key, json=write.other)) == reused
    elsewhere = "/orders" if write.path != "/orders" else "/payment-methods"
    body = card() if elsewhere == "/payment-methods" else order()
    assert problem(write.send(key, method="POST", url=elsewhere, json=body)) == reused
    if write.method == "POST":
        other_method = f"/orders/{shop.place()}/status"
        moved = write.send(key, method="PUT", url=other_method, json={"status": "canceled"})
        assert problem(moved) == reused
    same_answer(first, write.send(key))


def test_no_body_and_an_empty_object_are_not_the_same_json(shop: Shop) -> None:
    write, key = void(shop), new_key()
    assert write.send(key, json=None).status_code == 200
    assert problem(write.send(key, json={})) == (422, "idempotency_key_reused")


def test_keys_belong_to_their_user(shop: Shop, api: Api) -> None:
    key = new_key()
    mine = place(shop).send(key)
    other = api(f"other-{secrets.token_hex(4)}")
    theirs = other.post("/orders", json=order(quantity=3), headers={"Idempotency-Key": key})
    assert theirs.status_code == 201
    assert "Idempotent-Replayed" not in theirs.headers
    assert theirs.json()["id"] != mine.json()["id"]


def test_keys_belong_to_the_subject_whatever_scopes_its_token_has(
    shop: Shop, user: str, api: Api
) -> None:
    write, key = place(shop), new_key()
    first = write.send(key)
    headers = {"Idempotency-Key": key}
    same_answer(first, api(user, MANAGES).post("/orders", json=write.body, headers=headers))


def test_a_decline_is_replayed_under_the_first_request_id(shop: Shop) -> None:
    path = f"/orders/{shop.place()}/payments"
    body = {"payment_method_id": shop.method(DECLINED)}
    key = new_key()
    write = Write(shop.shopper, "POST", path, body, body)
    first = write.send(key, headers={"X-Request-Id": "the-first"})
    assert problem(first) == (402, "payment_declined")
    again = write.send(key, headers={"X-Request-Id": "the-second"})
    same_answer(first, again)
    assert again.json()["request_id"] == "the-first"
    assert again.headers["X-Request-Id"] == "the-second"
    assert len(shop.books(int(path.split("/")[2]))) == 1


def test_conflicts_are_replayed_although_the_state_has_changed(shop: Shop) -> None:
    """An order paid already, a duplicate, an illegal move, an amount: the work ended in them."""
    payment = shop.authorized()
    over = Write(
        shop.manager, "POST", f"/payments/{payment['id']}/capture", {"amount": 5000}, {}, 409
    )
    refused = Write(shop.manager, "POST", f"/payments/{payment['id']}/refunds", {}, {}, 409)
    paid_path = f"/orders/{payment['order_id']}/payments"
    again = Write(shop.shopper, "POST", paid_path, {"payment_method_id": shop.method()}, {}, 409)
    duplicate = Write(shop.shopper, "POST", "/payment-methods", card(), {}, 409)
    status = f"/orders/{payment['order_id']}/status"
    illegal = Write(shop.manager, "PUT", status, {"status": "delivered"}, {}, 409)
    firsts = []
    for write in (over, refused, again, duplicate, illegal):
        key = new_key()
        first = write.send(key)
        assert first.status_code == 409, first.text
        firsts.append((write, key, first))
    shop.do(payment, "capture")
    shop.shopper.delete(f"/payment-methods/{shop.methods.pop(VISA)}")
    for write, key, first in firsts:
        same_answer(first, write.send(key))


def test_a_key_on_a_read_or_a_patch_is_ignored(shop: Shop) -> None:
    headers = {"Idempotency-Key": new_key()}
    method = shop.method()
    for _ in range(2):
        assert shop.shopper.get("/orders", headers=headers).status_code == 200
        body = {"is_default": True}
        answer = shop.shopper.patch(f"/payment-methods/{method}", json=body, headers=headers)
        assert answer.status_code == 200
        assert "Idempotent-Replayed" not in answer.headers
    created = shop.shopper.post("/orders", json=order(), headers=headers)
    assert created.status_code == 201


# Malformed keys ---------------------------------------------------------------------------------


def test_a_malformed_key_is_400(shop: Shop) -> None:
    before = effects(shop)
    keys: list[Any] = ["", "x" * 256, "é".encode(), "ключ".encode(), b"a\tb", b"\xff"]
    for key in keys:
        answer = shop.shopper.post("/orders", json=order(), headers={"Idempotency-Key": key})
        assert problem(answer) == (400, "idempotency_key_invalid"), key
    assert effects(shop) == before


def test_a_blank_key_is_refused_by_the_service_itself(settings: Settings) -> None:
    """A client would not even send it."""
    for values in ([" "], [""], ["a", "a"], ["\t"]):
        with pytest.raises(IdempotencyKeyInvalid):
            idempotency.read_key(values, "POST", "/orders", {}, settings.fingerprint_keys)


def test_a_repeated_key_is_400(shop: Shop) -> None:
    for names in (["Idempotency-Key"] * 2, ["Idempotency-Key", "idempotency-key"]):
        headers = [(name, "same") for name in names]
        answer = shop.shopper.post("/orders", json=order(), headers=headers)
        assert problem(answer) == (400, "idempotency_key_invalid")


@pytest.mark.parametrize("filler", ["x", " ! \"#$%&'()*+,-./:;<=>?@[]^_`{|}~\\"])
def test_a_key_may_hold_any_printable_ascii(shop: Shop, filler: str) -> None:
    for length in (1, 255):
        key = (
            (secrets.token_hex(8) + filler * 300)[: length - 1] + "."
            if length > 1
            else filler.strip()[0]
        )
        write = place(shop)
        first = write.send(key)
        assert first.status_code == 201
        same_answer(first, write.send(key))
        sql(shop.engine, "DELETE FROM idempotency_keys WHERE key = :key", key=key)


@every_write
def test_a_malformed_key_stops_every_write(shop: Shop, prepare: Prepare) -> None:
    write = prepare(shop)
    settle(shop.engine)
    before = effects(shop)
    assert problem(write.send("x" * 256)) == (400, "idempotency_key_invalid")
    assert effects(shop) == before


# What was refused before it began ---------------------------------------------------------------


def kept(shop: Shop, key: str) -> int:
    return int(
        sql(shop.engine, "SELECT count(*) FROM idempotency_keys WHERE key = :key", key=key)[0][0]
    )


def test_what_was_refused_before_it_began_is_not_stored(
    shop: Shop, user: str, base_url: str, api: Api
) -> None:
    key = new_key()
    write = place(shop)
    refused = [
        (400, write.send(key, json=order(quantity=0))),
        (400, write.send(key, json=order(payment_method_id=2**40))),
        (
            400,
            write.send(key, json=None, content=b"{", headers={"Content-Type": "application/json"}),
        ),
        (401, write.send(key, headers={"Authorization": "Bearer nonsense"})),
        (403, write.send(key, json=order(user_id="somebody else"))),
        (404, write.send(key, method="POST", url="/orders/0/payments", json={})),
        (404, write.send(key, method="POST", url="/payments/0/capture", json={})),
        (404, write.send(key, method="PUT", url="/orders/0/status", json={"status": "paid"})),
        (413, write.send(key, json=order(product_id="x" * 70_000))),
        (415, write.send(key, json=None, content=b"{}", headers={"Content-Type": "text/plain"})),
    ]
    for status, answer in refused:
        assert answer.status_code == status, answer.text
        assert kept(shop, key) == 0
    first = write.send(key)
    assert first.status_code == 201
    assert "Idempotent-Replayed" not in first.headers
    same_answer(first, write.send(key))


@pytest.mark.parametrize("what", ["capture", "void", "refunds"])
def test_a_refusal_for_want_of_a_scope_is_not_stored(
    shop: Shop, user: str, api: Api, what: str
) -> None:
    key = {"Idempotency-Key": new_key()}
    payment = shop.paid() if what == "refunds" else shop.authorized()
    path = f"/payments/{payment['id']}/{what}"
    assert shop.shopper.post(path, json={}, headers=key).status_code == 403
    allowed = api(user, PAYMENTS_MANAGE).post(path, json={}, headers=key)
    assert allowed.status_code in (200, 201), allowed.text
    assert "Idempotent-Replayed" not in allowed.headers


def test_payment_in_progress_is_not_stored(shop: Shop, sandbox: SandboxGateway) -> None:
    order_id = shop.place()
    path, body = f"/orders/{order_id}/payments", {"payment_method_id": shop.method()}
    write, key = Write(shop.shopper, "POST", path, body, body), new_key()
    with unreachable(sandbox):
        assert shop.try_pay(order_id, **fault("timeout_before_charge")).status_code == 202
        assert problem(write.send(key)) == (409, "payment_in_progress")
        assert kept(shop, key) == 0
    settle(shop.engine)
    assert write.send(key).status_code == 201


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


# The first died half-way ------------------------------------------------------------------------


class Killed(BaseException):
    """kill -9: no handler of ours runs."""


class Dying(SandboxGateway):
    """The process dies while it asks: before the gateway has done it, or after."""

    after = False

    def _die(self, ask: Callable[[Any], Any], request: Any) -> Any:
        if self.after:
            ask(request)
        raise Killed

    def charge(self, request: Any) -> Any:
        return self._die(super().charge, request)

    def capture(self, request: Any) -> Any:
        return self._die(super().capture, request)

    def void(self, request: Any) -> Any:
        return self._die(super().void, request)

    def refund(self, request: Any) -> Any:
        return self._die(super().refund, request)


def context_of(settings: Settings, user: str, scope: str, write: Write, key: str) -> CallContext:
    """The context that the route makes of this request."""
    read = idempotency.read_key(
        [key], write.method, write.path, write.body, settings.fingerprint_keys
    )
    principal = Principal(user, frozenset(scope.split()))
    return CallContext(principal, "the-dead", read, settings.gateway_timeout + 5)


def work_of(
    write: Write, session: Session, context: CallContext, access: GatewayAccess
) -> Callable[[], StoredResponse]:
    number = int(write.path.split("/")[2])
    if write.path.endswith("/capture"):
        return lambda: payments.capture(session, context, access, number, write.body["amount"])
    if write.path.endswith("/void"):
        return lambda: payments.void(session, context, access, number)
    if write.path.endswith("/refunds"):
        data = schemas.RefundCreate(**write.body)
        return lambda: refunds.refund(session, context, access, number, data)
    pay_with = schemas.PaymentCreate(**write.body)
    return lambda: payments.pay(session, context, access, number, pay_with)


@every_money_write
@pytest.mark.parametrize("after", [False, True], ids=["before_the_gateway", "after_the_gateway"])
def test_a_retry_finishes_what_died_between_its_claim_and_its_settling(
    shop: Shop,
    settings: Settings,
    engine: sa.Engine,
    user: str,
    prepare: Prepare,
    after: bool,
    sandbox: SandboxGateway,
) -> None:
    write, key = prepare(shop), new_key()
    settle(engine)
    sub = user if prepare is pay else f"clerk-{user}"
    dying = Dying(engine, timeout=2)
    dying.after = after
    context = context_of(settings, sub, "" if prepare is pay else MANAGES, write, key)
    with unreachable(sandbox):
        with database.new_session(engine) as session:
            work = work_of(
                write, session, context, GatewayAccess(Gateways([dying]), lookup_after=1)
            )
            with pytest.raises(Killed):
                idempotency.run(session, context, work)
        assert problem(write.send(key)) == (409, "idempotency_in_progress")  # it may still live
        expire_owner(shop, key)
        retried = write.send(key)
        assert retried.status_code == 202, retried.text
    settle(engine)
    final = write.send(key)
    if after:
        assert final.status_code == write.status, final.text
    else:
        assert problem(final) == (502, "gateway_unavailable")
        assert write.send(new_key()).status_code == write.status
    assert write.send(key).content == final.content
    number = int(write.path.split("/")[2])
    order_id = number if prepare is pay else shop.payment({"id": number})["order_id"]
    (entry,) = shop.books(order_id)
    if prepare is refund:
        assert [row["amount"] for row in entry["refunds"]] == [300]


def expire_owner(shop: Shop, key: str) -> None:
    sql(
        shop.engine,
        "UPDATE idempotency_keys SET owned_until = now() - interval '1 second' WHERE key = :key",
        key=key,
    )


@every_write
def test_a_retry_does_what_died_right_after_it_claimed_its_key(
    shop: Shop, settings: Settings, engine: sa.Engine, user: str, prepare: Prepare
) -> None:
    write, key = prepare(shop), new_key()
    sub = f"clerk-{user}" if write.client is shop.manager else user
    claim = context_of(settings, sub, "", write, key).key
    assert claim is not None
    with database.new_session(engine) as session, database.phase(session):
        idempotency_keys.claim_key(
            session,
            sub,
            key,
            fingerprint=claim.fingerprints[0],
            request_id="the-dead",
            seconds=60,
        )
    assert problem(write.send(key)) == (409, "idempotency_in_progress")
    expire_owner(shop, key)
    first = write.send(key)
    assert first.status_code == write.status, first.text
    same_answer(first, write.send(key))


def test_an_owner_that_was_replaced_cannot_commit(
    shop: Shop, settings: Settings, engine: sa.Engine, user: str
) -> None:
    write, key = place(shop), new_key()
    context = context_of(settings, user, "", write, key)
    data = schemas.OrderCreate(**write.body)
    answers: list[httpx.Response] = []
    with database.new_session(engine) as session:

        def slow() -> StoredResponse:
            expire_owner(shop, key)
            answers.append(write.send(key))  # somebody takes over, and finishes
            return orders.create(session, context, data, "USD")

        with pytest.raises(IdempotencyInProgress):
            idempotency.run(session, context, slow)
    assert answers[0].status_code == 201
    listed = shop.shopper.get("/orders").json()
    assert [row["id"] for row in listed] == [answers[0].json()["id"]]
    same_answer(answers[0], write.send(key))


@every_money_write
def test_an_owner_that_was_replaced_cannot_ask_a_gateway(
    shop: Shop,
    settings: Settings,
    engine: sa.Engine,
    user: str,
    prepare: Prepare,
    sandbox: SandboxGateway,
) -> None:
    write, key = prepare(shop), new_key()
    sub = user if prepare is pay else f"clerk-{user}"
    context = context_of(settings, sub, "" if prepare is pay else MANAGES, write, key)
    answers: list[httpx.Response] = []
    with database.new_session(engine) as session:
        access = GatewayAccess(Gateways([sandbox]), lookup_after=1)
        work = work_of(write, session, context, access)

        def slow() -> StoredResponse:
            expire_owner(shop, key)
            answers.append(write.send(key))
            return work()

        with pytest.raises(IdempotencyInProgress):
            idempotency.run(session, context, slow)
    assert answers[0].status_code == write.status, answers[0].text
    same_answer(answers[0], write.send(key))
    if prepare is refund:
        assert len(shop.refunds({"id": write.path.split("/")[2]})) == 1


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
    write, key = pay(shop), new_key()

    def broken(request: base.ChargeRequest) -> base.Charge:
        sandbox._charge(request)
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "charge", broken)
        assert write.send(key).status_code == 202
    settle(shop.engine)
    final = write.send(key)
    assert (final.status_code, final.json()["status"]) == (201, "captured")
