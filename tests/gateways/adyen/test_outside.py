"""What is done by hand in Adyen's Customer Area, as its notifications tell it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.doubles.adyen import AdyenDouble
from gateways.adyen import AdyenGateway
from gateways.adyen.notifications import DISPUTES, MEANINGS
from gateways.base import Charge, GatewayEvent, Refund
from tests.support.adyen import (
    HEADERS,
    build,
    change_request,
    charge_request,
    connected,
    last_event,
    only_entry,
    read_event,
    refund_request,
    running_double,
)

OURS = "payment-17-1099-auth"
# What people type as a reference: nothing, something, or what they see beside the payment.
TYPED = ["", "by hand", OURS]


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
    """One that reads notifications; there is nobody whom it could ask."""
    reader = build()
    yield reader
    reader.close()


@pytest.fixture
def authorized(gateway: AdyenGateway, double: AdyenDouble) -> str:
    request = charge_request(double.store_card("good"), capture=False)
    return gateway.charge(request).reference


@pytest.fixture
def captured(gateway: AdyenGateway, double: AdyenDouble, authorized: str) -> str:
    gateway.capture(change_request("capture", authorized))
    return authorized


def says_nothing(event: GatewayEvent) -> bool:
    states = (event.charge, event.refund, event.dispute, event.failed_key, event.failed_operation)
    return states == (None,) * 5 and not event.needs_lookup and not event.needs_review


@pytest.mark.parametrize("typed", TYPED)
def test_a_refund_made_by_hand_is_told_without_an_id_of_ours(
    gateway: AdyenGateway, double: AdyenDouble, captured: str, typed: str
) -> None:
    reference = double.refund_outside(captured, 400, typed=typed)
    event = last_event(gateway, double)
    assert event.refund == Refund(reference, "succeeded", 400, "EUR", refund_id=None)
    assert (event.reference, event.charge) == (captured, None)
    assert only_entry(double).amount_refunded == 400


def test_a_refund_made_by_hand_can_fail_after_it_succeeded(
    gateway: AdyenGateway, double: AdyenDouble, captured: str
) -> None:
    reference = double.refund_outside(captured, 400)
    double.fail_refund(reference)
    event = last_event(gateway, double)
    assert event.refund == Refund(reference, "failed", 400, "EUR")
    assert event.reference == captured


def test_our_refund_is_told_with_its_id_beside_one_made_by_hand(
    gateway: AdyenGateway, double: AdyenDouble, captured: str
) -> None:
    double.refund_outside(captured, 400)
    gateway.refund(refund_request(captured, key="another-key"))
    refunds = [gateway.parse_webhook(*sent).refund for sent in double.sent[-2:]]
    assert [refund and refund.refund_id for refund in refunds] == [None, 3]


@pytest.mark.parametrize("typed", TYPED)
def test_a_capture_made_by_hand_is_told_with_what_was_captured(
    gateway: AdyenGateway, double: AdyenDouble, authorized: str, typed: str
) -> None:
    double.capture_outside(authorized, 600, typed=typed)
    event = last_event(gateway, double)
    # How much was authorized only our own reference says.
    charged = 1099 if typed == OURS else None
    assert event.charge == Charge(authorized, "captured", charged, "EUR", amount_captured=600)
    assert (event.reference, event.executed_key) == (authorized, None)


@pytest.mark.parametrize("typed", TYPED)
def test_a_cancellation_made_by_hand_is_told(
    gateway: AdyenGateway, double: AdyenDouble, authorized: str, typed: str
) -> None:
    double.cancel_outside(authorized, typed=typed)
    event = last_event(gateway, double)
    assert event.charge is not None
    assert (event.charge.reference, event.charge.status) == (authorized, "voided")
    assert event.charge.amount == (1099 if typed == OURS else None)
    assert event.reference == authorized


def test_either_state_of_a_cancel_or_refund_is_offered(
    gateway: AdyenGateway, double: AdyenDouble, authorized: str
) -> None:
    double.reverse_outside(authorized)
    event = last_event(gateway, double)
    assert event.charge == Charge(authorized, "voided", None, "EUR")
    assert event.refund is not None
    assert (event.refund.status, event.refund.amount) == ("succeeded", 1099)
    assert event.refund.refund_id is None
    assert only_entry(double).status == "voided"


def test_the_refund_of_a_cancel_or_refund_has_a_reference_of_its_own(
    gateway: AdyenGateway, double: AdyenDouble, captured: str
) -> None:
    double.reverse_outside(captured)
    event = last_event(gateway, double)
    assert event.refund is not None
    assert event.refund.reference in double.refunds
    assert event.reference == captured
    assert only_entry(double).amount_refunded == 1099


@pytest.mark.parametrize("action", ["cancel", "refund", "anything", None])
def test_what_is_not_signed_does_not_decide_which_of_both_it_was(
    built: AdyenGateway, double: AdyenDouble, authorized: str, action: str | None
) -> None:
    double.reverse_outside(authorized)
    _, body = double.sent[-1]
    payload = json.loads(body)
    found = payload["notificationItems"][0]["NotificationRequestItem"]["additionalData"]
    if action is None:
        del found["modification.action"]
    else:
        found["modification.action"] = action
    changed = built.parse_webhook(HEADERS, json.dumps(payload).encode())
    assert changed == built.parse_webhook(HEADERS, body)


@pytest.mark.parametrize("code", ["CAPTURE", "CANCELLATION", "CANCEL_OR_REFUND"])
@pytest.mark.parametrize("typed", TYPED)
def test_what_was_tried_by_hand_and_not_done_changes_nothing(
    built: AdyenGateway, code: str, typed: str
) -> None:
    values: dict[str, Any] = {"eventCode": code, "merchantReference": typed, "success": "false"}
    assert says_nothing(read_event(built, originalReference="P", **values))


def test_a_capture_made_by_hand_that_the_bank_undoes_is_for_a_person(built: AdyenGateway) -> None:
    told = read_event(
        built, eventCode="CAPTURE_FAILED", originalReference="P", merchantReference="by hand"
    )
    assert told.needs_review
    assert (told.payment_id, told.reference, told.charge) == (None, "P", None)


@pytest.mark.parametrize("code", sorted({*MEANINGS, *DISPUTES, "REPORT_AVAILABLE"}))
@pytest.mark.parametrize("success", ["true", "false"])
def test_no_notification_makes_us_ask_what_cannot_be_read(
    built: AdyenGateway, code: str, success: str
) -> None:
    for typed in TYPED:
        values = {"eventCode": code, "success": success, "merchantReference": typed}
        assert not read_event(built, originalReference="P", **values).needs_lookup


@pytest.mark.parametrize(
    "values",
    [
        {
            "eventCode": "REPORT_AVAILABLE",
            "merchantReference": "",
            "pspReference": "settlement_detail_report_batch_12.csv",
            "amount": {"currency": "EUR", "value": 0},
            "reason": "https://ca-test.adyen.com/reports/download/MerchantAccount/x/y.csv",
        },
        {"eventCode": "AUTHORISATION", "merchantReference": "of-another-system"},
        {"eventCode": "NOTIFICATION_OF_FRAUD", "originalReference": "P"},
    ],
)
def test_what_changes_nothing_waits_for_no_payment(
    built: AdyenGateway, values: dict[str, Any]
) -> None:
    told = read_event(built, **values)
    assert says_nothing(told)
    assert told.reference is None  # or it might be refused until every payment has its own
