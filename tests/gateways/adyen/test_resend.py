"""What the Adyen adapter does about a request that was sent long ago and never answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conformance.doubles.adyen import AdyenDouble
from gateways.adyen import AdyenGateway
from gateways.base import ChargeLookup, ChargeRequest, OutcomeNotShown, RefundLookup
from tests.support.adyen import (
    KEY,
    NOW,
    change_request,
    charge_request,
    connected,
    last_event,
    only_entry,
    refund_request,
    running_double,
)


@pytest.fixture
def double() -> Iterator[AdyenDouble]:
    with running_double() as started:
        yield started


@pytest.fixture
def gateway(double: AdyenDouble) -> Iterator[AdyenGateway]:
    with connected(double) as built:
        yield built


def too_late(request: Any, reference: str | None) -> ChargeLookup:
    return ChargeLookup(request, reference, NOW, resend=False)


def lost(gateway: AdyenGateway, double: AdyenDouble) -> ChargeRequest:
    """A charge that never left."""
    return charge_request(double.store_card("good"))


def of_a_charge(gateway: AdyenGateway, double: AdyenDouble) -> ChargeLookup:
    return too_late(lost(gateway, double), None)


def of_a_waiting_charge(gateway: AdyenGateway, double: AdyenDouble) -> ChargeLookup:
    request = charge_request(double.store_card("action"))
    return too_late(request, gateway.charge(request).reference)


def of_a_completion(gateway: AdyenGateway, double: AdyenDouble) -> ChargeLookup:
    waiting = gateway.charge(charge_request(double.store_card("action"))).reference
    double.approve(waiting, yes=True)
    returned = double.returned(waiting)
    return too_late(change_request("complete", waiting, key=KEY, redirect_params=returned), waiting)


def of_a_change(operation: str) -> Callable[[AdyenGateway, AdyenDouble], ChargeLookup]:
    def query(gateway: AdyenGateway, double: AdyenDouble) -> ChargeLookup:
        request = charge_request(double.store_card("good"), capture=False)
        reference = gateway.charge(request).reference
        return too_late(change_request(operation, reference), reference)

    return query


@pytest.mark.parametrize(
    "query",
    [
        of_a_charge,
        of_a_waiting_charge,
        of_a_completion,
        of_a_change("capture"),
        of_a_change("void"),
    ],
)
def test_nothing_is_sent_again_too_late(
    gateway: AdyenGateway,
    double: AdyenDouble,
    query: Callable[[AdyenGateway, AdyenDouble], ChargeLookup],
) -> None:
    asked = query(gateway, double)
    before, books = len(double.requests), double.books()
    with pytest.raises(OutcomeNotShown):
        gateway.look_up(asked)
    assert len(double.requests) == before  # not even a technical cancel
    assert double.books() == books


@pytest.mark.parametrize("known", [False, True])
def test_no_refund_is_sent_again_too_late(
    gateway: AdyenGateway, double: AdyenDouble, known: bool
) -> None:
    request = refund_request(gateway.charge(lost(gateway, double)).reference)
    reference = gateway.refund(request).reference if known else None
    before, books = len(double.requests), double.books()
    with pytest.raises(OutcomeNotShown):
        gateway.look_up_refund(RefundLookup(request, reference, NOW, resend=False))
    assert len(double.requests) == before
    assert double.books() == books


def test_a_charge_that_arrives_late_all_the_same_is_told(
    gateway: AdyenGateway, double: AdyenDouble
) -> None:
    request = lost(gateway, double)
    with pytest.raises(OutcomeNotShown):
        gateway.look_up(too_late(request, None))
    late = gateway.charge(request)  # the network had kept it
    event = last_event(gateway, double)
    assert (event.payment_id, event.charge) == (request.payment_id, late)
    assert only_entry(double).status == "captured"


def test_a_refund_that_arrives_late_all_the_same_is_told_as_ours(
    gateway: AdyenGateway, double: AdyenDouble
) -> None:
    request = refund_request(gateway.charge(lost(gateway, double)).reference)
    with pytest.raises(OutcomeNotShown):
        gateway.look_up_refund(RefundLookup(request, None, NOW, resend=False))
    gateway.refund(request)
    refund = last_event(gateway, double).refund
    assert refund is not None
    assert (refund.refund_id, refund.status) == (request.refund_id, "succeeded")
