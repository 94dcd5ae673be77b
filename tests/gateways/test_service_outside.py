"""Money moved in the dashboards of gateways over the network is in our books, told of or not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

import database
from services import comparison, reconcile
from tests.gateways.stand import Stand, ok

ACTS = 500


@pytest.fixture(params=["stripe", "paypal"])
def stand(request: pytest.FixtureRequest) -> Stand:
    found: Stand = request.getfixturevalue(request.param)
    return found


def act(stand: Stand, rng: random.Random, payment: dict[str, Any]) -> bool:
    """Something that a person does in the dashboard; False if it cannot be done there."""
    reference = payment["gateway_reference"]
    (entry,) = stand.charges(payment["id"])
    left = entry.amount_captured - entry.amount_refunded
    acts: list[Callable[[], Any]] = []
    if left:
        acts.append(lambda: stand.bench.refund_outside(reference, left))
        acts.append(lambda: stand.bench.refund_outside(reference, rng.randint(1, left)))
    if entry.status == "authorized":
        acts.append(lambda: stand.bench.capture_outside(reference, 1000))
        acts.append(lambda: stand.bench.capture_outside(reference, rng.randint(1, 999)))
        acts.append(lambda: stand.bench.void_outside(reference))
    if acts:
        rng.choice(acts)()
    return bool(acts)


def wander(stand: Stand, seed: int) -> list[dict[str, Any]]:
    """Five hundred acts on twenty payments, of which nothing is left in the end."""
    rng = random.Random(seed)
    payments = [
        (stand.authorized(1000) if number % 2 else stand.paid(1000))[1] for number in range(20)
    ]
    done = [act(stand, rng, rng.choice(payments)) for _ in range(ACTS)]
    assert done.count(True) >= 20
    return payments


def agree(stand: Stand, payments: list[dict[str, Any]]) -> None:
    report = comparison.reconcile(stand.engine, stand.app.state.lookup_rules)
    found = (report["mismatches"], report["still_open"], report["needs_review"])
    assert found == ([], 0, 0)
    for payment in payments:
        after = stand.payment(payment["id"])
        (entry,) = stand.charges(payment["id"])
        if after["status"] == "voided":
            assert entry.status == "voided"
        else:
            assert after["amount_captured"] == entry.amount_captured
            assert after["amount_refunded"] == entry.amount_refunded
        refunds = ok(stand.manager.get(f"/payments/{payment['id']}/refunds"), 200)
        assert {refund["origin"] for refund in refunds} <= {"gateway"}


def test_five_hundred_acts_that_no_webhook_tells_of(stand: Stand) -> None:
    stand.relay.holds = True
    agree(stand, wander(stand, 1))


def test_five_hundred_acts_that_every_webhook_tells_of_twice(stand: Stand) -> None:
    payments = wander(stand, 2)
    for delivery in list(stand.relay.deliveries):
        assert stand.relay.post(delivery).status_code in (200, 409)
    agree(stand, payments)


def test_the_role_finds_what_no_webhook_tells_of(stand: Stand) -> None:
    stand.relay.holds = True
    _, payment = stand.paid(1000)
    stand.bench.refund_outside(payment["gateway_reference"], 300)
    with stand.engine.begin() as connection:
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
    with database.new_session(stand.engine) as session:
        comparison.run_once(session, stand.app.state.lookup_rules, stand.gateway)
    reconcile.run_once(stand.engine, stand.app.state.lookup_rules, "waiting", stand.gateway)
    after = stand.becomes(payment["id"], "partially_refunded")
    assert (after["amount_refunded"], after["needs_review"]) == (300, False)
