"""Targets whose gateway is not in this repository: independent doubles, and real test accounts.

The independent doubles are started when GATEWAY_DOUBLES names their folder, which holds a
`start_gateways.sh`. A real account is used when its keys are in the environment. Nobody approves
payments there, and no webhook reaches a developer's machine.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import httpx

from conformance.doubles.server import BookEntry
from conformance.fault_proxy import Exchange
from conformance.target import Method, NotApplicable, Target
from conformance.targets import PaypalTarget, StripeTarget
from domain.money import EXPONENTS

REPRESENTATION = "return=representation"
PAYPAL_NO_DECIMALS = ("JPY", "HUF", "TWD")


class StripeApiTarget(Target):
    """Whatever answers as Stripe's API does; its books are read through it."""

    gateway = "stripe"
    steps = StripeTarget.steps
    key_header = StripeTarget.key_header
    fence = StripeTarget.fence
    zero_decimals = StripeTarget.zero_decimals
    other_decimals = StripeTarget.other_decimals
    refused_amount = StripeTarget.refused_amount
    api_key: str
    webhook_secret = "whsec_of_the_contract"
    TOKENS: ClassVar[Mapping[str, str]] = {
        "good": "pm_card_visa",
        "good_too": "pm_card_mastercard",
        "declined": "pm_card_chargeCustomerFail",
        "action": "pm_card_authenticationRequired",
        "refused": "pm_card_visa_chargeDeclinedInsufficientFunds",
    }
    STATUSES: ClassVar[Mapping[str, str]] = {
        "succeeded": "captured",
        "requires_capture": "authorized",
        "canceled": "voided",
        "requires_action": "requires_action",
        "requires_payment_method": "declined",
    }

    def settings(self, address: str) -> dict[str, Any]:
        return {
            "stripe_api_base": address,
            "stripe_api_key": self.api_key,
            "stripe_webhook_secret": self.webhook_secret,
        }

    def method(self, kind: Method) -> dict[str, Any]:
        if kind not in self.TOKENS:
            raise NotApplicable("Stripe attaches no card that is out of funds")
        details = {"token": self.TOKENS[kind]}
        return {"payment_type": "card", "gateway": "stripe", "details": details}

    def charges(self, payment_id: int) -> Sequence[BookEntry]:
        intents = self._get("/v1/payment_intents?limit=100&expand[]=data.latest_charge")["data"]
        return [
            self._entry(intent)
            for intent in intents
            if intent["metadata"].get("payment_id") == str(payment_id)
        ]

    def _entry(self, intent: Mapping[str, Any]) -> BookEntry:
        currency = intent["currency"].upper()
        refunds = self._get(f"/v1/refunds?payment_intent={intent['id']}")["data"]
        back = sum(refund["amount"] for refund in refunds if refund["status"] == "succeeded")
        scale = 100 if currency in ("ISK", "UGX") else 1  # two decimals there, none in ISO 4217
        return BookEntry(
            reference=intent["id"],
            payment_id=int(intent["metadata"]["payment_id"]),
            amount=intent["amount"] // scale,
            currency=currency,
            status=self.STATUSES.get(intent["status"], intent["status"]),
            amount_captured=(intent.get("amount_received") or 0) // scale,
            amount_refunded=back // scale,
        )

    def _get(self, path: str) -> Any:
        answer = httpx.get(
            self.upstream + path, auth=(self.api_key, ""), timeout=30, trust_env=False
        )
        answer.raise_for_status()
        return answer.json()

    def refund_outside(self, reference: str, amount: int) -> None:
        self._act("/v1/refunds", payment_intent=reference, amount=amount)

    def capture_outside(self, reference: str, amount: int) -> None:
        self._act(f"/v1/payment_intents/{reference}/capture", amount_to_capture=amount)

    def void_outside(self, reference: str) -> None:
        self._act(f"/v1/payment_intents/{reference}/cancel")

    def _act(self, path: str, **form: Any) -> None:
        """What the dashboard does: the same, by another client."""
        answer = httpx.post(
            self.upstream + path, data=form, auth=(self.api_key, ""), timeout=30, trust_env=False
        )
        answer.raise_for_status()

    def approve(self, reference: str, *, yes: bool) -> None:
        raise NotApplicable("nobody is there to approve it")

    def secrets(self) -> Sequence[str]:
        return (self.api_key, self.webhook_secret)


