"""Records every statement of this release while it lives through all that a store does.

    python -m tests.support.releases.capture

writes `tests/support/releases/<revision>.json`, in place of the file before.
tests/database/test_releases.py replays it on the schema of later releases, so it is made anew at
each release (CONTRIBUTING.md).
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import sqlalchemy as sa

import auth
import database
import main
from benchmarks.seen import seen_by_engines
from config import Settings, load_settings
from gateways.registry import Gateways
from services import audit, lookups, reconciliation
from services.lookups import LookupRules
from tests.support.factories import VISA, card, order
from tests.support.shop import ACTION, DECLINED, DISPUTED, REFUND_FAILS, serve, webhook
from workers.roles import Resources, roles

FOLDER = Path(__file__).parent
MANAGES = "orders:manage payments:manage webhooks:manage"

MASTERCARD = "5555555555554444"

# Time passes: what waits for a time is due.
PASS_TIME = """
    UPDATE payments SET check_at = now() - interval '1 minute' WHERE check_at IS NOT NULL;
    UPDATE refunds SET check_at = now() - interval '1 minute' WHERE check_at IS NOT NULL;
    UPDATE sandbox.refunds SET fails_at = now() - interval '1 minute' WHERE fails_at IS NOT NULL;
    UPDATE sandbox.disputes SET closes_at = now() - interval '1 minute';
    UPDATE sandbox.webhooks SET due_at = now() - interval '1 minute';
    UPDATE comparisons SET next_at = now() - interval '1 minute';
    UPDATE idempotency_keys SET owned_until = now() - interval '1 minute'
