"""What is measured: each operation as requests, and a shop in which they can be made."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle, islice
from typing import Any, Final

import auth
from benchmarks.load import Load, Outcome, send
from benchmarks.servers import Secrets, connect
from config import load_settings
from gateways.sandbox import sign

AMOUNT: Final = 1999
PRIMED: Final = 200  # charges that are there before anything is measured
DRAIN_SECONDS: Final = 120.0

# Orders with the event of their making, each of another user.
PLACE_ORDERS = """
WITH placed AS (
    INSERT INTO orders (user_id, product_id, quantity, total_amount, currency, payment_method_id,
        metadata, last_sequence)
    SELECT m.user_id, 'sku-' || n %% 500, 1, 1999, 'USD', m.id, '{"cart": "c-1"}', 1
    FROM generate_series(1, %(rounds)s) n,
        (SELECT * FROM payment_methods WHERE gateway_token = 'tok_success' ORDER BY id) m
    LIMIT %(limit)s
    RETURNING id, user_id, product_id, total_amount, currency, status, metadata, created_at
), told AS (
    INSERT INTO events (type, user_id, order_id, sequence, actor, request_id, data)
    SELECT 'order.created', user_id, id, 1, jsonb_build_object('type', 'user', 'id', user_id),
        gen_random_uuid(), to_jsonb(placed)
    FROM placed
)
SELECT user_id, id FROM placed
"""
SAVE_CARDS = """
INSERT INTO payment_methods (user_id, payment_type, gateway, gateway_token, fingerprint, details,
    is_default)
SELECT 'shopper-' || n, 'card', 'sandbox', 'tok_success', md5(n::text),
    '{"brand": "visa", "last4": "4242", "exp_month": 12, "exp_year": 2040}', true
FROM generate_series(1, %(users)s) n
"""
PAID = """
SELECT user_id, id, gateway_reference FROM payments
WHERE status IN ('captured', 'partially_refunded') AND amount_refunded < %(most)s
    AND user_id = ANY(%(users)s)
