"""What the adapter sends to Adyen, against Adyen's own OpenAPI file.

Runs where ADYEN_OPENAPI_SERVER names a server of that file which refuses what breaks it, such as

    npx @stdy/cli --port 8460 CheckoutService-v72.json
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from config import Settings
from gateways.adyen import AdyenGateway
from gateways.base import (
    ChangeRequest,
    ChargeRequest,
    GatewayError,
    MethodRequest,
    RefundRequest,
)
from gateways.transport import Reply

SERVER = os.environ.get("ADYEN_OPENAPI_SERVER")
pytestmark = pytest.mark.skipif(
    SERVER is None, reason="only where ADYEN_OPENAPI_SERVER names a server of Adyen's OpenAPI file"
)

PSP, WAITING = "993617894903480A", "payment-7-1099-sale"
CHARGE = ChargeRequest(
    key="8f2c0e8e-0000-4000-8000-000000000001",
    payment_id=7,
    order_id=3,
    amount=1099,
    currency="EUR",
    token="8415718415172204",
    capture=True,
    return_url="https://shop.example/back",
    customer="estore-0123456789abcdef0123456789abcdef",
)
CHANGE = ChangeRequest("capture", "8f2c0e8e-0000-4000-8000-000000000002", PSP, 7, 500, "EUR", 1099)
REQUESTS: dict[str, Callable[[AdyenGateway], Any]] = {
    "charge": lambda gateway: gateway.charge(CHARGE),
    "authorize": lambda gateway: gateway.charge(replace(CHARGE, capture=False)),
    "charge off-session": lambda gateway: gateway.charge(replace(CHARGE, off_session=True)),
    "capture": lambda gateway: gateway.capture(CHANGE),
    "void": lambda gateway: gateway.void(replace(CHANGE, operation="void")),
    "void what waits": lambda gateway: gateway.void(
        replace(CHANGE, operation="void", reference=WAITING)
    ),
    "refund": lambda gateway: gateway.refund(RefundRequest("key-3", PSP, 7, 1, 300, "EUR")),
    "complete": lambda gateway: gateway.complete(
        replace(CHANGE, operation="complete", redirect_params={"redirectResult": "X3XtfGC7"})
    ),
    "save": lambda gateway: gateway.save_method(
        MethodRequest("card", "alice", {}, token="8415718415172204")
    ),
}


@pytest.fixture
def gateway() -> Iterator[AdyenGateway]:
    settings = Settings(
        _env_file=None,
        adyen_api_key="key",
        adyen_merchant_account="Store",
        adyen_hmac_key="00" * 32,
        adyen_api_base=SERVER,
    )
    gateway = AdyenGateway.build(settings, sa.create_engine("postgresql+psycopg2://nowhere/"))
    yield gateway
    gateway.close()


@pytest.fixture
def statuses(gateway: AdyenGateway, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The status of each answer."""
    seen: list[int] = []
    send = gateway._transport.send

    def watched(*arguments: Any, **options: Any) -> Reply:
        reply = send(*arguments, **options)
        seen.append(reply.status)
        return reply

    monkeypatch.setattr(gateway._transport, "send", watched)
    return seen


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_as_adyen_describes_it(
    gateway: AdyenGateway, statuses: list[int], name: str
) -> None:
    with suppress(GatewayError):  # the server has no books: its answers are examples
        REQUESTS[name](gateway)
    assert statuses
    assert all(status < 300 for status in statuses)


def test_the_server_refuses_what_is_not(gateway: AdyenGateway) -> None:
    reply = gateway._transport.send("POST", "/payments", body={"amount": "10.99"})
    assert reply.status == 400
