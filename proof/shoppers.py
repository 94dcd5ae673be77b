"""Shoppers, and the staff of the store: they pay, retry, race, capture, void and refund.

Each request has an Idempotency-Key and is repeated until it has an answer, as a careful client
does. The answers are kept, to be compared with the books later. A shopper without an answer for a
while leaves, and orders the same cart again later.
"""

import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import httpx

from proof.clock import Clock

FINAL = (200, 201, 402, 404, 409, 502)
RETRIED_CONFLICTS = ("idempotency_in_progress", "payment_in_progress")
FAULTS = ("timeout_before_charge", "timeout_after_charge", "error_500", "error_after_charge")
GOOD, WAITS = "tok_success", "tok_requires_action"
SPECIAL = ("tok_generic_decline", "tok_dispute", "tok_refund_fails")
# How long a shopper waits for an answer before leaving: never longer than an Idempotency-Key lives.
STAYS: Final = (timedelta(minutes=15), timedelta(days=2))
PAGE_TRIES: Final = 20  # attempts to load a page while the service is dead


@dataclass(slots=True)
class Ledger:
    """What the shoppers did, and the answers they got. Shared by their threads."""

    operations: int = 0
    retries: int = 0
    dropped: int = 0
    unanswered: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    server_errors: list[str] = field(default_factory=list)
    orders: dict[str, int] = field(default_factory=dict)  # our mark -> the order's id
    captured: set[int] = field(default_factory=set)  # payments that were answered as captured
    refunds: set[int] = field(default_factory=set)  # refunds that were answered with 201
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class World:
    """Where the services are and who may talk to them."""

    addresses: Sequence[str]
    token: Callable[[str, str], str]  # (user, scope) -> JWT
    ledger: Ledger
    clock: Clock
    stop: threading.Event
    patience: float  # seconds; a request without an answer by then is stuck


