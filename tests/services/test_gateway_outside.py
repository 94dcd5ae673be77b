"""Money moved in the dashboards of gateways over the network is in our books, told of or not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

import database
from conformance.harness import Harness, ok
from services import lookups, reconciliation

ACTS = 200


@pytest.fixture(params=["stripe", "paypal"])
def harness(request: pytest.FixtureRequest) -> Harness:
    found: Harness = request.getfixturevalue(request.param)
    return found


def act(harness: Harness, rng: random.Random, payment: dict[str, Any]) -> bool:
    """Something that a person does in the dashboard; False if it cannot be done there."""
    reference = payment["gateway_reference"]
    (entry,) = harness.charges(payment["id"])
    left = entry.amount_captured - entry.amount_refunded
    acts: list[Callable[[], Any]] = []
    if left:
        acts.append(lambda: harness.target.refund_outside(reference, left))
        acts.append(lambda: harness.target.refund_outside(reference, rng.randint(1, left)))
    if entry.status == "authorized":
        acts.append(lambda: harness.target.capture_outside(reference, 1000))
        acts.append(lambda: harness.target.capture_outside(reference, rng.randint(1, 999)))
        acts.append(lambda: harness.target.void_outside(reference))
    if acts:
        rng.choice(acts)()
    return bool(acts)


def wander(harness: Harness, seed: int) -> list[dict[str, Any]]:
    """Acts by chance on twenty payments, of which hardly anything is left in the end."""
    rng = random.Random(seed)
    payments = [
        (harness.authorized(1000) if number % 2 else harness.paid(1000))[1] for number in range(20)
    ]
    done = [act(harness, rng, rng.choice(payments)) for _ in range(ACTS)]
    assert done.count(True) >= 20
    return payments


def agree(harness: Harness, payments: list[dict[str, Any]]) -> None:
    report = reconciliation.reconcile(harness.engine, harness.app.state.lookup_rules)
    found = (report["mismatches"], report["still_open"], report["needs_review"])
    assert found == ([], 0, 0)
    for payment in payments:
        after = harness.payment(payment["id"])
        (entry,) = harness.charges(payment["id"])
        if after["status"] == "voided":
            assert entry.status == "voided"
        else:
            assert after["amount_captured"] == entry.amount_captured
            assert after["amount_refunded"] == entry.amount_refunded
        refunds = ok(harness.manager.get(f"/payments/{payment['id']}/refunds"), 200)
        assert {refund["origin"] for refund in refunds} <= {"gateway"}


def test_acts_that_no_webhook_tells_of(harness: Harness) -> None:
    harness.relay.holds = True
    agree(harness, wander(harness, 1))


def test_acts_that_every_webhook_tells_of_twice(harness: Harness) -> None:
    payments = wander(harness, 2)
    for delivery in list(harness.relay.deliveries):
        assert harness.relay.post(delivery).status_code in (200, 409)
    agree(harness, payments)


def test_the_role_finds_what_no_webhook_tells_of(harness: Harness) -> None:
    harness.relay.holds = True
    _, payment = harness.paid(1000)
    harness.target.refund_outside(payment["gateway_reference"], 300)
    with harness.engine.begin() as connection:
        # PayPal lists no charges: a payment is read again when it has come to an age.
        connection.execute(
            sa.text(
                "UPDATE payments SET created_at = now() - interval '121 seconds' WHERE id = :i"
            ),
            {"i": payment["id"]},
        )
        connection.execute(
            sa.text(
                "UPDATE comparisons SET next_at = now(), compared_until = now() - interval '60 s'"
            )
        )
    with database.new_session(harness.engine) as session:
        reconciliation.run_once(session, harness.app.state.lookup_rules, harness.gateway)
    lookups.run_once(harness.engine, harness.app.state.lookup_rules, "waiting", harness.gateway)
    after = harness.becomes(payment["id"], "partially_refunded")
    assert (after["amount_refunded"], after["needs_review"]) == (300, False)
