"""What was done at Stripe without us, in the dashboard or by the shopper's bank, and how we see it:
in a look-up, in the listing, in the events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import httpx
import pytest
from structlog.testing import capture_logs

from conformance.doubles.server import Answer
from conformance.doubles.stripe import StripeDouble
from gateways.base import (
    Charge,
    ChargeLookup,
    ChargeRequest,
    Dispute,
    ListedCharge,
    OutcomeUnknown,
    Refund,
    RetryLater,
)
from gateways.stripe import StripeGateway
from tests.support.stripe import (
    NOW,
    answer_otherwise,
    as_read,
    charge_request,
    gateway_for,
    pay,
    refund_request,
    save,
)


@pytest.fixture
def double() -> Iterator[StripeDouble]:
    with StripeDouble() as running:
        yield running
    assert running.violations == []


@pytest.fixture
def gateway(double: StripeDouble) -> Iterator[StripeGateway]:
    made = gateway_for(double.base_url)
    yield made
    made.close()


def look_up(gateway: StripeGateway, request: ChargeRequest, charge: Charge) -> Charge:
    found = gateway.look_up(ChargeLookup(request, charge.reference, NOW, resend=False))
    assert found is not None
    return found


def minutes_ago(minutes: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(minutes=minutes)


def listed(gateway: StripeGateway, since: datetime | None) -> list[ListedCharge]:
    """All pages of a listing."""
    found: list[ListedCharge] = []
    cursor: str | None = None
    while True:
        page = gateway.list_charges(since, cursor)
        found += page.charges
        cursor = page.cursor
        if cursor is None:
            return found


def listed_charges(gateway: StripeGateway, since: datetime | None) -> dict[str, Charge]:
    return {one.charge.reference: one.charge for one in listed(gateway, since)}


# Looking up -------------------------------------------------------------------------------------


def test_a_look_up_shows_all_refunds_and_whose_they_are(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double)
    ours = gateway.refund(refund_request(charge, 400))
    theirs = double.refund_outside(charge.reference, 300)
    assert ours.refund_id == 5
    outside = Refund(theirs, "succeeded", 300, "USD", refund_id=None)
    assert look_up(gateway, request, charge) == as_read(charge, outside, ours)
    double.fail_refund(theirs)
    found = look_up(gateway, request, charge)
    assert found.refunds == (Refund(theirs, "failed", 300, "USD"), ours)


def test_a_look_up_without_a_reference_shows_the_refunds_too(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double)
    theirs = double.refund_outside(charge.reference, 1099)
    found = gateway.look_up(ChargeLookup(request, None, minutes_ago(15), resend=False))
    assert found == as_read(charge, Refund(theirs, "succeeded", 1099, "USD"))


def test_a_charge_with_more_refunds_than_it_shows_is_read_with_all_of_them(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    double.page_limit = 2
    request, charge = pay(gateway, double)
    made = {double.refund_outside(charge.reference, 10) for _ in range(5)}
    found = look_up(gateway, request, charge)
    assert found.refunds is not None
    assert [refund.amount for refund in found.refunds] == [10] * 5
    assert {refund.reference for refund in found.refunds} == made


def test_one_request_reads_a_charge_and_its_refunds(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double)
    double.refund_outside(charge.reference, 300)
    before = len(double.requests)
    look_up(gateway, request, charge)
    assert len(double.requests) == before + 1


@pytest.mark.parametrize("kind", ["declined", "action"])
def test_a_charge_that_took_no_money_has_no_refunds(
    gateway: StripeGateway, double: StripeDouble, kind: str
) -> None:
    request, charge = pay(gateway, double, kind)
    before = len(double.requests)
    assert look_up(gateway, request, charge).refunds == ()
    assert len(double.requests) == before + 1


def test_a_capture_and_a_cancellation_outside_are_read(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    first, captured = pay(gateway, double, capture=False)
    second, canceled = pay(gateway, double, capture=False)
    double.capture_outside(captured.reference, 700)
    double.void_outside(canceled.reference)
    found = look_up(gateway, first, captured)
    # The rest is released; it is no refund: docs.stripe.com/changelog/basil/2025-03-31
    assert (found.status, found.amount_captured, found.refunds) == ("captured", 700, ())
    assert look_up(gateway, second, canceled).status == "voided"


# Listing ----------------------------------------------------------------------------------------


def test_what_was_made_lately_is_listed_with_its_marks(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double)
    refund = gateway.refund(refund_request(charge, 400))
    theirs = Refund(double.refund_outside(charge.reference, 300), "succeeded", 300, "USD")
    everything = listed(gateway, minutes_ago(5))
    assert everything[0] == ListedCharge(as_read(charge, theirs, refund), request.key, 7)
    assert {one.charge.reference for one in everything} == {charge.reference}
    assert gateway.capabilities.lists_charges


def test_what_has_not_moved_since_is_not_listed(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    pay(gateway, double)
    double.pass_days(1)
    _, charge = pay(gateway, double)
    assert listed_charges(gateway, minutes_ago(5)) == {charge.reference: as_read(charge)}


def test_an_old_charge_whose_refund_is_new_is_listed(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    double.pass_days(400)
    first = double.refund_outside(charge.reference, 300)
    double.pass_days(10)
    second = double.refund_outside(charge.reference, 200)
    refunds = Refund(second, "succeeded", 200, "USD"), Refund(first, "succeeded", 300, "USD")
    assert listed_charges(gateway, minutes_ago(5)) == {charge.reference: as_read(charge, *refunds)}


def test_an_old_authorization_that_ended_lately_is_listed(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    authorized = [pay(gateway, double, capture=False)[1] for _ in range(4)]
    captured, canceled, expired, held = (charge.reference for charge in authorized)
    double.pass_days(6)
    double.capture_outside(captured, 700)
    double.void_outside(canceled)
    double.expire(expired)
    found = listed_charges(gateway, minutes_ago(5))
    assert {reference: charge.status for reference, charge in found.items()} == {
        captured: "captured",
        canceled: "voided",
        expired: "voided",
    }
    assert found[captured].amount_captured == 700
    assert held not in found


def test_an_old_redirect_that_the_shopper_came_back_to_is_listed(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, paid = pay(gateway, double, "action")
    _, held = pay(gateway, double, "action", capture=False)
    double.pass_days(2)
    double.approve(paid.reference, yes=True)
    double.approve(held.reference, yes=True)
    found = listed_charges(gateway, minutes_ago(5))
    assert {reference: charge.status for reference, charge in found.items()} == {
        paid.reference: "captured",
        held.reference: "authorized",
    }


def test_an_old_refund_that_fails_lately_is_listed(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    refund = gateway.refund(refund_request(charge, 400))
    double.pass_days(20)
    assert listed(gateway, minutes_ago(5)) == []
    double.fail_refund(refund.reference)
    failed = Refund(refund.reference, "failed", 400, "USD", refund_id=5)
    assert listed_charges(gateway, minutes_ago(5)) == {charge.reference: as_read(charge, failed)}


def test_an_old_refund_that_is_done_lately_is_listed(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    double.refund_status = "pending"
    _, charge = pay(gateway, double)
    refund = gateway.refund(refund_request(charge, 400))
    double.pass_days(6)
    double.settle_refund(refund.reference)
    done = Refund(refund.reference, "succeeded", 400, "USD", refund_id=5)
    assert listed_charges(gateway, minutes_ago(5)) == {charge.reference: as_read(charge, done)}


def test_disputes_are_listed_when_they_open_and_when_they_close(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double)
    double.pass_days(60)
    dispute = double.dispute(charge.reference)
    due = datetime.fromtimestamp(
        double.disputes[dispute]["evidence_details"]["due_by"], timezone.utc
    )
    opened = Dispute(dispute, "open", 1099, "USD", "fraudulent", due)
    assert listed(gateway, minutes_ago(5)) == [
        ListedCharge(as_read(charge), request.key, 7, (opened,))
    ]
    double.pass_days(45)
    assert listed(gateway, minutes_ago(5)) == []
    double.close_dispute(dispute, won=False)
    (closed,) = listed(gateway, minutes_ago(5))
    assert [one.status for one in closed.disputes] == ["lost"]


def test_everything_that_ever_was_is_listed(gateway: StripeGateway, double: StripeDouble) -> None:
    double.page_limit = 2
    made = {pay(gateway, double)[1].reference for _ in range(5)}
    first = min(made)
    double.refund_outside(first, 300)
    double.dispute(first)
    double.pass_days(800)
    everything = listed(gateway, None)
    assert {one.charge.reference for one in everything} == made
    assert [len(one.disputes) for one in everything if one.charge.reference == first] == [0, 1]
    assert all(one.charge.refunds for one in everything if one.charge.reference == first)


def test_what_moved_when_no_event_is_kept_any_more_is_listed(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double, capture=False)
    double.pass_days(5)
    double.capture_outside(charge.reference, 700)
    double.pass_days(40)
    found = listed_charges(gateway, minutes_ago(42 * 24 * 60))
    assert found[charge.reference].status == "captured"


def test_pages_hold_everything_and_each_is_a_few_requests(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    method = save(gateway, double)
    old = [gateway.charge(charge_request(method, capture=False)).reference for _ in range(12)]
    double.pass_days(3)
    for reference in old[:11]:
        double.capture_outside(reference, 700)
    double.page_limit = 3
    new = [gateway.charge(charge_request(method)).reference for _ in range(4)]
    double.refund_outside(new[0], 100)
    double.refund_outside(old[0], 100)
    since, cursor, seen = minutes_ago(5), None, Counter[str]()
    while True:
        before = len(double.requests)
        page = gateway.list_charges(since, cursor)
        assert len(double.requests) - before <= 1 + 3  # the page, and each older charge on it
        seen.update(one.charge.reference for one in page.charges)
        cursor = page.cursor
        if cursor is None:
            break
    assert seen.keys() == {*old[:11], *new}


def test_a_charge_of_this_window_is_not_read_once_more_for_its_events(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    method = save(gateway, double)
    for _ in range(5):
        gateway.charge(charge_request(method))
    before = len(double.requests)
    assert len(listed(gateway, minutes_ago(5))) == 5
    assert len(double.requests) - before == 4  # one for each list


def test_a_charge_of_another_system_is_neither_listed_nor_read(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, foreign = pay(gateway, double, capture=False)
    # Somebody else's ids, and a currency that we do not know.
    double.intents[foreign.reference].update(metadata={"payment_id": "7"}, currency="zzz")
    _, ours = pay(gateway, double)
    assert listed_charges(gateway, minutes_ago(5)) == {ours.reference: as_read(ours)}
    double.pass_days(1)
    double.capture_outside(foreign.reference, 300)
    double.refund_outside(foreign.reference, 300)
    before = len(double.requests)
    assert listed(gateway, minutes_ago(5)) == []
    assert len(double.requests) - before == 4  # one for each list


def test_a_charge_that_was_made_without_a_payment_intent_is_not_listed(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    refund = double.refund_outside(charge.reference, 300)
    double.refunds[refund]["payment_intent"] = None
    assert listed_charges(gateway, minutes_ago(5)).keys() == {charge.reference}


def test_a_dispute_that_cannot_be_read_does_not_hide_the_others(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    odd, even = (pay(gateway, double)[1].reference for _ in range(2))
    for reference in (odd, even):
        dispute = double.dispute(reference)
        double.disputes[dispute]["currency"] = "zzz" if reference == odd else "usd"
    with capture_logs() as logs:
        everything = listed(gateway, minutes_ago(5))
    assert Counter(one.charge.reference for one in everything) == {odd: 2, even: 2}
    assert [one.charge.reference for one in everything if one.disputes] == [even]
    assert [log["event"] for log in logs] == ["gateway.dispute_unreadable"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(500, {}), OutcomeUnknown),
        (Answer(200, {"object": "list"}), OutcomeUnknown),
        (Answer(429, {"error": {"type": "invalid_request_error"}}), RetryLater),
    ],
)
@pytest.mark.parametrize("request_", ["payment_intents", "refunds", "disputes", "events"])
def test_a_list_that_does_not_come_is_said_so(
    gateway: StripeGateway,
    double: StripeDouble,
    monkeypatch: pytest.MonkeyPatch,
    request_: str,
    answer: Answer,
    kind: type[Exception],
) -> None:
    answer_otherwise(double, monkeypatch, f"GET /v1/{request_}", lambda usual: answer)
    with pytest.raises(kind):
        listed(gateway, minutes_ago(5))


# Events -----------------------------------------------------------------------------------------


def test_events_tell_of_what_was_done_outside(gateway: StripeGateway, double: StripeDouble) -> None:
    first, captured = pay(gateway, double, capture=False)
    second, canceled = pay(gateway, double, capture=False)
    double.sent.clear()
    double.capture_outside(captured.reference, 700)
    double.void_outside(canceled.reference)
    refund = double.refund_outside(captured.reference, 300)
    events = [gateway.parse_webhook(httpx.Headers(head), body) for head, body in double.sent]
    told = {event.type: event for event in events}
    capture, cancel = told["payment_intent.succeeded"], told["payment_intent.canceled"]
    assert (capture.key, cancel.key) == (first.key, second.key)
    assert capture.charge == Charge(captured.reference, "captured", 1099, "USD", 700)
    assert cancel.charge == Charge(canceled.reference, "voided", 1099, "USD")
    made = told["refund.created"]
    assert made.refund == Refund(refund, "succeeded", 300, "USD", refund_id=None)
    assert (made.reference, made.refund_key) == (captured.reference, None)
    assert told["charge.refunded"].needs_lookup
    assert not any(event.needs_review for event in events)


@pytest.mark.parametrize("due_by", [0, None, -5, "soon"])
def test_a_dispute_without_a_defense_has_no_time_for_one(
    gateway: StripeGateway, double: StripeDouble, due_by: object
) -> None:
    _, charge = pay(gateway, double)
    dispute = double.dispute(charge.reference)
    double.disputes[dispute]["evidence_details"] = {"due_by": due_by}
    double.close_dispute(dispute, won=False)
    headers, body = double.sent[-1]
    told = gateway.parse_webhook(httpx.Headers(headers), body).dispute
    assert told == Dispute(dispute, "lost", 1099, "USD", "fraudulent", None)