class Shopper(threading.Thread):
    """One user with a card for each purpose, until the run stops."""

    def __init__(self, world: World, number: int, seed: int) -> None:
        super().__init__(name=f"shopper-{number}", daemon=True)
        self.world = world
        self.random = random.Random(f"{seed}-{number}")  # noqa: S311 - a repeatable load
        user = f"shopper-{number}"
        self.mine = {"Authorization": f"Bearer {world.token(user, '')}"}
        scopes = "orders:manage payments:manage"
        self.staff = {"Authorization": f"Bearer {world.token('staff', scopes)}"}
        self.http = httpx.Client(timeout=8)
        self.methods: dict[str, int] = {}  # by token
        self.carts: dict[int, str] = {}  # by order
        self.left: dict[str, timedelta] = {}  # carts that were not paid in time, and since when

    def run(self) -> None:
        for token in (GOOD, WAITS, *SPECIAL):
            self.save_method(token)
        self.leave()
        while not self.world.stop.is_set():
            self.come_back()
            self.random.choice(
                [
                    self.buy,
                    self.buy,
                    self.buy_twice_at_once,
                    self.authorize,
                    self.give_back,
                    self.go_to_page,
                    self.leave,
                ]
            )()
        self.http.close()

    def save_method(self, token: str) -> None:
        body = {"payment_type": "card", "gateway": "sandbox", "details": {"token": token}}
        saved = self.ask("POST", "/payment-methods", body, self.mine)
        if saved is not None and saved.status_code == 201:
            self.methods[token] = saved.json()["id"]

    # What shoppers do ---------------------------------------------------------------------------

    def order(self, cart: str | None = None) -> int | None:
        mark = uuid.uuid4().hex
        cart = cart or mark
        body = {
            "product_id": "proof",
            "quantity": 1,
            "total_amount": self.random.randint(300, 90_000),
            "currency": self.random.choice(["USD", "JPY", "KWD"]),
            "metadata": {"mark": mark, "cart": cart},
        }
        placed = self.ask("POST", "/orders", body, self.mine)
        if placed is None or placed.status_code != 201:
            return None
        order_id = int(placed.json()["id"])
        self.carts[order_id] = cart
        with self.world.ledger.lock:
            self.world.ledger.orders[mark] = order_id
        return order_id

    def pay(self, order_id: int, token: str = GOOD, **body: Any) -> dict[str, Any] | None:
        fault = self.random.choice(FAULTS) if self.random.random() < 0.25 else None
        if token in self.methods:  # else it is the only one there is
            body["payment_method_id"] = self.methods[token]
        came = self.world.clock.passed
        paid = self.ask("POST", f"/orders/{order_id}/payments", body, self.mine, fault)
        if paid is None:
            self.left[self.carts[order_id]] = came
        if paid is None or paid.status_code != 201:
            return None
        payment: dict[str, Any] = paid.json()
        if payment["status"] == "captured":
            with self.world.ledger.lock:
                self.world.ledger.captured.add(payment["id"])
        return payment

    def buy(self) -> dict[str, Any] | None:
        order_id = self.order()
        if order_id is None:
            return None
        token = self.random.choice(SPECIAL) if self.random.random() < 0.3 else GOOD
        return self.pay(order_id, token)

    def come_back(self) -> None:
        """Order again what was left long ago, without a look at the old order."""
        for cart, came in list(self.left.items()):
            if self.world.clock.passed - came >= min(STAYS):
                order_id = self.order(cart)
                if order_id is not None:
                    del self.left[cart]
                    self.pay(order_id)

    def buy_twice_at_once(self) -> None:
        """Two taps on the button, with two keys: one charge."""
        order_id = self.order()
        if order_id is not None:
            together([lambda: self.pay(order_id)] * 3)

    def leave(self) -> None:
        """Never come back from the gateway's page."""
        order_id = self.order()
        if order_id is not None:
            self.pay(order_id, WAITS)

    def go_to_page(self) -> None:
        """Approve or decline on the gateway's page, take another card instead, or all at once."""
        order_id = self.order()
        payment = self.pay(order_id, WAITS) if order_id is not None else None
        if order_id is None or payment is None or payment["status"] != "requires_action":
            return
        page = f"/sandbox/actions/{payment['gateway_reference']}"
        approve = lambda: self.press(f"{page}/approve")  # noqa: E731
        decline = lambda: self.press(f"{page}/decline")  # noqa: E731
        pay = lambda: self.pay(order_id)  # noqa: E731
        confirm = lambda: self.ask("POST", f"/payments/{payment['id']}/confirm", {}, self.mine)  # noqa: E731
        together(
            self.random.choice([[approve], [decline], [pay], [approve, pay], [approve, confirm]])
        )

    def press(self, path: str) -> None:
        """Press a button on a page of the gateway, without a token and a key."""
        for _ in range(PAGE_TRIES):
            try:
                self.http.post(self.random.choice(self.world.addresses) + path)
            except httpx.HTTPError:
                time.sleep(0.1)
            else:
                return

    def authorize(self) -> None:
        """Capture and void at the same time, or one of them, or neither and let it expire."""
        order_id = self.order()
        payment = self.pay(order_id, capture_method="manual") if order_id is not None else None
        if payment is None or payment["status"] != "authorized":
            return
        path = f"/payments/{payment['id']}"
        part = {"amount": self.random.randint(1, payment["amount"])}
        capture = lambda: self.ask("POST", f"{path}/capture", part, self.staff, self.fault())  # noqa: E731
        void = lambda: self.ask("POST", f"{path}/void", {}, self.staff, self.fault())  # noqa: E731
        together(self.random.choice([[], [capture], [void], [capture, void]]))

    def give_back(self) -> None:
        """Several refunds at once, together more than there is."""
        payment = self.buy()
        if payment is None:
            return
        third = {"amount": max(1, payment["amount"] // 3)}
        path = f"/payments/{payment['id']}/refunds"

        def refund() -> None:
            made = self.ask("POST", path, third, self.staff, self.fault())
            if made is not None and made.status_code == 201:
                with self.world.ledger.lock:
                    self.world.ledger.refunds.add(made.json()["id"])

        together([refund] * 5)

    def fault(self) -> str | None:
        return self.random.choice(FAULTS) if self.random.random() < 0.2 else None

    # How they ask -------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any],
        headers: dict[str, str],
        fault: str | None = None,
    ) -> httpx.Response | None:
        """Send a request until it is answered, to any of the services. None: it never was, or
        not while somebody waited for it."""
        ledger, clock = self.world.ledger, self.world.clock
        leaves_at = clock.passed + self.random.choice(STAYS)
        headers = {**headers, "Idempotency-Key": uuid.uuid4().hex}
        if fault is not None:
            headers["Sandbox-Fault"] = fault
        hang_up = self.random.random() < 0.1
        deadline = time.monotonic() + self.world.patience
        answered: httpx.Response | None = None
        with ledger.lock:
            ledger.operations += 1
        while time.monotonic() < deadline:
            if clock.passed >= leaves_at:
                return answered
            timeout = 0.02 if hang_up else 8.0
            hang_up = False
            try:
                answer = self.http.request(
                    method,
                    self.random.choice(self.world.addresses) + path,
                    json=body,
                    headers=headers,
                    timeout=timeout,
                )
            except httpx.HTTPError:  # killed, hung up, or not back yet
                with ledger.lock:
                    ledger.dropped += 1
                time.sleep(0.05)
                continue
            if self._is_final(answer):
                if answered is None and self.random.random() < 0.2:
                    answered = answer  # ask once more: the answer must be the same
                    continue
                if answered is not None and answered.content != answer.content:
                    with ledger.lock:
                        ledger.contradictions.append(f"{method} {path}: {answer.status_code}")
                return answer
            with ledger.lock:
                ledger.retries += 1
                if answer.status_code == 500:
                    ledger.server_errors.append(f"{method} {path}")
            time.sleep(0.1)
        with ledger.lock:
            ledger.unanswered.append(f"{method} {path}")
        return None

    def _is_final(self, answer: httpx.Response) -> bool:
        if answer.status_code == 409:
            return answer.json()["code"] not in RETRIED_CONFLICTS
        return answer.status_code in FINAL


def together(actions: Sequence[Callable[[], Any]]) -> None:
    """Do all of it at the same time, and wait for all of it."""
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
