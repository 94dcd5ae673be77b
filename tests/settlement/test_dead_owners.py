"""The first request died half-way: who finishes it, and who may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

import database
import idempotency_keys
import schemas
from config import Settings
from errors import IdempotencyInProgress
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from idempotency_keys import StoredResponse
from permissions import Principal
from services import orders, payments, refunds
from sessions import Session
from settlement import idempotency
from settlement.context import CallContext
from settlement.gateway_calls import GatewayAccess
from tests.support.database import sql
from tests.support.keyed_writes import (
    Prepare,
    Write,
    every_money_write,
    every_write,
    new_key,
    pay,
    place,
    refund,
    same_answer,
)
from tests.support.shop import (
    MANAGES,
    Shop,
    problem,
    settle,
    unreachable,
)

pytestmark = pytest.mark.usefixtures("invariants_hold")


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
                idempotency.run(session, context, work, lambda: None)
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
            idempotency.run(session, context, slow, lambda: None)
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
            idempotency.run(session, context, slow, lambda: None)
    assert answers[0].status_code == write.status, answers[0].text
    same_answer(answers[0], write.send(key))
    if prepare is refund:
        assert len(shop.refunds({"id": write.path.split("/")[2]})) == 1