"""
EXPIRE = "UPDATE sandbox.charges SET capture_before = now() - interval '1 minute'"
FORGET = "UPDATE idempotency_keys SET created_at = now() - interval '1 year'"
TAMPER = "UPDATE sandbox.charges SET amount = amount + 1"


# A statement by its number, how many rows it found or wrote (None: it varies), its values as SQL.
Call = tuple[int, int | None, list[str]]
PARAMETER = re.compile(r"%\((\w+)\)s")


class Recorder:
    """The statements of an engine, a block for each transaction, in the order of their ends.

    What changes nothing is kept once: it is there for its columns only. (An INSERT that meets a
    conflict takes a number of the sequence with it.)
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.statements: dict[str, int] = {}
        self.transactions: list[tuple[str, list[Call]]] = []
        self._open: dict[int, list[Call]] = {}
        listen = sa.event.listen
        listen(engine, "after_cursor_execute", self._executed)
        listen(engine, "commit", lambda connection: self._ended(connection, "COMMIT"))
        listen(engine, "rollback", lambda connection: self._ended(connection, "ROLLBACK"))

    def _executed(
        self, connection: sa.Connection, cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> None:
        text = " ".join(statement.split())
        changes_nothing = text.startswith("SELECT") or not (
            cursor.rowcount or text.startswith("INSERT")
        )
        if changes_nothing and text in self.statements:
            return
        number = self.statements.setdefault(text, len(self.statements))
        many = isinstance(parameters, list)
        for values in parameters if many else [parameters]:
            literals = [
                cursor.mogrify("%s", (values[name],)).decode() for name in PARAMETER.findall(text)
            ]
            # Which rows a time of the recording finds is another matter at another time.
            timed = any(literal.endswith("::timestamptz") for literal in literals)
            call = (number, None if many or timed else cursor.rowcount, literals)
            self._open.setdefault(id(connection), []).append(call)

    def _ended(self, connection: sa.Connection, how: str) -> None:
        calls = self._open.pop(id(connection), [])
        if calls:
            self.transactions.append((how, calls))

    def text(self) -> str:
        """JSON, a line for each statement and for each transaction."""
        lines = [",\n".join(map(json.dumps, part)) for part in (self.statements, self.transactions)]
        return f'{{"statements": [\n{lines[0]}\n],\n"transactions": [\n{lines[1]}\n]}}\n'


class Store:
    """Shoppers, a manager, and what they do."""

    def __init__(
        self, settings: Settings, client: httpx.Client, engine: sa.Engine, gateways: Gateways
    ) -> None:
        self._settings, self._client, self._engine = settings, client, engine
        self._rules = LookupRules.from_settings(settings, gateways)
        self._resources = Resources(engine, gateways, self._rules, settings)
        self.methods: dict[str, int] = {}

    def call(
        self, method: str, path: str, body: Any = None, user: str = "alice", **headers: str
    ) -> Any:
        """Send a request; what it is answered with is another test's business, but for a 5xx."""
        token = auth.mint(self._settings, user, MANAGES if user == "manager" else "")
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self._client.request(
            method, path, json=body, headers=headers | {"Authorization": f"Bearer {token}"}
        )
        assert answer.status_code < 500, answer.text
        is_json = answer.headers.get("content-type") == "application/json"
        return answer.json() if is_json and answer.is_success else {}

    def post(self, path: str, body: Any = None, user: str = "alice", **headers: str) -> Any:
        return self.call("POST", path, body, user, **headers)

    def manage(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.call("POST", path, body, "manager", **headers)

    def method(self, number: str) -> int:
        if number not in self.methods:
            self.methods[number] = self.post("/payment-methods", card(number))["id"]
        return self.methods[number]

    def pay(self, number: str = VISA, body: Any = None, **headers: str) -> dict[str, Any]:
        """A new order and its payment."""
        method = self.method(number)
        placed = self.post("/orders", order(payment_method_id=method))
        paid = self.post(f"/orders/{placed['id']}/payments", body or {}, **headers)
        payments = self.call("GET", f"/orders/{placed['id']}/payments")
        return {"order_id": placed["id"], **(payments[0] if payments else paid)}

    def sql(self, statements: str) -> None:
        with self._engine.begin() as connection:
            for statement in statements.split(";"):
                connection.execute(sa.text(statement))

    def work(self) -> None:
        """The background roles, once all that is due now and soon is due."""
        for _ in range(3):
            self.sql(PASS_TIME)
            for role in roles(self._resources).values():
                while role.run_once(self._resources):
                    pass

    def webhook(self, payload: dict[str, Any]) -> None:
        body, headers = webhook(self._engine, payload)
        answer = self._client.post("/webhooks/sandbox", content=body, headers=headers)
        assert answer.status_code < 500, answer.text

    def close_the_books(self) -> None:
        reconciliation.reconcile(self._engine, self._rules)
        with self._resources.session() as session:
            audit.check(session, self._resources.gateways)


def payment_methods(store: Store) -> None:
    first = store.method(VISA)
    store.post("/payment-methods", card("4242 4242 4242 4242"))  # a duplicate
    other = store.post("/payment-methods", card(MASTERCARD, is_default=True))["id"]
    store.post("/payment-methods", {"payment_type": "paypal", "details": {"email": "a@b.example"}})
    iban = {"iban": "DE89370400440532013000", "account_holder": "Alice"}
    store.post("/payment-methods", {"payment_type": "bank_account", "details": iban})
    store.call("GET", "/payment-methods?limit=2")
    store.call("GET", "/payment-methods?limit=2&cursor=3")
    store.call("GET", "/payment-methods?user_id=alice", user="manager")
    store.call("GET", f"/payment-methods/{first}")
    store.call("PATCH", f"/payment-methods/{first}", {"is_default": True})
    store.call("PATCH", f"/payment-methods/{first}", {"details": {"exp_year": 2041}})
    store.call("DELETE", f"/payment-methods/{first}")
    store.call("DELETE", f"/payment-methods/{other}")
    store.methods.clear()


def orders(store: Store) -> None:
    placed = store.post("/orders", order(metadata={"color": "blue"}))
    store.call("GET", f"/orders/{placed['id']}")
    store.call("GET", f"/orders/{placed['id']}", user="manager")
    store.call("GET", f"/orders/{placed['id']}/events")
    store.call("PUT", f"/orders/{placed['id']}/status", {"status": "canceled"})
    sold = store.manage("/orders", order(user_id="bob"))
    for status in ("paid", "shipped", "delivered"):
        store.call("PUT", f"/orders/{sold['id']}/status", {"status": status}, "manager")
    method, day = store.method(DISPUTED), "2020-01-01T00:00:00Z"
    filters = ("status=pending", f"created_after={day}", f"created_before={day}", "limit=1")
    for query in (*filters, f"payment_method_id={method}", "cursor=2"):
        store.call("GET", f"/orders?{query}")
        store.call("GET", f"/orders?{query}", user="manager")
    store.call("GET", "/orders?user_id=bob", user="manager")


def charges(store: Store) -> None:
    store.pay()
    store.pay(DECLINED)
    for fault in ("timeout_before_charge", "timeout_after_charge"):
        store.pay(Sandbox_Fault=fault)
    store.work()
    for decision in ("approve", "decline"):
        paid = store.pay(ACTION, {"return_url": "https://shop.example/"})
        action = paid["next_action"]["url"].partition("/sandbox/")[2]
        store.call("GET", f"/sandbox/{action}")
        store.post(f"/sandbox/{action}/{decision}")
        store.post(f"/payments/{paid['id']}/confirm", {})
    left = store.pay(ACTION)
    store.post(f"/orders/{left['order_id']}/payments", {})  # another attempt meanwhile
    store.work()
    store.call("PUT", f"/orders/{left['order_id']}/status", {"status": "canceled"})
    store.call("GET", f"/payments/{left['id']}")
    for query in ("limit=1", "status=captured", "needs_review=true", "cursor=9", "order_id=3"):
        store.call("GET", f"/payments?{query}")
        store.call("GET", f"/payments?{query}", user="manager")
    store.call("GET", "/payments?user_id=alice", user="manager")


def operations(store: Store) -> None:
    manual = {"capture_method": "manual"}
    store.manage(f"/payments/{store.pay(body=manual)['id']}/capture", {"amount": 500})
    store.manage(f"/payments/{store.pay(body=manual)['id']}/void")
    for what, fault in (("capture", "timeout_before_charge"), ("void", "timeout_after_charge")):
        store.manage(f"/payments/{store.pay(body=manual)['id']}/{what}", {}, Sandbox_Fault=fault)
    canceled = store.pay(body=manual)["order_id"]
    store.call("PUT", f"/orders/{canceled}/status", {"status": "canceled"}, "manager")
    store.work()
    store.pay(body=manual)
    store.sql(EXPIRE)
    store.work()


def refunds(store: Store) -> None:
    paid = store.pay()
    path = f"/payments/{paid['id']}/refunds"
    store.manage(path, {"amount": 100, "reason": "torn"})
    store.manage(path, {"amount": 5000})
    made = store.manage(path, {}, Sandbox_Fault="timeout_before_charge")
    store.call("GET", path)
    store.call("GET", f"{path}/{made['id']}", user="manager")
    store.work()
    store.manage(path, {}, Sandbox_Fault="timeout_after_charge")
    store.manage(f"/payments/{store.pay(REFUND_FAILS)['id']}/refunds")
    store.work()


def idempotency(store: Store) -> None:
    for _ in range(2):
        store.post("/orders", order(), Idempotency_Key="placed")
    store.post("/orders", order(quantity=2), Idempotency_Key="placed")
    store.post("/orders", order(payment_method_id=10**9), Idempotency_Key="refused")
    method = store.method(VISA)
    for key, fault in (("paid", "slow=0"), ("lost", "timeout_after_charge")):
        placed = store.post("/orders", order(payment_method_id=method))
        for _ in range(2):
            path = f"/orders/{placed['id']}/payments"
            store.post(path, {}, Idempotency_Key=key, Sandbox_Fault=fault)
    store.work()
    paid = store.pay()
    for _ in range(2):
        lost = {"Idempotency_Key": "back", "Sandbox_Fault": "timeout_after_charge"}
        store.manage(f"/payments/{paid['id']}/refunds", {}, **lost)
    store.work()
    store.sql(FORGET)
    store.post("/orders", order(), Idempotency_Key="placed")  # as if it was new
    store.work()


def webhooks_and_disputes(store: Store) -> None:
    store.pay(DISPUTED)
    store.work()
    for _ in range(2):
        store.webhook({"id": "evt_1", "type": "odd", "payment_id": 1, "reference": "ch_1"})
    tampered = store.pay(Sandbox_Fault="timeout_after_charge")
    store.sql(f"{TAMPER} WHERE payment_id = {tampered['id']}")
    store.work()
    accepted = {"resolution": "accepted", "note": "looked"}
    store.manage(f"/payments/{tampered['id']}/review", accepted)
    store.call("GET", "/disputes?status=won", user="manager")
    store.call("GET", "/disputes/1", user="manager")


def operators(store: Store) -> None:
    for path in ("/metrics", "/readyz", "/sandbox/charges", "/sandbox/charges?order_id=1"):
        token = auth.mint(store._settings, "manager", MANAGES)
        store._client.get(path, headers={"Authorization": f"Bearer {token}"})
    store.close_the_books()


SCENES: tuple[Callable[[Store], None], ...] = (
    payment_methods,
    orders,
    charges,
    operations,
    refunds,
    idempotency,
    webhooks_and_disputes,
    operators,
)


def capture(settings: Settings) -> Recorder:
    """Live through every scene, on an empty database, with one thing happening at a time."""
    app = main.create_app(settings)
    one_at_a_time = mock.patch.dict(
        lookups.LOOKUP_CONCURRENCY, dict.fromkeys(lookups.LOOKUP_CONCURRENCY, 1)
    )
    with (
        one_at_a_time,
        seen_by_engines(),
        serve(app) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        recorder = Recorder(app.state.engine)
        store = Store(settings, client, app.state.engine, app.state.gateways)
        for scene in SCENES:
            scene(store)
    return recorder


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="estore-capture-") as folder:
        recorder = capture(
            load_settings(
                _env_file=None, data_dir=Path(folder), run_workers=False, log_level="ERROR"
            )
        )
    for before in FOLDER.glob("*.json"):
        before.unlink()
    target = FOLDER / f"{database.newest_revision()}.json"
    target.write_text(recorder.text())
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    run()
