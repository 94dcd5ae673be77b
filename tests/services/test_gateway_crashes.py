"""What was asked of a gateway when the service was killed."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

import auth
from config import load_settings
from conformance.doubles.stripe import StripeDouble
from conformance.fault_proxy import Exchange, FaultProxy
from conformance.harness import MANAGES, ok
from tests.support.harness import CHARGE
from tests.support.processes import Service, copy_sources, wait_for

# Crashes ----------------------------------------------------------------------------------------


class Shopper:
    """Somebody who uses a started service, whichever of its lives it is in."""

    def __init__(self, double: StripeDouble, database_url: str, data_dir: Path) -> None:
        settings = load_settings(_env_file=None, database_url=database_url, data_dir=data_dir)
        token = auth.mint(settings, "alice", MANAGES)
        self._double = double
        self._headers = {"Authorization": f"Bearer {token}"}

    def use(self, service: Service) -> Shopper:
        self._url = service.url
        return self

    def ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        return httpx.request(
            method,
            f"{self._url}{path}",
            json=body if method == "POST" else None,
            headers=self._headers,
            timeout=60,
            trust_env=False,
        )

    def save(self) -> None:
        ok(self.ask("POST", "/payment-methods", **(self._double.method("good") or {})), 201)

    def place(self) -> int:
        order = {"product_id": "sku-1", "quantity": 1, "total_amount": 1099, "currency": "USD"}
        return int(ok(self.ask("POST", "/orders", **order), 201)["id"])

    def pay(self, **body: Any) -> dict[str, Any]:
        return dict(ok(self.ask("POST", f"/orders/{self.place()}/payments", **body), 201))

    def payment(self, payment_id: int) -> dict[str, Any]:
        return dict(ok(self.ask("GET", f"/payments/{payment_id}"), 200))

    def get(self, path: str) -> Any:
        return ok(self.ask("GET", path), 200)


def test_what_was_asked_of_stripe_when_the_service_was_killed_happens_once(
    make_database: Callable[[], str], tmp_path: Path
) -> None:
    sources, data_dir = copy_sources(tmp_path / "service"), tmp_path / "data"
    database_url = make_database()
    paths = {
        "charge": CHARGE,
        "capture": rf"{CHARGE}/\w+/capture",
        "refund": "/v1/refunds",
    }
    with StripeDouble() as double:
        proxy = FaultProxy(double.base_url)
        proxy.start()
        settings = {
            "DATABASE_URL": database_url,
            "GATEWAYS": "stripe",
            "RECONCILE_AFTER": 0.2,
            **{name.upper(): _plain(value) for name, value in double.settings().items()},
            "STRIPE_API_BASE": proxy.url,
        }
        try:
            with Service(sources, data_dir, **settings).wait_until_ready() as service:
                alice = Shopper(double, database_url, data_dir).use(service)
                alice.save()
                authorized = alice.pay(capture_method="manual")
                paid = alice.pay()
                order_id = alice.place()
                asked = len(proxy.log)
                # The repeats of the reconciler before the crash are held as well.
                held = {
                    step: proxy.arm("hold_after", path, times=1000) for step, path in paths.items()
                }
                requests: list[tuple[str, dict[str, Any]]] = [
                    (f"/orders/{order_id}/payments", {}),
                    (f"/payments/{authorized['id']}/capture", {"amount": 700}),
                    (f"/payments/{paid['id']}/refunds", {"amount": 300}),
                ]
                threads = [
                    threading.Thread(target=_ask_in_vain, args=(alice, path, body))
                    for path, body in requests
                ]
                for thread in threads:
                    thread.start()
                wait_for(
                    lambda: {*paths} == {_step(one, paths) for one in proxy.log[asked:]},
                    "all three are done at Stripe",
                    30,
                )
                service.kill()
                for thread in threads:
                    thread.join(30)
            assert all(fault.reached.is_set() for fault in held.values())
            before_the_crash = len(proxy.log)
            proxy.disarm()
            with Service(sources, data_dir, **settings).wait_until_ready() as service:
                alice.use(service)
                (charged,) = alice.get(f"/orders/{order_id}/payments")
                wait_for(lambda: _is(alice, charged["id"], "captured"), "the charge settles", 40)
                wait_for(lambda: _is(alice, authorized["id"], "captured"), "so does the capture")
                wait_for(lambda: _is(alice, paid["id"], "partially_refunded"), "and the refund")
                (refund,) = alice.get(f"/payments/{paid['id']}/refunds")
                charged, authorized, paid = (
                    alice.payment(one["id"]) for one in (charged, authorized, paid)
                )
                order = alice.get(f"/orders/{order_id}")
        finally:
            proxy.stop()
        assert (refund["status"], refund["amount"]) == ("succeeded", 300)
        assert order["status"] == "paid"
        assert charged["amount_captured"] == 1099
        assert authorized["amount_captured"] == 700
        assert paid["amount_refunded"] == 300
        assert not any(one["needs_review"] for one in (charged, authorized, paid))
        entries = {entry.payment_id: entry for entry in double.books()}
        assert len(double.intents) == len(entries) == 3, "one PaymentIntent for each payment"
        assert len(double.refunds) == 1
        for payment in (charged, authorized, paid):
            entry = entries[payment["id"]]
            assert entry.reference == payment["gateway_reference"]
            assert entry.status == "captured"
            assert entry.amount_captured == payment["amount_captured"]
            assert entry.amount_refunded == payment["amount_refunded"]
        for step in paths:
            same = [one for one in proxy.log[asked:] if _step(one, paths) == step]
            assert len({(one.path, one.headers["idempotency-key"], one.body) for one in same}) == 1
            assert [one for one in proxy.log[before_the_crash:] if _step(one, paths) == step] or (
                step == "capture"  # the books may tell of it without a repeat
            )
        assert double.violations == []


def _plain(value: Any) -> Any:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def _ask_in_vain(alice: Shopper, path: str, body: dict[str, Any]) -> None:
    with contextlib.suppress(httpx.TransportError):
        alice.ask("POST", path, **body)


def _step(exchange: Exchange, paths: dict[str, str]) -> str | None:
    fits = (step for step, path in paths.items() if re.fullmatch(path, exchange.path))
    return next(fits, None) if exchange.method == "POST" else None


def _is(alice: Shopper, payment_id: int, status: str) -> bool:
    return bool(alice.payment(payment_id)["status"] == status)
