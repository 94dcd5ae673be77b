"""Requests to the PayPal adapter, and what its tests put into PayPal's mouth."""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa

from config import Settings
from conformance.doubles.paypal import PaypalDouble
from conformance.doubles.server import Answer, Double, Request
from gateways.base import (
    ChangeRequest,
    Charge,
    ChargeRequest,
    RefundRequest,
)
from gateways.paypal import PayPalGateway

RETURN_URL = "https://shop.example/return?order=1"
ENGINE = sa.create_engine("postgresql+psycopg2://")  # the adapter has no tables
Delivery = tuple[dict[str, str], bytes]  # of a webhook: headers and body


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def built(settings: Mapping[str, Any]) -> PayPalGateway:
    made = Settings(_env_file=None, **settings)
    PayPalGateway.check(made)
    return PayPalGateway.build(made, ENGINE)


def a_charge(token: str = "redirect", **changes: Any) -> ChargeRequest:
    return ChargeRequest(
        **{
            "key": str(uuid.uuid4()),
            "payment_id": 7,
            "order_id": 70,
            "amount": 1099,
            "currency": "USD",
            "token": token,
            "capture": True,
            "return_url": RETURN_URL,
            **changes,
        }
    )


def a_change(request: ChargeRequest, reference: str, operation: Any, **changes: Any) -> Any:
    return ChangeRequest(
        **{
            "operation": operation,
            "key": request.key if operation == "complete" else str(uuid.uuid4()),
            "reference": reference,
            "payment_id": request.payment_id,
            "amount": request.amount,
            "currency": request.currency,
            "charge_amount": request.amount,
            "capture": request.capture,
            **changes,
        }
    )


def a_refund(charge: Charge, amount: int = 500, **changes: Any) -> RefundRequest:
    return RefundRequest(
        **{
            "key": str(uuid.uuid4()),
            "reference": charge.reference,
            "payment_id": 7,
            "refund_id": 3,
            "amount": amount,
            "currency": charge.currency,
            **changes,
        }
    )


def authorized(
    paypal: PayPalGateway, double: PaypalDouble, **changes: Any
) -> tuple[ChargeRequest, Charge]:
    request = a_charge(double.vault_token(), capture=False, **changes)
    return request, paypal.charge(request)


def captured(paypal: PayPalGateway, double: PaypalDouble, **changes: Any) -> Charge:
    return paypal.charge(a_charge(double.vault_token(), **changes))


def key_of(double: PaypalDouble, reference: str) -> str:
    """The key that an order was made with."""
    return str(double.orders[reference]["invoice_id"])


def book(double: PaypalDouble, reference: str) -> Any:
    return next(entry for entry in double.books() if entry.reference == reference)


TOKEN = Answer(200, {"access_token": "t", "expires_in": 9000})


