"""A shop: a shopper, a manager, and what tests of money ask them to do."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

import auth
import crud
import database
from config import Settings
from domain.states import ChargeStatus
from gateways import base
from gateways.sandbox import SandboxGateway, sign
from services import audit
from settlement import apply
from settlement.transitions import ChangedBy, locked_payment
from tests.support.database import sql
from tests.support.factories import VISA, card, order

T = TypeVar("T")
Bearer = Callable[..., dict[str, str]]

DECLINED = "4000000000000002"
INSUFFICIENT = "4000000000009995"
ACTION = "4000002760003184"
DISPUTED = "4000000000000259"
REFUND_FAILS = "4000000000005126"
MANAGES = "orders:manage payments:manage"
CURRENCIES = [("USD", 10_000), ("JPY", 1_000), ("KWD", 12_345)]

_TLS = ssl.create_default_context()  # made once: it is what makes an httpx client slow to make


def until(condition: Callable[[], T], what: str, seconds: float = 30) -> T:
    """What `condition` returns once it is true. Fails when it never is."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.03)  # polls; the loop ends with the condition


def together(count: int, work: Callable[[int], T]) -> list[T]:
    """Run `work(0)` … `work(count - 1)` at the same moment, a thread each."""
    start = threading.Barrier(count)

    def run(number: int) -> T:
        start.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def webhook(engine: sa.Engine, payload: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """The body and the signed headers of a webhook of the sandbox."""
    body = json.dumps(payload).encode()
    (row,) = sql(engine, "SELECT webhook_secret FROM sandbox.account")
    return body, sign(row.webhook_secret, body, int(time.time()))


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """One more service, for as long as this lasts."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive(), "the service starts", 60)
    assert server.started, "the service did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the service did not stop"


# What is open or due here, or has changed at the gateway without our having heard of it.
OPEN = """
SELECT (SELECT count(*) FROM payments
        WHERE status = 'pending' OR operation IS NOT NULL OR check_at <= now())
     + (SELECT count(*) FROM refunds WHERE status = 'pending')
     + (SELECT count(*) FROM sandbox.refunds WHERE status = 'pending')
     + (SELECT count(*) FROM sandbox.charges c JOIN payments p ON p.id = c.payment_id
        WHERE p.status = 'authorized' AND c.status <> 'authorized'
        OR p.status = 'requires_action' AND c.status <> 'requires_action')
     + (SELECT count(*) FROM sandbox.charges WHERE status = 'authorized' AND capture_before < now())
"""


def settle(engine: sa.Engine) -> None:
    """Wait until nothing is open any more, at the gateway or here."""
    until(lambda: sql(engine, OPEN)[0][0] == 0, "everything is settled", 60)


@pytest.fixture
def invariants_hold(engine: sa.Engine, app: FastAPI) -> Iterator[None]:
    """After every scenario, both sets of books are whole and agree."""
    yield
    settle(engine)
    with database.new_session(engine) as session:
        assert audit.check(session, app.state.gateways) == []


@dataclass
class Shop:
    """A shopper, somebody who manages payments, and what tests ask them to do."""

    shopper: httpx.Client
    manager: httpx.Client
    engine: sa.Engine
    methods: dict[str, int] = field(default_factory=dict)

    def method(self, number: str = VISA) -> int:
        if number not in self.methods:
            answer = self.shopper.post("/payment-methods", json=card(number))
            assert answer.status_code == 201, answer.text
            self.methods[number] = answer.json()["id"]
        return self.methods[number]

    def place(self, amount: int = 1099, currency: str = "USD", **more: Any) -> int:
        body = order(total_amount=amount, currency=currency, **more)
        answer = self.shopper.post("/orders", json=body)
        assert answer.status_code == 201, answer.text
        placed: int = answer.json()["id"]
        return placed

    def try_pay(
        self, order_id: int, number: str = VISA, headers: dict[str, str] | None = None, **body: Any
    ) -> httpx.Response:
        body = {"payment_method_id": self.method(number), **body}
        return self.shopper.post(f"/orders/{order_id}/payments", json=body, headers=headers)

    def pay(
        self, order_id: int, number: str = VISA, headers: dict[str, str] | None = None, **body: Any
    ) -> dict[str, Any]:
        answer = self.try_pay(order_id, number, headers, **body)
        assert answer.status_code == 201, answer.text
        assert answer.headers["Location"] == f"/payments/{answer.json()['id']}"
        paid: dict[str, Any] = answer.json()
        return paid

    def paid(self, amount: int = 1099, currency: str = "USD", number: str = VISA) -> dict[str, Any]:
        """A captured payment."""
        return self.pay(self.place(amount, currency), number)

    def authorized(self, amount: int = 1099, currency: str = "USD") -> dict[str, Any]:
        """An authorized payment."""
        return self.pay(self.place(amount, currency), capture_method="manual")

    def do(
        self,
        payment: dict[str, Any],
        what: str,
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> httpx.Response:
        """Capture, void or refund (`refunds`), as the manager."""
        path = f"/payments/{payment['id']}/{what}"
        return self.manager.post(path, json=body, headers=headers)

    def payment(self, payment: dict[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = self._get(f"/payments/{payment['id']}")
        return shown

    def order(self, order_id: int) -> dict[str, Any]:
        shown: dict[str, Any] = self._get(f"/orders/{order_id}")
        return shown

    def status(self, payment: dict[str, Any]) -> tuple[str, str]:
        """The status of a payment and of its order."""
        return self.payment(payment)["status"], self.order(payment["order_id"])["status"]

    def move(self, client: httpx.Client, order_id: int, status: str) -> httpx.Response:
        return client.put(f"/orders/{order_id}/status", json={"status": status})

    def refunds(self, payment: dict[str, Any]) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self._get(f"/payments/{payment['id']}/refunds")
        return listed

    def books(self, order_id: int) -> list[dict[str, Any]]:
        answer = self.manager.get("/sandbox/charges", params={"order_id": order_id})
        assert answer.status_code == 200, answer.text
        entries: list[dict[str, Any]] = answer.json()
        return entries

    def events(self, order_id: int) -> list[dict[str, Any]]:
        """The history of an order, oldest first. Its sequence has no gaps."""
        events: list[dict[str, Any]] = self._get(f"/orders/{order_id}/events?limit=200")[::-1]
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert all(event["order_id"] == order_id for event in events)
        return events

    def told(self, order_id: int) -> list[str]:
        """What happened to an order after it was placed."""
        types = [event["type"] for event in self.events(order_id)]
        assert types[0] == "order.created"
        return types[1:]

    def answer_page(self, payment: dict[str, Any], decision: str) -> httpx.Response:
        """What a browser does on the redirect page: nobody is logged in there."""
        url = f"{payment['next_action']['url']}/{decision}"
        with httpx.Client(verify=_TLS, timeout=60) as browser:
            return browser.post(url, content=b"")

    def _get(self, path: str) -> Any:
        answer = self.shopper.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def shop(base_url: str, bearer: Bearer, user: str, engine: sa.Engine) -> Iterator[Shop]:
    clerk = bearer(f"clerk-{user}", MANAGES)
    with (
        httpx.Client(base_url=base_url, headers=bearer(user), timeout=60, verify=_TLS) as shopper,
        httpx.Client(base_url=base_url, headers=clerk, timeout=60, verify=_TLS) as manager,
    ):
        yield Shop(shopper, manager, engine)


@pytest.fixture(scope="module")
def crowd(base_url: str) -> Iterator[list[httpx.Client]]:
    """Fifty clients with connections of their own, and without a token."""
    # The server closes connections that were idle for five seconds; ours are gone before that.
    limits = httpx.Limits(keepalive_expiry=2)
    clients = [
        httpx.Client(base_url=base_url, timeout=60, verify=_TLS, limits=limits) for _ in range(50)
    ]
    yield clients
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def bearer(settings: Settings) -> Bearer:
    """`bearer("alice", "payments:manage")` is the header of that user's token."""

    def header(user: str, scope: str = "") -> dict[str, str]:
        return {"Authorization": f"Bearer {auth.mint(settings, user, scope)}"}

    return header


@pytest.fixture
def sandbox(engine: sa.Engine, app: FastAPI) -> SandboxGateway:
    gateway = app.state.gateways.by_name["sandbox"]
    assert isinstance(gateway, SandboxGateway)
    return gateway


def problem(answer: httpx.Response) -> tuple[int, str]:
    """The status and the code of a refusal."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


class unreachable:  # noqa: N801 - read as a word: `with unreachable(sandbox):`
    """The gateway answers no questions while this lasts, so that what is open stays open."""

    def __init__(self, sandbox: SandboxGateway) -> None:
        self.sandbox = sandbox

    def __enter__(self) -> None:
        def unknown(query: base.ChargeLookup) -> Any:
            raise base.OutcomeUnknown("no answer")

        self.sandbox.__dict__.update(
            look_up=unknown, look_up_refund=unknown, due_webhooks=lambda limit=20: []
        )

    def __exit__(self, *_: object) -> None:
        for name in ("look_up", "look_up_refund", "due_webhooks"):
            self.sandbox.__dict__.pop(name, None)


def tell(
    engine: sa.Engine, payment: dict[str, Any], charge: base.Charge, *, hint: bool = False
) -> None:
    """Apply what a gateway says about a charge, as the reconciler does."""
    with database.new_session(engine) as session:
        row = crud.require_payment(session, payment["id"], payment["user_id"])
        with locked_payment(session, ChangedBy.service("test"), row) as locked:
            apply.settle_charge(locked, charge, "hint" if hint else "answer")


def seen(payment: dict[str, Any], status: ChargeStatus, captured: int = 0) -> base.Charge:
    """The charge of a payment, in this state."""
    return base.Charge(
        reference=payment["gateway_reference"],
        status=status,
        amount=payment["amount"],
        currency=payment["currency"],
        amount_captured=captured,
    )
