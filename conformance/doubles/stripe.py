"""A double of Stripe: customers, cards, PaymentIntents, refunds, disputes, and signed events.

It knows what the adapter uses of https://docs.stripe.com/api and refuses everything else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from pydantic import SecretStr

from conformance.doubles.server import Answer, BookEntry, Double, Request
from conformance.doubles.stripe_shelves import (
    PARAMETERS,
    Object,
    Refusal,
    Shelves,
    moves_money,
    new_id,
)
from domain.money import exponent

API_KEY: Final = "sk_test_double"
SECRET: Final = "whsec_double"
FOREIGN_SECRET: Final = "whsec_of_another_endpoint"
DAY: Final = 24 * 3600  # seconds
AUTHORIZATION_SECONDS: Final = 6 * DAY

# Stripe's decimals where they are not those of ISO 4217.
DECIMALS: Final = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF"), 0),
    **dict.fromkeys(("VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("ISK", "UGX"), 2),
}
THREE_DECIMAL: Final = {"bhd", "jod", "kwd", "omr", "tnd"}


@dataclass(frozen=True)
class Card:
    number: str
    brand: str = "visa"
    decline: tuple[str, str] | None = None  # code and decline_code of a charge
    attaches: bool = True
    action: bool = False


CARDS: Final = {
    "good": Card("4242424242424242"),
    "good_too": Card("5555555555554444", "mastercard"),
    "declined": Card("4000000000000341", decline=("card_declined", "generic_decline")),
    "insufficient": Card("4000000000009995", decline=("card_declined", "insufficient_funds")),
    "action": Card("4000002760003184", action=True),
    "refused": Card(
        "4000000000000002", decline=("card_declined", "generic_decline"), attaches=False
    ),
}
NUMBERS: Final = {card.number: card for card in CARDS.values()}


class StripeDouble(Shelves, Double):
    """Stripe's API on loopback. Requests with other keys than API_KEY are answered 401."""

    def __init__(self) -> None:
        Double.__init__(self)
        Shelves.__init__(self)
        self.keys: dict[str, tuple[str, bytes, Answer]] = {}
        self.cards: dict[str, Card] = {}  # by payment method
        self.refund_status = "succeeded"  # what new refunds start with

    def __enter__(self) -> StripeDouble:
        super().__enter__()
        return self

    # What tests need to know and do -------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {
            "stripe_api_base": self.base_url,
            "stripe_api_key": SecretStr(API_KEY),
            "stripe_webhook_secret": SecretStr(SECRET),
        }

    def method(self, kind: str) -> dict[str, Any] | None:
        with self.lock:
            token = self._new_method(CARDS[kind])["id"]
        return {"payment_type": "card", "gateway": "stripe", "details": {"token": token}}

    def approve(self, reference: str, *, yes: bool) -> None:
        with self.lock:
            intent = self.intents[reference]
            assert intent["status"] == "requires_action"
            intent["next_action"] = None
            if yes:
                self._authorize(intent)
            else:
                self._decline(intent, "payment_intent_authentication_failure", None)

    def expire(self, reference: str) -> None:
        """The authorization expires: the issuer's money is free again."""
        with self.lock:
            intent = self.intents[reference]
            assert intent["status"] == "requires_capture"
            self._event("charge.expired", self.charges[intent["latest_charge"]])
            self._cancel(intent)

    def dispute(self, reference: str) -> str:
        with self.lock:
            intent = self.intents[reference]
            assert intent["status"] == "succeeded"
            dispute = {
                "id": new_id("du"),
                "object": "dispute",
                "amount": intent["amount_received"],
                "currency": intent["currency"],
                "charge": intent["latest_charge"],
                "payment_intent": reference,
                "created": int(time.time()),
                "evidence_details": {"due_by": int(time.time()) + 9 * DAY},
                "reason": "fraudulent",
                "status": "needs_response",
                "metadata": {},
            }
            self.disputes[dispute["id"]] = dispute
            self._event("charge.dispute.created", dispute)
            return str(dispute["id"])

    def close_dispute(self, dispute_id: str, *, won: bool) -> None:
        with self.lock:
            self.disputes[dispute_id]["status"] = "won" if won else "lost"
            self._event("charge.dispute.closed", self.disputes[dispute_id])

    def fail_refund(self, refund_reference: str) -> None:
        with self.lock:
            refund = self.refunds[refund_reference]
            refund["status"] = "failed"
            self._event("refund.failed", refund)

    def settle_refund(self, refund_reference: str) -> None:
        with self.lock:
            refund = self.refunds[refund_reference]
            refund["status"] = "succeeded"
            self._event("refund.updated", refund)

    def refund_outside(self, reference: str, amount: int) -> str:
        """A refund of Stripe's units that somebody makes in the dashboard."""
        with self.lock:
            return str(self._refund(self.intents[reference], amount, {}, None)["id"])

    def capture_outside(self, reference: str, amount: int) -> None:
        with self.lock:
            self._capture(self.intents[reference], {"amount_to_capture": str(amount)})

    def void_outside(self, reference: str) -> None:
        with self.lock:
            self._void(self.intents[reference], {})

    @contextmanager
    def short_pages(self) -> Iterator[None]:
        self.page_limit, longest = 2, self.page_limit
        try:
            yield
        finally:
            self.page_limit = longest

    def pass_days(self, days: float) -> None:
        """Let everything be so much older. Keys are forgotten after one."""
        with self.lock:
            self.grow_older(int(days * DAY))
            if days >= 1:
                self.keys.clear()

    def replace_card(self, token: str, **fields: Any) -> None:
        """The bank sends the shopper a new card, and tells the scheme."""
        with self.lock:
            self.methods[token]["card"].update(fields)
            self._event("payment_method.automatically_updated", self.methods[token])

    def detach(self, token: str) -> None:
        with self.lock:
            self.methods[token]["customer"] = None
            self._event("payment_method.detached", self.methods[token])

    def delete_customer(self, customer: str) -> None:
        with self.lock:
            del self.customers[customer]
            for method in self.methods.values():
                if method["customer"] == customer:
                    method["customer"] = None

    def forge(
        self, headers: Mapping[str, str], body: bytes, *, age: float = 0, foreign: bool = False
    ) -> tuple[dict[str, str], bytes] | None:
        secret = FOREIGN_SECRET if foreign else SECRET
        return {**headers, "Stripe-Signature": sign(body, secret, int(time.time() - age))}, body

    def books(self) -> list[BookEntry]:
        with self.lock:
            return [self._book_entry(intent) for intent in self.intents.values()]

    def _book_entry(self, intent: Object) -> BookEntry:
        currency = intent["currency"].upper()
        words = {
            "requires_capture": "authorized",
            "succeeded": "captured",
            "canceled": "voided",
            "requires_payment_method": "declined",
        }
        return BookEntry(
            reference=intent["id"],
            payment_id=int(intent["metadata"].get("payment_id", 0)),
            amount=_iso(intent["amount"], currency),
            currency=currency,
            status=words.get(intent["status"], str(intent["status"])),
            amount_captured=_iso(intent["amount_received"], currency),
            amount_refunded=_iso(self._given_back(intent["id"], {"succeeded"}), currency),
        )

    # HTTP ---------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        head = {"Request-Id": new_id("req")}
        key = request.headers.get("idempotency-key")
        if request.headers.get("authorization") != f"Bearer {API_KEY}":
            return Answer(401, Refusal(401, None).body, head)
        try:
            first = self._first_answer(request, key) if request.method == "POST" else None
            if first is not None:
                return Answer(first.status, first.body, {**head, "Idempotent-Replayed": "true"})
            answer = Answer(200, self._work(request), head)
        except KeyError as error:
            self.violations.append(f"{request.method} {request.path} without {error}")
            return Answer(400, Refusal(400, "parameter_missing").body, head)
        except Refusal as error:
            answer = Answer(error.status, error.body, head)
            if not error.stored:
                return answer
        answer = Answer(answer.status, json.loads(json.dumps(answer.body)), head)
        if request.method == "POST" and key is not None:
            self.keys[key] = (request.path, request.body, answer)
        return answer

    def _first_answer(self, request: Request, key: str | None) -> Answer | None:
        """What was answered to this key before, for at least a day: the whole life of a double."""
        if key is None:
            self.violations.append(f"POST {request.path} without a key")
            raise Refusal(400, "parameter_missing")
        if key not in self.keys:
            return None
        path, body, first = self.keys[key]
        if (path, body) != (request.path, request.body):
            sent = ((path, body), (request.path, request.body))
            if all(moves_money(path, decode(body.decode())) for path, body in sent):
                self.violations.append(f"a key of {path} again for {request.path}")
            raise Refusal(400, None, kind="idempotency_error")
        return first

    def _work(self, request: Request) -> Object:
        parts = request.path.removeprefix("/v1/").split("/")
        fields = decode(request.query if request.method == "GET" else request.body.decode())
        if request.method == "GET":
            return self.read(parts, fields)
        route = "/".join("*" if place == 1 else part for place, part in enumerate(parts))
        if request.method != "POST" or route not in PARAMETERS:
            self.violations.append(f"{request.method} {request.path}")
            raise Refusal(404, None)
        unknown = fields.keys() - PARAMETERS[route]
        if unknown:
            self.violations.append(f"unknown parameters of {route}: {sorted(unknown)}")
            raise Refusal(400, "parameter_unknown", param=min(unknown))
        return self._write(route, parts, fields)

    def _write(self, route: str, parts: list[str], fields: Object) -> Object:
        if route == "customers":
            return self._new_customer(fields)
        if route == "payment_methods":
            return self._create_method(fields)
        if route == "payment_methods/*/attach":
            return self._attach(parts[1], fields)
        if route == "payment_intents":
            return self._create_intent(fields)
        if route == "refunds":
            return self._create_refund(fields)
        intent = self.intents.get(parts[1])
        if intent is None:
            raise Refusal(404, "resource_missing", param="intent")
        changes: Mapping[str, Callable[[Object, Object], None]] = {
            "payment_intents/*": self._update,
            "payment_intents/*/capture": self._capture,
            "payment_intents/*/cancel": self._void,
        }
        changes[route](intent, fields)
        return self.shown(intent, fields)

    # Customers and cards ------------------------------------------------------------------------

    def _new_customer(self, fields: Object) -> Object:
        customer = {"id": new_id("cus"), "object": "customer", **fields}
        self.customers[customer["id"]] = customer
        return customer

    def _new_method(self, card: Card, name: str | None = None, **expiry: int) -> Object:
        method: Object = {
            "id": new_id("pm"),
            "object": "payment_method",
            "type": "card",
            "created": int(time.time()),
            "customer": None,
            "billing_details": {"name": name, "email": None},
            "card": {
                "brand": card.brand,
                "last4": card.number[-4:],
                "exp_month": 12,
                "exp_year": time.gmtime().tm_year + 3,
                "fingerprint": hashlib.sha256(card.number.encode()).hexdigest()[:16],
                **expiry,
            },
            "metadata": {},
        }
        self.methods[method["id"]] = method
        self.cards[method["id"]] = card
        return method

    def _create_method(self, fields: Object) -> Object:
        card = fields["card"]
        known = NUMBERS.get(card["number"])
        if known is None:
            raise Refusal(402, "incorrect_number", kind="card_error", stored=True)
        return self._new_method(
            known,
            fields.get("billing_details", {}).get("name"),
            exp_month=int(card["exp_month"]),
            exp_year=int(card["exp_year"]),
        )

    def _attach(self, token: str, fields: Object) -> Object:
        method = self.methods.get(token)
        if method is None:
            raise Refusal(404, "resource_missing", param="payment_method")
        if fields["customer"] not in self.customers:
            raise Refusal(404, "resource_missing", param="customer")
        if method["customer"] not in (None, fields["customer"]):
            raise Refusal(400, "payment_method_unexpected_state")
        card = self.cards[token]
        if not card.attaches:
            assert card.decline is not None
            code, decline_code = card.decline
            raise Refusal(402, code, kind="card_error", decline_code=decline_code, stored=True)
        method["customer"] = fields["customer"]
        return method

    # Money --------------------------------------------------------------------------------------

    def _create_intent(self, fields: Object) -> Object:
        amount, currency = self._amount(fields["amount"]), fields["currency"]
        if not re.fullmatch(r"[a-z]{3}", currency) or (currency in THREE_DECIMAL and amount % 10):
            self.violations.append(f"{amount} {currency}")
            raise Refusal(400, "parameter_invalid_integer", param="amount")
        confirms = moves_money("/v1/payment_intents", fields)
        method = self._chargeable(fields) if confirms else None
        intent: Object = {
            "id": new_id("pi"),
            "object": "payment_intent",
            "amount": amount,
            "amount_capturable": 0,
            "amount_received": 0,
            "capture_method": fields.get("capture_method", "automatic"),
            "client_secret": new_id("pi_secret"),
            "created": int(time.time()),
            "currency": currency,
            "customer": fields.get("customer"),
            "last_payment_error": None,
            "latest_charge": None,
            "metadata": fields.get("metadata", {}),
            "next_action": None,
            "payment_method": method and method["id"],
            "status": "requires_payment_method",
        }
        self.intents[intent["id"]] = intent
        self._event("payment_intent.created", intent)
        if method is not None:
            off_session = fields.get("off_session") == "true"
            self._confirm(intent, self.cards[method["id"]], fields.get("return_url"), off_session)
        return self.shown(intent, fields)

    def _chargeable(self, fields: Object) -> Object:
        """The payment method of a request that creates and confirms at once."""
        method = self.methods.get(fields["payment_method"])
        if method is None:
            raise Refusal(404, "resource_missing", param="payment_method")
        if method["customer"] is None or method["customer"] != fields.get("customer"):
            raise Refusal(400, None, param="payment_method")
        redirects = fields["automatic_payment_methods"].get("allow_redirects", "always")
        if (redirects == "always") != ("return_url" in fields):
            self.violations.append("confirmed without a return URL, or with one in vain")
            raise Refusal(400, "parameter_missing", param="return_url")
        return method

    def _confirm(
        self, intent: Object, card: Card, return_url: str | None, off_session: bool
    ) -> None:
        decline = card.decline
        if card.action and off_session:
            decline = ("authentication_required", "authentication_required")
        if decline is not None:
            self._decline(intent, *decline)
            code, decline_code = decline
            raise Refusal(
                402,
                code,
                kind="card_error",
                decline_code=decline_code,
                payment_intent=intent,
                stored=True,
            )
        if card.action:
            intent["status"] = "requires_action"
            url = f"{self.base_url}/3d_secure/{intent['id']}"
            intent["next_action"] = {
                "type": "redirect_to_url",
                "redirect_to_url": {"url": url, "return_url": return_url},
            }
            self._event("payment_intent.requires_action", intent)
        else:
            self._authorize(intent)

    def _decline(self, intent: Object, code: str, decline_code: str | None) -> None:
        intent["status"] = "requires_payment_method"
        intent["last_payment_error"] = {
            "type": "card_error",
            "code": code,
            "decline_code": decline_code,
            "message": "Your card was declined.",
        }
        intent["payment_method"] = None
        self._event("payment_intent.payment_failed", intent)

    def _authorize(self, intent: Object) -> None:
        manual = intent["capture_method"] == "manual"
        until = int(time.time()) + AUTHORIZATION_SECONDS if manual else None
        charge = {
            "id": new_id("ch"),
            "object": "charge",
            "amount": intent["amount"],
            "captured": not manual,
            "currency": intent["currency"],
            "metadata": intent["metadata"],
            "payment_intent": intent["id"],
            "payment_method_details": {"type": "card", "card": {"capture_before": until}},
        }
        self.charges[charge["id"]] = charge
        intent["latest_charge"] = charge["id"]
        if manual:
            intent.update(status="requires_capture", amount_capturable=intent["amount"])
            self._event("payment_intent.amount_capturable_updated", intent)
        else:
            self._receive(intent, intent["amount"])

    def _receive(self, intent: Object, amount: int) -> None:
        intent.update(status="succeeded", amount_received=amount, amount_capturable=0)
        self.charges[intent["latest_charge"]]["captured"] = True
        self._event("payment_intent.succeeded", intent)

    def _update(self, intent: Object, fields: Object) -> None:
        intent["metadata"] = {**intent["metadata"], **fields["metadata"]}

    def _capture(self, intent: Object, fields: Object) -> None:
        amount = self._amount(fields["amount_to_capture"])
        if intent["status"] != "requires_capture":
            raise _unexpected_state(intent)
        if amount > intent["amount_capturable"]:
            raise Refusal(400, "amount_too_large", param="amount_to_capture", stored=True)
        self._receive(intent, amount)

    def _void(self, intent: Object, _: Object) -> None:
        if intent["status"] in ("succeeded", "canceled"):
            raise _unexpected_state(intent)
        self._cancel(intent)

    def _cancel(self, intent: Object) -> None:
        intent.update(status="canceled", amount_capturable=0, next_action=None)
        self._event("payment_intent.canceled", intent)

    def _create_refund(self, fields: Object) -> Object:
        amount = self._amount(fields["amount"])
        intent = self.intents.get(fields["payment_intent"])
        if intent is None:
            raise Refusal(404, "resource_missing", param="payment_intent")
        if intent["status"] != "succeeded":
            raise _unexpected_state(intent)
        left = intent["amount_received"] - self._given_back(intent["id"], {"succeeded", "pending"})
        if amount > left:
            code = None if left else "charge_already_refunded"
            raise Refusal(400, code, param="amount", stored=True)
        return self._refund(intent, amount, fields.get("metadata", {}), fields.get("reason"))

    def _refund(self, intent: Object, amount: int, metadata: Object, reason: str | None) -> Object:
        refund = {
            "id": new_id("re"),
            "object": "refund",
            "amount": amount,
            "charge": intent["latest_charge"],
            "created": int(time.time()),
            "currency": intent["currency"],
            "metadata": metadata,
            "payment_intent": intent["id"],
            "reason": reason,
            "status": self.refund_status,
        }
        self.refunds[refund["id"]] = refund
        self._event("refund.created", refund)
        self._event("charge.refunded", self.charges[intent["latest_charge"]])
        return refund

    def _given_back(self, reference: str, states: set[str]) -> int:
        return sum(
            refund["amount"]
            for refund in self.refunds.values()
            if refund["payment_intent"] == reference and refund["status"] in states
        )

    def _amount(self, value: str) -> int:
        if not re.fullmatch(r"[1-9][0-9]{0,11}", value):
            self.violations.append(f"an amount of {value}")
            raise Refusal(400, "parameter_invalid_integer", param="amount")
        return int(value)

    # Events -------------------------------------------------------------------------------------

    def _event(self, kind: str, found: Object) -> None:
        event: Object = {
            "id": new_id("evt"),
            "object": "event",
            "type": kind,
            "created": int(time.time()),
            "data": {"object": json.loads(json.dumps(found))},  # as it is now
            "livemode": False,
        }
        self.events[event["id"]] = event
        body = json.dumps(event).encode()
        signature = sign(body, SECRET, int(time.time()))
        headers = {"Content-Type": "application/json", "Stripe-Signature": signature}
        self.send_webhook(headers, body)


def sign(body: bytes, secret: str, timestamp: int) -> str:
    """The header Stripe-Signature."""
    signed = b"%d.%s" % (timestamp, body)
    return f"t={timestamp},v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


def decode(form: str) -> Object:
    """`a[b]=c` as {"a": {"b": "c"}}. Lists stay objects with their indices."""
    root: Object = {}
    for name, value in parse_qsl(form, keep_blank_values=True):
        *path, last = re.findall(r"[^\[\]]+", name)
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return root


def _unexpected_state(intent: Object) -> Refusal:
    return Refusal(400, "payment_intent_unexpected_state", payment_intent=intent, stored=True)


def _iso(units: int, currency: str) -> int:
    """Stripe's units in minor units of ISO 4217."""
    decimals = DECIMALS.get(currency, exponent(currency))
    factor: int = 10 ** exponent(currency)
    whole, lost = divmod(units * factor, int(10**decimals))
    assert not lost
    return whole