class Canned(Double):
    """Answers with what it is told, whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.token = TOKEN
        self.answers: list[Answer] = []

    def answer(self, request: Request) -> Answer:
        if request.path == "/v1/oauth2/token":
            return self.token
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def asked(self, path: str) -> int:
        return sum(request.path == path for request in self.requests)


def access(canned: Canned) -> PayPalGateway:
    return built(
        {
            "paypal_client_id": "id",
            "paypal_client_secret": "secret",
            "paypal_api_base": canned.base_url,
            "gateway_timeout": 2.0,
        }
    )


def error(status: int, issue: str | None = None, **more: Any) -> Answer:
    body: dict[str, Any] = {"name": "SOME_ERROR", "message": "secret echo", "debug_id": "d1"}
    if issue is not None:
        body["details"] = [{"issue": issue, "description": "secret echo", "value": "secret echo"}]
    return Answer(status, {**body, **more})


KEY = "the-key-of-the-charge"


def order(status: str = "COMPLETED", **payments: Any) -> dict[str, Any]:
    amount = {"currency_code": "USD", "value": "10.99"}
    unit: dict[str, Any] = {"amount": amount, "custom_id": "7", "invoice_id": KEY}
    return {"id": "ORDER1", "status": status, "purchase_units": [{**unit, "payments": payments}]}


def paid(status: str, **more: Any) -> dict[str, Any]:
    amount = {"currency_code": "USD", "value": "10.99"}
    return {"id": "PAYMENT1", "status": status, "amount": amount, **more}


HTML = Answer(200, b"<html>maintenance</html>", {"Content-Type": "text/html"})
TRUNCATED = Answer(201, b'{"id": "ORDER1", "status": "COMP')

UNKNOWN = [
    error(500, "INTERNAL_SERVER_ERROR"),
    error(503),
    HTML,
    TRUNCATED,
    Answer(307, None, {"Location": "/elsewhere"}),
    Answer(200, {}),
    Answer(200, []),
    Answer(201, b""),
    Answer(201, {"id": "ORDER1", "status": "COMPLETED"}),
    Answer(201, {**order(), "id": None}),
    Answer(201, {**order(), "id": "../x"}),
    Answer(201, {**order(), "status": None}),
    Answer(201, order("COMPLETED")),
    Answer(201, order("COMPLETED", captures=[{"id": "C", "status": "COMPLETED"}])),
    error(409, "PREVIOUS_REQUEST_IN_PROGRESS"),
    error(422, "PREVIOUS_REQUEST_IN_PROGRESS"),
    error(422, "ORDER_COMPLETION_IN_PROGRESS"),
    error(422, "DUPLICATE_REQUEST_ID"),
    error(422, "DUPLICATE_INVOICE_ID"),
    error(408),
    Answer(400, {"error": "not PayPal's words"}),
    Answer(404, {}),
    Answer(422, b"<html>"),
]
REFUSED = [
    error(400),
    error(400, "MISSING_REQUIRED_PARAMETER"),
    error(400, "MALFORMED_REQUEST_JSON"),
    error(422),
    error(422, "PAYEE_ACCOUNT_RESTRICTED"),
    error(422, "CANNOT_BE_ZERO_OR_NEGATIVE"),
    error(422, "AN_ISSUE_OF_TOMORROW"),
    Answer(422, {"name": "UNPROCESSABLE_ENTITY", "details": "nonsense"}),
]
NOT_DONE = [
    error(401),
    Answer(401, {"error": "invalid_token"}),
    error(403, "PERMISSION_DENIED"),
    error(404, "INVALID_RESOURCE_ID"),
    error(415),
]


def sent_event(double: PaypalDouble, kind: str) -> tuple[dict[str, str], bytes]:
    return next(
        (headers, body)
        for headers, body in reversed(double.sent)
        if json.loads(body)["event_type"] == kind
    )


def signed(double: PaypalDouble, body: bytes) -> Delivery:
    return double.sign(body), body


def an_event(kind: str, resource: Any) -> bytes:
    return json.dumps({"id": "WH-1", "event_type": kind, "resource": resource}).encode()


def with_same_sum(genuine: bytes, event: Mapping[str, Any]) -> bytes:
    """This event as a body with the CRC-32 of a genuine one, which is all that PayPal signs.

    A CRC is linear: of 64 digits that change one bit each, some flips make any difference.
    """
    body = bytearray(json.dumps({**event, "padding": "0" * 64}).encode())
    start = body.index(b"0" * 64)
    zero = zlib.crc32(bytes(len(body)))
    basis: dict[int, tuple[int, int]] = {}  # leading bit → what these flips change, these flips
    for flip in range(64):
        changed = bytearray(len(body))
        changed[start + flip] = 1
        change, flips = _reduced(basis, zlib.crc32(changed) ^ zero, 1 << flip)
        if change:
            basis[change.bit_length()] = change, flips
    left, flips = _reduced(basis, zlib.crc32(body) ^ zlib.crc32(genuine), 0)
    assert left == 0
    for flip in range(64):
        body[start + flip] ^= flips >> flip & 1
    return bytes(body)


def _reduced(basis: Mapping[int, tuple[int, int]], change: int, flips: int) -> tuple[int, int]:
    while change and change.bit_length() in basis:
        other, others = basis[change.bit_length()]
        change, flips = change ^ other, flips ^ others
    return change, flips
