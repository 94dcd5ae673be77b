"""Redirects, captures, voids, refunds, and what became of those that were not answered."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from conformance.doubles import adyen_wire as doubles
from conformance.doubles.adyen import AdyenDouble
from conformance.doubles.server import Answer
from gateways.adyen import AdyenGateway
from gateways.adyen.gateway import KEY_LIFETIME
from gateways.base import (
    ChangeRequest,
    Charge,
    ChargeLookup,
    ChargeRequest,
    Decline,
    NotExecuted,
    OutcomeUnknown,
    Refund,
    RefundLookup,
    Refused,
)
from tests.support.adyen import (
    KEY,
    NOW,
    OTHER_KEY,
    change_request,
    charge_request,
    last_event,
    only_entry,
    refund_request,
)
from tests.support.adyen_answers import Answering

AGES_AGO = NOW - timedelta(days=8)


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
