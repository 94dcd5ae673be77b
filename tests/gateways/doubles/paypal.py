"""A double of PayPal: Orders v2, Payments v2 and Payment Method Tokens v3, as far as we use them.

It is strict where PayPal is lenient: what a client must not do is written to `violations`.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import secrets
import threading
import uuid
import zlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from domain.money import unscale
from tests.gateways.doubles.server import Answer, BookEntry, Double, Request

CLIENT_ID = "double-client"
CLIENT_SECRET = "double-secret"
WEBHOOK_ID = "WEBHOOKDOUBLE0001"
WITHOUT_DECIMALS = {"HUF", "JPY", "TWD"}

HONOR_DAYS = 3
VALID_DAYS = 29
KEY_LIVES = {
    "order": timedelta(hours=6),
    "payment": timedelta(days=45),
    "vault": timedelta(hours=3),
}

REASONS = {
    400: "INVALID_REQUEST",
    401: "AUTHENTICATION_FAILURE",
    403: "NOT_AUTHORIZED",
    404: "RESOURCE_NOT_FOUND",
    409: "RESOURCE_CONFLICT",
    422: "UNPROCESSABLE_ENTITY",
}

# What a body may hold: a tree of names; a leaf is any value, a list holds such trees.
MONEY = {"currency_code": ..., "value": ...}
CONTEXT = {
    "return_url": ...,
    "cancel_url": ...,
    "user_action": ...,
    "shipping_preference": ...,
    "payment_method_preference": ...,
    "brand_name": ...,
    "locale": ...,
    "landing_page": ...,
}
ORDER = {
    "intent": ...,
    "purchase_units": [{"amount": MONEY, "custom_id": ..., "description": ..., "invoice_id": ...}],
    "payment_source": {"paypal": {"vault_id": ..., "experience_context": CONTEXT}},
}
CAPTURE = {"amount": MONEY, "final_capture": ..., "invoice_id": ..., "note_to_payer": ...}
REFUND = {"amount": MONEY, "custom_id": ..., "invoice_id": ..., "note_to_payer": ...}
OF_REFUND = ("custom_id", "invoice_id", "note_to_payer")  # what a refund shows of them
VAULT = {"payment_source": {"token": {"id": ..., "type": ...}}, "customer": {"id": ...}}

Answered = tuple[int, dict[str, Any] | None]


class Fail(Exception):
    """An error as PayPal answers it."""

    def __init__(self, status: int, issue: str) -> None:
        self.status, self.issue = status, issue

    def answer(self) -> Answer:
        debug_id = secrets.token_hex(7)
        body = {
            "name": REASONS[self.status],
            "message": "The requested action could not be performed.",
            "debug_id": debug_id,
            "details": [{"issue": self.issue, "description": "See the issue."}],
            "links": [],
        }
        return Answer(self.status, body, {"Paypal-Debug-Id": debug_id})


class PaypalDouble(Double):
    """One merchant's account. The certificate authority is written to `directory`."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.orders: dict[str, dict[str, Any]] = {}
        self.authorizations: dict[str, dict[str, Any]] = {}
        self.captures: dict[str, dict[str, Any]] = {}
        self.refunds: dict[str, dict[str, Any]] = {}
        self.disputes: dict[str, dict[str, Any]] = {}
        self.vault: dict[str, dict[str, Any]] = {}
        self.setup_tokens: dict[str, dict[str, Any]] = {}
        self.access_tokens: set[str] = set()
        self.keys: dict[tuple[str, str], dict[str, Any]] = {}
        # What may be turned: how captures of new orders and refunds end.
        self.refund_status = "COMPLETED"
        self.token_seconds = 32400
        self.signer, self.foreign = _signer("double"), _signer("foreign")

    # What a test does ---------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {
            "paypal_client_id": CLIENT_ID,
            "paypal_client_secret": CLIENT_SECRET,
            "paypal_api_base": self.base_url,
            "paypal_webhook_id": WEBHOOK_ID,
            "paypal_cert_hosts": ["127.0.0.1"],
            "paypal_ca_file": self.ca_file(self.directory / "paypal-ca.pem"),
        }

    def ca_file(self, path: Path) -> Path:
        path.write_bytes(self.signer.ca)
        return path

    def method(self, kind: str) -> dict[str, Any] | None:
        funding = {"declined": "INSTRUMENT_DECLINED", "insufficient": "5120"}.get(kind, "COMPLETED")
        if kind == "action":
            return _method_body({"email": "shopper@example.com"})
        if kind == "refused":
            return _method_body({"token": self.setup_token(declined=True)})
        if kind not in ("good", "good_too", "declined", "insufficient"):
            return None
        return _method_body({"token": self.vault_token(account=kind, funding=funding)})

    def vault_token(
        self, *, account: str = "good", funding: str = "COMPLETED", card: bool = False
    ) -> str:
        """A payment token. `funding`: a capture's status, an issue, or a processor's code."""
        with self.lock:
            token = {"id": secrets.token_hex(4), "funding": funding, "account": account}
            self.vault[token["id"]] = {**token, "card": card}
            return token["id"]

    def setup_token(self, *, approved: bool = True, declined: bool = False) -> str:
        with self.lock:
            token = secrets.token_hex(6).upper()
            self.setup_tokens[token] = {"approved": approved, "declined": declined, "became": None}
            return token

    def delete_vault_token(self, token: str) -> None:
        """The payer removes the store from their account."""
        with self.lock:
            self.vault.pop(token)
            self._send("VAULT.PAYMENT-TOKEN.DELETED", "payment_token", {"id": token})

    def approve(self, reference: str, *, yes: bool = True) -> None:
        """The payer on PayPal's page. A payer who cancels leaves the order as it is."""
        with self.lock:
            order = self.orders[reference]
            if not yes or order["status"] not in ("CREATED", "PAYER_ACTION_REQUIRED"):
                return
            order["status"] = "APPROVED"
            self._send("CHECKOUT.ORDER.APPROVED", "checkout-order", self._order(order))

    def fund(self, reference: str, funding: str) -> None:
        """How the payment of an order ends that waits for its payer; see `vault_token`."""
        with self.lock:
            self.orders[reference]["funding"] = funding

    def settle(self, capture_id: str, status: str) -> None:
        """A pending capture is decided: COMPLETED or DECLINED."""
        with self.lock:
            capture = self.captures[capture_id]
            capture["status"] = status
            self._send(f"PAYMENT.CAPTURE.{status}", "capture", self._capture(capture))

    def reverse(self, reference: str) -> None:
        """PayPal takes back all of a captured order."""
        with self.lock:
            capture = self._captured(reference)
            capture["status"] = "REFUNDED"
            refund = self._new_refund(capture, capture["amount"], {}, status="COMPLETED")
            self._send("PAYMENT.CAPTURE.REVERSED", "refund", self._refund(refund))

    def refund_by_hand(self, reference: str, amount: Decimal) -> None:
        """A refund that the merchant makes on PayPal's own pages."""
        with self.lock:
            capture = self._captured(reference)
            refund = self._new_refund(capture, amount, {}, status="COMPLETED")
            self._settle_refund(capture, refund)

    def settle_refund(self, refund_reference: str, status: str) -> None:
        """A pending refund is decided. PayPal sends no event of a failure: it has to be asked."""
        with self.lock:
            self.refunds[refund_reference]["status"] = status

    def dispute(self, reference: str) -> str:
        with self.lock:
            capture = self._captured(reference)
            dispute_id = f"PP-D-{secrets.randbelow(10**9):09}"
            dispute: dict[str, Any] = {
                "dispute_id": dispute_id,
                "status": "OPEN",
                "reason": "MERCHANDISE_OR_SERVICE_NOT_RECEIVED",
                "dispute_amount": _money(capture["amount"], capture["currency"]),
                "disputed_transactions": [{"seller_transaction_id": capture["id"]}],
            }
            self.disputes[dispute_id] = dispute
            self._send("CUSTOMER.DISPUTE.CREATED", "dispute", dispute)
            return dispute_id

    def close_dispute(self, dispute_id: str, *, won: bool) -> None:
        with self.lock:
            dispute = self.disputes[dispute_id]
            code = "RESOLVED_SELLER_FAVOUR" if won else "RESOLVED_BUYER_FAVOUR"
            dispute.update(status="RESOLVED", dispute_outcome={"outcome_code": code})
            self._send("CUSTOMER.DISPUTE.RESOLVED", "dispute", dispute)

    def pass_days(self, days: float) -> None:
        """Everything that is there becomes so much older, the request ids too."""
        with self.lock:
            for objects in (self.orders, self.authorizations, self.captures, self.refunds):
                for one in objects.values():
                    one["created"] -= timedelta(days=days)
            for seen in self.keys.values():
                seen["created"] -= timedelta(days=days)

    def forget(self, reference: str) -> None:
        """An order that nobody paid is gone after a few hours."""
        with self.lock:
            del self.orders[reference]

    def books(self) -> list[BookEntry]:
        with self.lock:
            return [self._book_entry(order) for order in self.orders.values()]

    def forge(
        self, headers: Mapping[str, str], body: bytes, *, age: float = 0, foreign: bool = False
    ) -> tuple[dict[str, str], bytes] | None:
        sent_at = datetime.now(timezone.utc) - timedelta(seconds=age)
        return self._signed(body, sent_at, foreign=foreign), body

    # HTTP ---------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        if request.path in ("/certs/double", "/certs/foreign"):
            signer = self.foreign if request.path.endswith("foreign") else self.signer
            return Answer(200, signer.chain, {"Content-Type": "application/x-pem-file"})
        if request.path == "/checkoutnow":
            return self._payer_page(request)
        if request.path == "/v1/oauth2/token":
            return self._token(request)
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if bearer not in self.access_tokens:
            return Answer(401, {"error": "invalid_token", "error_description": "Token is invalid"})
        try:
            status, body = self._route(request)
        except Fail as failure:
            return failure.answer()
        return Answer(status, body)

    def _payer_page(self, request: Request) -> Answer:
        """The payer approves at once, or cancels with `&cancel=1`."""
        query = parse_qs(request.query)
        order = self.orders.get(query.get("token", [""])[0])
        if order is None:
            return Answer(404, {})
        self.approve(order["id"], yes="cancel" not in query)
        if "cancel" in query:
            url, added = order["cancel_url"], {"token": order["id"]}
        else:
            url, added = order["return_url"], {"token": order["id"], "PayerID": "PAYERDOUBLE01"}
        url += ("&" if "?" in url else "?") + urlencode(added)
        return Answer(302, None, {"Location": url})

    def _token(self, request: Request) -> Answer:
        credentials = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {credentials}":
            return Answer(401, {"error": "invalid_client", "error_description": "failed"})
        if request.body != b"grant_type=client_credentials":
            self.violations.append(f"token: {request.body!r}")
        token = f"A21AA{secrets.token_urlsafe(32)}"
        self.access_tokens.add(token)
        body = {"access_token": token, "token_type": "Bearer", "expires_in": self.token_seconds}
        return Answer(200, body)

    def _route(self, request: Request) -> Answered:
        for method, pattern, operation in ROUTES:
            found = re.fullmatch(pattern, request.path)
            if found and method == request.method:
                if method == "GET":
                    return 200, operation(self, *found.groups())
                return self._post(request, operation, found.groups())
        self.violations.append(f"no such resource: {request.method} {request.path}")
        raise Fail(404, "INVALID_RESOURCE_ID")

    def _post(
        self, request: Request, operation: Callable[..., Any], ids: tuple[str, ...]
    ) -> Answered:
        name = operation.__name__.strip("_")
        if request.headers.get("content-type") != "application/json":
            self.violations.append(f"{name}: not sent as JSON")
        try:
            body = json.loads(request.body)
        except ValueError:
            raise Fail(400, "MALFORMED_REQUEST_JSON") from None
        self._check_fields(name, body, BODIES[name])
        full = request.headers.get("prefer") == "return=representation"
        if name == "void":  # has no request ids
            state = self._void(*ids)
            return (200, state) if full else (204, None)
        key = request.headers.get("paypal-request-id")
        if not key or len(key) > 108:
            self.violations.append(f"{name} without a request id that fits")
            raise Fail(400, "PAYPAL_REQUEST_ID_REQUIRED")
        known = self._known(name, key, request)
        if known is not None:
            return 200, self._shaped(name, known(), full)
        look = operation(self, body, *ids)
        self.keys[name, key] = {
            "created": datetime.now(timezone.utc), "request": (request.path, body), "look": look
        }  # fmt: skip
        return 201, self._shaped(name, look(), full)

    def _known(self, name: str, key: str, request: Request) -> Callable[[], Any] | None:
        """What this request id has made, as it is now; errors are not remembered."""
        seen = self.keys.get((name, key))
        life = KEY_LIVES[KINDS[name]]
        if seen is None or datetime.now(timezone.utc) - seen["created"] > life:
            return None
        if seen["request"] != (request.path, json.loads(request.body)):
            self.violations.append(f"{name}: one request id for two different requests")
            raise Fail(422, "DUPLICATE_REQUEST_ID")
        look: Callable[[], Any] = seen["look"]
        return look

    @staticmethod
    def _shaped(name: str, state: dict[str, Any], full: bool) -> dict[str, Any]:
        """Without `Prefer: return=representation` a POST is answered with little."""
        if full or KINDS[name] == "vault":
            return state
        return {key: state[key] for key in ("id", "status", "links") if key in state}

    def _check_fields(self, name: str, body: Any, known: Any, where: str = "") -> None:
        if isinstance(known, list):
            for one in body:
                self._check_fields(name, one, known[0], f"{where}[]")
        elif isinstance(known, dict):
            if not isinstance(body, dict):
                self.violations.append(f"{name}: {where} is no object")
                raise Fail(400, "INVALID_PARAMETER_SYNTAX")
            for field, value in body.items():
                if field not in known:
                    self.violations.append(f"{name}: unknown parameter {where}/{field}")
                    raise Fail(400, "INVALID_PARAMETER_SYNTAX")
                self._check_fields(name, value, known[field], f"{where}/{field}")

    # Orders -------------------------------------------------------------------------------------

    def _create_order(self, body: dict[str, Any]) -> Callable[[], Any]:
        (unit,) = body["purchase_units"]
        wallet = body["payment_source"]["paypal"]
        context = wallet.get("experience_context", {})
        amount, currency = self._amount(unit["amount"])
        if body["intent"] not in ("CAPTURE", "AUTHORIZE"):
            self.violations.append("create_order: intent")
            raise Fail(400, "INVALID_PARAMETER_VALUE")
        order = {
            "id": _new_id(),
            "created": datetime.now(timezone.utc),
            "intent": body["intent"],
            "status": "PAYER_ACTION_REQUIRED",
            "amount": amount,
            "currency": currency,
            "custom_id": self._custom_id(unit.get("custom_id")),
            "invoice_id": unit.get("invoice_id"),
            "return_url": context.get("return_url"),
            "cancel_url": context.get("cancel_url"),
            "funding": "COMPLETED",
        }
        if "vault_id" in wallet:
            token = self.vault.get(wallet["vault_id"])
            if token is None or token["card"]:
                raise Fail(422, "TOKEN_ID_NOT_FOUND")
            if token["funding"] == "PAYER_ACTION_REQUIRED":
                order["funding"] = "COMPLETED"
            else:
                order["funding"] = token["funding"]
                self._pay(order)
        elif not (order["return_url"] and order["cancel_url"]):
            self.violations.append("create_order: no return_url or cancel_url")
        self.orders[str(order["id"])] = order
        return lambda: self._order(order)

    def _capture_order(self, body: dict[str, Any], order_id: str) -> Callable[[], Any]:
        return self._complete_order(order_id, "CAPTURE", "ORDER_ALREADY_CAPTURED")

    def _authorize_order(self, body: dict[str, Any], order_id: str) -> Callable[[], Any]:
        return self._complete_order(order_id, "AUTHORIZE", "ORDER_ALREADY_AUTHORIZED")

    def _complete_order(self, order_id: str, intent: str, already: str) -> Callable[[], Any]:
        order = _find(self.orders, order_id)
        if order["intent"] != intent:
            self.violations.append("complete: not what the order is for")
            raise Fail(422, "ACTION_DOES_NOT_MATCH_INTENT")
        if order["status"] == "COMPLETED":
            raise Fail(422, already)
        if order["status"] != "APPROVED":
            raise Fail(422, "ORDER_NOT_APPROVED")
        self._pay(order)
        return lambda: self._order(order)

    def _pay(self, order: dict[str, Any]) -> None:
        funding = order["funding"]
        if "_" in funding:  # an issue, such as INSTRUMENT_DECLINED
            raise Fail(422, funding)
        order["status"] = "COMPLETED"
        self.orders[order["id"]] = order
        if order["intent"] == "CAPTURE":
            self._new_capture(order, order["amount"])
        else:
            self._new_authorization(order, order["amount"])

    def _get_order(self, order_id: str) -> dict[str, Any]:
        return self._order(_find(self.orders, order_id))

    # Payments -----------------------------------------------------------------------------------

    def _new_authorization(self, order: dict[str, Any], amount: Decimal) -> dict[str, Any]:
        funding = order["funding"]
        status = {"COMPLETED": "CREATED", "PENDING": "PENDING"}.get(str(funding), "DENIED")
        one = self._new_payment(self.authorizations, order, amount, status)
        if status == "CREATED":
            state = self._authorization(one)
            self._send("PAYMENT.AUTHORIZATION.CREATED", "authorization", state)
        return one

    def _new_capture(
        self, order: dict[str, Any], amount: Decimal, authorization_id: str | None = None
    ) -> dict[str, Any]:
        funding = order["funding"]
        status = funding if funding in ("COMPLETED", "PENDING") else "DECLINED"
        one = self._new_payment(self.captures, order, amount, status)
        one["authorization_id"] = authorization_id
        self._send(f"PAYMENT.CAPTURE.{status}", "capture", self._capture(one))
        return one

    def _new_payment(
        self, kind: dict[str, dict[str, Any]], order: dict[str, Any], amount: Decimal, status: str
    ) -> dict[str, Any]:
        one = {
            "id": _new_id(),
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

    def _usable(self, authorization_id: str) -> dict[str, Any]:
        one = _find(self.authorizations, authorization_id)
        if one["status"] == "VOIDED":
            raise Fail(422, "AUTHORIZATION_VOIDED")
        if one["status"] == "CAPTURED":
            raise Fail(422, "AUTHORIZATION_ALREADY_CAPTURED")
        if _days(one) >= VALID_DAYS:
            raise Fail(422, "AUTHORIZATION_EXPIRED")
        return one

    def _capture_authorization(
        self, body: dict[str, Any], authorization_id: str
    ) -> Callable[[], Any]:
        one = self._usable(authorization_id)
        amount, currency = self._amount(body["amount"])
        if currency != one["currency"]:
            raise Fail(422, "AUTH_CAPTURE_CURRENCY_MISMATCH")
        if amount > one["amount"]:
            raise Fail(422, "MAX_CAPTURE_AMOUNT_EXCEEDED")
        funding = self.orders[one["order"]]["funding"]
        if "_" in funding:
            raise Fail(422, funding)
        if not body.get("final_capture"):
            self.violations.append("capture: not the final one, so the rest stays held")
        capture = self._new_capture(self.orders[one["order"]], amount, one["id"])
        if capture["status"] != "DECLINED":
            one["status"] = "CAPTURED"
        return lambda: self._capture(capture)

    def _reauthorize(self, body: dict[str, Any], authorization_id: str) -> Callable[[], Any]:
        one = self._usable(authorization_id)
        if _days(one) < HONOR_DAYS or "renewed" in one:
            raise Fail(422, "REAUTHORIZATION_NOT_SUPPORTED")
        amount, _ = self._amount(body["amount"])
        new = self._new_authorization(self.orders[one["order"]], amount)
        one["renewed"] = new["renewed"] = True
        return lambda: self._authorization(new)

    def _void(self, authorization_id: str) -> dict[str, Any]:
        one = _find(self.authorizations, authorization_id)
        if one["status"] in ("VOIDED", "CAPTURED"):
            raise Fail(422, f"PREVIOUSLY_{one['status']}")
        one["status"] = "VOIDED"
        state = self._authorization(one)
        self._send("PAYMENT.AUTHORIZATION.VOIDED", "authorization", state)
        return state

    def _refund_capture(self, body: dict[str, Any], capture_id: str) -> Callable[[], Any]:
        capture = _find(self.captures, capture_id)
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

    def _new_refund(
        self, capture: dict[str, Any], amount: Decimal, body: dict[str, Any], *, status: str
    ) -> dict[str, Any]:
        refund: dict[str, Any] = {
            "id": _new_id(),
            "created": datetime.now(timezone.utc),
            "status": status,
            "capture": capture["id"],
            "amount": amount,
            "currency": capture["currency"],
            **{
                name: body[name]
                for name in ("custom_id", "invoice_id", "note_to_payer")
                if name in body
            },
        }
        self.refunds[str(refund["id"])] = refund
        return refund

    def _settle_refund(self, capture: dict[str, Any], refund: dict[str, Any]) -> None:
        whole = self._refunded(capture) >= capture["amount"]
        capture["status"] = "REFUNDED" if whole else "PARTIALLY_REFUNDED"
        self._send("PAYMENT.CAPTURE.REFUNDED", "refund", self._refund(refund))

    def _refunded(self, capture: dict[str, Any], *, settled: bool = False) -> Decimal:
        counted = {"COMPLETED"} if settled else {"COMPLETED", "PENDING"}
        given_back = Decimal(0)
        for refund in self.refunds.values():
            if refund["capture"] == capture["id"] and refund["status"] in counted:
                given_back += refund["amount"]
        return given_back

    def _captured(self, order_id: str) -> dict[str, Any]:
        return next(
            one
            for one in self.captures.values()
            if one["order"] == order_id and one["status"] != "DECLINED"
        )

    def _get_capture(self, capture_id: str) -> dict[str, Any]:
        return self._capture(_find(self.captures, capture_id))

    def _get_refund(self, refund_id: str) -> dict[str, Any]:
        return self._refund(_find(self.refunds, refund_id))

    # The vault ----------------------------------------------------------------------------------

    def _get_vault_token(self, token: str) -> dict[str, Any]:
        return self._vault_token(_find(self.vault, token))

    def _create_vault_token(self, body: dict[str, Any]) -> Callable[[], Any]:
        source = body["payment_source"]["token"]
        if source["type"] != "SETUP_TOKEN":
            raise Fail(400, "INVALID_PARAMETER_VALUE")
        setup = _find(self.setup_tokens, source["id"])
        if not setup["approved"]:
            raise Fail(422, "ORDER_NOT_APPROVED")
        if setup["declined"]:
            raise Fail(422, "INSTRUMENT_DECLINED")
        if setup["became"] is not None:
            raise Fail(422, "TOKEN_ALREADY_USED")
        setup["became"] = token = self.vault_token()
        return lambda: self._vault_token(self.vault[token])

    # What it says -------------------------------------------------------------------------------

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        payments = {
            "authorizations": [
                self._authorization(one)
                for one in self.authorizations.values()
                if one["order"] == order["id"]
            ],
            "captures": [
                self._capture(one) for one in self.captures.values() if one["order"] == order["id"]
            ],
        }
        unit = {
            "reference_id": "default",
            "amount": _money(order["amount"], order["currency"]),
            "custom_id": order["custom_id"],
            "invoice_id": order["invoice_id"],
            "payments": {kind: found for kind, found in payments.items() if found},
        }
        links = [_link(self.base_url, f"/v2/checkout/orders/{order['id']}", "self")]
        if order["status"] == "PAYER_ACTION_REQUIRED":
            links.append(_link(self.base_url, f"/checkoutnow?token={order['id']}", "payer-action"))
        return {
            "id": order["id"],
            "intent": order["intent"],
            "status": order["status"],
            "create_time": _time(order["created"]),
            "payment_source": {"paypal": {}},
            "purchase_units": [unit],
            "links": links,
        }

    def _authorization(self, one: dict[str, Any]) -> dict[str, Any]:
        return {
            **_payment(one),
            "expiration_time": _time(one["created"] + timedelta(days=VALID_DAYS)),
            "supplementary_data": {"related_ids": {"order_id": one["order"]}},
            "links": [_link(self.base_url, f"/v2/checkout/orders/{one['order']}", "up")],
        }

    def _capture(self, one: dict[str, Any]) -> dict[str, Any]:
        related = {"order_id": one["order"]}
        up = f"/v2/checkout/orders/{one['order']}"
        if one["authorization_id"]:
            related["authorization_id"] = one["authorization_id"]
            up = f"/v2/payments/authorizations/{one['authorization_id']}"
        return {
            **_payment(one),
            "final_capture": True,
            "supplementary_data": {"related_ids": related},
            "links": [_link(self.base_url, up, "up")],
        }

    def _refund(self, refund: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": refund["id"],
            "status": refund["status"],
            "amount": _money(refund["amount"], refund["currency"]),
            "create_time": _time(refund["created"]),
            **{
                name: refund[name]
                for name in ("custom_id", "invoice_id", "note_to_payer")
                if name in refund
            },
            "links": [_link(self.base_url, f"/v2/payments/captures/{refund['capture']}", "up")],
        }

    @staticmethod
    def _vault_token(token: dict[str, Any]) -> dict[str, Any]:
        account = token["account"].upper().replace("_", "")
        source: dict[str, Any] = {
            "paypal": {
                "email_address": f"{token['account']}@example.com",
                "payer_id": f"P{account:0<12}"[:13],
                "account_id": f"A{account:0<12}"[:13],
            }
        }
        if token["card"]:
            source = {"card": {"last_digits": "1111", "brand": "VISA"}}
        customer = {"id": f"C{account:0<9}"[:10]}
        return {"id": token["id"], "customer": customer, "payment_source": source}

    def _book_entry(self, order: dict[str, Any]) -> BookEntry:
        captures = [one for one in self.captures.values() if one["order"] == order["id"]]
        taken = [one for one in captures if one["status"] not in ("PENDING", "DECLINED")]
        authorizations = [
            one for one in self.authorizations.values() if one["order"] == order["id"]
        ]
        if taken:
            status = "captured"
        elif any(one["status"] == "PENDING" for one in (*captures, *authorizations)):
            status = "processing"
        elif any(one["status"] == "CREATED" and _days(one) < VALID_DAYS for one in authorizations):
            status = "authorized"
        elif captures or any(one["status"] == "DENIED" for one in authorizations):
            status = "declined"
        elif authorizations:
            status = "voided"
        else:
            status = "requires_action"
        currency = order["currency"]
        refunded = sum((self._refunded(one, settled=True) for one in taken), Decimal(0))
        return BookEntry(
            reference=order["id"],
            payment_id=int(order["custom_id"]),
            amount=_minor(order["amount"], currency),
            currency=currency,
            status=status,
            amount_captured=_minor(sum((one["amount"] for one in taken), Decimal(0)), currency),
            amount_refunded=_minor(refunded, currency),
        )

    # Checks -------------------------------------------------------------------------------------

    def _amount(self, money: dict[str, Any]) -> tuple[Decimal, str]:
        value, currency = money["value"], money["currency_code"]
        decimals = "" if currency in WITHOUT_DECIMALS else r"(\.[0-9]{2})"
        if not re.fullmatch(rf"[0-9]{{1,15}}{decimals}", value):
            self.violations.append(f"amount: {value!r} {currency}")
            raise Fail(422, "DECIMAL_PRECISION")
        if Decimal(value) <= 0:
            raise Fail(422, "CANNOT_BE_ZERO_OR_NEGATIVE")
        return Decimal(value), currency

    def _custom_id(self, value: Any) -> str:
        if not (isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.,-]{1,127}", value)):
            self.violations.append(f"custom_id: {value!r}")
            raise Fail(400, "INVALID_PARAMETER_SYNTAX")
        return value

    # Webhooks -----------------------------------------------------------------------------------

    def _send(self, event_type: str, resource_type: str, resource: dict[str, Any]) -> None:
        body = json.dumps(
            {
                "id": f"WH-{_new_id()}-{_new_id()}",
                "event_version": "1.0",
                "create_time": _time(datetime.now(timezone.utc)),
                "event_type": event_type,
                "resource_type": resource_type,
                "resource": resource,
            }
        ).encode()
        self.send_webhook(self._signed(body, datetime.now(timezone.utc)), body)

    def sign(self, body: bytes) -> dict[str, str]:
        """The headers of a webhook with this body."""
        return self._signed(body, datetime.now(timezone.utc))

    def _signed(self, body: bytes, sent_at: datetime, *, foreign: bool = False) -> dict[str, str]:
        signer = self.foreign if foreign else self.signer
        transmission_id, time = str(uuid.uuid4()), _time(sent_at)
        signed = f"{transmission_id}|{time}|{WEBHOOK_ID}|{zlib.crc32(body)}".encode()
        return {
            "content-type": "application/json",
            "paypal-auth-algo": "SHA256withRSA",
            "paypal-cert-url": f"{self.base_url}/certs/{'foreign' if foreign else 'double'}",
            "paypal-transmission-id": transmission_id,
            "paypal-transmission-time": time,
            "paypal-transmission-sig": signer.sign(signed),
        }


class Signer:
    """A key with a certificate, and the authority that issued it."""

    def __init__(
        self,
        name: str = "messageverificationcerts.paypal.com",
        *,
        days: tuple[float, float] = (-1, 365),
        authority_is_one: bool = True,
    ) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        authority = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ca = _certificate("Double CA", "Double CA", authority, authority, ca=authority_is_one)
        leaf = _certificate(name, "Double CA", self.key, authority, ca=False, days=days)
        self.chain = leaf + self.ca

    def sign(self, data: bytes) -> str:
        return base64.b64encode(self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())).decode()


