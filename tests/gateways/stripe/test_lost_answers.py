"""What became of a request to Stripe whose answer was lost."""

from __future__ import annotations

import dataclasses

import pytest

from conformance.doubles.server import Answer
from conformance.doubles.stripe import (
    StripeDouble,
)
from gateways.base import (
    ChargeLookup,
    ChargeOperation,
    OutcomeNotShown,
    OutcomeUnknown,
    RefundLookup,
    Refused,
)
from gateways.stripe import StripeGateway
from tests.support.stripe import (
    LONG_AGO,
    NOW,
    as_read,
    change_request,
    charge_request,
    gateway_for,
    pay,
    refund_request,
    save,
)

# Lost answers -----------------------------------------------------------------------------------


def test_a_charge_whose_answer_was_lost_is_asked_for_again(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double)
    assert gateway.look_up(ChargeLookup(request, None, NOW)) == charge
    assert double.requests[-1].headers["idempotency-key"] == request.key
    assert len(double.books()) == 1


def test_a_charge_that_never_arrived_is_made_by_looking_it_up(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request = charge_request(save(gateway, double))
    found = gateway.look_up(ChargeLookup(request, None, NOW))
    assert found is not None
    assert found.status == "captured"
    assert gateway.charge(request) == found


def test_a_charge_that_stripe_refuses_never_happened(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request = dataclasses.replace(charge_request(save(gateway, double)), token="pm_gone")
    assert gateway.look_up(ChargeLookup(request, None, NOW)) is None
    assert double.books() == []


@pytest.mark.parametrize("by_customer", [True, False])
def test_an_old_charge_is_found_and_never_posted_again(
    gateway: StripeGateway, double: StripeDouble, by_customer: bool
) -> None:
    request, charge = pay(gateway, double)
    gateway.charge(charge_request(save(gateway, double)))  # the same ids, as a test system has
    if not by_customer:
        request = dataclasses.replace(request, customer=None)
    posts = sum(one.method == "POST" for one in double.requests)
    assert gateway.look_up(ChargeLookup(request, None, LONG_AGO)) == as_read(charge)
    assert sum(one.method == "POST" for one in double.requests) == posts


def test_an_old_charge_that_no_list_shows_was_never_made(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request = charge_request(save(gateway, double))
    assert gateway.look_up(ChargeLookup(request, None, LONG_AGO)) is None
    assert double.books() == []


def test_a_stored_500_says_nothing_so_the_charge_is_searched(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double)
    path, body, _ = double.keys[request.key]
    double.keys[request.key] = (path, body, Answer(500, {"error": {"type": "api_error"}}))
    assert gateway.look_up(ChargeLookup(request, None, NOW)) == as_read(charge)
    double.intents.clear()
    with pytest.raises(OutcomeUnknown):
        gateway.look_up(ChargeLookup(request, None, NOW))


def test_another_request_under_our_key_is_unknown() -> None:
    with StripeDouble() as double:
        gateway = gateway_for(double.base_url)
        request, _ = pay(gateway, double)
        with pytest.raises(OutcomeUnknown):
            gateway.charge(dataclasses.replace(request, amount=1))
        gateway.close()
        assert len(double.violations) == 1
        assert len(double.books()) == 1


def test_a_reference_is_read(gateway: StripeGateway, double: StripeDouble) -> None:
    request, charge = pay(gateway, double, capture=False)
    assert gateway.look_up(ChargeLookup(request, charge.reference, LONG_AGO)) == as_read(charge)
    double.expire(charge.reference)
    found = gateway.look_up(ChargeLookup(request, charge.reference, LONG_AGO))
    assert found is not None
    assert found.status == "voided"
    with pytest.raises(OutcomeUnknown):
        gateway.look_up(ChargeLookup(request, "pi_nobody", NOW))


@pytest.mark.parametrize("operation", ["capture", "void"])
def test_a_change_that_was_done_is_read(
    gateway: StripeGateway, double: StripeDouble, operation: ChargeOperation
) -> None:
    _, charge = pay(gateway, double, capture=False)
    request = change_request(charge, operation)
    done = gateway.capture(request) if operation == "capture" else gateway.void(request)
    before = len(double.requests)
    assert gateway.look_up(ChargeLookup(request, charge.reference, LONG_AGO)) == as_read(done)
    assert [one.method for one in double.requests[before:]] == ["GET"]


@pytest.mark.parametrize("operation", ["capture", "void"])
def test_a_change_that_was_not_done_is_done_while_the_key_lives(
    gateway: StripeGateway, double: StripeDouble, operation: ChargeOperation
) -> None:
    _, charge = pay(gateway, double, capture=False)
    request = change_request(charge, operation, 400)
    # Once the key is forgotten nothing of ours can arrive any more, and nothing is sent again.
    assert gateway.look_up(ChargeLookup(request, charge.reference, LONG_AGO)) is None
    found = gateway.look_up(ChargeLookup(request, charge.reference, NOW))
    assert found is not None
    assert found.status == ("captured" if operation == "capture" else "voided")
    assert found.amount_captured == (400 if operation == "capture" else 0)


def test_a_change_of_what_has_ended_is_told_how_it_ended(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double, capture=False)
    gateway.void(change_request(charge, "void"))
    found = gateway.look_up(ChargeLookup(change_request(charge, "capture"), None, NOW))
    assert found is not None
    assert found.status == "voided"


def test_a_completion_is_read(gateway: StripeGateway, double: StripeDouble) -> None:
    _, charge = pay(gateway, double)
    request = change_request(charge, "complete")
    assert gateway.look_up(ChargeLookup(request, charge.reference, NOW)) == as_read(charge)
    with pytest.raises(Refused):
        gateway.complete(request)


def test_a_refund_whose_answer_was_lost_is_found(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    request = refund_request(charge, 400)
    refund = gateway.look_up_refund(RefundLookup(request, None, NOW))
    assert refund is not None
    assert gateway.look_up_refund(RefundLookup(request, None, NOW)) == refund
    assert gateway.look_up_refund(RefundLookup(request, None, LONG_AGO)) == refund
    assert gateway.look_up_refund(RefundLookup(request, refund.reference, LONG_AGO)) == refund
    assert len(double.refunds) == 1


def test_a_refund_that_stripe_refuses_never_happened(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    request = refund_request(charge, 1100)
    assert gateway.look_up_refund(RefundLookup(request, None, NOW)) is None


def test_an_old_refund_that_no_list_shows_was_never_made(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    assert gateway.look_up_refund(RefundLookup(refund_request(charge, 1), None, LONG_AGO)) is None
    assert double.books()[-1].amount_refunded == 0
    with pytest.raises(OutcomeNotShown):
        gateway.look_up_refund(RefundLookup(refund_request(charge, 1), "re_nobody", NOW))
