"""Which notifications are Adyen's, and what they tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.doubles import adyen_wire as doubles
from conformance.doubles.adyen import AdyenDouble
from gateways.adyen import AdyenGateway
from gateways.base import (
    Charge,
    Decline,
    SignatureInvalid,
)
from tests.support.adyen import (
    HEADERS,
    KEY,
    build,
    charge_request,
    item,
    read_event,
)


@pytest.fixture(scope="module")
def built() -> Iterator[AdyenGateway]:
    """One that reads notifications; there is nobody whom it could ask."""
    reader = build()
    yield reader
    reader._transport._client.close()


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