@functools.lru_cache(maxsize=4)
def _signer(name: str) -> Signer:
    """Keys are slow to make, so all doubles of a process share theirs."""
    with _SIGNER_LOCK:
        return Signer()


_SIGNER_LOCK = threading.Lock()


def _certificate(
    name: str,
    issuer: str,
    key: rsa.RSAPrivateKey,
    issuer_key: rsa.RSAPrivateKey,
    *,
    ca: bool,
    days: tuple[float, float] = (-1, 365),
) -> bytes:
    now = datetime.now(timezone.utc)
    subject, by = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (name, issuer)
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if not ca:
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = builder.add_extension(names, critical=False)
    signed = builder.sign(issuer_key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def _payment(one: dict[str, Any]) -> dict[str, Any]:
    state = {
        "id": one["id"],
        "status": one["status"],
        "amount": _money(one["amount"], one["currency"]),
        "custom_id": one["custom_id"],
        "invoice_id": one["invoice_id"],
        "create_time": _time(one["created"]),
    }
    if one["code"] is not None:
        state["processor_response"] = {"response_code": one["code"]}
    return state


def _method_body(details: dict[str, Any]) -> dict[str, Any]:
    return {"payment_type": "paypal", "gateway": "paypal", "details": details}


def _money(amount: Decimal, currency: str) -> dict[str, str]:
    return {"currency_code": currency, "value": str(amount)}


def _minor(amount: Decimal, currency: str) -> int:
    decimals = 0 if currency in WITHOUT_DECIMALS else 2
    minor = unscale(int(amount.scaleb(decimals)), currency, decimals)
    assert minor is not None
    return minor


def _link(base_url: str, path: str, rel: str) -> dict[str, str]:
    return {"href": base_url + path, "rel": rel, "method": "GET"}


def _find(objects: dict[str, dict[str, Any]], one: str) -> dict[str, Any]:
    if one not in objects:
        raise Fail(404, "INVALID_RESOURCE_ID")
    return objects[one]


def _new_id() -> str:
    return "".join(secrets.choice("ABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(17))


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _days(one: dict[str, Any]) -> float:
    age: timedelta = datetime.now(timezone.utc) - one["created"]
    return age.total_seconds() / 86400


ID = r"([\w-]+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("POST", "/v2/checkout/orders", PaypalDouble._create_order),
    ("GET", f"/v2/checkout/orders/{ID}", PaypalDouble._get_order),
    ("POST", f"/v2/checkout/orders/{ID}/capture", PaypalDouble._capture_order),
    ("POST", f"/v2/checkout/orders/{ID}/authorize", PaypalDouble._authorize_order),
    ("POST", f"/v2/payments/authorizations/{ID}/capture", PaypalDouble._capture_authorization),
    ("POST", f"/v2/payments/authorizations/{ID}/reauthorize", PaypalDouble._reauthorize),
    ("POST", f"/v2/payments/authorizations/{ID}/void", PaypalDouble._void),
    ("GET", f"/v2/payments/captures/{ID}", PaypalDouble._get_capture),
    ("POST", f"/v2/payments/captures/{ID}/refund", PaypalDouble._refund_capture),
    ("GET", f"/v2/payments/refunds/{ID}", PaypalDouble._get_refund),
    ("GET", f"/v3/vault/payment-tokens/{ID}", PaypalDouble._get_vault_token),
    ("POST", "/v3/vault/payment-tokens", PaypalDouble._create_vault_token),
]
BODIES: dict[str, dict[str, Any]] = {
    "create_order": ORDER,
    "capture_order": {},
    "authorize_order": {},
    "capture_authorization": CAPTURE,
    "reauthorize": {"amount": MONEY},
    "void": {},
    "refund_capture": REFUND,
    "create_vault_token": VAULT,
}
KINDS = {
    **dict.fromkeys(("create_order", "capture_order", "authorize_order"), "order"),
    **dict.fromkeys(("capture_authorization", "reauthorize", "void", "refund_capture"), "payment"),
    "create_vault_token": "vault",
}
