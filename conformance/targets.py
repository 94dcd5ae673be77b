"""The targets of the gateways that come with the service, each with its double."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import httpx

from conformance.doubles.server import BookEntry
from conformance.fault_proxy import Exchange
from conformance.target import DoubleTarget, Method, NotApplicable, Target
from domain.money import to_major
from gateways.sandbox import listing


class StripeTarget(DoubleTarget):
    name = gateway = "stripe"
    steps = {  # noqa: RUF012 - as the base class says
        "charge": r"/v1/payment_intents",
        "capture": r"/v1/payment_intents/\w+/capture",
        "void": r"/v1/payment_intents/\w+/cancel",
        "refund": r"/v1/refunds",
    }
    key_header = "Idempotency-Key"
    fence = b"metadata[fence]"
    zero_decimals = (500, "JPY")
    other_decimals = (500, "ISK")
    refused_amount = (12_345, "KWD")

    def __init__(self) -> None:
        from conformance.doubles.stripe import StripeDouble

        super().__init__(StripeDouble())


class PaypalTarget(DoubleTarget):
    name = gateway = "paypal"
    steps = {  # noqa: RUF012
        "charge": r"/v2/checkout/orders",
        "complete": r"/v2/checkout/orders/\w+/(capture|authorize)",
        "capture": r"/v2/payments/authorizations/\w+/capture",
        "void": r"/v2/payments/authorizations/\w+/void",
        "refund": r"/v2/payments/captures/\w+/refund",
    }
    key_header = "PayPal-Request-Id"
    fence = b'"fence"'
    keyless = frozenset({"void"})
    zero_decimals = (500, "JPY")
    other_decimals = (50_000, "HUF")
    refused_amount = (1050, "HUF")

    def __init__(self, folder: Path) -> None:
        from conformance.doubles.paypal import PaypalDouble

        super().__init__(PaypalDouble(folder))

    def approve(self, reference: str, *, yes: bool) -> None:
        # A payer who does not want to pay just leaves; here it is their bank that says no.
        if not yes:
            self._control("fund")(reference, "DECLINED")
        self.double.approve(reference, yes=True)

    def fail_refund(self, reference: str) -> None:
        raise NotApplicable("PayPal reports no refund that fails after it succeeded")


class AdyenTarget(DoubleTarget):
    name = gateway = "adyen"
    steps = {  # noqa: RUF012
        "charge": r"/v\d+/payments",
        "complete": r"/v\d+/payments/details",
        "capture": r"/v\d+/payments/\w+/captures",
        "void": r"/v\d+/cancels",
        "refund": r"/v\d+/payments/\w+/refunds",
    }
    key_header = "Idempotency-Key"
    off_session = False
    signs_all = False
    can_retrieve = False
    zero_decimals = (500, "JPY")
    other_decimals = (500, "ISK")

    def __init__(self) -> None:
        from conformance.doubles.adyen import AdyenDouble

        super().__init__(AdyenDouble())

    def redirect_params(self, reference: str) -> dict[str, str]:
        return dict(self._control("returned")(reference))


class SandboxTarget(Target):
    """The gateway that is part of the service. Its webhooks never leave the process."""

    name = gateway = "sandbox"
    upstream = "http://127.0.0.1:9"  # nothing is ever sent anywhere
    steps = {}  # noqa: RUF012
    key_header = None
    off_session = False
    zero_decimals = (500, "JPY")
    other_decimals = (12_345, "KWD")
    fault_headers = {  # noqa: RUF012
        "drop_before": "timeout_before_charge",
        "drop_after": "timeout_after_charge",
        "status_before 500": "error_500",
        "status_after 500": "error_after_charge",
        "stall_after": "slow=4",
    }
    TOKENS: ClassVar[Mapping[str, str]] = {
        "good": "tok_success",
        "good_too": "tok_refund_fails",
        "declined": "tok_generic_decline",
        "insufficient": "tok_insufficient_funds",
        "action": "tok_requires_action",
    }

    def attach(self, service: str, manager: httpx.Client, log: Sequence[Exchange]) -> None:
        self._service, self._manager = service, manager

    def settings(self, address: str) -> dict[str, Any]:
        return {}

    def method(self, kind: Method) -> dict[str, Any]:
        if kind not in self.TOKENS:
            raise NotApplicable("the sandbox saves every card")
        details = {"token": self.TOKENS[kind]}
        return {"payment_type": "card", "gateway": "sandbox", "details": details}

    def approve(self, reference: str, *, yes: bool) -> None:
        decision = "approve" if yes else "decline"
        page = f"{self._service}/sandbox/actions/{reference}/{decision}"
        assert httpx.post(page, trust_env=False).status_code in (200, 303)

    def charges(self, payment_id: int) -> list[BookEntry]:
        order_id = self._manager.get(f"/payments/{payment_id}").json()["order_id"]
        answer = self._manager.get("/sandbox/charges", params={"order_id": order_id})
        return [
            BookEntry(
                reference=entry["reference"],
                payment_id=entry["payment_id"],
                amount=entry["amount"],
                currency=entry["currency"],
                status=entry["status"],
                amount_captured=entry["amount_captured"],
                amount_refunded=entry["amount_refunded"],
            )
            for entry in answer.json()
            if entry["payment_id"] == payment_id
        ]

    def dispute(self, reference: str) -> str:
        self._act(reference, "dispute")
        page = httpx.get(f"{self._service}/sandbox", trust_env=False).text
        found = re.search(rf'id="{reference}".*?(dp_[0-9a-f]+)', page, re.DOTALL)
        assert found is not None
        return found[1]

    def refund_outside(self, reference: str, amount: int) -> None:
        self._act(reference, "refund", amount)

    def capture_outside(self, reference: str, amount: int) -> None:
        self._act(reference, "capture", amount)

    def void_outside(self, reference: str) -> None:
        self._act(reference, "cancel")

    def _act(self, reference: str, act: str, amount: int | None = None) -> None:
        """Press a button of the dashboard; amounts are of dollars there."""
        data = {} if amount is None else {"amount": str(to_major(amount, "USD"))}
        path = f"{self._service}/sandbox/charges/{reference}/{act}"
        answer = httpx.post(path, data=data, trust_env=False)
        assert answer.status_code == 303
        assert "refused" not in answer.headers["Location"]

    def short_pages(self) -> AbstractContextManager[object]:
        return patch.object(listing, "PAGE", 2)
