"""Money that somebody moves without the service: in the gateway's dashboard, or at a bank.

Look-ups and lists have to show it. The scenarios call the adapter themselves, because what the
service makes of it is not part of the gateway's contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from conformance import records
from conformance.harness import Harness
from conformance.registry import scenario
from conformance.target import NotApplicable
from gateways.base import Charge, Gateway, ListedCharge

A_MOMENT: Final = timedelta(minutes=1)
MOST_PAGES: Final = 1000  # a listing ends


def gateway_of(harness: Harness) -> Gateway:
    gateway: Gateway = harness.app.state.gateways.get(harness.gateway)
    return gateway


def look_up(harness: Harness, payment: Mapping[str, Any]) -> Charge:
    """A payment's charge, as the gateway's books show it."""
    if not harness.target.can_retrieve:
        raise NotApplicable("the books of this gateway cannot be read")
    query = records.charge_lookup(harness.engine, payment["id"])
    found = gateway_of(harness).look_up(query)
    assert found is not None, "the charge was made"
    return found


def listed(harness: Harness, since: datetime) -> list[ListedCharge]:
    """All pages of the gateway's list."""
    gateway, found, cursor = gateway_of(harness), list[ListedCharge](), None
    for _ in range(MOST_PAGES):
        page = gateway.list_charges(since, cursor)
        found += page.charges
        cursor = page.cursor
        if cursor is None:
            return found
    raise AssertionError("the list does not end")


def entries(harness: Harness, payment: Mapping[str, Any], since: datetime) -> list[ListedCharge]:
    """How a payment is listed, where there is a list."""
    if not gateway_of(harness).capabilities.lists_charges:
        return []
    found = [one for one in listed(harness, since) if one.payment_id == payment["id"]]
    assert found, "it is listed"
    key = records.charge_lookup(harness.engine, payment["id"]).request.key
    assert {one.key for one in found} == {key}
    return found


def states(
    harness: Harness, payment: Mapping[str, Any], since: datetime
) -> list[tuple[str, int, set[tuple[int, str, int | None]] | None]]:
    """A payment's charge in a look-up and wherever it is listed: its state and its refunds."""
    charges = [look_up(harness, payment), *(e.charge for e in entries(harness, payment, since))]
    return [
        (
            charge.status,
            charge.amount_captured,
            None
            if charge.refunds is None
            else {(r.amount, r.status, r.refund_id) for r in charge.refunds},
        )
        for charge in charges
    ]


def start() -> datetime:
    """From when on a scenario lists: gateways count in whole seconds."""
    return datetime.now(timezone.utc) - A_MOMENT


@scenario
def a_refund_made_outside_is_in_the_look_up_and_in_the_list(harness: Harness) -> None:
    since = start()
    _, payment = harness.paid(1000)
    harness.target.refund_outside(payment["gateway_reference"], 300)
    for status, captured, refunds in states(harness, payment, since):
        assert (status, captured) == ("captured", 1000)
        assert refunds == {(300, "succeeded", None)}


@scenario
def a_refund_of_ours_is_told_from_one_made_outside(harness: Harness) -> None:
    since = start()
    _, payment = harness.paid(1000)
    answer = harness.post(harness.manager, f"/payments/{payment['id']}/refunds", amount=400)
    refund = harness.refund_settled(payment["id"], answer.json()["id"])
    harness.target.refund_outside(payment["gateway_reference"], 300)
    for _, _, refunds in states(harness, payment, since):
        assert refunds == {(400, "succeeded", refund["id"]), (300, "succeeded", None)}


@scenario
def a_capture_made_outside_is_in_the_look_up_and_in_the_list(harness: Harness) -> None:
    since = start()
    _, payment = harness.authorized(1000)
    harness.target.capture_outside(payment["gateway_reference"], 700)
    for status, captured, refunds in states(harness, payment, since):
        assert (status, captured) == ("captured", 700)
        assert not refunds  # what was not captured is no refund


@scenario
def a_cancellation_made_outside_is_in_the_look_up_and_in_the_list(harness: Harness) -> None:
    since = start()
    _, payment = harness.authorized(1000)
    harness.target.void_outside(payment["gateway_reference"])
    for status, captured, refunds in states(harness, payment, since):
        assert (status, captured) == ("voided", 0)
        assert not refunds


@scenario
def a_dispute_is_in_the_list(harness: Harness) -> None:
    since = start()
    _, payment = harness.paid()
    reference = harness.target.dispute(payment["gateway_reference"])
    found = entries(harness, payment, since)
    if not found:
        raise NotApplicable("this gateway lists no charges")
    disputes = [dispute for one in found for dispute in one.disputes]
    assert {(dispute.reference, dispute.status) for dispute in disputes} == {(reference, "open")}


@scenario
def pages_of_the_list_hold_everything_once_or_more(harness: Harness) -> None:
    if not gateway_of(harness).capabilities.lists_charges:
        raise NotApplicable("this gateway lists no charges")
    since = start()
    payments = [harness.paid(amount)[1] for amount in (700, 800, 900, 1000, 1100)]
    with harness.target.short_pages():
        found = {one.payment_id: one.charge for one in listed(harness, since)}
    for payment in payments:
        charge = found[payment["id"]]
        assert (charge.reference, charge.status) == (payment["gateway_reference"], "captured")
        assert (charge.amount, charge.currency) == (payment["amount"], payment["currency"])