ORDER BY id DESC LIMIT 2000
"""


class Shop:
    """A database with shoppers, and what they send to a server on it."""

    def __init__(self, url: str, secret: Secrets, users: int) -> None:
        self.url, self.users = url, users
        settings = load_settings(
            _env_file=None, secret_key=secret.secret_key, fingerprint_key=secret.fingerprint_key
        )
        self.tokens = {
            f"shopper-{number}": auth.mint(settings, f"shopper-{number}", "payments:manage")
            for number in range(1, users + 1)
        }
        self._numbers = count(1)
        self._run = secrets.token_hex(4)
        self._replays: list[bytes] = []

    def seed(self, orders_each: int) -> None:
        """For an empty database: a card and so many orders for each shopper."""
        with connect(self.url) as connection, connection.cursor() as cursor:
            cursor.execute(SAVE_CARDS, {"users": self.users})
            numbers = {"rounds": orders_each, "limit": orders_each * self.users}
            cursor.execute(PLACE_ORDERS, numbers)
            cursor.execute("VACUUM ANALYZE")

    def place_orders(self, number: int) -> list[tuple[str, int]]:
        """New orders: (user, id)."""
        with connect(self.url) as connection, connection.cursor() as cursor:
            rounds = number // self.users + 1
            cursor.execute(PLACE_ORDERS, {"rounds": rounds, "limit": number})
            placed: list[tuple[str, int]] = cursor.fetchall()
            return placed

    def prime(self, port: int, number: int) -> None:
        """Charge some orders, with keys that `replays` sends again."""
        self._replays = charges(self, number)
        outcome = send(Load(port, self._replays, False, 8, 60.0, 201))
        refuse_errors("charging before the start", outcome)

    def drain(self) -> None:
        """Wait until the sandbox has delivered its webhooks, which are part of what was done."""
        deadline = time.monotonic() + DRAIN_SECONDS
        with connect(self.url) as connection, connection.cursor() as cursor:
            while time.monotonic() < deadline:
                cursor.execute("SELECT count(*) FROM sandbox.webhooks WHERE delivered_at IS NULL")
                if cursor.fetchone()[0] == 0:
                    return
                time.sleep(0.02)
        raise RuntimeError(f"webhooks are not delivered within {DRAIN_SECONDS:.0f} s")

    def rows(self, query: str, **values: Any) -> list[Any]:
        with connect(self.url) as connection, connection.cursor() as cursor:
            cursor.execute(query, values)
            rows: list[Any] = cursor.fetchall()
            return rows

    def paid(self) -> list[tuple[str, int, str]]:
        """Payments to refund or to tell about: (user, id, the gateway's reference)."""
        return self.rows(PAID, most=AMOUNT - 100, users=[*self.tokens])

    def replays(self, number: int) -> list[bytes]:
        return [*islice(cycle(self._replays), number)]

    def wal_position(self) -> int:
        """How many bytes the server has written to its log, in all databases."""
        query = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
        [(position,)] = self.rows(query)
        return int(position)

    # Requests -----------------------------------------------------------------------------------

    def request(
        self, method: str, path: str, user: str, body: Any = None, *, keyed: bool = False
    ) -> bytes:
        headers = {"Authorization": f"Bearer {self.tokens[user]}"}
        if keyed:
            headers["Idempotency-Key"] = f"{self._run}-{next(self._numbers)}"
        return as_bytes(method, path, headers, None if body is None else json.dumps(body).encode())

    def each_user(self) -> Iterator[str]:
        return cycle(self.tokens)

    def new_card(self) -> str:
        """A card number that nobody has saved yet."""
        digits = f"4{int(self._run, 16) % 10**4:04}{next(self._numbers):010}"
        return digits + check_digit(digits)


def as_bytes(method: str, path: str, headers: dict[str, str], body: bytes | None) -> bytes:
    """A request of HTTP/1.1 as it goes over the wire."""
    if body is not None:
        headers = headers | {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b"")


def check_digit(digits: str) -> str:
    """The digit that Luhn's formula (ISO/IEC 7812-1) puts behind these."""
    doubled = [int(digit) * (2 - place % 2) for place, digit in enumerate(reversed(digits))]
    return str(-sum(number - 9 if number > 9 else number for number in doubled) % 10)


def refuse_errors(what: str, outcome: Outcome) -> None:
    if outcome.errors or not outcome.answers:
        raise RuntimeError(
            f"{what}: {outcome.answers} answers, {outcome.errors} errors; the first:\n"
            f"{outcome.first_error}"
        )


# The operations ---------------------------------------------------------------------------------


def gets(shop: Shop, number: int) -> list[bytes]:
    query = (
        "SELECT user_id, id FROM orders WHERE user_id = ANY(%(users)s) ORDER BY id %% 97, id"
        " LIMIT %(number)s"
    )
    orders = shop.rows(query, users=[*shop.tokens], number=number)
    made = [shop.request("GET", f"/orders/{order}", user) for user, order in orders]
    return [*islice(cycle(made), number)]


def lists(shop: Shop, number: int) -> list[bytes]:
    users = islice(shop.each_user(), number)
    return [shop.request("GET", "/orders?limit=20", user) for user in users]


def creates(shop: Shop, number: int) -> list[bytes]:
    methods = dict(
        shop.rows("SELECT user_id, id FROM payment_methods WHERE gateway_token = 'tok_success'")
    )
    order = {"product_id": "sku-1", "quantity": 1, "total_amount": AMOUNT, "currency": "USD"}
    return [
        shop.request("POST", "/orders", user, order | {"payment_method_id": methods[user]})
        for user in islice(shop.each_user(), number)
    ]


def saves(shop: Shop, number: int) -> list[bytes]:
    return [
        shop.request(
            "POST",
            "/payment-methods",
            user,
            {
                "payment_type": "card",
                "details": {"card_number": shop.new_card(), "exp_month": 12, "exp_year": 2040},
            },
        )
        for user in islice(shop.each_user(), number)
    ]


def charges(shop: Shop, number: int) -> list[bytes]:
    return [
        shop.request("POST", f"/orders/{order}/payments", user, {}, keyed=True)
        for user, order in shop.place_orders(number)
    ]


def refunds(shop: Shop, number: int) -> list[bytes]:
    """A part of each payment, so that there is always something left to refund."""
    return [
        shop.request("POST", f"/payments/{payment}/refunds", user, {"amount": 1}, keyed=True)
        for user, payment, _ in islice(cycle(shop.paid()), number)
    ]


def webhooks(shop: Shop, number: int) -> list[bytes]:
    """Events that are new and tell what is known already, as most do."""
    [(secret,)] = shop.rows("SELECT webhook_secret FROM sandbox.account")
    return [
        _webhook(secret, payment, reference)
        for _, payment, reference in islice(cycle(shop.paid()), number)
    ]


def _webhook(secret: str, payment: int, reference: str) -> bytes:
    body = json.dumps(
        {
            "id": f"evt_{secrets.token_hex(12)}",
            "type": "charge.captured",
            "payment_id": payment,
            "reference": reference,
            "charge": {
                "reference": reference,
                "status": "captured",
                "amount": AMOUNT,
                "currency": "USD",
                "amount_captured": AMOUNT,
            },
        }
    ).encode()
    return as_bytes("POST", "/webhooks/sandbox", sign(secret, body, int(time.time())), body)


@dataclass(frozen=True, slots=True)
class Operation:
    """How an operation is asked for."""

    label: str
    requests: Callable[[Shop, int], list[bytes]]
    status: int = 201
    repeats: bool = False  # the same requests may be sent again and again
    naive: bool = True  # whether the naive service can do it
    in_background: bool = False  # whether the sandbox sends webhooks about it
    limit: bool = False  # whether its statements can be sent again as they are


OPERATIONS: Final = {
    "get": Operation("get an order", gets, 200, repeats=True, limit=True),
    "list": Operation("list 20 orders", lists, 200, repeats=True, limit=True),
    "create": Operation("create an order", creates, repeats=True, limit=True),
    "save": Operation("save a card", saves),
    "charge": Operation("charge", charges, in_background=True),
    "refund": Operation("refund", refunds, in_background=True),
    "replay": Operation("replay of a charge", Shop.replays, repeats=True, naive=False),
    "webhook": Operation("webhook in", webhooks, 200, naive=False),
}
