"""Refunds, and both sets of books after each."""

from __future__ import annotations

import secrets
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.support.database import sql
from tests.support.shop import (
    CURRENCIES,
    MANAGES,
    REFUND_FAILS,
    Bearer,
    Shop,
    problem,
    together,
    until,
    webhook,
)

pytestmark = pytest.mark.usefixtures("invariants_hold")


# Refunds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("currency", "amount"), CURRENCIES)
def test_several_partial_refunds_add_up_to_what_was_captured(
    shop: Shop, currency: str, amount: int
) -> None:
    payment = shop.paid(amount, currency)
    first = shop.do(payment, "refunds", amount=amount // 4, reason="one came back broken")
    assert first.status_code == 201, first.text
    refund = first.json()
    assert set(refund) == {
        "id",
        "payment_id",
        "amount",
        "currency",
        "status",
        "reason",
        "origin",
        "gateway_reference",
        "created_at",
        "updated_at",
    }
    assert (refund["payment_id"], refund["amount"], refund["currency"]) == (
        payment["id"],
        amount // 4,
        currency,
    )
    assert (refund["status"], refund["reason"]) == ("succeeded", "one came back broken")
    location = first.headers["Location"]
    assert shop.shopper.get(location).json() == refund
    assert shop.status(payment) == ("partially_refunded", "paid")
    second = shop.do(payment, "refunds", amount=1).json()
    assert second["reason"] is None
    left = amount - amount // 4 - 1
    over = shop.do(payment, "refunds", amount=left + 1)
    assert problem(over) == (409, "amount_exceeds_remaining")
    assert over.json()["remaining"] == left
    assert shop.payment(payment)["amount_refunded"] == amount // 4 + 1
    last = shop.do(payment, "refunds").json()
    assert last["amount"] == left
    assert shop.payment(payment)["amount_refunded"] == amount
    assert shop.status(payment) == ("refunded", "refunded")
    assert [row["id"] for row in shop.refunds(payment)] == [last["id"], second["id"], refund["id"]]
    nothing = shop.do(payment, "refunds")
    assert problem(nothing) == (409, "amount_exceeds_remaining")
    assert nothing.json()["remaining"] == 0
    (entry,) = shop.books(payment["order_id"])
    assert entry["amount_refunded"] == amount
    assert [row["amount"] for row in entry["refunds"]] == [amount // 4, 1, left]
    refunded = ["refund.created", "refund.succeeded"]
    assert shop.told(payment["order_id"]) == [
        "payment.captured",
        "order.status_changed",
        *refunded,
        *refunded,
        *refunded,
        "order.status_changed",
    ]


def test_the_list_of_refunds_is_paged_newest_first(shop: Shop) -> None:
    payment = shop.paid()
    ids = [shop.do(payment, "refunds", amount=10).json()["id"] for _ in range(5)]
    seen: list[int] = []
    url: str | None = f"/payments/{payment['id']}/refunds?limit=2"
    while url:
        page = shop.shopper.get(url)
        seen += [row["id"] for row in page.json()]
        url = page.links.get("next", {}).get("url")
    assert seen == ids[::-1]


@pytest.mark.parametrize("until_status", ["shipped", "delivered"])
def test_an_order_that_went_out_is_refunded_all_the_same(shop: Shop, until_status: str) -> None:
    payment = shop.paid()
    assert shop.move(shop.manager, payment["order_id"], "shipped").status_code == 200
    if until_status == "delivered":
        assert shop.move(shop.manager, payment["order_id"], "delivered").status_code == 200
    assert shop.do(payment, "refunds", amount=99).status_code == 201
    assert shop.status(payment) == ("partially_refunded", until_status)
    assert shop.do(payment, "refunds").status_code == 201
    assert shop.status(payment) == ("refunded", "refunded")


def test_a_refund_that_stays_pending_holds_its_amount_until_it_fails(
    shop: Shop, engine: sa.Engine
) -> None:
    payment = shop.paid(1000, number=REFUND_FAILS)
    pending = shop.do(payment, "refunds", amount=400)
    assert (pending.status_code, pending.json()["status"]) == (201, "pending")
    assert shop.status(payment) == ("captured", "paid")
    over = shop.do(payment, "refunds", amount=601)
    assert problem(over) == (409, "amount_exceeds_remaining")
    assert over.json()["remaining"] == 600
    until(lambda: shop.refunds(payment)[0]["status"] == "failed", "the refund fails")
    assert shop.payment(payment)["amount_refunded"] == 0
    assert shop.status(payment) == ("captured", "paid")
    again = shop.do(payment, "refunds", amount=1000)  # all of it is free again
    assert (again.status_code, again.json()["status"]) == (201, "pending")
    until(lambda: shop.refunds(payment)[0]["status"] == "failed", "the second refund fails")
    assert shop.told(payment["order_id"])[2:] == ["refund.created", "refund.failed"] * 2
    (entry,) = shop.books(payment["order_id"])
    assert [row["status"] for row in entry["refunds"]] == ["failed", "failed"]
    assert entry["amount_refunded"] == 0


def fail_refund_later(shop: Shop, payment: dict[str, Any], refund: dict[str, Any]) -> None:
    """The gateway takes a refund back that it had made, and tells us."""
    reference = refund["gateway_reference"]
    sql(
        shop.engine,
        "UPDATE sandbox.refunds SET status = 'failed' WHERE reference = :reference",
        reference=reference,
    )
    state = {"reference": reference, "status": "failed"}
    state |= {"amount": refund["amount"], "currency": refund["currency"]}
    body, headers = webhook(
        shop.engine,
        {
            "id": f"evt_{secrets.token_hex(8)}",
            "type": "refund.failed",
            "payment_id": payment["id"],
            "reference": payment["gateway_reference"],
            "refund": state,
            "refund_id": refund["id"],
        },
    )
    answer = shop.manager.post("/webhooks/sandbox", content=body, headers=headers)
    assert answer.status_code == 200, answer.text


def test_a_full_refund_that_fails_after_it_succeeded_goes_to_a_person(shop: Shop) -> None:
    payment = shop.paid(1000)
    refund = shop.do(payment, "refunds").json()
    assert shop.status(payment) == ("refunded", "refunded")
    fail_refund_later(shop, payment, refund)
    after = shop.payment(payment)
    assert (after["status"], after["amount_refunded"]) == ("captured", 0)
    assert after["needs_review"] is True
    assert shop.refunds(payment)[0]["status"] == "failed"
    assert shop.told(payment["order_id"])[-2:] == ["refund.failed", "payment.needs_review"]
    listed = shop.shopper.get("/payments?needs_review=true").json()
    assert [row["id"] for row in listed] == [payment["id"]]
    assert shop.shopper.get("/payments?needs_review=false").json() == []


def test_a_partial_refund_that_fails_after_it_succeeded_frees_its_amount(shop: Shop) -> None:
    payment = shop.paid(1000)
    lost = shop.do(payment, "refunds", amount=300).json()
    assert shop.do(payment, "refunds", amount=200).status_code == 201
    fail_refund_later(shop, payment, lost)
    after = shop.payment(payment)
    assert (after["status"], after["amount_refunded"]) == ("partially_refunded", 200)
    assert shop.do(payment, "refunds", amount=801).json()["remaining"] == 800
    assert shop.do(payment, "refunds", amount=800).status_code == 201
    assert shop.status(payment) == ("refunded", "refunded")


def test_fifty_parallel_refunds_of_30_on_100_are_exactly_three(
    shop: Shop, crowd: list[httpx.Client], bearer: Bearer
) -> None:
    payment = shop.paid(100_00)
    path = f"/payments/{payment['id']}/refunds"
    headers = bearer("clerk", MANAGES)
    answers = together(
        50, lambda number: crowd[number].post(path, json={"amount": 30_00}, headers=headers)
    )
    made = [answer for answer in answers if answer.status_code == 201]
    assert len(made) == 3, [answer.text for answer in answers if answer.status_code != 409]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert {problem(answer) for answer in refused} == {(409, "amount_exceeds_remaining")}
    assert {answer.json()["remaining"] for answer in refused} == {10_00}
    assert shop.payment(payment)["amount_refunded"] == 90_00
    assert [row["status"] for row in shop.refunds(payment)] == ["succeeded"] * 3
    (entry,) = shop.books(payment["order_id"])
    assert [row["amount"] for row in entry["refunds"]] == [30_00] * 3
