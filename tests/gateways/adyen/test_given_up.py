"""How a payment ends at Adyen that waits for its shopper and is given up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.doubles.adyen import AdyenDouble
from gateways.adyen import AdyenGateway
from gateways.base import Charge, Decline, GatewayEvent, Refused
from tests.support.adyen import (
    KEY,
    OTHER_KEY,
    build,
    change_request,
    charge_request,
    connected,
    last_event,
    only_entry,
    read_event,
    running_double,
)

OURS = "payment-17-1099-sale"


@pytest.fixture
def double() -> Iterator[AdyenDouble]:
    with running_double() as started:
        yield started


@pytest.fixture
def gateway(double: AdyenDouble) -> Iterator[AdyenGateway]:
    with connected(double) as built:
        yield built


@pytest.fixture(scope="module")
def built() -> Iterator[AdyenGateway]:
    reader = build()
    yield reader
    reader.close()


@pytest.fixture
def waiting(gateway: AdyenGateway, double: AdyenDouble) -> str:
    charge = gateway.charge(charge_request(double.store_card("action")))
    assert (charge.status, charge.reference) == ("requires_action", OURS)
    return charge.reference


def give_up(gateway: AdyenGateway) -> Charge:
    return gateway.void(change_request("void", OURS, capture=True))


def told(gateway: AdyenGateway, double: AdyenDouble, code: str) -> GatewayEvent:
    events = [gateway.parse_webhook(*sent) for sent in double.sent]
    return next(event for event in reversed(events) if event.type == code)


def test_that_it_is_given_up_is_only_received_at_first(
    gateway: AdyenGateway, double: AdyenDouble, waiting: str
) -> None:
    assert give_up(gateway) == Charge(OURS, "processing", 1099, "EUR")
    event = told(gateway, double, "TECHNICAL_CANCEL")
    assert event.charge is not None
    assert (event.payment_id, event.charge.status, event.charge.amount) == (17, "voided", 1099)
    assert event.charge.replaces == OURS
    assert only_entry(double).status == "voided"


def test_one_that_adyen_does_not_cancel_goes_on_waiting_until_it_is_closed(
    gateway: AdyenGateway, double: AdyenDouble, waiting: str
) -> None:
    double.fail_next("void")
    give_up(gateway)
    failed = last_event(gateway, double)
    assert (failed.payment_id, failed.failed_operation, failed.charge) == (17, "void", None)
    double.abandon(OURS)  # 12 hours later
    closed = last_event(gateway, double).charge
    assert closed is not None
    assert closed.decline == Decline("authentication_failed", "OFFER_CLOSED")


def test_a_shopper_who_was_faster_has_paid(
    gateway: AdyenGateway, double: AdyenDouble, waiting: str
) -> None:
    double.approve(OURS, yes=True)
    returned = double.returned(OURS)
    paid = gateway.complete(change_request("complete", OURS, key=KEY, redirect_params=returned))
    give_up(gateway)
    assert told(gateway, double, "AUTHORISATION").charge == paid
    assert told(gateway, double, "TECHNICAL_CANCEL").failed_operation == "void"
    assert only_entry(double).status == "captured"


def test_a_shopper_who_comes_back_too_late_pays_nothing(
    gateway: AdyenGateway, double: AdyenDouble, waiting: str
) -> None:
    double.approve(OURS, yes=True)
    returned = double.returned(OURS)
    give_up(gateway)
    with pytest.raises(Refused):
        gateway.complete(change_request("complete", OURS, key=KEY, redirect_params=returned))
    assert only_entry(double).status == "voided"


@pytest.mark.parametrize("closed_by", ["adyen", "us"])
def test_a_payment_that_is_authorized_after_all_is_told(
    gateway: AdyenGateway, double: AdyenDouble, waiting: str, closed_by: str
) -> None:
    if closed_by == "adyen":
        double.abandon(OURS)
    else:
        give_up(gateway)
    double.approve_after_all(OURS)
    event = last_event(gateway, double)
    assert event.charge is not None
    assert (event.payment_id, event.charge.status) == (17, "captured")
    assert (event.charge.amount_captured, event.charge.replaces) == (1099, OURS)


def test_one_that_has_no_reference_of_adyens_yet_keeps_ours(built: AdyenGateway) -> None:
    event = read_event(built, eventCode="TECHNICAL_CANCEL", pspReference="CANCEL")
    assert event.charge is not None
    assert (event.reference, event.charge.reference) == (OURS, OURS)
    authorized = read_event(built, eventCode="TECHNICAL_CANCEL", originalReference="P")
    assert authorized.charge is not None
    assert (authorized.reference, authorized.charge.reference) == ("P", "P")


@pytest.mark.parametrize("done", ["true", "false"])
def test_an_outcome_that_repeats_the_reference_of_our_void_names_its_key(
    built: AdyenGateway, done: str
) -> None:
    event = read_event(
        built,
        eventCode="TECHNICAL_CANCEL",
        originalReference="P",
        merchantReference=f"void-17-1099-{OTHER_KEY}",
        success=done,
    )
    key = OTHER_KEY
    assert (event.executed_key, event.failed_key) == (
        (key, None) if done == "true" else (None, key)
    )
    assert event.failed_operation is None
