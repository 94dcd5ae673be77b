"""A Stripe adapter, and what it is asked, for tests of it alone."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest

from conformance.doubles.server import Answer, Double, Request
from conformance.doubles.stripe import API_KEY, SECRET, StripeDouble
from gateways.base import (
    ChangeRequest,
    Charge,
    ChargeOperation,
    ChargeRequest,
    MethodRequest,
    Refund,
    RefundRequest,
    SavedMethod,
)
from gateways.stripe import StripeGateway

NOW = datetime.now(timezone.utc)
LONG_AGO = NOW - timedelta(hours=24)  # when keys are forgotten
RETURN_URL = "https://shop.example/back"


def gateway_for(base_url: str, *, timeout: float = 5, **changes: Any) -> StripeGateway:
    arguments: dict[str, Any] = {
        "base_url": base_url,
        "webhook_secrets": [SECRET],
        "raw_cards": False,
        "timeout": timeout,
    }
    return StripeGateway(API_KEY, **(arguments | changes))


def token(double: StripeDouble, kind: str = "good") -> str:
    method = double.method(kind)
    assert method is not None
    return str(method["details"]["token"])


def save(gateway: StripeGateway, double: StripeDouble, kind: str = "good") -> SavedMethod:
    return gateway.save_method(MethodRequest("card", "ann", {}, token=token(double, kind)))


def charge_request(
    method: SavedMethod | None = None,
    *,
    amount: int = 1099,
    currency: str = "USD",
    capture: bool = True,
    off_session: bool = False,
    payment_id: int = 7,
) -> ChargeRequest:
    return ChargeRequest(
        key=secrets.token_hex(8),
        payment_id=payment_id,
        order_id=3,
        amount=amount,
        currency=currency,
        token=method.token if method else "pm_any",
        capture=capture,
        return_url=RETURN_URL,
        customer=method.customer if method else "cus_any",
        off_session=off_session,
    )


def change_request(
    charge: Charge, operation: ChargeOperation, amount: int | None = None
) -> ChangeRequest:
    assert charge.amount is not None
    return ChangeRequest(
        operation=operation,
        key=secrets.token_hex(8),
        reference=charge.reference,
        payment_id=7,
        amount=charge.amount if amount is None else amount,
        currency=charge.currency,
        charge_amount=charge.amount,
    )


def refund_request(
    charge: Charge, amount: int, reason: str | None = None, *, refund_id: int = 5
) -> RefundRequest:
    return RefundRequest(
        key=secrets.token_hex(8),
        reference=charge.reference,
        payment_id=7,
        refund_id=refund_id,
        amount=amount,
        currency=charge.currency,
        reason=reason,
    )


def pay(
    gateway: StripeGateway, double: StripeDouble, kind: str = "good", **changes: Any
) -> tuple[ChargeRequest, Charge]:
    request = charge_request(save(gateway, double, kind), **changes)
    return request, gateway.charge(request)


def as_read(charge: Charge, *refunds: Refund) -> Charge:
    """What a look-up tells beyond the answer to a request: the refunds."""
    return replace(charge, refunds=refunds)


def last_form(double: Double, path: str) -> dict[str, str]:
    sent = [one for one in double.requests if one.method == "POST" and one.path.endswith(path)]
    return dict(httpx.QueryParams(sent[-1].body.decode()))


def answer_otherwise(
    double: Double,
    monkeypatch: pytest.MonkeyPatch,
    request: str,
    otherwise: Callable[[Callable[[], Answer]], Answer],
) -> None:
    """Let the double answer the next request that matches (`POST /v1/refunds`) in another way.

    `otherwise` is given what answers it as usual, and need not call it.
    """
    answer_of, waiting = double.answer, [request]

    def answer(arrived: Request) -> Answer:
        if waiting and re.fullmatch(waiting[0], f"{arrived.method} {arrived.path}"):
            waiting.clear()
            return otherwise(lambda: answer_of(arrived))
        return answer_of(arrived)

    monkeypatch.setattr(double, "answer", answer)


def lost(usual: Callable[[], Answer]) -> Answer:
    """It is done, and what comes back says nothing."""
    usual()
    return Answer(502, b"<html>")
