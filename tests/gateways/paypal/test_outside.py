"""What others do: in PayPal's dashboard, and buyers who dispute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import pytest

from conformance.doubles.paypal import PaypalDouble
from conformance.doubles.server import Answer
from gateways.base import (
    Charge,
    ChargeLookup,
    ListedCharge,
    NotExecuted,
    OutcomeNotShown,
    OutcomeUnknown,
    Refund,
    RefundLookup,
)
from gateways.paypal import PayPalGateway
from gateways.paypal.disputes import PAGE
from tests.support.paypal import (
    KEY,
    Canned,
    a_change,
    a_charge,
    a_refund,
    authorized,
    captured,
    error,
    key_of,
    order,
    paid,
    utc_now,
)

DISPUTES = "/v1/customer/disputes"


def read(paypal: PayPalGateway, reference: str, key: str) -> Charge:
    query = ChargeLookup(a_charge("token", key=key), reference, utc_now(), resend=False)
    charge = paypal.look_up(query)
    assert charge is not None
    return charge


# Refunds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [True, False])
def test_a_refund_from_the_dashboard_is_in_the_charge_and_not_ours(
    paypal: PayPalGateway, double: PaypalDouble, marked: bool
) -> None:
    charge = captured(paypal, double)
    ours = paypal.refund(a_refund(charge, 300))
    outside = double.refund_outside(charge.reference, 200, marked=marked)
    assert read(paypal, charge.reference, key_of(double, charge.reference)).refunds == (
        replace(ours, refund_id=3),
        Refund(outside, "succeeded", 200, "USD"),
    )


def test_a_whole_refund_from_the_dashboard_and_a_reversal_leave_the_charge_captured(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    for act in (
        lambda reference: double.refund_outside(reference, 1099),
        double.reverse,
    ):
        charge = captured(paypal, double)
        act(charge.reference)
        seen = read(paypal, charge.reference, key_of(double, charge.reference))
        assert (seen.status, seen.amount_captured) == ("captured", 1099)
        assert seen.refunds is not None
        assert [(one.amount, one.refund_id) for one in seen.refunds] == [(1099, None)]


@pytest.mark.parametrize(
    ("custom_id", "invoice_id", "refund_id"),
    [
        ("7-3", "a-key", 3),
        ("8-3", "a-key", None),
        ("7", "a-key", None),
        ("7-", "a-key", None),
        ("7-3-1", "a-key", None),
        ("7-3", None, None),
        ("7-3", "not a key", None),
        (None, "a-key", None),
    ],
)
def test_a_refund_is_ours_by_both_its_marks(
    asked: PayPalGateway, canned: Canned, custom_id: Any, invoice_id: Any, refund_id: Any
) -> None:
    refund = paid("COMPLETED", custom_id=custom_id, invoice_id=invoice_id)
    canned.answers = [Answer(200, order(captures=[paid("COMPLETED")], refunds=[refund]))]
    assert read(asked, "ORDER1", KEY).refunds == (
        Refund("PAYMENT1", "succeeded", 1099, "USD", refund_id=refund_id),
    )


def test_a_refund_of_ours_that_a_refund_from_the_dashboard_has_overtaken_never_happened(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    charge = captured(paypal, double)
    double.refund_outside(charge.reference, 1099)
    assert paypal.look_up_refund(RefundLookup(a_refund(charge), None, utc_now())) is None


# Captures and voids -----------------------------------------------------------------------------


def test_an_authorization_captured_in_the_dashboard_is_captured(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    double.capture_outside(charge.reference, 600, final=False)
    seen = read(paypal, charge.reference, request.key)
    assert (seen.status, seen.amount, seen.amount_captured) == ("captured", 1099, 600)
    double.capture_outside(charge.reference, 499)
    seen = read(paypal, charge.reference, request.key)
    assert (seen.status, seen.amount_captured) == ("captured", 1099)


def test_what_was_captured_in_the_dashboard_is_not_captured_on_top(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    double.capture_outside(charge.reference, 100, final=False)
    done = paypal.capture(a_change(request, charge.reference, "capture"))
    assert (done.status, done.amount_captured) == ("captured", 100)
    assert len([one for one in double.captures.values() if one["order"] == charge.reference]) == 1
    assert paypal.void(a_change(request, charge.reference, "void")) == done


def test_an_authorization_voided_in_the_dashboard_is_voided(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    double.void_outside(charge.reference)
    assert read(paypal, charge.reference, request.key).status == "voided"
    assert paypal.capture(a_change(request, charge.reference, "capture")).status == "voided"


def test_the_order_of_another_payment_is_not_believed(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(double.vault_token(), payment_id=8)
    charge = paypal.charge(request)
    for other in (a_charge(key=request.key), a_charge(payment_id=8)):
        with pytest.raises(OutcomeNotShown):
            paypal.look_up(ChargeLookup(other, charge.reference, utc_now()))
    change = a_change(a_charge(), charge.reference, "capture")
    with pytest.raises(NotExecuted):
        paypal.capture(change)
    with pytest.raises(OutcomeNotShown):
        paypal.look_up(ChargeLookup(change, charge.reference, utc_now()))


# Disputes ---------------------------------------------------------------------------------------


def listed(paypal: PayPalGateway, since: datetime | None) -> Iterator[ListedCharge]:
    cursor = None
    while True:
        page = paypal.list_charges(since, cursor)
        assert len(page.charges) <= PAGE
        yield from page.charges
        if page.cursor is None:
            return
        cursor = page.cursor


def test_paypal_lists_disputes_and_no_charges(paypal: PayPalGateway) -> None:
    assert paypal.capabilities.can_retrieve
    assert paypal.capabilities.lists_disputes
    assert not paypal.capabilities.lists_charges


def test_all_disputed_charges_are_listed_in_pages(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    since = utc_now() - timedelta(minutes=1)
    requests = [a_charge(double.vault_token(), payment_id=n) for n in range(100, 100 + 2 * PAGE)]
    charges = [paypal.charge(request) for request in requests]
    disputes = [double.dispute(charge.reference) for charge in charges]
    double.close_dispute(disputes[0], won=False)
    paypal.refund(a_refund(charges[1], payment_id=101))
    found = {one.payment_id: one for one in listed(paypal, since)}
    for request, charge, dispute in zip(requests, charges, disputes, strict=True):
        one = found[request.payment_id]
        assert (one.key, one.charge.reference) == (request.key, charge.reference)
        (shown,) = one.disputes
        assert (shown.reference, shown.amount) == (dispute, 1099)
        assert shown.status == ("lost" if dispute == disputes[0] else "open")
    refunds = found[101].charge.refunds
    assert refunds is not None
    assert [(one.amount, one.refund_id) for one in refunds] == [(500, 3)]
    assert [one for one in listed(paypal, None) if one.payment_id == 100]


def test_a_dispute_that_has_not_changed_since_is_not_listed(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    charge = captured(paypal, double, payment_id=90)
    dispute = double.dispute(charge.reference)
    double.disputes[dispute]["update_time"] = "2026-01-01T00:00:00Z"
    since = utc_now() - timedelta(minutes=1)
    assert [one for one in listed(paypal, since) if one.payment_id == 90] == []
    double.close_dispute(dispute, won=True)
    (one,) = (one for one in listed(paypal, since) if one.payment_id == 90)
    assert one.disputes[0].status == "won"


def test_paypal_is_asked_for_no_more_than_half_a_year(asked: PayPalGateway, canned: Canned) -> None:
    canned.answers = [Answer(200, {})]
    assert asked.list_charges(utc_now() - timedelta(days=400)).charges == ()
    (query,) = (parse_qs(one.query) for one in canned.requests if one.path == DISPUTES)
    start = datetime.fromisoformat(query["update_time_after"][0].replace("Z", "+00:00"))
    assert timedelta(0) < start - (utc_now() - timedelta(days=180)) < timedelta(days=1)


DISPUTE = {
    "dispute_id": "PP-D-1",
    "dispute_amount": {"currency_code": "USD", "value": "5.00"},
    "reason": "UNAUTHORISED",
    "disputed_transactions": [{"seller_transaction_id": "PAYMENT1"}],
    "dispute_outcome": {"outcome_code": "A_WORD_OF_TOMORROW"},
}
CAPTURE = paid("COMPLETED", supplementary_data={"related_ids": {"order_id": "ORDER1"}})
PAID = order(captures=[paid("COMPLETED")])
LIST = Answer(200, {"items": [{"dispute_id": "PP-D-1"}]})


def test_a_charge_that_is_not_ours_is_listed_as_nobodys(
    asked: PayPalGateway, canned: Canned
) -> None:
    of_another = order(captures=[paid("COMPLETED")])
    of_another["purchase_units"][0]["invoice_id"] = "a basket"
    canned.answers = [LIST, *(Answer(200, one) for one in (DISPUTE, CAPTURE, of_another))]
    (one,) = asked.list_charges(None).charges
    assert (one.charge.reference, one.key, one.payment_id) == ("ORDER1", None, None)
    assert (one.disputes[0].status, one.disputes[0].reason) == ("open", "unauthorised")


@pytest.mark.parametrize(
    "answers",
    [
        [error(404)],
        [Answer(200, {**DISPUTE, "disputed_transactions": []})],
        [Answer(200, DISPUTE), error(404)],
        [Answer(200, DISPUTE), Answer(200, paid("COMPLETED"))],
        [Answer(200, DISPUTE), Answer(200, CAPTURE), error(404)],
        [Answer(200, DISPUTE), Answer(200, CAPTURE), Answer(200, {})],
        [Answer(200, {**DISPUTE, "dispute_amount": {}}), Answer(200, CAPTURE), Answer(200, PAID)],
    ],
)
def test_a_dispute_that_cannot_be_read_hides_no_others(
    asked: PayPalGateway, canned: Canned, answers: list[Answer]
) -> None:
    both = Answer(200, {"items": [{"dispute_id": "PP-D-0"}, {"dispute_id": "PP-D-1"}, {}, 5]})
    readable = [Answer(200, one) for one in (DISPUTE, CAPTURE, PAID)]
    canned.answers = [both, *answers, *readable]
    assert [one.charge.reference for one in asked.list_charges(None).charges] == ["ORDER1"]


def test_a_list_that_paypal_does_not_give_is_no_empty_list(
    asked: PayPalGateway, canned: Canned
) -> None:
    for answer in (error(403, "NOT_AUTHORIZED"), error(404)):
        canned.answers = [answer]
        with pytest.raises(NotExecuted):
            asked.list_charges(None)
    for answer in (error(500), Answer(200, b"<html>")):
        canned.answers = [answer]
        with pytest.raises(OutcomeUnknown):
            asked.list_charges(None)
    canned.answers = [LIST, error(500)]
    with pytest.raises(OutcomeUnknown):
        asked.list_charges(None)


@pytest.mark.parametrize("query", ["", "x=" + "y" * 2000])
def test_a_link_to_a_next_page_that_is_none_is_not_followed(
    asked: PayPalGateway, canned: Canned, query: str
) -> None:
    links = [{"rel": "next", "href": f"https://paypal.example/v1/disputes?{query}"}]
    canned.answers = [Answer(200, {"items": [], "links": links})]
    with pytest.raises(OutcomeUnknown):
        asked.list_charges(None)


def test_only_the_query_of_a_link_is_followed(asked: PayPalGateway, canned: Canned) -> None:
    links = [{"rel": "next", "href": "https://elsewhere.example/x/y?next_page_token=a%2Fb&page=2"}]
    canned.answers = [Answer(200, {"items": [], "links": links})]
    page = asked.list_charges(None)
    asked.list_charges(None, page.cursor)
    last = canned.requests[-1]
    assert (last.path, last.query) == (DISPUTES, "next_page_token=a%2Fb&page=2")
