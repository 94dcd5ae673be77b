"""What is done in the sandbox's own dashboard: its books, and what its webhooks tell of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
import sqlalchemy as sa

from gateways.base import ChargeLookup, GatewayEvent, NotExecuted
from gateways.sandbox import SandboxGateway
from tests.support.database import sql
from tests.support.sandbox import charge_request, give_back, make, told


def news(sandbox: SandboxGateway, engine: sa.Engine) -> list[GatewayEvent]:
    """The events of all webhooks that were not delivered yet, signed and read again."""
    sql(engine, "UPDATE sandbox.webhooks SET due_at = now() WHERE delivered_at IS NULL")
    events = []
    for webhook_id, headers, body in sandbox.due_webhooks(1000):
        events.append(sandbox.parse_webhook(headers, body))
        sandbox.delivered(webhook_id)
    return events


def entry(sandbox: SandboxGateway) -> dict[str, Any]:
    """The only charge in the books."""
    (only,) = sandbox.page(limit=2)
    return only.as_dict()


# Refunds ----------------------------------------------------------------------------------------


def test_a_refund_made_outside_is_in_the_books_and_told_without_our_id(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    charge = make(lone)
    news(lone, lone_engine)
    made = lone.dashboard.refund(charge.reference, 400)
    assert (made.amount, made.status, made.currency, made.refund_id) == (
        400,
        "succeeded",
        "USD",
        None,
    )
    (event,) = news(lone, lone_engine)
    assert (event.type, event.payment_id, event.reference) == (
        "refund.succeeded",
        7,
        charge.reference,
    )
    assert event.refund == made
    assert entry(lone)["refunds"] == [
        {"reference": made.reference, "amount": 400, "status": "succeeded"}
    ]


def test_a_refund_of_the_service_is_told_with_its_id(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    made = give_back(lone, make(lone), 400, refund_id=5)
    assert made.refund_id == 5
    event = news(lone, lone_engine)[-1]
    assert event.refund == made


def test_a_refund_without_an_amount_is_of_all_that_is_left(lone: SandboxGateway) -> None:
    charge = make(lone)
    give_back(lone, charge, 400)
    lone.dashboard.refund(charge.reference, 250)
    assert lone.dashboard.refund(charge.reference).amount == 350
    assert entry(lone)["amount_refunded"] == 1000
    with pytest.raises(NotExecuted):
        lone.dashboard.refund(charge.reference)


def test_a_refund_made_outside_can_fail_later(lone: SandboxGateway, lone_engine: sa.Engine) -> None:
    charge = make(lone, "tok_refund_fails")
    assert lone.dashboard.refund(charge.reference, 400).status == "pending"
    sql(lone_engine, "UPDATE sandbox.refunds SET fails_at = now()")
    assert lone.tick() == 1
    assert [event.type for event in news(lone, lone_engine)][-2:] == [
        "refund.pending",
        "refund.failed",
    ]
    assert lone.dashboard.refund(charge.reference).amount == 1000


# Captures and cancellations ---------------------------------------------------------------------


@pytest.mark.parametrize(("amount", "captured"), [(None, 1000), (1000, 1000), (400, 400), (1, 1)])
def test_a_capture_made_outside_is_told_like_any(
    lone: SandboxGateway, lone_engine: sa.Engine, amount: int | None, captured: int
) -> None:
    charge = make(lone, capture=False)
    news(lone, lone_engine)
    state = lone.dashboard.capture(charge.reference, amount)
    assert (state.status, state.amount_captured) == ("captured", captured)
    created, event = news(lone, lone_engine)
    assert (created.type, event.type) == ("charge.created", "charge.captured")
    assert event.charge == state
    assert (event.payment_id, event.reference) == (7, charge.reference)


@pytest.mark.parametrize("waits", [False, True])
def test_a_cancellation_made_outside_is_told_like_any(
    lone: SandboxGateway, lone_engine: sa.Engine, waits: bool
) -> None:
    charge = make(lone, "tok_requires_action" if waits else "tok_success", capture=False)
    news(lone, lone_engine)
    state = lone.dashboard.cancel(charge.reference)
    assert (state.status, state.redirect_url, state.capture_before) == ("voided", None, None)
    (event,) = news(lone, lone_engine)
    assert (event.type, event.charge) == ("charge.voided", state)
    shopper = lone.answer_action(charge.reference, approve=True)  # who comes too late
    assert shopper is not None
    assert shopper.status == "voided"


# Disputes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("won", "status"), [(True, "won"), (False, "lost")])
def test_a_dispute_is_opened_and_closed(
    lone: SandboxGateway, lone_engine: sa.Engine, won: bool, status: str
) -> None:
    held = make(lone, capture=False)
    charge = lone.dashboard.capture(held.reference, 700)
    news(lone, lone_engine)
    dispute = lone.dashboard.open_dispute(charge.reference)
    assert (dispute.status, dispute.amount, dispute.currency) == ("open", 700, "USD")
    assert dispute.evidence_due_at is not None
    assert lone.tick() == 0
    closed = lone.dashboard.close_dispute(charge.reference, won=won)
    assert (closed.reference, closed.status) == (dispute.reference, status)
    with pytest.raises(NotExecuted):
        lone.dashboard.close_dispute(charge.reference, won=not won)
    opened, over = news(lone, lone_engine)
    assert (opened.type, opened.dispute) == ("dispute.opened", dispute)
    assert (over.type, over.dispute) == ("dispute.closed", closed)


def test_a_dispute_that_nobody_closes_is_closed_in_the_end(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    lone.dashboard.open_dispute(make(lone).reference)
    sql(lone_engine, "UPDATE sandbox.disputes SET closes_at = closes_at - interval '8 days'")
    assert lone.tick() == 1


# What cannot be ---------------------------------------------------------------------------------

Act = Callable[[SandboxGateway, str], object]
IMPOSSIBLE: dict[str, tuple[str, bool, Act]] = {
    "a refund of too much": ("success", True, lambda s, c: s.dashboard.refund(c, 1001)),
    "a refund of nothing": ("success", True, lambda s, c: s.dashboard.refund(c, 0)),
    "a refund of less": ("success", True, lambda s, c: s.dashboard.refund(c, -1)),
    "a refund of a lot": ("success", True, lambda s, c: s.dashboard.refund(c, 10**30)),
    "a refund of what is not captured": ("success", False, lambda s, c: s.dashboard.refund(c)),
    "a refund of a decline": ("generic_decline", True, lambda s, c: s.dashboard.refund(c)),
    "a capture of too much": ("success", False, lambda s, c: s.dashboard.capture(c, 1001)),
    "a capture of nothing": ("success", False, lambda s, c: s.dashboard.capture(c, 0)),
    "a second capture": ("success", True, lambda s, c: s.dashboard.capture(c)),
    "a capture of what waits": ("requires_action", False, lambda s, c: s.dashboard.capture(c)),
    "a cancellation of a capture": ("success", True, lambda s, c: s.dashboard.cancel(c)),
    "a cancellation of a decline": ("generic_decline", True, lambda s, c: s.dashboard.cancel(c)),
    "a dispute of a hold": ("success", False, lambda s, c: s.dashboard.open_dispute(c)),
    "a second dispute": ("dispute", True, lambda s, c: s.dashboard.open_dispute(c)),
    "the end of no dispute": (
        "success",
        True,
        lambda s, c: s.dashboard.close_dispute(c, won=True),
    ),
    "a charge of nobody": ("success", True, lambda s, _: s.dashboard.refund("ch_nobody")),
    "a charge that cannot be": ("success", True, lambda s, _: s.dashboard.refund("\0\ud800")),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_done_changes_nothing(
    lone: SandboxGateway, lone_engine: sa.Engine, what: str
) -> None:
    outcome, capture, act = IMPOSSIBLE[what]
    charge = make(lone, f"tok_{outcome}", capture=capture)
    before = entry(lone), told(lone_engine)
    with pytest.raises(NotExecuted):
        act(lone, charge.reference)
    assert (entry(lone), told(lone_engine)) == before


# Switches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["tok_success", "tok_requires_action", "tok_dispute"])
def test_the_next_charge_is_declined_and_only_that(lone: SandboxGateway, token: str) -> None:
    lone.dashboard.decline_next()
    assert lone.dashboard.switches().decline_next
    request = charge_request(token)
    declined = lone.charge(request)
    assert (declined.status, declined.decline and declined.decline.code) == (
        "declined",
        "generic_decline",
    )
    assert not lone.dashboard.switches().decline_next
    assert lone.charge(request) == declined  # the same request
    assert make(lone).status == "captured"


def test_a_repeat_of_an_older_charge_does_not_use_the_decline_up(lone: SandboxGateway) -> None:
    request = charge_request()
    lone.charge(request)
    lone.dashboard.decline_next()
    assert lone.charge(request).status == "captured"
    assert lone.look_up(ChargeLookup(request, None, datetime.now(timezone.utc))) is not None
    assert make(lone).status == "declined"


def test_the_decline_can_be_called_off(lone: SandboxGateway) -> None:
    lone.dashboard.decline_next()
    lone.dashboard.decline_next(False)
    assert make(lone).status == "captured"


def test_the_switches_are_kept_and_waiting_webhooks_are_counted(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    lone.dashboard.hold_webhooks()
    make(lone)
    switches = SandboxGateway(lone_engine, timeout=1).dashboard.switches()
    assert (switches.webhooks_held, switches.decline_next, switches.waiting) == (True, False, 2)
    for _ in range(60):
        make(lone)
    assert lone.dashboard.switches().waiting == 100
