"""Settings, amounts, methods and charges, over real HTTP against a strict double of Adyen."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from typing import Any

import pytest

from config import ConfigurationError
from conformance.doubles import adyen_wire as doubles
from conformance.doubles.adyen import AdyenDouble
from conformance.doubles.server import Answer, Double
from domain.money import exponent
from gateways.adyen import AdyenGateway
from gateways.adyen.gateway import shopper_reference
from gateways.base import (
    Charge,
    Decline,
    MethodInvalid,
    NotExecuted,
    OutcomeUnknown,
    Refused,
    RetryLater,
    SavedMethod,
)
from tests.support.adyen import (
    KEY,
    USER,
    build,
    charge_request,
    last_event,
    method_request,
    only_entry,
)
from tests.support.adyen_answers import Answering


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
