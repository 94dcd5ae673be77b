"""Payments v2 at the double: authorizations, captures and refunds, by the API and outside it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from conformance.doubles.paypal.account import (
    VALID_DAYS,
    Account,
    Fail,
    One,
    days,
    find,
    link,
    major,
    money_of,
    new_id,
    time_of,
)

HONOR_DAYS = 3
OF_REFUND = ("custom_id", "invoice_id", "note_to_payer")  # what a refund shows of its request
MOST_OF_AN_AUTHORIZATION = Decimal("1.15")  # may be captured, in all its captures together


class Payments(Account):
    """What becomes of the money of orders."""

    # Outside, in the merchant's dashboard -------------------------------------------------------

    def refund_outside(self, reference: str, amount: int, *, marked: bool = False) -> str:
        """A refund on PayPal's own pages. `marked`: it carries what its capture carries."""
        with self.lock:
            capture = self._captured(reference)
            marks = {name: capture[name] for name in OF_REFUND[:2]} if marked else {}
            back = major(amount, capture["currency"])
            refund = self._new_refund(capture, back, marks, status="COMPLETED")
            self._settle_refund(capture, refund)
            return str(refund["id"])

    def capture_outside(self, reference: str, amount: int, *, final: bool = True) -> None:
        with self.lock:
            one = self._authorized(reference)
            taken = major(amount, one["currency"])
            self._new_capture(self.orders[reference], taken, one["id"])
            one["status"] = "CAPTURED" if final else "PARTIALLY_CAPTURED"

    def void_outside(self, reference: str) -> None:
        with self.lock:
            self._void(self._authorized(reference)["id"])

    # By PayPal itself ---------------------------------------------------------------------------

    def settle(self, capture_id: str, status: str) -> None:
        """A pending capture is decided: COMPLETED or DECLINED."""
        with self.lock:
            capture = self.captures[capture_id]
            capture["status"] = status
            self._send(f"PAYMENT.CAPTURE.{status}", "capture", self._capture(capture))

    def settle_refund(self, refund_reference: str, status: str) -> None:
        """A pending refund is decided."""
        with self.lock:
            refund = self.refunds[refund_reference]
            refund["status"] = status
            if status == "FAILED":
                self._send("PAYMENT.REFUND.FAILED", "refund", self._refund(refund))

    def reverse(self, reference: str) -> None:
        """PayPal takes back all of a captured order."""
        with self.lock:
            capture = self._captured(reference)
            capture["status"] = "REFUNDED"
            refund = self._new_refund(capture, capture["amount"], {}, status="COMPLETED")
            self._send("PAYMENT.CAPTURE.REVERSED", "refund", self._refund(refund))

    # By the API ---------------------------------------------------------------------------------

    def _capture_authorization(
        self, body: dict[str, Any], authorization_id: str
    ) -> Callable[[], Any]:
        one = self._usable(authorization_id)
        amount, currency = self._amount(body["amount"])
        if currency != one["currency"]:
            raise Fail(422, "AUTH_CAPTURE_CURRENCY_MISMATCH")
        before = [
            other["amount"]
            for other in self.captures.values()
            if other["authorization_id"] == one["id"] and other["status"] != "DECLINED"
        ]
        if sum(before, amount) > one["amount"] * MOST_OF_AN_AUTHORIZATION:
            raise Fail(422, "MAX_CAPTURE_AMOUNT_EXCEEDED")
        funding = self.orders[one["order"]]["funding"]
        if "_" in funding:
            raise Fail(422, funding)
        if not body.get("final_capture"):
            self.violations.append("capture: not the final one, so the rest stays held")
        if before:
            self.violations.append("capture: on top of what was captured")
        capture = self._new_capture(self.orders[one["order"]], amount, one["id"])
        if capture["status"] != "DECLINED":
            one["status"] = "CAPTURED"
        return lambda: self._capture(capture)

    def _reauthorize(self, body: dict[str, Any], authorization_id: str) -> Callable[[], Any]:
        one = self._usable(authorization_id)
        if days(one) < HONOR_DAYS or "renewed" in one:
            raise Fail(422, "REAUTHORIZATION_NOT_SUPPORTED")
        amount, _ = self._amount(body["amount"])
        new = self._new_authorization(self.orders[one["order"]], amount)
        one["renewed"] = new["renewed"] = True
        return lambda: self._authorization(new)

    def _void(self, authorization_id: str) -> One:
        one = find(self.authorizations, authorization_id)
        if one["status"] in ("VOIDED", "CAPTURED"):
            raise Fail(422, f"PREVIOUSLY_{one['status']}")
        one["status"] = "VOIDED"
        state = self._authorization(one)
        self._send("PAYMENT.AUTHORIZATION.VOIDED", "authorization", state)
        return state

    def _refund_capture(self, body: dict[str, Any], capture_id: str) -> Callable[[], Any]:
        capture = find(self.captures, capture_id)
        amount, currency = self._amount(body["amount"])
        if currency != capture["currency"]:
            raise Fail(422, "REFUND_CAPTURE_CURRENCY_MISMATCH")
        if capture["status"] == "PENDING":
            raise Fail(422, "PENDING_CAPTURE")
        if capture["status"] == "REFUNDED":
            raise Fail(422, "CAPTURE_FULLY_REFUNDED")
        if capture["status"] not in ("COMPLETED", "PARTIALLY_REFUNDED"):
            raise Fail(422, "REFUND_NOT_ALLOWED")
        if self._refunded(capture) + amount > capture["amount"]:
            raise Fail(422, "REFUND_AMOUNT_EXCEEDED")
        self._custom_id(body.get("custom_id"))
        if len(body.get("note_to_payer", "")) > 255:
            raise Fail(400, "INVALID_STRING_LENGTH")
        refund = self._new_refund(capture, amount, body, status=self.refund_status)
        if refund["status"] == "COMPLETED":
            self._settle_refund(capture, refund)
        return lambda: self._refund(refund)

    def _get_capture(self, capture_id: str) -> One:
        return self._capture(find(self.captures, capture_id))

    def _get_refund(self, refund_id: str) -> One:
        return self._refund(find(self.refunds, refund_id))

    # Inside -------------------------------------------------------------------------------------

    def _usable(self, authorization_id: str) -> One:
        one = find(self.authorizations, authorization_id)
        if one["status"] == "VOIDED":
            raise Fail(422, "AUTHORIZATION_VOIDED")
        if one["status"] == "CAPTURED":
            raise Fail(422, "AUTHORIZATION_ALREADY_CAPTURED")
        if days(one) >= VALID_DAYS:
            raise Fail(422, "AUTHORIZATION_EXPIRED")
        return one

    def _authorized(self, order_id: str) -> One:
        alive = ("CREATED", "PARTIALLY_CAPTURED")
        return next(
            one
            for one in self.authorizations.values()
            if one["order"] == order_id and one["status"] in alive
        )

    def _captured(self, order_id: str) -> One:
        return next(
            one
            for one in self.captures.values()
            if one["order"] == order_id and one["status"] != "DECLINED"
        )

    def _new_authorization(self, order: One, amount: Decimal) -> One:
        funding = order["funding"]
        status = {"COMPLETED": "CREATED", "PENDING": "PENDING"}.get(str(funding), "DENIED")
        one = self._new_payment(self.authorizations, order, amount, status)
        if status == "CREATED":
            state = self._authorization(one)
            self._send("PAYMENT.AUTHORIZATION.CREATED", "authorization", state)
        return one

    def _new_capture(self, order: One, amount: Decimal, authorization_id: str | None = None) -> One:
        funding = order["funding"]
        status = funding if funding in ("COMPLETED", "PENDING") else "DECLINED"
        one = self._new_payment(self.captures, order, amount, status)
        one["authorization_id"] = authorization_id
        self._send(f"PAYMENT.CAPTURE.{status}", "capture", self._capture(one))
        return one

    def _new_payment(self, kind: dict[str, One], order: One, amount: Decimal, status: str) -> One:
        one = {
            "id": new_id(),
            "created": datetime.now(timezone.utc),
            "order": order["id"],
            "status": status,
            "amount": amount,
            "currency": order["currency"],
            "custom_id": order["custom_id"],
            "invoice_id": order["invoice_id"],
            "code": order["funding"] if order["funding"].isdigit() else None,
        }
        kind[str(one["id"])] = one
        return one

    def _new_refund(
        self, capture: One, amount: Decimal, body: dict[str, Any], *, status: str
    ) -> One:
        refund: One = {
            "id": new_id(),
            "created": datetime.now(timezone.utc),
            "status": status,
            "capture": capture["id"],
            "order": capture["order"],
            "amount": amount,
            "currency": capture["currency"],
            **{name: body[name] for name in OF_REFUND if name in body},
        }
        self.refunds[str(refund["id"])] = refund
        return refund

    def _settle_refund(self, capture: One, refund: One) -> None:
        whole = self._refunded(capture) >= capture["amount"]
        capture["status"] = "REFUNDED" if whole else "PARTIALLY_REFUNDED"
        self._send("PAYMENT.CAPTURE.REFUNDED", "refund", self._refund(refund))

    def _refunded(self, capture: One, *, settled: bool = False) -> Decimal:
        counted = {"COMPLETED"} if settled else {"COMPLETED", "PENDING"}
        given_back = Decimal(0)
        for refund in self.refunds.values():
            if refund["capture"] == capture["id"] and refund["status"] in counted:
                given_back += refund["amount"]
        return given_back

    # What it says -------------------------------------------------------------------------------

    def _authorization(self, one: One) -> One:
        return {
            **_payment(one),
            "expiration_time": time_of(one["created"] + timedelta(days=VALID_DAYS)),
            "supplementary_data": {"related_ids": {"order_id": one["order"]}},
            "links": [link(self.base_url, f"/v2/checkout/orders/{one['order']}", "up")],
        }

    def _capture(self, one: One) -> One:
        related = {"order_id": one["order"]}
        up = f"/v2/checkout/orders/{one['order']}"
        if one["authorization_id"]:
            related["authorization_id"] = one["authorization_id"]
            up = f"/v2/payments/authorizations/{one['authorization_id']}"
        return {
            **_payment(one),
            "final_capture": True,
            "supplementary_data": {"related_ids": related},
            "links": [link(self.base_url, up, "up")],
        }

    def _refund(self, refund: One) -> One:
        return {
            "id": refund["id"],
            "status": refund["status"],
            "amount": money_of(refund["amount"], refund["currency"]),
            "create_time": time_of(refund["created"]),
            **{name: refund[name] for name in OF_REFUND if name in refund},
            "links": [link(self.base_url, f"/v2/payments/captures/{refund['capture']}", "up")],
        }


def _payment(one: One) -> One:
    state = {
        "id": one["id"],
        "status": one["status"],
        "amount": money_of(one["amount"], one["currency"]),
        "custom_id": one["custom_id"],
        "invoice_id": one["invoice_id"],
        "create_time": time_of(one["created"]),
    }
    if one["code"] is not None:
        state["processor_response"] = {"response_code": one["code"]}
    return state