class PaypalApiTarget(Target):
    """Whatever answers as PayPal's API does; the orders that were made are read through it."""

    gateway = "paypal"
    steps = PaypalTarget.steps
    key_header = PaypalTarget.key_header
    fence = PaypalTarget.fence
    keyless = PaypalTarget.keyless
    zero_decimals = PaypalTarget.zero_decimals
    other_decimals = PaypalTarget.other_decimals
    refused_amount = PaypalTarget.refused_amount
    client_id: str
    client_secret: str

    def settings(self, address: str) -> dict[str, Any]:
        return {
            "paypal_api_base": address,
            "paypal_client_id": self.client_id,
            "paypal_client_secret": self.client_secret,
        }

    def attach(self, service: str, manager: httpx.Client, log: Sequence[Exchange]) -> None:
        self._log = log

    def method(self, kind: Method) -> dict[str, Any]:
        if kind != "action":
            raise NotApplicable("a vault token takes a payer who approves it")
        details = {"email": f"payer-{os.urandom(4).hex()}@example.com"}
        return {"payment_type": "paypal", "gateway": "paypal", "details": details}

    def approve(self, reference: str, *, yes: bool) -> None:
        raise NotApplicable("nobody is there to approve it")

    def charges(self, payment_id: int) -> Sequence[BookEntry]:
        found = {
            made["id"]
            for exchange in list(self._log)
            if exchange.method == "POST" and exchange.path == "/v2/checkout/orders"
            for asked, made in [(_json(exchange.body), _json(exchange.answer))]
            if "id" in made and asked["purchase_units"][0].get("custom_id") == str(payment_id)
        }
        orders = [self._get(f"/v2/checkout/orders/{reference}") for reference in sorted(found)]
        # One without our mark only uses up a key: it is what a late charge is answered with.
        marked = [one for one in orders if "custom_id" in one["purchase_units"][0]]
        return [self._entry(payment_id, order) for order in marked]

    def _entry(self, payment_id: int, order: Mapping[str, Any]) -> BookEntry:
        unit = order["purchase_units"][0]
        payments = unit.get("payments", {})
        captures, currency = payments.get("captures", []), unit["amount"]["currency_code"]
        authorizations = payments.get("authorizations", [])
        if captures:
            status = "captured"
        elif authorizations:
            status = "voided" if authorizations[-1]["status"] == "VOIDED" else "authorized"
        else:
            status = "requires_action"
        return BookEntry(
            reference=order["id"],
            payment_id=payment_id,
            amount=_minor(unit["amount"]["value"], currency),
            currency=currency,
            status=status,
            amount_captured=sum(_minor(c["amount"]["value"], currency) for c in captures),
            amount_refunded=sum(
                _minor(refund["amount"]["value"], currency)
                for refund in payments.get("refunds", [])
                if refund["status"] == "COMPLETED"
            ),
        )

    def refund_outside(self, reference: str, amount: int) -> None:
        self._act("captures", reference, "refund", amount)

    def capture_outside(self, reference: str, amount: int) -> None:
        self._act("authorizations", reference, "capture", amount, final_capture=True)

    def void_outside(self, reference: str) -> None:
        self._act("authorizations", reference, "void")

    def _act(
        self, kind: str, reference: str, action: str, amount: int | None = None, **body: Any
    ) -> None:
        """What the dashboard does: the same, by another client."""
        order = self._get(f"/v2/checkout/orders/{reference}")
        payment = order["purchase_units"][0]["payments"][kind][0]
        if amount is not None:
            currency = payment["amount"]["currency_code"]
            value = f"{Decimal(amount).scaleb(-EXPONENTS[currency])}"
            body["amount"] = {"currency_code": currency, "value": value}
        path = f"/v2/payments/{kind}/{payment['id']}/{action}"
        self._post(path, body, **{"PayPal-Request-Id": _new_id(), "Prefer": REPRESENTATION})

    def _get(self, path: str) -> Any:
        answer = httpx.get(
            self.upstream + path,
            headers={"Authorization": f"Bearer {self._token()}"},
            timeout=30,
            trust_env=False,
        )
        answer.raise_for_status()
        return answer.json()

    def _post(self, path: str, body: Mapping[str, Any], **headers: str) -> Any:
        answer = httpx.post(
            self.upstream + path,
            json=body,
            headers={"Authorization": f"Bearer {self._token()}"} | headers,
            timeout=30,
            trust_env=False,
        )
        answer.raise_for_status()
        return answer.json()

    def _token(self) -> str:
        answer = httpx.post(
            f"{self.upstream}/v1/oauth2/token",
            data={"grant_type": "client_credentials"},
            auth=(self.client_id, self.client_secret),
            timeout=30,
            trust_env=False,
        )
        return str(answer.json()["access_token"])

    def secrets(self) -> Sequence[str]:
        return (self.client_secret,)


