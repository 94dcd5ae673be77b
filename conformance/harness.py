"""The harness: a real service on a real PostgreSQL, with one gateway behind a fault proxy."""

from __future__ import annotations

import io
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import sqlalchemy as sa
import uvicorn

import auth
import database
import main
from config import load_settings
from conformance import records
from conformance.doubles.server import BookEntry
from conformance.fault_proxy import FOLLOWED, Exchange, Fault, FaultProxy, Relay
from conformance.target import NotApplicable, Step, Target
from services import audit

T = TypeVar("T")

GATEWAY_TIMEOUT = 3.0  # seconds: what a stall has to outlast
ANSWERED_WITHIN = GATEWAY_TIMEOUT + 2  # seconds, for every handler
MANAGES = "orders:manage payments:manage"
SECRETS_IN_ANSWERS = ("client_secret", "access_token")


class Harness:
    """One service with one gateway. It runs while the harness is entered."""

    def __init__(self, target: Target, database_url: str, data_dir: Path) -> None:
        self.target = target
        self._database_url, self._data_dir = database_url, data_dir
        self._clients: dict[str, httpx.Client] = {}
        self._fault_header: dict[str, str] = {}
        self.keys_of_scenarios: set[str] = set()  # of requests that scenarios sent past the service

    def __enter__(self) -> Harness:
        self.target.__enter__()
        self.proxy = FaultProxy(self.target.upstream)
        self.proxy.start()
        self.relay = Relay()
        self.relay.start()
        try:
            self.target.send_webhooks_to(self.relay.url)
            self.has_webhooks = True
        except NotApplicable:
            self.has_webhooks = False
        self.settings = load_settings(
            _env_file=None,
            environment="development",
            database_url=self._database_url,
            data_dir=self._data_dir,
            gateways=self.target.gateway,
            gateway_timeout=GATEWAY_TIMEOUT,
            reconcile_after=0.2,
            log_level="INFO",
            **self.target.settings(self.proxy.url),
        )
        app = main.create_app(self.settings)
        self._record_logs()
        self.server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False)
        )
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        self.until(lambda: self.server.started or not self._thread.is_alive(), "it starts")
        assert self.server.started, "the service did not start"
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.app = app
        self.gateway = next(iter(app.state.gateways.by_name))
        self.relay.target = f"{self.url}/webhooks/{self.gateway}"
        self.engine: sa.Engine = app.state.engine
        self.manager = self.client("manager", MANAGES)
        self.target.attach(self.url, self.manager, self.proxy.log)
        return self

    def __exit__(self, *exception: object) -> None:
        self.proxy.disarm()
        for client in self._clients.values():
            client.close()
        self.server.should_exit = True
        self._thread.join(30)
        logging.getLogger().removeHandler(self._handler)
        self.proxy.stop()
        self.target.__exit__(*exception)
        self.relay.stop()

    # Logs ---------------------------------------------------------------------------------------

    def _record_logs(self) -> None:
        """Store what the service logs, in its format."""
        self._log_text = io.StringIO()
        self._handler = logging.StreamHandler(self._log_text)
        written = logging.getLogger().handlers[0]
        self._handler.setFormatter(written.formatter)
        logging.getLogger().addHandler(self._handler)

    @property
    def log_text(self) -> str:
        return self._log_text.getvalue()

    # Callers ------------------------------------------------------------------------------------

    def client(self, user: str, scope: str = "") -> httpx.Client:
        if user not in self._clients:
            token = auth.mint(self.settings, user, scope)
            self._clients[user] = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {token}"},
                timeout=60,
                limits=httpx.Limits(keepalive_expiry=2),
                trust_env=False,
            )
        return self._clients[user]

    def shopper(self) -> httpx.Client:
        """The client of a new user."""
        return self.client(f"shopper-{secrets.token_hex(6)}")

    def post(
        self, client: httpx.Client, path: str, key: str | None = None, **body: Any
    ) -> httpx.Response:
        """Send a request. Its answer has to come in time and must not be a 500."""
        began = time.monotonic()
        headers, self._fault_header = self._fault_header, {}
        headers |= {"Idempotency-Key": key} if key is not None else {}
        answer = client.post(path, json=body, headers=headers)
        took = time.monotonic() - began
        assert answer.status_code != 500, answer.text
        assert took < ANSWERED_WITHIN + SLACK, f"POST {path} took {took:.1f} s"
        return answer

    def save(self, client: httpx.Client, kind: Any = "good") -> dict[str, Any]:
        return dict(ok(self.post(client, "/payment-methods", **self.target.method(kind)), 201))

    def place(
        self, client: httpx.Client, amount: int = 1099, currency: str = "USD"
    ) -> dict[str, Any]:
        order: dict[str, Any] = {"product_id": "sku-1", "quantity": 1}
        answer = self.post(client, "/orders", **order, total_amount=amount, currency=currency)
        return dict(ok(answer, 201))

    def pay(self, client: httpx.Client, order: Mapping[str, Any], **body: Any) -> httpx.Response:
        return self.post(client, f"/orders/{order['id']}/payments", **body)

    def paid(self, amount: int = 1099, **body: Any) -> tuple[httpx.Client, dict[str, Any]]:
        """A shopper, and their payment: captured, or whatever `body` asks for."""
        client = self.shopper()
        self.save(client)
        return client, ok(self.pay(client, self.place(client, amount), **body), 201)

    def authorized(self, amount: int = 1099) -> tuple[httpx.Client, dict[str, Any]]:
        client, payment = self.paid(amount, capture_method="manual")
        assert payment["status"] == "authorized"
        return client, payment

    # State --------------------------------------------------------------------------------------

    def payment(self, payment_id: int) -> dict[str, Any]:
        return dict(ok(self.manager.get(f"/payments/{payment_id}"), 200))

    def order(self, order_id: int) -> dict[str, Any]:
        return dict(ok(self.manager.get(f"/orders/{order_id}"), 200))

    def refund(self, payment_id: int, refund_id: int) -> dict[str, Any]:
        return dict(ok(self.manager.get(f"/payments/{payment_id}/refunds/{refund_id}"), 200))

    def events(self, order_id: int) -> list[str]:
        """The types of an order's events, the oldest first."""
        rows = ok(self.manager.get(f"/orders/{order_id}/events?limit=200"), 200)
        return [event["type"] for event in reversed(rows)]

    def settled(self, payment_id: int) -> dict[str, Any]:
        """The payment, once none of its outcomes is open."""

        def look() -> dict[str, Any] | None:
            if records.has_open_operation(
                self.engine, payment_id
            ):  # before the status: it ends together with it
                return None
            payment = self.payment(payment_id)
            return None if payment["status"] == "pending" else payment

        return self.until(look, f"payment {payment_id} is settled")

    def becomes(self, payment_id: int, *statuses: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            payment = self.payment(payment_id)
            return payment if payment["status"] in statuses else None

        return self.until(look, f"payment {payment_id} becomes {' or '.join(statuses)}")

    def refund_settled(self, payment_id: int, refund_id: int) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            refund = self.refund(payment_id, refund_id)
            return None if refund["status"] == "pending" else refund

        return self.until(look, f"refund {refund_id} is settled")

    def charges(self, payment_id: int) -> list[BookEntry]:
        """The charges of a payment in the gateway's books, without those that it declined."""
        return [entry for entry in self.target.charges(payment_id) if entry.status != "declined"]

    def agree(self, payment: Mapping[str, Any]) -> None:
        """Assert that both sets of books show the same, and at most one charge."""
        entries = self.charges(payment["id"])
        if payment["status"] in ("failed", "canceled"):
            held = [e for e in entries if e.status in ("authorized", "captured")]
            assert not held, f"{payment['status']} here, but the gateway shows {held}"
            return
        assert len(entries) == 1, f"one charge here, the gateway shows {entries}"
        (entry,) = entries
        assert entry.reference == payment["gateway_reference"]
        assert (entry.amount, entry.currency) == (payment["amount"], payment["currency"])
        assert entry.amount_captured == payment["amount_captured"]
        assert entry.amount_refunded == payment["amount_refunded"]

    # Faults and webhooks ------------------------------------------------------------------------

    def arm(self, kind: str, step: Step, **options: Any) -> Fault:
        """Cause a fault in the next request for this step. Raises NotApplicable."""
        if self.target.fault_headers is not None:
            name = f"{kind} {options['status']}" if "status" in options else kind
            if name not in self.target.fault_headers or options.get("times", 1) > 1:
                raise NotApplicable(f"there is no network to this gateway, so no {name}")
            self._fault_header = {"Sandbox-Fault": self.target.fault_headers[name]}
            return Fault(kind, re.compile(step))
        if step not in self.target.steps:
            raise NotApplicable(f"this gateway has no request for: {step}")
        return self.proxy.arm(kind, self.target.steps[step], **options)

    def need_webhooks(self) -> None:
        if not self.has_webhooks:
            raise NotApplicable("this target sends no webhooks")

    def until(self, condition: Callable[[], T | None], what: str, seconds: float = 40) -> T:
        """Wait for `condition` and return its value. Fails after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            assert time.monotonic() < deadline, f"never happened: {what}"
            time.sleep(0.03)  # polls; the loop ends with the condition

    # After every scenario -----------------------------------------------------------------------

    def check(self) -> None:
        """Assert what holds after every scenario."""
        self.proxy.disarm()
        self.relay.holds = False
        violations = list(self.target.violations())
        assert not violations, f"the gateway objects: {violations}"
        self._check_keys()
        deadline = time.monotonic() + 20
        while found := self._broken_invariants():
            # A webhook of what was done in the gateway's dashboard may still be on its way.
            assert time.monotonic() < deadline, f"broken invariants: {found}"
            time.sleep(0.1)  # polls; the loop ends with the last of them

    def _broken_invariants(self) -> list[dict[str, Any]]:
        with database.new_session(self.engine) as session:
            return audit.check(session, self.app.state.gateways)

    def _check_keys(self) -> None:
        """Every money request carries a stored key, and a repeat has the same body."""
        first: dict[tuple[str, str], Exchange] = {}
        stored = records.gateway_keys(self.engine) | self.keys_of_scenarios
        for exchange in self.proxy.log:
            assert FOLLOWED not in exchange.path, "a redirect of a money request was followed"
            step = self._step(exchange)
            if step is None or step in self.target.keyless or self.target.key_header is None:
                continue
            key = exchange.headers.get(self.target.key_header.lower())
            assert key, f"{exchange.path} without {self.target.key_header}"
            if self.target.fence is not None and self.target.fence in exchange.body:
                continue  # it is another request on purpose
            if step in ("charge", "complete", "refund"):  # a void's key is gone once it is settled
                assert any(key.startswith(known) for known in stored), f"{exchange.path}: no key"
            known = first.setdefault((exchange.path, key), exchange)
            assert _meaning(exchange.body) == _meaning(known.body), f"{key}: another body"

    def _step(self, exchange: Exchange) -> Step | None:
        fits = (
            step
            for step, path in self.target.steps.items()
            if exchange.method == "POST" and re.fullmatch(path, exchange.path)
        )
        return next(fits, None)

    def secrets_seen(self) -> set[str]:
        """The secrets of the target, and those in the gateway's answers."""
        found = set(self.target.secrets())
        for exchange in self.proxy.log:
            for name in SECRETS_IN_ANSWERS:
                _collect(exchange.answer, name, found)
        return found


SLACK = 1.0  # seconds: the machines that run this are shared


def ok(answer: httpx.Response, *statuses: int) -> Any:
    expected = " or ".join(map(str, statuses))
    assert answer.status_code in statuses, f"{answer.status_code}, not {expected}: {answer.text}"
    return answer.json()


def together(count: int, work: Callable[[int], T]) -> list[T]:
    """Run `work(0)` … `work(count - 1)` at the same moment, a thread each."""
    start = threading.Barrier(count)

    def run(number: int) -> T:
        start.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def _meaning(body: bytes) -> Any:
    """A body without what the order of its fields does to its bytes."""
    try:
        return json.loads(body)
    except ValueError:
        return sorted(body.split(b"&"))


def _collect(answer: bytes, name: str, found: set[str]) -> None:
    try:
        value = json.loads(answer)
    except ValueError:
        return
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if isinstance(item.get(name), str):
                found.add(item[name])
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
