"""Every answer of PayPal has its meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from conformance.doubles.server import Answer
from gateways.base import (
    Charge,
    ChargeLookup,
    MethodRequest,
    NotExecuted,
    OutcomeUnknown,
    Refund,
    RefundLookup,
    Refused,
    RetryLater,
)
from gateways.paypal import PayPalGateway
from tests.support.paypal import (
    HTML,
    KEY,
    NOT_DONE,
    REFUSED,
    TRUNCATED,
    UNKNOWN,
    Canned,
    a_change,
    a_charge,
    a_refund,
    built,
    error,
    order,
    paid,
    utc_now,
)


@pytest.mark.parametrize("answer", UNKNOWN)
def test_what_leaves_a_doubt_is_unknown(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    canned.answers = [answer]
    with pytest.raises(OutcomeUnknown):
        asked.charge(a_charge())
    with pytest.raises(OutcomeUnknown):
        asked.complete(a_change(a_charge(), "ORDER1", "complete"))
    with pytest.raises(OutcomeUnknown):
        asked.look_up(ChargeLookup(a_charge(key=KEY), "ORDER1", utc_now()))
    with pytest.raises(OutcomeUnknown):
        asked.look_up(ChargeLookup(a_charge(), None, utc_now()))


@pytest.mark.parametrize("answer", REFUSED)
def test_what_paypals_checks_refuse_was_surely_not_done(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    canned.answers = [answer]
    with pytest.raises(Refused):
        asked.charge(a_charge())
    with pytest.raises(Refused):
        asked.complete(a_change(a_charge(), "ORDER1", "complete"))
    assert asked.look_up(ChargeLookup(a_charge(), None, utc_now())) is None


@pytest.mark.parametrize("answer", NOT_DONE)
def test_what_says_nothing_about_another_request_is_not_done_but_not_refused(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    canned.answers = [answer]
    with pytest.raises(NotExecuted) as caught:
        asked.charge(a_charge())
    assert not isinstance(caught.value, Refused)
    with pytest.raises(OutcomeUnknown):
        asked.look_up(ChargeLookup(a_charge(), None, utc_now()))
    with pytest.raises(OutcomeUnknown):
        asked.look_up(ChargeLookup(a_charge(key=KEY), "ORDER1", utc_now()))


def test_too_many_requests_may_be_sent_again(asked: PayPalGateway, canned: Canned) -> None:
    canned.answers = [Answer(429, {}, {"Retry-After": "3"})]
    with pytest.raises(RetryLater) as caught:
        asked.charge(a_charge())
    assert caught.value.retry_after == 3
    with pytest.raises(OutcomeUnknown):
        asked.look_up(ChargeLookup(a_charge(), None, utc_now()))


def test_a_gateway_that_is_not_there_is_busy() -> None:
    gateway = built(
        {
            "paypal_client_id": "id",
            "paypal_client_secret": "secret",
            "paypal_api_base": "http://127.0.0.1:9",
        }
    )
    with pytest.raises(RetryLater):
        gateway.charge(a_charge())
    gateway.close()


@pytest.mark.parametrize("answer", [*UNKNOWN[:7], *NOT_DONE, error(422, "AN_ISSUE_OF_TOMORROW")])
@pytest.mark.parametrize("operation", ["capture", "void", "refund"])
def test_a_failed_read_before_the_request_leaves_no_doubt(
    asked: PayPalGateway, canned: Canned, answer: Answer, operation: str
) -> None:
    canned.answers = [answer]
    with pytest.raises(NotExecuted):
        changes(asked)[operation]()
    assert {request.method for request in canned.requests if "oauth2" not in request.path} == {
        "GET"
    }


def changes(gateway: PayPalGateway) -> dict[str, Callable[[], Any]]:
    charge = Charge("ORDER1", "captured", 1099, "USD")
    return {
        "capture": lambda: gateway.capture(a_change(a_charge(), "ORDER1", "capture")),
        "void": lambda: gateway.void(a_change(a_charge(), "ORDER1", "void")),
        "refund": lambda: gateway.refund(a_refund(charge)),
    }


BEFORE = {
    "capture": order(authorizations=[paid("CREATED")]),
    "void": order(authorizations=[paid("CREATED")]),
    "refund": order(captures=[paid("COMPLETED")]),
}


@pytest.mark.parametrize("operation", BEFORE)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *(
            (answer, OutcomeUnknown)
            for answer in (error(500), HTML, TRUNCATED, error(409, "IN_PROGRESS"))
        ),
        *((answer, Refused) for answer in REFUSED),
        *((answer, NotExecuted) for answer in NOT_DONE),
        (Answer(429, {}), RetryLater),
    ],
)
def test_every_answer_to_a_change_has_its_meaning(
    asked: PayPalGateway, canned: Canned, operation: str, answer: Answer, expected: type[Exception]
) -> None:
    canned.answers = [Answer(200, BEFORE[operation]), answer]
    with pytest.raises(expected) as caught:
        changes(asked)[operation]()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "answer", [Answer(201, {}), Answer(201, {"id": "X", "status": "COMPLETED"})]
)
@pytest.mark.parametrize("operation", ["capture", "refund"])
def test_an_answer_without_an_amount_is_unknown(
    asked: PayPalGateway, canned: Canned, operation: str, answer: Answer
) -> None:
    canned.answers = [Answer(200, BEFORE[operation]), answer]
    with pytest.raises(OutcomeUnknown):
        changes(asked)[operation]()


def test_a_void_is_believed_when_paypal_says_so(asked: PayPalGateway, canned: Canned) -> None:
    canned.answers = [Answer(200, BEFORE["void"]), Answer(200, paid("VOIDED"))]
    assert changes(asked)["void"]().status == "voided"
    assert len(canned.answers) == 1


@pytest.mark.parametrize("answer", [Answer(204, None), Answer(200, {})])
def test_a_void_without_an_answer_is_read_from_the_books(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    after = order(authorizations=[paid("VOIDED")])
    canned.answers = [Answer(200, BEFORE["void"]), answer, Answer(200, after)]
    assert changes(asked)["void"]().status == "voided"
    for lost in (Answer(200, BEFORE["void"]), error(500), error(404)):
        canned.answers = [Answer(200, BEFORE["void"]), answer, lost]
        with pytest.raises(OutcomeUnknown):
            changes(asked)["void"]()


def test_a_void_that_came_before_is_done(asked: PayPalGateway, canned: Canned) -> None:
    canned.answers = [Answer(200, BEFORE["void"]), error(422, "PREVIOUSLY_VOIDED")]
    assert changes(asked)["void"]().status == "voided"


@pytest.mark.parametrize(
    ("operation", "issue"),
    [
        ("capture", "AUTHORIZATION_ALREADY_CAPTURED"),
        ("capture", "MAX_CAPTURE_COUNT_EXCEEDED"),
        ("void", "PREVIOUSLY_CAPTURED"),
    ],
)
def test_a_refusal_because_of_what_was_done_before_tells_the_truth(
    asked: PayPalGateway, canned: Canned, operation: str, issue: str
) -> None:
    after = order(authorizations=[paid("CAPTURED")], captures=[paid("COMPLETED")])
    canned.answers = [Answer(200, BEFORE[operation]), error(422, issue), Answer(200, after)]
    assert changes(asked)[operation]().status == "captured"
    # While the books do not show it, it is a refusal; unless they cannot be read.
    canned.answers = [
        Answer(200, BEFORE[operation]),
        error(422, issue),
        Answer(200, BEFORE[operation]),
    ]
    with pytest.raises(Refused):
        changes(asked)[operation]()
    canned.answers = [Answer(200, BEFORE[operation]), error(422, issue), error(404)]
    with pytest.raises(OutcomeUnknown):
        changes(asked)[operation]()


@pytest.mark.parametrize("issue", ["ORDER_ALREADY_CAPTURED", "ORDER_NOT_APPROVED"])
def test_a_completion_that_cannot_be_read_back_is_unknown(
    asked: PayPalGateway, canned: Canned, issue: str
) -> None:
    canned.answers = [error(422, issue), error(404, "INVALID_RESOURCE_ID")]
    with pytest.raises(OutcomeUnknown):
        asked.complete(a_change(a_charge(), "ORDER1", "complete"))


@pytest.mark.parametrize("answer", [error(500), error(422, "REAUTHORIZATION_NOT_SUPPORTED")])
def test_a_failed_reauthorization_has_captured_nothing(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    old = order(authorizations=[paid("CREATED", create_time="2026-01-01T00:00:00Z")])
    canned.answers = [Answer(200, old), answer, Answer(201, paid("COMPLETED"))]
    if answer.status == 500:
        with pytest.raises(NotExecuted):
            changes(asked)["capture"]()
    else:
        assert changes(asked)["capture"]().status == "captured"


FUTURE, PAST = "2999-01-01T00:00:00Z", "2001-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (order("CREATED"), "requires_action"),
        (order("PAYER_ACTION_REQUIRED"), "requires_action"),
        (order("APPROVED"), "approved"),
        (order("VOIDED"), "voided"),
        (order("SAVED"), "processing"),
        (order("A_WORD_OF_TOMORROW"), "processing"),
        (order(captures=[paid("COMPLETED")]), "captured"),
        (order(captures=[paid("PARTIALLY_REFUNDED")]), "captured"),
        (order(captures=[paid("REFUNDED")]), "captured"),
        (order(captures=[paid("PENDING")]), "processing"),
        (order(captures=[paid("A_WORD_OF_TOMORROW")]), "processing"),
        (order(captures=[paid("DECLINED")]), "declined"),
        (order(captures=[paid("FAILED")]), "declined"),
        (order(captures=[paid("DECLINED"), paid("COMPLETED")]), "captured"),
        (order(authorizations=[paid("CREATED")]), "authorized"),
        (order(authorizations=[paid("CREATED", expiration_time=FUTURE)]), "authorized"),
        (order(authorizations=[paid("CREATED", expiration_time=PAST)]), "voided"),
        (order(authorizations=[paid("VOIDED")]), "voided"),
        (order(authorizations=[paid("DENIED")]), "declined"),
        (order(authorizations=[paid("PENDING")]), "processing"),
        (order(authorizations=[paid("A_WORD_OF_TOMORROW")]), "processing"),
        (order(authorizations=[paid("CAPTURED")]), "processing"),
        (order(authorizations=[paid("CAPTURED")], captures=[paid("COMPLETED")]), "captured"),
        # A declined capture says nothing of an authorization that goes on, or has ended.
        (order(authorizations=[paid("CREATED")], captures=[paid("DECLINED")]), "authorized"),
        (order(authorizations=[paid("VOIDED")], captures=[paid("DECLINED")]), "voided"),
        (order(authorizations=[paid("EXPIRED")], captures=[paid("DECLINED")]), "voided"),
        (order(authorizations=[paid("CAPTURED")], captures=[paid("DECLINED")]), "declined"),
        (order(authorizations=[paid("CREATED"), paid("VOIDED")]), "authorized"),
        (order(authorizations=[paid("VOIDED"), paid("CREATED")]), "authorized"),
    ],
)
def test_every_state_of_an_order_has_its_meaning(
    asked: PayPalGateway, canned: Canned, answer: dict[str, Any], status: str
) -> None:
    canned.answers = [Answer(200, answer)]
    charge = asked.look_up(ChargeLookup(a_charge(key=KEY), "ORDER1", utc_now()))
    assert charge is not None
    assert (charge.reference, charge.status, charge.amount) == ("ORDER1", status, 1099)
    assert charge.amount_captured == (1099 if status == "captured" else 0)


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("COMPLETED", "succeeded"),
        ("PENDING", "pending"),
        ("FAILED", "failed"),
        ("CANCELLED", "failed"),
        ("A_WORD_OF_TOMORROW", "pending"),
    ],
)
def test_every_state_of_a_refund_has_its_meaning(
    asked: PayPalGateway, canned: Canned, word: str, status: str
) -> None:
    canned.answers = [Answer(200, paid(word))]
    request = a_refund(Charge("ORDER1", "captured", 1099, "USD"))
    refund = asked.look_up_refund(RefundLookup(request, "PAYMENT1", utc_now()))
    assert refund == Refund("PAYMENT1", status, 1099, "USD")  # type: ignore[arg-type]


def test_another_amount_or_currency_is_reported_as_it_is(
    asked: PayPalGateway, canned: Canned
) -> None:
    answer = order(captures=[paid("COMPLETED")])
    answer["purchase_units"][0]["amount"] = {"currency_code": "EUR", "value": "5.00"}
    canned.answers = [Answer(201, answer)]
    charge = asked.charge(a_charge())
    assert (charge.amount, charge.currency) == (500, "EUR")


@pytest.mark.parametrize(
    "answer",
    [Answer(200, {}), Answer(200, {"id": "T"}), Answer(200, {"payment_source": {}}), error(500)],
)
def test_an_answer_that_is_no_payment_token_is_unknown(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    canned.answers = [answer]
    with pytest.raises(OutcomeUnknown):
        asked.save_method(MethodRequest("paypal", "u", {}, token="TOKEN1"))