class ExternalDoubles:
    """The doubles of GATEWAY_DOUBLES, started by their own script."""

    def __init__(self, place: Path, folder: Path) -> None:
        self._script, self._place = place / "start_gateways.sh", folder

    def start(self, **environment: str) -> None:
        subprocess.run(
            [self._script, self._place],
            env=os.environ | environment,
            check=True,
            timeout=300,
            stdout=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        subprocess.run([self._script, self._place, "stop"], check=True, timeout=60)


class ExternalStripeTarget(StripeApiTarget):
    name = "stripe, by an independent double"
    upstream = "http://127.0.0.1:8421"
    api_key = "sk_test_12345"

    def __init__(self, doubles: ExternalDoubles) -> None:
        self._doubles = doubles

    def __enter__(self) -> Target:
        self._doubles.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._doubles.stop()

    def send_webhooks_to(self, url: str) -> None:
        self._tell("webhook", url=url, secret=self.webhook_secret)

    def approve(self, reference: str, *, yes: bool) -> None:
        self._tell(f"authenticate/{reference}", success=yes)

    def dispute(self, reference: str) -> str:
        return str(self._tell("disputes", payment_intent=reference)["id"])

    def close_dispute(self, dispute: str, *, won: bool) -> None:
        self._tell(f"disputes/{dispute}", status="won" if won else "lost")

    def fail_refund(self, reference: str) -> None:
        self._tell(f"refunds/{reference}", status="failed")

    def _tell(self, what: str, **body: Any) -> Any:
        answer = httpx.post(f"{self.upstream}/_front/{what}", json=body, trust_env=False)
        answer.raise_for_status()
        return answer.json()


class ExternalPaypalTarget(PaypalApiTarget):
    name = "paypal, by an independent double"
    upstream = "http://127.0.0.1:8430"
    client_id, client_secret = "test-client", "test-secret"

    def __init__(self, doubles: ExternalDoubles, folder: Path) -> None:
        self._doubles, self._folder = doubles, folder

    def __exit__(self, *_: object) -> None:
        self._doubles.stop()

    def settings(self, address: str) -> dict[str, Any]:
        return super().settings(address) | {
            "paypal_webhook_id": "WEBHOOKMOCK000001",
            "paypal_cert_hosts": "127.0.0.1",
            "paypal_ca_file": self._folder / "paypal-ca.pem",
        }

    def send_webhooks_to(self, url: str) -> None:
        self._doubles.start(PAYPAL_WEBHOOK_URL=url)

    def method(self, kind: Method) -> dict[str, Any]:
        if kind in ("good", "good_too"):
            details = {"token": self._vaulted()}
            return {"payment_type": "paypal", "gateway": "paypal", "details": details}
        return super().method(kind)

    def _vaulted(self) -> str:
        source = {"payment_source": {"paypal": {"usage_type": "MERCHANT"}}}
        setup = self._post("/v3/vault/setup-tokens", source, **{"PayPal-Request-Id": _new_id()})
        self._tell(f"setup-tokens/{setup['id']}/approve")
        token = {"payment_source": {"token": {"id": setup["id"], "type": "SETUP_TOKEN"}}}
        made = self._post("/v3/vault/payment-tokens", token, **{"PayPal-Request-Id": _new_id()})
        return str(made["id"])

    def approve(self, reference: str, *, yes: bool) -> None:
        # A payer who does not want to pay just leaves; here it is their bank that says no.
        self._tell(f"orders/{reference}/approve", **({} if yes else {"funding": "DECLINED"}))

    def dispute(self, reference: str) -> str:
        order = self._get(f"/v2/checkout/orders/{reference}")
        capture = order["purchase_units"][0]["payments"]["captures"][0]["id"]
        return str(self._tell("disputes", capture_id=capture)["dispute_id"])

    def close_dispute(self, dispute: str, *, won: bool) -> None:
        outcome = "RESOLVED_SELLER_FAVOUR" if won else "RESOLVED_BUYER_FAVOUR"
        self._tell(f"disputes/{dispute}/resolve", outcome=outcome)

    def violations(self) -> Sequence[str]:
        """But for a key that is used twice for orders: a fence does so, and PayPal answers it."""
        state = httpx.get(f"{self.upstream}/_mock/state", trust_env=False).json()
        allowed = ("idempotency", "/v2/checkout/orders")
        found = [one for one in state["violations"] if (one[0], one[2]) != allowed]
        return [str(violation) for violation in found]

    def _tell(self, what: str, **body: Any) -> Any:
        answer = httpx.post(f"{self.upstream}/_mock/{what}", json=body, trust_env=False)
        answer.raise_for_status()
        return answer.json()


class RealStripeTarget(StripeApiTarget):
    """A Stripe test account: STRIPE_TEST_API_KEY."""

    name = "stripe, a test account"
    upstream = "https://api.stripe.com"

    def __init__(self, api_key: str) -> None:
        self.api_key = api_key


class RealPaypalTarget(PaypalApiTarget):
    """A PayPal sandbox account: PAYPAL_TEST_CLIENT_ID and PAYPAL_TEST_CLIENT_SECRET."""

    name = "paypal, a sandbox account"
    upstream = "https://api-m.sandbox.paypal.com"

    def __init__(self, client_id: str, client_secret: str) -> None:
        self.client_id, self.client_secret = client_id, client_secret


def _minor(value: str, currency: str) -> int:
    return int(Decimal(value).scaleb(EXPONENTS[currency]))


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return {}


def _new_id() -> str:
    return os.urandom(12).hex()
