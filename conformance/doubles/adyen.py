"""A double of Adyen's Checkout API v72: strict and stateful. It reports outcomes later, as Adyen.

Captures, voids and refunds are answered "received" whatever becomes of them; the outcome is a
notification. Nothing can be read back but the cards of a shopper.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs

from conformance.doubles.adyen_wire import (
    API_KEY,
    CARDS,
    FOREIGN_HMAC_KEY,
    HMAC_KEY,
    MERCHANT_ACCOUNT,
    NO_DECIMALS,
    THREE_DECIMALS,
    Violation,
    new_reference,
    read_amount,
    refusal,
    require,
    signature,
    signed_body,
    stored_card,
)
from conformance.doubles.server import Answer, BookEntry, Double, Request
from domain.money import unscale

PAYMENT_FIELDS = {
    "additionalData",
    "amount",
    "authenticationData",
    "captureDelayHours",
    "channel",
    "merchantAccount",
    "metadata",
    "paymentMethod",
    "recurringProcessingModel",
    "redirectFromIssuerMethod",
    "redirectToIssuerMethod",
    "reference",
    "returnUrl",
    "shopperInteraction",
    "shopperReference",
}
CHANGE_FIELDS = {
    "captures": {"merchantAccount", "amount", "reference"},
    "cancels": {"merchantAccount", "reference"},
    "refunds": {"merchantAccount", "amount", "reference"},
}
OPERATIONS = {"captures": "capture", "cancels": "void", "refunds": "refund"}


@dataclass
class Payment:
    psp: str
    reference: str  # the merchant's
    amount: int  # as Adyen counts, like all amounts here
    currency: str
    capture: bool
    status: str
    token: str
    captured: int = 0
    refunded: int = 0
    redirect_result: str = ""
    approved: bool | None = None


@dataclass
class Modification:
    psp: str
    payment: Payment
    reference: str
    amount: int
    failed: bool = False


class AdyenDouble(Double):
    """Adyen on a port of its own. Where its payments are named, either reference will do."""

    def __init__(self) -> None:
        super().__init__()
        self.payments: list[Payment] = []
        self.refunds: dict[str, Modification] = {}
        self.disputes: dict[str, Payment] = {}
        self.cards: dict[str, tuple[str, str | None]] = {}  # token -> kind and shopper
        self.answers: dict[str, tuple[str, bytes, Answer]] = {}  # key -> path, body, answer
        self.fails: dict[str, int] = {}

    # Controls -----------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {
            "adyen_api_key": API_KEY,
            "adyen_merchant_account": MERCHANT_ACCOUNT,
            "adyen_hmac_key": HMAC_KEY,
            "adyen_api_base": f"{self.base_url}/v72",
        }

    def method(self, kind: str) -> dict[str, Any] | None:
        """A body for POST /payment-methods; None for "refused": Adyen only ever refuses charges."""
        if kind not in CARDS:
            return None
        return {
            "payment_type": "card",
            "gateway": "adyen",
            "details": {"token": self.store_card(kind)},
        }

    def store_card(self, kind: str) -> str:
        """A new storedPaymentMethodId. It belongs to the shopper who is first seen with it."""
        with self.lock:
            token = new_reference()
            self.cards[token] = (kind, None)
            return token

    def fail_next(self, operation: str) -> None:
        """The next capture, void or refund is received as ever, and then not done."""
        self.fails[operation] = self.fails.get(operation, 0) + 1

    def approve(self, reference: str, *, yes: bool) -> None:
        """What the shopper says. Nothing happens until the merchant hands over `returned`."""
        with self.lock:
            payment = self.payment(reference)
            assert payment is not None
            assert payment.status == "requires_action"
            payment.approved = yes

    def returned(self, reference: str) -> dict[str, str]:
        """What Adyen adds to the return URL once the shopper has answered."""
        payment = self.payment(reference)
        assert payment is not None
        assert payment.approved is not None, "the shopper has not answered yet"
        return {"redirectResult": payment.redirect_result}

    def approve_after_all(self, reference: str) -> None:
        """The shopper's bank agrees to what was closed or canceled: Adyen says that this happens
        (https://www.adyen.help/hc/en-us/articles/360000238870-What-are-offers-)."""
        with self.lock:
            payment = self.payment(reference)
            assert payment is not None
            assert payment.status in ("declined", "voided")
            self._decide(payment, None)

    def abandon(self, reference: str) -> None:
        """The shopper closes the page; 12 hours later Adyen closes the offer."""
        payment = self.payment(reference)
        assert payment is not None
        payment.status = "declined"
        self.notify("OFFER_CLOSED", payment, psp=payment.psp)

    def expire(self, reference: str) -> None:
        payment = self.payment(reference)
        assert payment is not None
        payment.status = "voided"
        self.notify("EXPIRE", payment, psp=new_reference(), original=payment.psp)

    def dispute(self, reference: str) -> str:
        payment = self.payment(reference)
        assert payment is not None
        assert payment.status == "captured"
        dispute_id = new_reference()
        self.disputes[dispute_id] = payment
        self._dispute_event("NOTIFICATION_OF_CHARGEBACK", dispute_id)
        self._dispute_event("CHARGEBACK", dispute_id)
        return dispute_id

    def close_dispute(self, dispute_id: str, *, won: bool) -> None:
        self._dispute_event("CHARGEBACK_REVERSED" if won else "SECOND_CHARGEBACK", dispute_id)

    def fail_refund(self, refund_reference: str) -> None:
        """The bank returns a refund that Adyen reported as done."""
        refund = self.refunds[refund_reference]
        assert not refund.failed
        refund.failed = True
        refund.payment.refunded -= refund.amount
        self._outcome("REFUND_FAILED", refund, done=True, reason="Refund Failed")

    def fail_capture(self, reference: str) -> None:
        """The bank reverses a capture that Adyen reported as done."""
        payment = self.payment(reference)
        assert payment is not None
        self.notify("CAPTURE_FAILED", payment, psp=new_reference(), original=payment.psp)

    # The Customer Area: what people do there by hand. The reference is what they typed.

    def capture_outside(
        self, reference: str, amount: int | None = None, *, typed: str = ""
    ) -> None:
        self._by_hand("capture", reference, amount, typed)

    def cancel_outside(self, reference: str, *, typed: str = "") -> None:
        self._by_hand("void", reference, None, typed)

    def refund_outside(self, reference: str, amount: int | None = None, *, typed: str = "") -> str:
        """Returns Adyen's reference of the refund."""
        return self._by_hand("refund", reference, amount, typed).psp

    def reverse_outside(self, reference: str, *, typed: str = "") -> None:
        """Cancel or refund, whichever is possible; the amount is always the whole."""
        self._by_hand("reversal", reference, None, typed)

    def _by_hand(
        self, operation: str, reference: str, amount: int | None, typed: str
    ) -> Modification:
        with self.lock:
            payment = self.payment(reference)
            assert payment is not None
            value = payment.amount if amount is None else amount
            change = Modification(new_reference(), payment, typed, value)
            getattr(self, f"_{operation}")(change, self._fails(operation))
            return change

    def forge(
        self, headers: Mapping[str, str], body: bytes, *, age: float = 0, foreign: bool = False
    ) -> tuple[dict[str, str], bytes] | None:
        """Signed anew, with another account's key if `foreign`. Nothing is dated: age is None."""
        if age:
            return None
        payload = json.loads(body)
        item = payload["notificationItems"][0]["NotificationRequestItem"]
        item["additionalData"]["hmacSignature"] = signature(
            item, FOREIGN_HMAC_KEY if foreign else HMAC_KEY
        )
        return dict(headers), json.dumps(payload).encode()

    def books(self) -> list[BookEntry]:
        with self.lock:
            return [_entry(payment) for payment in self.payments]

    def payment(self, reference: str) -> Payment | None:
        return next(
            (found for found in self.payments if reference in (found.psp, found.reference)), None
        )

    # The API ------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        if not hmac.compare_digest(request.headers.get("x-api-key", "").encode(), API_KEY.encode()):
            return refusal(401, "000", "security")
        path = request.path.removeprefix("/v72")
        if request.method == "GET" and path == "/storedPaymentMethods":
            return self._list_cards(parse_qs(request.query))
        if request.method != "POST":
            return refusal(404, "000", "validation")
        return self._once(request, path)

    def _once(self, request: Request, path: str) -> Answer:
        """The stored answer for a known key, whatever is asked; also if it is a refusal."""
        key = request.headers.get("idempotency-key")
        if not key:
            self.violations.append(f"POST {path} without a key")
            return self._post(path, request.body)
        if len(key) > 64:
            self.violations.append("a key of more than 64 characters")
        if key in self.answers:
            first_path, first_body, answer = self.answers[key]
            if (first_path, first_body) != (path, request.body):
                self.violations.append(f"POST {path} repeats a key with another request")
            return answer
        answer = self._post(path, request.body)
        self.answers[key] = (path, request.body, answer)
        return answer

    def _post(self, path: str, raw: bytes) -> Answer:
        try:
            body = json.loads(raw)
            if path != "/payments/details" and body.get("merchantAccount") != MERCHANT_ACCOUNT:
                return refusal(403, "901", "security")
            if path == "/payments":
                return self._pay(body)
            if path == "/payments/details":
                return self._details(body)
            if path == "/cancels":
                return self._cancel_by_reference(body)
            if found := re.fullmatch(r"/payments/([^/]+)/(captures|cancels|refunds)", path):
                return self._modify(found[1], found[2], body)
        except Violation as violation:
            self.violations.append(f"POST {path}: {violation}")
            return refusal(422, "702", "validation")
        return refusal(404, "000", "validation")

    def _list_cards(self, query: Mapping[str, list[str]]) -> Answer:
        if query.get("merchantAccount") != [MERCHANT_ACCOUNT]:
            return refusal(403, "901", "security")
        (shopper,) = query["shopperReference"]
        if not 3 <= len(shopper) <= 256:
            self.violations.append("a shopperReference of a length that Adyen refuses")
        mine = [token for token, (_, owner) in self.cards.items() if owner in (None, shopper)]
        return Answer(
            200,
            {
                "merchantAccount": MERCHANT_ACCOUNT,
                "shopperReference": shopper,
                "storedPaymentMethods": [
                    stored_card(token, self.cards[token][0]) for token in mine
                ],
            },
        )

    def _pay(self, body: dict[str, Any]) -> Answer:
        require(set(body) <= PAYMENT_FIELDS, "fields that /payments does not have")
        value, currency = read_amount(body)
        for name, longest in (("reference", 80), ("returnUrl", 1024), ("shopperReference", 256)):
            known = body.get(name)
            require(isinstance(known, str) and 0 < len(known) <= longest, f"no valid {name}")
        require(body.get("shopperInteraction") == "ContAuth", "a card on file is ContAuth")
        model = body.get("recurringProcessingModel")
        require(model in ("CardOnFile", "UnscheduledCardOnFile"), "no processing model")
        manual = body.get("additionalData", {}).get("manualCapture") == "true"
        require(manual or body.get("captureDelayHours") == 0, "neither captured nor manual")
        require(set(body["paymentMethod"]) == {"type", "storedPaymentMethodId"}, "no stored card")
        token, shopper = body["paymentMethod"]["storedPaymentMethodId"], body["shopperReference"]
        kind, owner = self.cards.get(token, ("", None))
        if kind == "" or owner not in (None, shopper):
            return refusal(422, "800", "validation")
        self.cards[token] = (kind, shopper)
        payment = Payment(
            new_reference(), body["reference"], value, currency, not manual, "", token
        )
        self.payments.append(payment)
        if kind == "action" and model == "CardOnFile":
            payment.status = "requires_action"
            payment.redirect_result = secrets.token_urlsafe(24)
            return Answer(
                200,
                {
                    "resultCode": "RedirectShopper",  # and no pspReference yet
                    "action": {
                        "type": "redirect",
                        "paymentMethodType": "scheme",
                        "method": "GET",
                        "url": f"{self.base_url}/checkoutshopper/threeDS/redirect/{payment.psp}",
                    },
                },
            )
        return self._decide(payment, CARDS[kind][3])

    def _details(self, body: dict[str, Any]) -> Answer:
        require(set(body) == {"details"}, "fields that /payments/details does not have")
        require(set(body["details"]) == {"redirectResult"}, "not the details of a redirect")
        result = body["details"]["redirectResult"]
        payment = next((p for p in self.payments if result and p.redirect_result == result), None)
        if payment is None or payment.approved is None or payment.status != "requires_action":
            return refusal(422, "101", "validation")
        return self._decide(payment, None if payment.approved else ("11", "3D Not Authenticated"))

    def _decide(self, payment: Payment, refused: tuple[str, str] | None) -> Answer:
        answer: dict[str, Any] = {
            "pspReference": payment.psp,
            "merchantReference": payment.reference,
            "amount": {"value": payment.amount, "currency": payment.currency},
        }
        if refused is not None:
            code, reason = refused
            payment.status = "declined"
            answer |= {
                "resultCode": "Refused",
                "refusalReason": reason,
                "refusalReasonCode": code,
            }
            self.notify("AUTHORISATION", payment, psp=payment.psp, done=False, reason=reason)
            return Answer(200, answer)
        payment.status = "captured" if payment.capture else "authorized"
        payment.captured = payment.amount if payment.capture else 0
        self.notify("AUTHORISATION", payment, psp=payment.psp, reason="021374:1111:03/2030")
        return Answer(200, {**answer, "resultCode": "Authorised"})

    def _modify(self, psp: str, what: str, body: dict[str, Any]) -> Answer:
        require(set(body) <= CHANGE_FIELDS[what], f"fields that {what} does not have")
        reference = body.get("reference")
        require(isinstance(reference, str) and len(reference) <= 80, "no valid reference")
        payment = next((found for found in self.payments if found.psp == psp), None)
        if payment is None:
            return refusal(422, "167", "validation")
        value = payment.amount
        if what != "cancels":
            value, currency = read_amount(body)
            require(currency == payment.currency, "another currency than the payment's")
        change = Modification(new_reference(), payment, str(reference), value)
        getattr(self, f"_{OPERATIONS[what]}")(change, self._fails(OPERATIONS[what]))
        answer = {
            "merchantAccount": MERCHANT_ACCOUNT,
            "paymentPspReference": psp,
            "pspReference": change.psp,
            "reference": reference,
            "status": "received",
        }
        return Answer(201, answer if what == "cancels" else {**answer, "amount": body["amount"]})

    def _cancel_by_reference(self, body: dict[str, Any]) -> Answer:
        fields = {"merchantAccount", "reference", "paymentReference"}
        require(set(body) == fields, "not the fields of /cancels")
        payment = self.payment(body["paymentReference"])
        change_psp = new_reference()
        if payment is not None:
            done = payment.status in ("requires_action", "authorized") and not self._fails("void")
            payment.status = "voided" if done else payment.status
            # It repeats the reference of the payment, unlike all other outcomes:
            # https://docs.adyen.com/api-explorer/Webhooks/1/post/TECHNICAL_CANCEL
            self.notify(
                "TECHNICAL_CANCEL", payment, psp=change_psp, original=payment.psp, done=done
            )
        return Answer(
            201,
            {
                "merchantAccount": MERCHANT_ACCOUNT,
                "paymentReference": body["paymentReference"],
                "pspReference": change_psp,
                "reference": body["reference"],
                "status": "received",
            },
        )

    def _capture(self, change: Modification, fails: bool) -> None:
        payment = change.payment
        done = payment.status == "authorized" and change.amount <= payment.amount and not fails
        if done:
            payment.status, payment.captured = "captured", change.amount
        self._outcome("CAPTURE", change, done=done, reason="Insufficient balance on payment")

    def _void(self, change: Modification, fails: bool) -> None:
        done = change.payment.status == "authorized" and not fails
        if done:
            change.payment.status = "voided"
        self._outcome("CANCELLATION", change, done=done, reason="Transaction not authorised")

    def _refund(self, change: Modification, fails: bool) -> None:
        payment = change.payment
        done = payment.refunded + change.amount <= payment.captured and not fails
        if done:
            payment.refunded += change.amount
            self.refunds[change.psp] = change
        self._outcome("REFUND", change, done=done, reason="Insufficient balance on payment")

    def _reversal(self, change: Modification, fails: bool) -> None:
        payment, action = change.payment, "cancel"
        done = payment.status in ("authorized", "captured") and payment.refunded == 0 and not fails
        if done and payment.status == "captured":
            action = "refund"
            payment.refunded = payment.captured
            self.refunds[change.psp] = change
        elif done:
            payment.status = "voided"
        self._outcome(
            "CANCEL_OR_REFUND",
            change,
            done=done,
            reason="Not possible",
            unsigned={"modification.action": action},
        )

    def _fails(self, operation: str) -> bool:
        left = self.fails.get(operation, 0)
        self.fails[operation] = max(0, left - 1)
        return left > 0

    # Notifications ------------------------------------------------------------------------------

    def notify(
        self,
        event: str,
        payment: Payment,
        *,
        psp: str,
        original: str = "",
        merchant_reference: str | None = None,
        value: int | None = None,
        done: bool = True,
        reason: str = "",
        unsigned: Mapping[str, str] | None = None,
    ) -> None:
        """Sign and send one. Without more said it is about the payment as a whole."""
        item: dict[str, Any] = {
            "additionalData": dict(unsigned or {}),
            "amount": {
                "currency": payment.currency,
                "value": payment.amount if value is None else value,
            },
            "eventCode": event,
            "eventDate": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "merchantAccountCode": MERCHANT_ACCOUNT,
            "merchantReference": (
                payment.reference if merchant_reference is None else merchant_reference
            ),
            "paymentMethod": "visa",
            "pspReference": psp,
            "reason": reason,
            "success": "true" if done else "false",
        }
        if original:
            item["originalReference"] = original
        self.send_webhook({"content-type": "application/json"}, signed_body(item))

    def _outcome(
        self,
        event: str,
        change: Modification,
        *,
        done: bool,
        reason: str,
        unsigned: Mapping[str, str] | None = None,
    ) -> None:
        self.notify(
            event,
            change.payment,
            psp=change.psp,
            original=change.payment.psp,
            merchant_reference=change.reference,
            value=change.amount,
            done=done,
            reason="" if done and event != "REFUND_FAILED" else reason,
            unsigned=unsigned,
        )

    def _dispute_event(self, event: str, dispute_id: str) -> None:
        payment = self.disputes[dispute_id]
        self.notify(
            event,
            payment,
            psp=dispute_id,
            original=payment.psp,
            value=payment.captured,
            reason="Fraudulent Processing of Transactions",
        )


def _entry(payment: Payment) -> BookEntry:
    currency = payment.currency
    decimals = 0 if currency in NO_DECIMALS else 3 if currency in THREE_DECIMALS else 2
    amount, captured, refunded = (
        unscale(value, currency, decimals)
        for value in (payment.amount, payment.captured, payment.refunded)
    )
    assert amount is not None
    assert captured is not None
    assert refunded is not None
    payment_id = int(payment.reference.split("-")[1])
    return BookEntry(payment.psp, payment_id, amount, currency, payment.status, captured, refunded)
