"""Orders, payments and refunds, driven at random next to a model that knows the contract only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

import database
from services import audit
from tests.support.factories import VISA
from tests.support.shop import ACTION, INSUFFICIENT, Shop, settle

pytestmark = pytest.mark.usefixtures("invariants_hold")

LIVE = ("requires_action", "authorized", "captured", "partially_refunded", "refunded")


@dataclass
class Payment:
    """What the contract says about one payment."""

    id: int
    status: str
    amount: int
    next_action: dict[str, Any] | None = None
    captured: int = 0
    refunds: list[int] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.captured - sum(self.refunds)


@dataclass
class Order:
    """What the contract says about one order."""

    id: int
    amount: int
    currency: str
    status: str = "pending"
    payments: list[Payment] = field(default_factory=list)
    events: int = 1

    @property
    def live(self) -> Payment | None:
        return next((payment for payment in self.payments if payment.status in LIVE), None)

    @property
    def latest(self) -> Payment | None:
        return self.payments[-1] if self.payments else None


# The moves of the contract's table.
BY_OWNER = {("pending", "canceled")}
BY_MANAGER = {
    ("pending", "canceled"),
    ("pending", "paid"),
    ("authorized", "canceled"),
    ("paid", "shipped"),
    ("shipped", "delivered"),
}
BY_PAYMENTS = {
    ("pending", "authorized"),
    ("pending", "paid"),
    ("authorized", "paid"),
    ("authorized", "canceled"),
    ("paid", "refunded"),
    ("shipped", "refunded"),
    ("delivered", "refunded"),
}
STATUSES = ["pending", "authorized", "paid", "shipped", "delivered", "canceled", "refunded"]


class Model(RuleBasedStateMachine):
    """Every step is a request, and the model foretells its answer."""

    shop: Shop
    app: FastAPI
    orders = Bundle("orders")

    def __init__(self) -> None:
        super().__init__()
        self.placed: list[Order] = []

    @rule(
        target=orders,
        amount=st.one_of(st.integers(1, 20), st.integers(1, 999_999_999_999)),
        currency=st.sampled_from(["USD", "JPY", "KWD"]),
    )
    def place(self, amount: int, currency: str) -> Any:
        if len(self.placed) == 4:  # few orders, much done to each
            return multiple()
        order = Order(self.shop.place(amount, currency), amount, currency)
        self.placed.append(order)
        return order

    @rule(
        order=orders,
        number=st.sampled_from([VISA, VISA, ACTION, INSUFFICIENT]),
        capture_method=st.sampled_from(["automatic", "manual"]),
        lost=st.booleans(),
    )
    def pay(self, order: Order, number: str, capture_method: str, lost: bool) -> None:
        headers = {"Sandbox-Fault": "timeout_after_charge"} if lost else None
        answer = self.shop.try_pay(order.id, number, headers, capture_method=capture_method)
        live = order.live
        if live is not None and live.status == "requires_action":  # it gives way
            live.status, live = "canceled", None
            order.events += 1
        if order.status == "canceled":
            return refused(answer, 409, "invalid_status_transition")
        if live is not None:
            return refused(answer, 409, "order_already_paid", payment_id=live.id)
        if order.status != "pending":
            return refused(answer, 409, "order_already_paid")
        if lost:
            assert (answer.status_code, answer.json()["status"]) == (202, "pending")
            settle(self.shop.engine)
            shown = self.shop.payment(answer.json())
        elif number == INSUFFICIENT:
            refused(answer, 402, "payment_declined", decline_code="insufficient_funds")
            shown = self.shop.payment({"id": answer.json()["payment_id"]})
        else:
            assert answer.status_code == 201, answer.text
            shown = answer.json()
        payment = Payment(shown["id"], "failed", order.amount)
        order.payments.append(payment)
        order.events += 1
        if number == ACTION:
            payment.status, payment.next_action = "requires_action", shown["next_action"]
        elif number == VISA:
            self._take(order, payment, capture_method)
        return None

    def _take(self, order: Order, payment: Payment, capture_method: str) -> None:
        if capture_method == "manual":
            payment.status = order.status = "authorized"
        else:
            payment.status, payment.captured, order.status = "captured", payment.amount, "paid"
        order.events += 1

    @rule(order=orders, decision=st.sampled_from(["approve", "decline"]))
    def answer_page(self, order: Order, decision: str) -> None:
        for payment in order.payments:
            if payment.next_action is None:
                continue
            answer = self.shop.answer_page({"next_action": payment.next_action}, decision)
            assert answer.status_code == 200, answer.text
            if payment.status == "requires_action":
                order.events += 1
                if decision == "approve":
                    method = self.shop.payment({"id": payment.id})["capture_method"]
                    self._take(order, payment, method)
                else:
                    payment.status = "failed"

    @rule(order=orders, part=st.one_of(st.none(), st.floats(0.01, 1.5)))
    def capture(self, order: Order, part: float | None) -> None:
        payment = order.latest
        if payment is None:
            return
        amount = max(1, int(payment.amount * part)) if part is not None else None
        if amount is not None and amount > 999_999_999_999:
            return
        body: dict[str, Any] = {} if amount is None else {"amount": amount}
        answer = self.shop.do({"id": payment.id}, "capture", **body)
        if payment.status != "authorized":
            refused(answer, 409, "invalid_status_transition", current_status=payment.status)
        elif amount is not None and amount > payment.amount:
            refused(answer, 409, "amount_exceeds_remaining", remaining=payment.amount)
        else:
            assert answer.status_code == 200, answer.text
            payment.captured = amount or payment.amount
            payment.status, order.status = "captured", "paid"
            order.events += 2

    @rule(order=orders)
    def void(self, order: Order) -> None:
        payment = order.latest
        if payment is None:
            return
        answer = self.shop.do({"id": payment.id}, "void")
        if payment.status == "authorized":
            assert answer.status_code == 200, answer.text
            payment.status, order.status = "voided", "canceled"
            order.events += 2
        elif payment.status == "requires_action":
            assert answer.status_code == 200, answer.text
            payment.status = "canceled"
            order.events += 1
        else:
            refused(answer, 409, "invalid_status_transition", current_status=payment.status)

    @rule(order=orders, part=st.one_of(st.none(), st.floats(0.01, 1.2)), lost=st.booleans())
    def refund(self, order: Order, part: float | None, lost: bool) -> None:
        payment = order.latest
        if payment is None:
            return None
        amount = max(1, int(payment.captured * part)) if part is not None else None
        if amount is not None and amount > 999_999_999_999:
            return None
        headers = {"Sandbox-Fault": "error_after_charge"} if lost else None
        body = {} if amount is None else {"amount": amount}
        answer = self.shop.do({"id": payment.id}, "refunds", headers, **body)
        if payment.captured == 0:
            return refused(answer, 409, "invalid_status_transition", current_status=payment.status)
        if payment.left == 0 or (amount is not None and amount > payment.left):
            return refused(answer, 409, "amount_exceeds_remaining", remaining=payment.left)
        assert answer.status_code == (202 if lost else 201), answer.text
        settle(self.shop.engine)
        payment.refunds.append(amount or payment.left)
        order.events += 2
        payment.status = "partially_refunded" if payment.left else "refunded"
        if payment.left == 0:
            order.status = "refunded"
            order.events += 1
        return None

    @rule(order=orders, status=st.sampled_from(STATUSES), manages=st.booleans())
    def move(self, order: Order, status: str, manages: bool) -> None:
        client = self.shop.manager if manages else self.shop.shopper
        answer = self.shop.move(client, order.id, status)
        move = (order.status, status)
        mine = BY_MANAGER if manages else BY_OWNER
        live = order.live
        if order.status == status:
            assert (answer.status_code, answer.json()["status"]) == (200, status)
        elif move not in BY_OWNER | BY_MANAGER | BY_PAYMENTS:
            allowed = [to for to in STATUSES if (order.status, to) in mine]
            refused(
                answer,
                409,
                "invalid_status_transition",
                current_status=order.status,
                allowed_statuses=allowed,
            )
        elif move not in mine:
            refused(answer, 403, "forbidden")
        elif live is not None and live.status == "requires_action" and status != "canceled":
            refused(answer, 409, "payment_in_progress", payment_id=live.id)
        else:
            assert (answer.status_code, answer.json()["status"]) == (200, status), answer.text
            if live is not None and live.status in ("requires_action", "authorized"):
                live.status = "voided" if live.status == "authorized" else "canceled"
                order.events += 1
            order.status = status
            order.events += 1

    @invariant()
    def the_service_shows_what_the_model_says(self) -> None:
        for order in self.placed:
            assert self.shop.order(order.id)["status"] == order.status
            if order.latest is not None:
                shown = self.shop.payment({"id": order.latest.id})
                assert (shown["status"], shown["amount_captured"], shown["amount_refunded"]) == (
                    order.latest.status,
                    order.latest.captured,
                    sum(order.latest.refunds),
                )

    def teardown(self) -> None:
        settle(self.shop.engine)
        for order in self.placed:
            shown = self.shop.shopper.get(f"/orders/{order.id}/payments").json()
            assert [(row["id"], row["status"], row["needs_review"]) for row in shown] == [
                (payment.id, payment.status, False) for payment in reversed(order.payments)
            ]
            books = {entry["payment_id"]: entry for entry in self.shop.books(order.id)}
            assert len(self.shop.books(order.id)) == len(books) == len(order.payments)
            for payment in order.payments:
                entry = books[payment.id]
                assert (entry["amount_captured"], entry["amount"]) == (
                    payment.captured,
                    payment.amount,
                )
                assert [refund["amount"] for refund in entry["refunds"]] == payment.refunds
            assert len(self.shop.events(order.id)) == order.events
        with database.new_session(self.shop.engine) as session:
            assert audit.check(session, self.app.state.gateways) == []


def refused(answer: httpx.Response, status: int, code: str, **members: Any) -> None:
    """This answer is the problem that the model foretold."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["code"] == code, answer.text
    assert {name: body[name] for name in members} == members


def test_the_service_and_the_model_never_diverge(shop: Shop, app: FastAPI) -> None:
    run_state_machine_as_test(
        type("Machine", (Model,), {"shop": shop, "app": app}),
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            deadline=None,
            database=None,
            derandomize=bool(os.environ.get("CI")),
            suppress_health_check=list(HealthCheck),
        ),
    )
