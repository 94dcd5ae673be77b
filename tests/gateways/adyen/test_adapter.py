"""The Adyen adapter, over real HTTP against a strict double of Adyen."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from config import ConfigurationError
from conformance.doubles import adyen_wire as doubles
from conformance.doubles.adyen import AdyenDouble
from conformance.doubles.server import Answer, Double, Request
from domain.money import exponent
from gateways.adyen import AdyenGateway
from gateways.adyen.gateway import KEY_LIFETIME, shopper_reference
from gateways.base import (
    ChangeRequest,
    Charge,
    ChargeLookup,
    ChargeRequest,
    Decline,
    MethodInvalid,
    NotExecuted,
    OutcomeUnknown,
    Refund,
    RefundLookup,
    Refused,
    RetryLater,
    SavedMethod,
    SignatureInvalid,
)
from tests.support.adyen import (
    HEADERS,
    KEY,
    NOW,
    OTHER_KEY,
    USER,
    build,
    change_request,
    charge_request,
    connected,
    item,
    last_event,
    method_request,
    only_entry,
    read_event,
    refund_request,
    running_double,
)

AGES_AGO = NOW - timedelta(days=8)
Answering = Callable[[Answer], AdyenGateway]


class Scripted(Double):
    """A gateway that gives every request the same answer."""

    def __init__(self, said: Answer) -> None:
        super().__init__()
        self.said = said

    def answer(self, request: Request) -> Answer:
        return self.said


@pytest.fixture(scope="module")
def answering() -> Iterator[Answering]:
    """Makes a gateway whose every request is answered like that, until the next is made."""
    with Scripted(Answer(200)) as scripted:
        built = build(adyen_api_base=scripted.base_url)

        def answer(said: Answer) -> AdyenGateway:
            assert isinstance(scripted, Scripted)
            scripted.said = said
            return built

        yield answer
        built._transport._client.close()


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
    reader._transport._client.close()


@pytest.fixture
def token(double: AdyenDouble) -> str:
    return double.store_card("good")


def last_body(double: Double) -> dict[str, Any]:
    body = json.loads(double.requests[-1].body)
    assert isinstance(body, dict)
    return body


class TestSettings:
    def test_what_is_missing_is_named_and_nothing_else(self) -> None:
        with pytest.raises(ConfigurationError, match="ADYEN_MERCHANT_ACCOUNT") as failure:
            build(adyen_merchant_account=None)
        assert doubles.API_KEY not in str(failure.value)

    def test_production_needs_the_live_endpoint(self) -> None:
        with pytest.raises(ConfigurationError, match="ADYEN_API_BASE"):
            build(environment="production", adyen_api_base=None)

    def test_development_talks_to_the_test_endpoint(self) -> None:
        built = build(adyen_api_base=None)
        base = built._transport._client.base_url
        assert str(base).startswith("https://checkout-test.adyen.com/v72")
        built._transport._client.close()

    @pytest.mark.parametrize("value", ["not-hexadecimal", ",", "ABC"])
    def test_an_hmac_key_that_is_none_is_refused_without_showing_it(self, value: str) -> None:
        with pytest.raises(ConfigurationError) as failure:
            build(adyen_hmac_key=value)
        assert "ADYEN_HMAC_KEY" in str(failure.value)
        assert value == "," or value not in str(failure.value)


class TestAmounts:
    @pytest.mark.parametrize(
        ("amount", "currency", "value"),
        [
            (1099, "EUR", 1099),
            (500, "JPY", 500),
            (1234, "KWD", 1234),
            (500, "ISK", 50000),
            (500, "CLP", 50000),
            (500, "CVE", 5),
            (1000000, "IDR", 10000),
        ],
    )
    def test_adyen_is_sent_its_own_decimals_and_understood(
        self,
        gateway: AdyenGateway,
        double: AdyenDouble,
        token: str,
        amount: int,
        currency: str,
        value: int,
    ) -> None:
        charge = gateway.charge(charge_request(token, amount=amount, currency=currency))
        assert last_body(double)["amount"] == {"value": value, "currency": currency}
        assert (charge.amount, charge.currency) == (amount, currency)
        assert only_entry(double).amount == amount
        told = last_event(gateway, double).charge
        assert told is not None
        assert (told.amount, told.currency) == (amount, currency)

    def test_an_amount_that_adyen_cannot_take_is_refused_before_it_is_asked(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str
    ) -> None:
        assert gateway.unsupported_amount_reason(1099, "EUR") is None
        assert gateway.unsupported_amount_reason(1050, "CVE") is not None
        with pytest.raises(Refused):
            gateway.charge(charge_request(token, amount=1050, currency="CVE"))
        assert double.requests == []

    def test_every_other_currency_is_counted_as_iso_4217_does(self) -> None:
        named = (doubles.NO_DECIMALS | doubles.THREE_DECIMALS) - {"CVE", "IDR"}
        for currency in named:
            expected = 0 if currency in doubles.NO_DECIMALS else 3
            assert exponent(currency) == expected, currency


class TestMethods:
    def test_a_stored_card_of_this_shopper_is_saved(
        self, gateway: AdyenGateway, token: str
    ) -> None:
        assert gateway.save_method(method_request(token)) == SavedMethod(
            token,
            {
                "brand": "visa",
                "last4": "1111",
                "exp_month": 3,
                "exp_year": 2030,
                "cardholder_name": "Ada Lovelace",
            },
            identity=token,
            customer=shopper_reference(USER),
        )

    def test_brands_have_our_names(self, gateway: AdyenGateway, double: AdyenDouble) -> None:
        saved = gateway.save_method(method_request(double.store_card("good_too")))
        assert saved.details["brand"] == "mastercard"

    def test_a_shopper_keeps_the_reference_that_they_have(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str
    ) -> None:
        request = replace(method_request(token), customer="shopper-of-old")
        assert gateway.save_method(request).customer == "shopper-of-old"
        assert "shopperReference=shopper-of-old" in double.requests[-1].query

    def test_the_shopper_reference_tells_nobody_who_it_is(self) -> None:
        named = shopper_reference("ada@example.com")
        assert re.fullmatch(r"estore-[0-9a-f]{32}", named)
        assert named == shopper_reference("ada@example.com")
        assert named != shopper_reference("eve@example.com")

    def test_the_card_of_another_shopper_is_unknown(
        self, gateway: AdyenGateway, token: str
    ) -> None:
        gateway.charge(charge_request(token))  # now it belongs to USER
        with pytest.raises(MethodInvalid) as failure:
            gateway.save_method(method_request(token, "somebody-else"))
        assert failure.value.field == "details.token"
        assert token not in failure.value.message

    @pytest.mark.parametrize("token", [None, "", "NOSUCHTOKEN"])
    def test_what_is_no_token_is_invalid(self, gateway: AdyenGateway, token: str | None) -> None:
        with pytest.raises(MethodInvalid):
            gateway.save_method(method_request(token))

    @pytest.mark.parametrize(
        ("said", "raised"),
        [
            (doubles.refusal(401, "000", "security"), NotExecuted),
            (doubles.refusal(403, "901", "security"), NotExecuted),
            (doubles.refusal(422, "800", "validation"), MethodInvalid),
            (Answer(200, {}), MethodInvalid),
            (Answer(200, {"storedPaymentMethods": "x"}), MethodInvalid),
            (Answer(200, {"storedPaymentMethods": [3, {"id": "T", "type": "ach"}]}), MethodInvalid),
            (Answer(500, {}), OutcomeUnknown),
        ],
    )
    def test_other_answers(
        self, answering: Answering, said: Answer, raised: type[Exception]
    ) -> None:
        built = answering(said)
        with pytest.raises(raised):
            built.save_method(method_request("T"))


class TestCharges:
    def test_a_charge_is_captured_at_once(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str
    ) -> None:
        charge = gateway.charge(charge_request(token))
        entry = only_entry(double)
        ours = "payment-17-1099-sale"
        assert charge == Charge(
            entry.reference, "captured", 1099, "EUR", amount_captured=1099, replaces=ours
        )
        assert last_body(double) == {
            "merchantAccount": doubles.MERCHANT_ACCOUNT,
            "amount": {"value": 1099, "currency": "EUR"},
            "reference": "payment-17-1099-sale",
            "paymentMethod": {"type": "scheme", "storedPaymentMethodId": token},
            "shopperReference": shopper_reference(USER),
            "shopperInteraction": "ContAuth",
            "recurringProcessingModel": "CardOnFile",
            "returnUrl": "https://store.example/return",
            "metadata": {"payment_id": "17", "order_id": "4"},
            "channel": "Web",
            "authenticationData": {"threeDSRequestData": {"nativeThreeDS": "disabled"}},
            "redirectToIssuerMethod": "GET",
            "redirectFromIssuerMethod": "GET",
            "captureDelayHours": 0,
        }
        assert double.requests[-1].headers["idempotency-key"] == KEY

    def test_an_authorization_is_captured_by_hand_only(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str
    ) -> None:
        charge = gateway.charge(charge_request(token, capture=False))
        assert (charge.status, charge.amount_captured) == ("authorized", 0)
        assert last_body(double)["additionalData"] == {"manualCapture": "true"}
        assert "captureDelayHours" not in last_body(double)

    def test_without_the_shopper_it_is_no_card_on_file_payment(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str
    ) -> None:
        gateway.charge(charge_request(token, off_session=True))
        assert last_body(double)["recurringProcessingModel"] == "UnscheduledCardOnFile"
        assert "channel" not in last_body(double)

    @pytest.mark.parametrize(
        ("kind", "decline"),
        [
            ("declined", Decline("generic_decline", "2")),
            ("insufficient", Decline("insufficient_funds", "12")),
        ],
    )
    def test_a_refused_card_is_a_state(
        self, gateway: AdyenGateway, double: AdyenDouble, kind: str, decline: Decline
    ) -> None:
        charge = gateway.charge(charge_request(double.store_card(kind)))
        assert (charge.status, charge.decline) == ("declined", decline)
        told = last_event(gateway, double).charge
        assert told == charge

    def test_a_repeat_is_the_same_charge(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str
    ) -> None:
        request = charge_request(token)
        assert gateway.charge(request) == gateway.charge(request)
        assert len(double.books()) == 1

    @pytest.mark.parametrize(
        ("answer", "status", "decline"),
        [
            ({"resultCode": "Pending"}, "processing", None),
            ({"resultCode": "Received"}, "processing", None),
            ({"resultCode": "PresentToShopper"}, "processing", None),
            ({"resultCode": "AuthenticationFinished"}, "processing", None),
            ({"resultCode": "PartiallyAuthorised"}, "processing", None),
            ({"resultCode": "SomethingNew"}, "processing", None),
            ({"resultCode": "Error"}, "declined", Decline("processing_error", None)),
            (
                {"resultCode": "Error", "refusalReasonCode": "9"},
                "declined",
                Decline("try_again_later", "9"),
            ),
            (
                {"resultCode": "Cancelled", "refusalReasonCode": "<b>"},
                "declined",
                Decline("authentication_failed", None),
            ),
            (
                {"resultCode": "Refused", "refusalReasonCode": "99"},
                "declined",
                Decline("generic_decline", "99"),
            ),
            ({"resultCode": "RedirectShopper"}, "processing", None),
            ({"resultCode": "RedirectShopper", "action": "x"}, "processing", None),
            (
                {
                    "resultCode": "RedirectShopper",
                    "action": {"type": "redirect", "method": "POST", "url": "https://a.example"},
                },
                "processing",
                None,
            ),
            (
                {
                    "resultCode": "RedirectShopper",
                    "action": {"type": "redirect", "method": "GET", "url": "javascript:x"},
                },
                "processing",
                None,
            ),
            ({"resultCode": "IdentifyShopper", "action": {"type": "threeDS2"}}, "processing", None),
        ],
    )
    def test_result_codes(
        self, answering: Answering, answer: dict[str, Any], status: str, decline: Decline | None
    ) -> None:
        built = answering(Answer(200, answer))
        charge = built.charge(charge_request("T"))
        assert (charge.status, charge.decline) == (status, decline)
        assert charge.reference == "payment-17-1099-sale"
        assert (charge.amount, charge.amount_captured) == (1099, 0)

    def test_another_amount_is_reported_as_it_is(self, answering: Answering) -> None:
        answer = {
            "resultCode": "Authorised",
            "pspReference": "P",
            "amount": {"value": 5, "currency": "USD"},
        }
        built = answering(Answer(200, answer))
        charge = built.charge(charge_request("T"))
        assert (charge.amount, charge.currency, charge.amount_captured) == (5, "USD", 5)

    @pytest.mark.parametrize(
        ("said", "raised"),
        [
            (Answer(200, {}), OutcomeUnknown),
            (Answer(200, {"resultCode": 7}), OutcomeUnknown),
            (Answer(200, {"resultCode": "Authorised"}), OutcomeUnknown),
            (Answer(200, {"resultCode": "Authorised", "pspReference": ["P"]}), OutcomeUnknown),
            (
                Answer(200, {"resultCode": "Authorised", "pspReference": "P", "amount": {}}),
                OutcomeUnknown,
            ),
            (
                Answer(
                    200,
                    {
                        "resultCode": "Authorised",
                        "pspReference": "P",
                        "amount": {"value": "1099", "currency": "EUR"},
                    },
                ),
                OutcomeUnknown,
            ),
            (
                Answer(
                    200,
                    {
                        "resultCode": "Authorised",
                        "pspReference": "P",
                        "merchantReference": "payment-18-1099-sale",
                    },
                ),
                OutcomeUnknown,
            ),
            (Answer(200, b"<html>"), OutcomeUnknown),
            (Answer(200, [1]), OutcomeUnknown),
            (Answer(302, b""), OutcomeUnknown),
            (doubles.refusal(400, "702", "validation"), Refused),
            (doubles.refusal(422, "130", "validation"), Refused),
            (doubles.refusal(422, "905", "configuration"), NotExecuted),
            (doubles.refusal(422, "010", "security"), NotExecuted),
            (doubles.refusal(422, "905", "internal"), OutcomeUnknown),
            (doubles.refusal(422, "704", "validation"), OutcomeUnknown),
            (doubles.refusal(409, "704", "validation"), OutcomeUnknown),
            (doubles.refusal(409, "000", "validation"), OutcomeUnknown),
            (
                replace(
                    doubles.refusal(422, "130", "validation"), headers={"Transient-Error": "true"}
                ),
                OutcomeUnknown,
            ),
            (Answer(422, {}), OutcomeUnknown),
            (Answer(418, {"errorType": ["validation"]}), OutcomeUnknown),
            (doubles.refusal(401, "000", "security"), NotExecuted),
            (doubles.refusal(403, "901", "security"), NotExecuted),
            (doubles.refusal(404, "000", "validation"), NotExecuted),
            (Answer(429, {}, {"Retry-After": "3"}), RetryLater),
            (doubles.refusal(500, "905", "configuration"), OutcomeUnknown),
            (Answer(503, b""), OutcomeUnknown),
        ],
    )
    def test_every_other_answer_is_not_done_or_unknown(
        self, answering: Answering, said: Answer, raised: type[Exception]
    ) -> None:
        built = answering(said)
        with pytest.raises((NotExecuted, OutcomeUnknown)) as failure:
            built.charge(charge_request("T"))
        assert type(failure.value) is raised

    def test_a_message_of_adyen_is_not_repeated(self, answering: Answering) -> None:
        body = {"errorCode": "secret word", "errorType": "validation", "message": "4111 secret"}
        built = answering(Answer(422, body))
        with pytest.raises(Refused) as failure:
            built.charge(charge_request("T"))
        assert "secret" not in str(failure.value)

    def test_a_refused_connection_is_busy(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
            built = build(adyen_api_base=f"http://127.0.0.1:{taken.getsockname()[1]}")
            with pytest.raises(RetryLater):
                built.charge(charge_request("T"))
            built._transport._client.close()

    def test_a_lost_answer_is_unknown(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            base = f"http://127.0.0.1:{silent.getsockname()[1]}"
            built = build(0.2, adyen_api_base=base)
            with pytest.raises(OutcomeUnknown):
                built.charge(charge_request("T"))
            built._transport._client.close()

    def test_a_card_that_is_gone_is_refused(self, gateway: AdyenGateway) -> None:
        with pytest.raises(Refused, match="800"):
            gateway.charge(charge_request("GONE"))


class TestRedirects:
    @pytest.fixture
    def request_(self, double: AdyenDouble) -> ChargeRequest:
        return charge_request(double.store_card("action"))

    def completion(self, double: AdyenDouble, reference: str) -> ChangeRequest:
        return change_request(
            "complete", reference, key=KEY, redirect_params=double.returned(reference)
        )

    def test_the_shopper_is_sent_to_a_page(
        self, gateway: AdyenGateway, double: AdyenDouble, request_: ChargeRequest
    ) -> None:
        charge = gateway.charge(request_)
        assert charge.status == "requires_action"
        assert charge.redirect_url is not None
        assert charge.redirect_url.startswith(double.base_url)
        assert charge.reference == "payment-17-1099-sale"  # until Adyen's own is known

    @pytest.mark.parametrize(("capture", "status"), [(True, "captured"), (False, "authorized")])
    def test_what_the_shopper_brings_back_completes_the_charge(
        self,
        gateway: AdyenGateway,
        double: AdyenDouble,
        request_: ChargeRequest,
        capture: bool,
        status: str,
    ) -> None:
        waiting = gateway.charge(replace(request_, capture=capture))
        double.approve(waiting.reference, yes=True)
        completion = replace(self.completion(double, waiting.reference), capture=capture)
        charge = gateway.complete(completion)
        assert charge.status == status
        assert charge.reference == only_entry(double).reference
        assert gateway.complete(completion) == charge  # whoever tells it twice
        event = last_event(gateway, double)
        assert event.payment_id == 17
        assert event.charge == charge

    def test_a_shopper_who_declines_is_a_decline(
        self, gateway: AdyenGateway, double: AdyenDouble, request_: ChargeRequest
    ) -> None:
        waiting = gateway.charge(request_)
        double.approve(waiting.reference, yes=False)
        charge = gateway.complete(self.completion(double, waiting.reference))
        assert charge.decline == Decline("authentication_failed", "11")
        assert last_event(gateway, double).charge == charge

    def test_a_wrong_result_does_not_stand_in_the_way_of_the_right_one(
        self, gateway: AdyenGateway, double: AdyenDouble, request_: ChargeRequest
    ) -> None:
        waiting = gateway.charge(request_)
        double.approve(waiting.reference, yes=True)
        completion = self.completion(double, waiting.reference)
        with pytest.raises(Refused):
            gateway.complete(replace(completion, redirect_params={"redirectResult": "made up"}))
        assert gateway.complete(completion).status == "captured"

    def test_the_result_of_another_payment_completes_nothing_here(
        self, gateway: AdyenGateway, double: AdyenDouble, request_: ChargeRequest
    ) -> None:
        cheap = gateway.charge(replace(request_, payment_id=18, amount=1, key=OTHER_KEY))
        dear = gateway.charge(request_)
        double.approve(cheap.reference, yes=True)
        completion = self.completion(double, cheap.reference)
        with pytest.raises(Refused, match="another payment"):
            gateway.complete(replace(completion, reference=dear.reference))

    def test_an_answer_that_names_no_payment_completes_nothing(self, answering: Answering) -> None:
        answer = {"resultCode": "Authorised", "pspReference": "P"}
        built = answering(Answer(200, answer))
        with pytest.raises(OutcomeUnknown):
            built.complete(change_request("complete", "R", redirect_params={"redirectResult": "x"}))

    @pytest.mark.parametrize("returned", [{}, {"redirectResult": ""}, {"payload": "x"}])
    def test_without_a_result_nothing_can_be_completed(
        self, gateway: AdyenGateway, double: AdyenDouble, returned: dict[str, str]
    ) -> None:
        with pytest.raises(OutcomeUnknown):
            gateway.complete(change_request("complete", "R", redirect_params=returned))
        assert double.requests == []

    def test_a_waiting_charge_is_looked_up_by_repeating_it(
        self, gateway: AdyenGateway, request_: ChargeRequest
    ) -> None:
        waiting = gateway.charge(request_)
        assert gateway.look_up(ChargeLookup(request_, waiting.reference, NOW)) == waiting

    def test_a_waiting_charge_whose_repeat_is_refused_is_not_called_undone(
        self, gateway: AdyenGateway
    ) -> None:
        request = charge_request("GONE")
        with pytest.raises(OutcomeUnknown):
            gateway.look_up(ChargeLookup(request, "payment-17-1099-sale", NOW))

    def test_a_completion_without_an_answer_is_repeated(
        self, gateway: AdyenGateway, double: AdyenDouble, request_: ChargeRequest
    ) -> None:
        waiting = gateway.charge(request_)
        double.approve(waiting.reference, yes=True)
        completion = self.completion(double, waiting.reference)
        charge = gateway.look_up(ChargeLookup(completion, waiting.reference, NOW))
        assert charge == gateway.complete(completion)

    def test_a_refused_completion_leaves_the_charge_unknown(
        self, gateway: AdyenGateway, request_: ChargeRequest
    ) -> None:
        waiting = gateway.charge(request_)
        completion = change_request(
            "complete", waiting.reference, redirect_params={"redirectResult": "made up"}
        )
        with pytest.raises(OutcomeUnknown):
            gateway.look_up(ChargeLookup(completion, waiting.reference, NOW))

    def test_a_waiting_charge_is_voided_by_our_reference(
        self, gateway: AdyenGateway, double: AdyenDouble, request_: ChargeRequest
    ) -> None:
        waiting = gateway.charge(request_)
        void = change_request("void", waiting.reference, capture=True)
        assert gateway.void(void) == Charge(waiting.reference, "processing", 1099, "EUR")
        event = last_event(gateway, double)
        assert event.charge is not None
        assert (event.payment_id, event.charge.status) == (17, "voided")
        assert only_entry(double).status == "voided"

    def test_a_waiting_charge_cannot_be_captured_or_refunded(
        self, gateway: AdyenGateway, request_: ChargeRequest
    ) -> None:
        waiting = gateway.charge(request_)
        with pytest.raises(NotExecuted):
            gateway.capture(change_request("capture", waiting.reference))
        with pytest.raises(NotExecuted):
            gateway.refund(refund_request(waiting.reference))

    def test_a_shopper_who_never_comes_back_is_told_of(
        self, gateway: AdyenGateway, double: AdyenDouble, request_: ChargeRequest
    ) -> None:
        waiting = gateway.charge(request_)
        double.abandon(waiting.reference)
        event = last_event(gateway, double)
        assert event.charge is not None
        assert (event.payment_id, event.charge.status) == (17, "declined")
        assert event.charge.decline == Decline("authentication_failed", "OFFER_CLOSED")


class TestChanges:
    @pytest.fixture
    def authorized(self, gateway: AdyenGateway, token: str) -> str:
        return gateway.charge(charge_request(token, capture=False)).reference

    @pytest.fixture
    def captured(self, gateway: AdyenGateway, token: str) -> str:
        return gateway.charge(charge_request(token)).reference

    def test_a_capture_is_received_and_told_later(
        self, gateway: AdyenGateway, double: AdyenDouble, authorized: str
    ) -> None:
        charge = gateway.capture(change_request("capture", authorized, amount=600))
        assert charge == Charge(authorized, "processing", 1099, "EUR")
        event = last_event(gateway, double)
        assert (event.type, event.payment_id, event.reference) == ("CAPTURE", 17, authorized)
        assert event.charge == Charge(authorized, "captured", 1099, "EUR", amount_captured=600)
        assert only_entry(double).amount_captured == 600

    def test_a_void_is_received_and_told_later(
        self, gateway: AdyenGateway, double: AdyenDouble, authorized: str
    ) -> None:
        charge = gateway.void(change_request("void", authorized))
        assert charge == Charge(authorized, "processing", 1099, "EUR")
        event = last_event(gateway, double)
        ours = "payment-17-1099-auth"
        assert event.charge == Charge(authorized, "voided", 1099, "EUR", replaces=ours)

    def test_a_capture_that_is_not_done_names_its_key(
        self, gateway: AdyenGateway, double: AdyenDouble, authorized: str
    ) -> None:
        double.fail_next("capture")
        gateway.capture(change_request("capture", authorized))
        event = last_event(gateway, double)
        assert (event.failed_key, event.charge, event.payment_id) == (OTHER_KEY, None, 17)
        assert only_entry(double).status == "authorized"

    def test_a_void_that_is_not_done_names_the_operation(
        self, gateway: AdyenGateway, double: AdyenDouble, authorized: str
    ) -> None:
        double.fail_next("void")
        gateway.void(change_request("void", authorized))
        event = last_event(gateway, double)
        assert (event.failed_operation, event.charge, event.payment_id) == ("void", None, 17)
        assert only_entry(double).status == "authorized"

    def test_a_refund_is_received_and_told_later(
        self, gateway: AdyenGateway, double: AdyenDouble, captured: str
    ) -> None:
        refund = gateway.refund(refund_request(captured))
        assert (refund.status, refund.amount, refund.currency) == ("pending", 400, "EUR")
        event = last_event(gateway, double)
        assert event.payment_id == 17
        assert event.refund == Refund(refund.reference, "succeeded", 400, "EUR", refund_id=3)
        assert only_entry(double).amount_refunded == 400

    def test_a_refund_of_more_than_there_is_fails_later(
        self, gateway: AdyenGateway, double: AdyenDouble, captured: str
    ) -> None:
        gateway.refund(refund_request(captured, amount=2000))
        event = last_event(gateway, double)
        assert event.refund is not None
        assert (event.refund.status, event.refund.refund_id) == ("failed", 3)
        assert only_entry(double).amount_refunded == 0

    def test_a_refund_can_fail_after_it_succeeded(
        self, gateway: AdyenGateway, double: AdyenDouble, captured: str
    ) -> None:
        refund = gateway.refund(refund_request(captured))
        double.fail_refund(refund.reference)
        event = last_event(gateway, double)
        assert event.refund == replace(refund, status="failed")

    @pytest.mark.parametrize("operation", ["capture", "refund"])
    def test_a_payment_that_adyen_does_not_know_is_refused(
        self, gateway: AdyenGateway, operation: str
    ) -> None:
        request: Any = (
            refund_request("NOSUCH") if operation == "refund" else change_request(operation, "NO")
        )
        with pytest.raises(Refused, match="167"):
            getattr(gateway, operation)(request)

    @pytest.mark.parametrize("operation", ["capture", "void", "refund"])
    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"status": "received"},
            {"status": "received", "pspReference": "M"},
            {"status": "received", "pspReference": "M", "paymentPspReference": "OTHER"},
            {"status": "queued", "pspReference": "M", "paymentPspReference": "P"},
        ],
    )
    def test_an_answer_that_does_not_say_received_is_unknown(
        self, answering: Answering, operation: str, body: dict[str, Any]
    ) -> None:
        request: Any = (
            refund_request("P") if operation == "refund" else change_request(operation, "P")
        )
        built = answering(Answer(201, body))
        with pytest.raises(OutcomeUnknown):
            getattr(built, operation)(request)

    def test_a_refund_that_is_received_without_its_amount_is_unknown(
        self, answering: Answering
    ) -> None:
        body = {"status": "received", "pspReference": "M", "paymentPspReference": "P"}
        built = answering(Answer(201, body))
        with pytest.raises(OutcomeUnknown):
            built.refund(refund_request("P"))

    def test_a_reference_stays_inside_of_its_path(
        self, gateway: AdyenGateway, double: AdyenDouble
    ) -> None:
        with pytest.raises(Refused):
            gateway.capture(change_request("capture", "../x?y"))
        assert double.requests[-1].path == "/v72/payments/..%2Fx%3Fy/captures"


class TestLookUps:
    def test_a_charge_without_an_answer_is_repeated_under_its_key(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str
    ) -> None:
        request = charge_request(token)
        first = gateway.charge(request)
        assert gateway.look_up(ChargeLookup(request, None, NOW)) == first
        assert len(double.books()) == 1

    def test_a_charge_that_was_refused_never_was(self, gateway: AdyenGateway) -> None:
        request = charge_request("GONE")
        assert gateway.look_up(ChargeLookup(request, None, NOW)) is None

    def test_a_charge_with_a_reference_cannot_be_read(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str
    ) -> None:
        request = charge_request(token)
        reference = gateway.charge(request).reference
        asked = len(double.requests)
        with pytest.raises(OutcomeUnknown):
            gateway.look_up(ChargeLookup(request, reference, NOW))
        assert len(double.requests) == asked

    def test_nothing_is_repeated_once_the_key_may_be_forgotten(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str
    ) -> None:
        capture = change_request("capture", "P")
        with pytest.raises(OutcomeUnknown):
            gateway.look_up(ChargeLookup(charge_request(token), None, AGES_AGO))
        with pytest.raises(OutcomeUnknown):
            gateway.look_up(ChargeLookup(capture, "P", AGES_AGO))
        with pytest.raises(OutcomeUnknown):
            gateway.look_up_refund(RefundLookup(refund_request("P"), None, AGES_AGO))
        assert double.requests == []
        assert timedelta(days=6) < KEY_LIFETIME < timedelta(days=7)

    @pytest.mark.parametrize("operation", ["capture", "void"])
    def test_a_change_is_repeated_under_its_key(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str, operation: str
    ) -> None:
        reference = gateway.charge(charge_request(token, capture=False)).reference
        request = change_request(operation, reference)
        first = getattr(gateway, operation)(request)
        told = len(double.sent)
        assert gateway.look_up(ChargeLookup(request, reference, NOW)) == first
        assert len(double.sent) == told
        if operation == "capture":  # a void goes by our own reference, which Adyen may yet learn
            never = change_request(operation, "NO", key="another-key")
            assert gateway.look_up(ChargeLookup(never, "NO", NOW)) is None

    def test_a_refund_is_repeated_under_its_key(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str
    ) -> None:
        request = refund_request(gateway.charge(charge_request(token)).reference)
        first = gateway.refund(request)
        for reference in (None, first.reference):
            assert gateway.look_up_refund(RefundLookup(request, reference, NOW)) == first
        assert only_entry(double).amount_refunded == 400
        never = refund_request("NO", key="another-key")
        assert gateway.look_up_refund(RefundLookup(never, None, NOW)) is None

    @pytest.mark.parametrize(
        "said",
        [doubles.refusal(401, "000", "security"), Answer(429, {}), Answer(500, {})],
    )
    def test_a_repeat_that_was_not_done_says_nothing_about_the_first(
        self, answering: Answering, said: Answer
    ) -> None:
        built = answering(said)
        with pytest.raises(OutcomeUnknown):
            built.look_up(ChargeLookup(charge_request("T"), None, NOW))
        with pytest.raises(OutcomeUnknown):
            built.look_up(ChargeLookup(change_request("capture", "P"), "P", NOW))
        with pytest.raises(OutcomeUnknown):
            built.look_up_refund(RefundLookup(refund_request("P"), None, NOW))


class TestSignatures:
    def test_the_example_of_adyen_is_verified(self) -> None:
        """The payload and key that the tests of Adyen's own libraries use."""
        built = build(
            adyen_merchant_account="TestMerchant",
            adyen_hmac_key="44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056",
        )
        body = {
            "notificationItems": [
                {
                    "NotificationRequestItem": {
                        "pspReference": "7914073381342284",
                        "originalReference": "",
                        "merchantAccountCode": "TestMerchant",
                        "merchantReference": "TestPayment-1407325143704",
                        "amount": {"value": 1130, "currency": "EUR"},
                        "eventCode": "AUTHORISATION",
                        "success": "true",
                        "additionalData": {
                            "hmacSignature": "coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0="
                        },
                    }
                }
            ]
        }
        event = built.parse_webhook(HEADERS, json.dumps(body).encode())
        built._transport._client.close()
        assert event.id == "AUTHORISATION:7914073381342284:true"
        assert (event.payment_id, event.charge) == (None, None)  # not made through us

    def test_keys_can_be_rotated(self) -> None:
        body = doubles.signed_body(item())
        keys = f"{doubles.FOREIGN_HMAC_KEY}, {doubles.HMAC_KEY}"
        built = build(adyen_hmac_key=keys)
        assert built.parse_webhook(HEADERS, body).payment_id == 17
        built._transport._client.close()

    def test_a_foreign_signature_is_invalid(self, built: AdyenGateway, double: AdyenDouble) -> None:
        good = (HEADERS, doubles.signed_body(item()))
        foreign = double.forge(*good, foreign=True)
        again = double.forge(*good)
        assert foreign is not None
        assert again is not None
        assert double.forge(*good, age=600) is None
        with pytest.raises(SignatureInvalid):
            built.parse_webhook(*foreign)
        assert built.parse_webhook(*again) == built.parse_webhook(*good)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("pspReference", "ANOTHER"),
            ("originalReference", "ANOTHER"),
            ("merchantReference", "payment-18-1099-sale"),
            ("amount", {"currency": "EUR", "value": 1}),
            ("amount", {"currency": "USD", "value": 1099}),
            ("eventCode", "CAPTURE"),
            ("success", "false"),
        ],
    )
    def test_no_signed_field_can_be_changed(
        self, built: AdyenGateway, field: str, value: Any
    ) -> None:
        payload = json.loads(doubles.signed_body(item()))
        payload["notificationItems"][0]["NotificationRequestItem"][field] = value
        with pytest.raises(SignatureInvalid):
            built.parse_webhook(HEADERS, json.dumps(payload).encode())

    def test_a_signed_text_cannot_be_cut_into_other_fields(self, built: AdyenGateway) -> None:
        genuine = item(merchantReference="a:payment-1-9-sale", pspReference="P")
        signature = doubles.signature(genuine)
        cut = item(
            pspReference="P:",
            merchantAccountCode=doubles.MERCHANT_ACCOUNT,
            merchantReference="a:payment-1-9-sale",
            additionalData={"hmacSignature": signature},
        )
        assert built.parse_webhook(HEADERS, doubles.signed_body(genuine)).payment_id is None
        with pytest.raises(SignatureInvalid):
            built.parse_webhook(HEADERS, doubles.signed_body(cut))

    def test_another_merchant_account_is_not_ours(self, built: AdyenGateway) -> None:
        with pytest.raises(SignatureInvalid):
            built.parse_webhook(HEADERS, doubles.signed_body(item(merchantAccountCode="Other")))

    def test_more_than_one_item_is_refused(self, built: AdyenGateway) -> None:
        payload = json.loads(doubles.signed_body(item()))
        payload["notificationItems"] *= 2
        with pytest.raises(SignatureInvalid):
            built.parse_webhook(HEADERS, json.dumps(payload).encode())

    @pytest.mark.parametrize(
        "values",
        [
            {"success": True},
            {"success": "perhaps"},
            {"amount": {"currency": "EUR", "value": "1099"}},
            {"amount": {"currency": "EUR", "value": True}},
            {"amount": {"currency": "EUR", "value": 10.99}},
            {"merchantReference": "\ud800"},
        ],
    )
    def test_what_adyen_does_not_write_is_invalid(
        self, built: AdyenGateway, values: dict[str, Any]
    ) -> None:
        made = item(**values)
        made["additionalData"]["hmacSignature"] = "x"
        body = json.dumps({"notificationItems": [{"NotificationRequestItem": made}]}).encode()
        with pytest.raises(SignatureInvalid):
            built.parse_webhook(HEADERS, body)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"\xff\xfe\x00",
            b"{",
            b"null",
            b"[]",
            b"3",
            b"{}",
            b'{"notificationItems": null}',
            b'{"notificationItems": []}',
            b'{"notificationItems": {"a": 1}}',
            b'{"notificationItems": [3]}',
            b'{"notificationItems": [{}]}',
            b'{"notificationItems": [{"NotificationRequestItem": []}]}',
            b'{"notificationItems": [{"NotificationRequestItem": {}}]}',
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"notificationItems": [{"NotificationRequestItem": {"amount": {"value": '
            + b"9" * 5000
            + b"}}}]}",
        ],
    )
    def test_nonsense_is_invalid(self, built: AdyenGateway, body: bytes) -> None:
        with pytest.raises(SignatureInvalid):
            built.parse_webhook(HEADERS, body)

    @pytest.mark.parametrize("signature", [None, "", "é", 5, [], "AAAA", "\ud800"])
    def test_what_is_no_signature_is_invalid(self, built: AdyenGateway, signature: Any) -> None:
        payload = json.loads(doubles.signed_body(item()))
        found = payload["notificationItems"][0]["NotificationRequestItem"]
        found["additionalData"]["hmacSignature"] = signature
        with pytest.raises(SignatureInvalid):
            built.parse_webhook(HEADERS, json.dumps(payload).encode())


class TestEvents:
    def test_duplicates_have_one_id_and_other_events_have_others(self, built: AdyenGateway) -> None:
        first = read_event(built)
        assert first.id == "AUTHORISATION:QFQTPCQ8HXSKGK82:true"
        assert read_event(built, eventDate="2026-01-22T00:00:00+01:00").id == first.id
        assert read_event(built, success="false").id != first.id

    def test_the_reference_says_whether_an_authorization_is_captured(
        self, built: AdyenGateway
    ) -> None:
        sale = read_event(built).charge
        held = read_event(built, merchantReference="payment-17-1099-auth").charge
        psp = "QFQTPCQ8HXSKGK82"
        ours = "payment-17-1099"
        assert sale == Charge(
            psp, "captured", 1099, "EUR", amount_captured=1099, replaces=f"{ours}-sale"
        )
        assert held == Charge(psp, "authorized", 1099, "EUR", replaces=f"{ours}-auth")

    @pytest.mark.parametrize(
        ("reason", "decline"),
        [
            ("Expired Card", Decline("expired_card", "6")),
            ("CVC Declined", Decline("incorrect_cvc", "24")),
            ("3D Not Authenticated", Decline("authentication_failed", "11")),
            ("FRAUD", Decline("fraudulent", "20")),
            ("Something new", Decline("generic_decline", None)),
            (None, Decline("generic_decline", None)),
        ],
    )
    def test_a_refused_authorization_tells_why(
        self, built: AdyenGateway, reason: str | None, decline: Decline
    ) -> None:
        charge = read_event(built, success="false", reason=reason).charge
        assert charge is not None
        assert (charge.status, charge.decline) == ("declined", decline)

    def test_another_amount_is_reported_as_it_is(self, built: AdyenGateway) -> None:
        charge = read_event(built, amount={"currency": "USD", "value": 5}).charge
        assert charge is not None
        assert (charge.amount, charge.currency) == (5, "USD")

    @pytest.mark.parametrize(
        "code", ["AUTHORISATION", "CAPTURE", "EXPIRE", "OFFER_CLOSED", "REFUND", "CANCEL_OR_REFUND"]
    )
    def test_an_amount_that_we_cannot_hold_is_for_a_person(
        self, built: AdyenGateway, code: str
    ) -> None:
        told = read_event(built, eventCode=code, amount={"currency": "ISK", "value": 150})
        assert told.needs_review
        assert (told.charge, told.refund, told.payment_id) == (None, None, 17)

    def test_a_capture_that_the_bank_undoes_names_its_key(self, built: AdyenGateway) -> None:
        told = read_event(
            built,
            eventCode="CAPTURE_FAILED",
            originalReference="P",
            merchantReference=f"capture-17-1099-{KEY}",
        )
        assert (told.failed_key, told.payment_id, told.charge) == (KEY, 17, None)

    def test_an_expired_authorization_is_void_as_a_whole(self, built: AdyenGateway) -> None:
        told = read_event(
            built,
            eventCode="EXPIRE",
            originalReference="P",
            merchantReference="payment-17-1099-auth",
            amount={"currency": "EUR", "value": 600},
        )
        ours = "payment-17-1099-auth"
        assert told.charge == Charge("P", "voided", 1099, "EUR", replaces=ours)

    @pytest.mark.parametrize(
        ("event", "status"),
        [
            ("NOTIFICATION_OF_CHARGEBACK", "open"),
            ("CHARGEBACK", "open"),
            ("CHARGEBACK_REVERSED", "won"),
            ("SECOND_CHARGEBACK", "lost"),
            ("DISPUTE_DEFENSE_PERIOD_ENDED", "lost"),
            ("PREARBITRATION_WON", "won"),
        ],
    )
    def test_disputes(self, built: AdyenGateway, event: str, status: str) -> None:
        reason = "10.4\x00 " + "x" * 500
        told = read_event(built, eventCode=event, originalReference="P", reason=reason)
        assert told.dispute is not None
        assert (told.dispute.status, told.dispute.amount) == (status, 1099)
        assert (told.payment_id, told.reference) == (17, "P")
        assert told.dispute.evidence_due_at is None  # it is told, but not signed
        assert told.dispute.reason.startswith("10.4 x")
        assert len(told.dispute.reason) <= 200

    def test_the_events_of_one_dispute_are_one_dispute(
        self, gateway: AdyenGateway, double: AdyenDouble, token: str
    ) -> None:
        reference = gateway.charge(charge_request(token)).reference
        dispute_id = double.dispute(reference)
        double.close_dispute(dispute_id, won=False)
        disputes = [gateway.parse_webhook(*sent).dispute for sent in double.sent[-3:]]
        assert [d and (d.reference, d.status) for d in disputes] == [
            (dispute_id, "open"),
            (dispute_id, "open"),
            (dispute_id, "lost"),
        ]

    @pytest.mark.parametrize(
        "event",
        ["RECURRING_CONTRACT", "REPORT_AVAILABLE", "REQUEST_FOR_INFORMATION", "SOMETHING_NEW"],
    )
    def test_other_events_mean_nothing(self, built: AdyenGateway, event: str) -> None:
        told = read_event(built, eventCode=event, merchantReference="", reason={"x": 1})
        assert (told.type, told.payment_id, told.needs_lookup) == (event, None, False)
        assert (told.charge, told.refund, told.dispute, told.failed_key) == (None,) * 4

    @pytest.mark.parametrize(
        "reference",
        [
            "payment-17",
            "payment-17-1099-other",
            "payment--1-1099-sale",
            "payment-17-1099-sale\n",
            "payment-" + "9" * 19 + "-1-sale",
            "payment-١٧-1099-sale",
        ],
    )
    def test_a_reference_that_we_never_made_is_not_ours(
        self, built: AdyenGateway, reference: str
    ) -> None:
        told = read_event(built, merchantReference=reference)
        assert (told.payment_id, told.charge) == (None, None)
