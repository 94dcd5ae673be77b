"""The double itself: who may ask what over HTTP, under which request ids, and the vault."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from conformance.doubles.paypal.account import WEBHOOK_ID, Fail, One, find
from conformance.doubles.paypal.disputes import Disputes
from conformance.doubles.server import Answer, Request

CLIENT_ID = "double-client"
CLIENT_SECRET = "double-secret"
KEY_LIVES = {
    "order": timedelta(hours=6),
    "payment": timedelta(days=45),
    "vault": timedelta(hours=3),
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
UNIT = {
    "reference_id": ...,
    "amount": MONEY,
    "custom_id": ...,
    "description": ...,
    "invoice_id": ...,
}
ORDER = {
    "intent": ...,
    "purchase_units": [UNIT],
    "payment_source": {"paypal": {"vault_id": ..., "experience_context": CONTEXT}},
}
CAPTURE = {"amount": MONEY, "final_capture": ..., "invoice_id": ..., "note_to_payer": ...}
REFUND = {"amount": MONEY, "custom_id": ..., "invoice_id": ..., "note_to_payer": ...}
VAULT = {"payment_source": {"token": {"id": ..., "type": ...}}, "customer": {"id": ...}}

Answered = tuple[int, dict[str, Any] | None]


class PaypalDouble(Disputes):
    """One merchant's account, over HTTP."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.access_tokens: set[str] = set()
        self.keys: dict[tuple[str, str], dict[str, Any]] = {}
        self.token_seconds = 32400

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

    def pass_days(self, days: float) -> None:
        """Everything that is there becomes so much older, the request ids too."""
        with self.lock:
            super().pass_days(days)
            for seen in self.keys.values():
                seen["created"] -= timedelta(days=days)

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
        if (request.method, request.path) == ("GET", "/v1/customer/disputes"):
            return 200, self._list_disputes(dict(parse_qsl(request.query)))
        for method, pattern, operation in ROUTES:
            found = re.fullmatch(pattern, request.path)
            if found and method == request.method:
                if method == "GET":
                    return 200, operation(self, *found.groups())
                if method == "PATCH":
                    operation(self, self._body(request, "patch_order"), *found.groups())
                    return 204, None
                return self._post(request, operation, found.groups())
        self.violations.append(f"no such resource: {request.method} {request.path}")
        raise Fail(404, "INVALID_RESOURCE_ID")

    def _body(self, request: Request, name: str) -> Any:
        if request.headers.get("content-type") != "application/json":
            self.violations.append(f"{name}: not sent as JSON")
        try:
            return json.loads(request.body)
        except ValueError:
            raise Fail(400, "MALFORMED_REQUEST_JSON") from None

    def _post(
        self, request: Request, operation: Callable[..., Any], ids: tuple[str, ...]
    ) -> Answered:
        name = operation.__name__.strip("_")
        body = self._body(request, name)
        self._check_fields(name, body, BODIES[name])
        full = request.headers.get("prefer") == "return=representation"
        if name == "void":  # has no request ids
            state = self._void(*ids)
            return (200, state) if full else (204, None)
        key = request.headers.get("paypal-request-id")
        if not key or len(key) > 108:
            self.violations.append(f"{name} without a request id that fits")
            raise Fail(400, "PAYPAL_REQUEST_ID_REQUIRED")
        known = self._known(name, key, (request.path, body))
        if known is not None:
            return 200, self._shaped(name, known(), full)
        look = operation(self, body, *ids)
        self.keys[name, key] = {
            "created": datetime.now(timezone.utc), "request": (request.path, body), "look": look
        }  # fmt: skip
        return 201, self._shaped(name, look(), full)

    def _known(self, name: str, key: str, request: tuple[str, Any]) -> Callable[[], Any] | None:
        """What this request id has made, as it is now, whatever is asked with it this time.

        Errors are not remembered. That PayPal does so was seen at its sandbox: the same id with
        another body is answered with the first order and a 200.
        """
        seen = self.keys.get((name, key))
        life = KEY_LIVES[KINDS[name]]
        if seen is None or datetime.now(timezone.utc) - seen["created"] > life:
            return None
        sources = ["payment_source" in asked[1] for asked in (seen["request"], request)]
        fence = name == "create_order" and not all(sources)
        if seen["request"] != request and not fence:
            self.violations.append(f"{name}: one request id for two different requests")
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

    # The vault ----------------------------------------------------------------------------------

    def _get_vault_token(self, token: str) -> One:
        return _vault_token(find(self.vault, token))

    def _create_vault_token(self, body: dict[str, Any]) -> Callable[[], Any]:
        source = body["payment_source"]["token"]
        if source["type"] != "SETUP_TOKEN":
            raise Fail(400, "INVALID_PARAMETER_VALUE")
        setup = find(self.setup_tokens, source["id"])
        if not setup["approved"]:
            raise Fail(422, "ORDER_NOT_APPROVED")
        if setup["declined"]:
            raise Fail(422, "INSTRUMENT_DECLINED")
        if setup["became"] is not None:
            raise Fail(422, "TOKEN_ALREADY_USED")
        setup["became"] = token = self.vault_token()
        return lambda: _vault_token(self.vault[token])


def _vault_token(token: One) -> One:
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


def _method_body(details: dict[str, Any]) -> dict[str, Any]:
    return {"payment_type": "paypal", "gateway": "paypal", "details": details}


ID = r"([\w-]+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("POST", "/v2/checkout/orders", PaypalDouble._create_order),
    ("GET", f"/v2/checkout/orders/{ID}", PaypalDouble._get_order),
    ("PATCH", f"/v2/checkout/orders/{ID}", PaypalDouble._patch_order),
    ("POST", f"/v2/checkout/orders/{ID}/capture", PaypalDouble._capture_order),
    ("POST", f"/v2/checkout/orders/{ID}/authorize", PaypalDouble._authorize_order),
    ("POST", f"/v2/payments/authorizations/{ID}/capture", PaypalDouble._capture_authorization),
    ("POST", f"/v2/payments/authorizations/{ID}/reauthorize", PaypalDouble._reauthorize),
    ("POST", f"/v2/payments/authorizations/{ID}/void", PaypalDouble._void),
    ("GET", f"/v2/payments/captures/{ID}", PaypalDouble._get_capture),
    ("POST", f"/v2/payments/captures/{ID}/refund", PaypalDouble._refund_capture),
    ("GET", f"/v2/payments/refunds/{ID}", PaypalDouble._get_refund),
    ("GET", f"/v1/customer/disputes/{ID}", PaypalDouble._get_dispute),
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
