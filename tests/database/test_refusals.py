"""The database is the last line: what must never be true is refused, whoever writes it."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Set

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

import database
from domain import states
from domain.money import MAX_AMOUNT

# Domain and database hold the same tables of moves; the key is the table's name.
MOVES: dict[str, Set[tuple[str, str]]] = {
    "orders": states.ORDER_TRANSITIONS.keys(),
    "payments": (states.CHARGE_TRANSITIONS | states.REFUNDED_TRANSITIONS).keys(),
    "refunds": states.REFUND_TRANSITIONS.keys(),
}
STATUSES: dict[str, tuple[str, ...]] = {
    "orders": states.ORDER_STATUSES,
    "payments": states.PAYMENT_STATUSES,
    "refunds": states.REFUND_STATUSES,
}


@pytest.fixture(scope="module")
def migrated(make_database: Callable[[], str]) -> Iterator[sa.Engine]:
    """An engine on a database of its own that the migrations made."""
    url = make_database()
    database.migrate(url)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def rows(migrated: sa.Engine) -> Iterator[Rows]:
    """Rows of a transaction that is rolled back."""
    with migrated.connect() as connection:
        yield Rows(connection)
        connection.rollback()


# Status moves -----------------------------------------------------------------------------------


class Rows:
    """Writes rows by plain SQL, as a program would that knows nothing of our rules."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection

    def insert(self, table: str, **values: object) -> int:
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join(f":{name}" for name in values)
        returning = "RETURNING 0" if table.startswith("sandbox.") else "RETURNING id"
        row: int = self.connection.execute(
            sa.text(f"INSERT INTO {table} ({names}) VALUES ({marks}) {returning}"), values
        ).scalar_one()
        return row

    def update(self, table: str, row: int, **values: object) -> None:
        changes = ", ".join(f"{name} = :{name}" for name in values)
        self.connection.execute(
            sa.text(f"UPDATE {table} SET {changes} WHERE id = :row"), {**values, "row": row}
        )

    def method(self, **values: object) -> int:
        fresh = {"user_id": "alice", "payment_type": "card", "gateway": "sandbox"}
        return self.insert(
            "payment_methods", **fresh | {"gateway_token": "t", "details": "{}"} | values
        )

    def order(self, **values: object) -> int:
        fresh: dict[str, object] = {"user_id": "alice", "product_id": "sku", "quantity": 1}
        return self.insert("orders", **fresh | {"total_amount": 1000, "currency": "USD"} | values)

    def payment(self, **values: object) -> int:
        if "order_id" not in values:
            values["order_id"] = self.order()
        if "payment_method_id" not in values:
            values["payment_method_id"] = self.method()
        fresh = {"user_id": "alice", "gateway": "sandbox", "gateway_key": secrets.token_hex(8)}
        money = {"amount": 1000, "currency": "USD", "capture_method": "automatic"}
        return self.insert("payments", **fresh | money | {"check_at": "now"} | values)

    def captured(self) -> int:
        payment = self.payment()
        self.update("payments", payment, **self.with_status("payments", "captured"))
        return payment

    def refund(self, **values: object) -> int:
        if "payment_id" not in values:
            values["payment_id"] = self.captured()
        fresh: dict[str, object] = {"gateway_key": secrets.token_hex(8), "check_at": "now"}
        return self.insert("refunds", **fresh | {"amount": 400, "currency": "USD"} | values)

    def method_in_use(self) -> int:
        method = self.method()
        self.order(payment_method_id=method)
        return method

    def event(self, **values: object) -> int:
        fresh = {"type": "order.created", "user_id": "alice", "actor": "{}", "data": "{}"}
        return self.insert("events", **fresh | values)

    def key(self, **values: object) -> int:
        fresh = {"user_id": "alice", "key": "k", "fingerprint": "f", "owner": "o"}
        return self.insert(
            "idempotency_keys", **fresh | {"owned_until": "now", "request_id": "r"} | values
        )

    def with_status(self, table: str, status: str) -> dict[str, object]:
        """The status, and the amounts that a payment in it has."""
        if table != "payments":
            return {"status": status}
        refunded = {"partially_refunded": 400, "refunded": 1000}.get(status, 0)
        captured = 1000 if status in states.CAPTURED_PAYMENT_STATUSES else 0
        return {"status": status, "amount_captured": captured, "amount_refunded": refunded}


NEW_ROW: dict[str, Callable[[Rows], int]] = {
    "orders": Rows.order,
    "payments": Rows.payment,
    "refunds": Rows.refund,
}


def way_to(status: str, moves: Set[tuple[str, str]]) -> list[str]:
    """The shortest legal way from pending."""
    ways = deque([["pending"]])
    while ways:
        way = ways.popleft()
        if way[-1] == status:
            return way[1:]
        ways.extend([*way, new] for old, new in moves if old == way[-1] and new not in way)
    raise AssertionError(f"nothing leads to {status}")


def refusal(error: DBAPIError) -> set[str]:
    """What the database says it was: a constraint's name, or the SQLSTATE."""
    diagnostics = error.orig.diag  # type: ignore[union-attr]
    return {diagnostics.constraint_name or "", diagnostics.sqlstate}


def test_the_database_holds_the_moves_of_the_domain(rows: Rows) -> None:
    found: dict[str, set[tuple[str, str]]] = {}
    for entity, old, new in rows.connection.execute(sa.text("SELECT * FROM status_moves")):
        found.setdefault(entity, set()).add((old, new))
    existing = sa.inspect(rows.connection).get_table_names()
    assert found == {table: set(moves) for table, moves in MOVES.items() if table in existing}


@pytest.mark.parametrize("table", list(MOVES))
def test_a_guard_watches_every_insert_and_every_new_status(table: str, rows: Rows) -> None:
    definition = sa.text(
        "SELECT pg_get_triggerdef(oid), tgenabled::text FROM pg_trigger"
        " WHERE tgrelid = CAST(:name AS regclass) AND tgname = 'guard_status'"
    )
    trigger, enabled = rows.connection.execute(definition, {"name": table}).one()
    assert "BEFORE INSERT OR UPDATE OF status" in trigger
    assert "FOR EACH ROW" in trigger
    assert "WHEN" not in trigger
    assert enabled == "O"


@pytest.mark.parametrize(
    ("table", "status"),
    [(table, status) for table, statuses in STATUSES.items() for status in statuses],
)
def test_a_status_moves_only_where_the_domain_lets_it(table: str, status: str, rows: Rows) -> None:
    row = NEW_ROW[table](rows)
    for step in way_to(status, MOVES[table]):
        rows.update(table, row, **rows.with_status(table, step))
    for target in STATUSES[table]:
        attempt = rows.connection.begin_nested()
        if target == status or (status, target) in MOVES[table]:
            rows.update(table, row, **rows.with_status(table, target))
        else:
            with pytest.raises(DBAPIError, match=f"cannot move from {status} to {target}"):
                rows.update(table, row, **rows.with_status(table, target))
        attempt.rollback()


@pytest.mark.parametrize(
    ("table", "status"),
    [(table, status) for table, statuses in STATUSES.items() for status in statuses[1:]],
)
def test_a_row_begins_as_pending(table: str, status: str, rows: Rows) -> None:
    insert = {"orders": rows.order, "payments": rows.payment, "refunds": rows.refund}[table]
    with pytest.raises(DBAPIError, match=f"{table} begin as pending"):
        insert(**rows.with_status(table, status))


# What the database refuses by itself ------------------------------------------------------------


def twice(write: Callable[..., object], **values: object) -> None:
    write(**values)
    write(**values)


def live_twice(rows: Rows, first: str) -> None:
    order = rows.order()
    payment = rows.payment(order_id=order)
    for step in way_to(first, MOVES["payments"]):
        rows.update("payments", payment, **rows.with_status("payments", step))
    rows.payment(order_id=order)


def refund_twice(rows: Rows) -> None:
    payment = rows.captured()
    rows.refund(payment_id=payment, amount=600)
    rows.refund(payment_id=payment, amount=401)


def refund_again_after_a_failure(rows: Rows) -> None:
    payment = rows.captured()
    first = rows.refund(payment_id=payment, amount=1000)
    rows.update("refunds", first, status="failed")
    rows.refund(payment_id=payment, amount=1000)
    rows.refund(payment_id=payment, amount=1)


def charge(rows: Rows, **values: object) -> None:
    fresh: dict[str, object] = {"reference": secrets.token_hex(8), "order_id": 1, "payment_id": 1}
    money: dict[str, object] = {"amount": 1000, "currency": "USD", "status": "captured"}
    same = {"idempotency_key": secrets.token_hex(8), "outcome": "success", "capture": True}
    rows.insert("sandbox.charges", **fresh | money | same | values)


Attempt = Callable[[Rows], object]
LONG = "x" * 256
LIVE = [status for status in states.PAYMENT_STATUSES if status not in states.DEAD_PAYMENT_STATUSES]

REFUSED: dict[str, tuple[Attempt, str]] = {
    # Payment methods
    "a method of nobody": (lambda r: r.method(user_id=""), "ck_payment_methods_user_id"),
    "a method of NULL": (lambda r: r.method(user_id=None), "23502"),
    "a user id of 256 characters": (lambda r: r.method(user_id=LONG), "22001"),
    "an unknown type": (lambda r: r.method(payment_type="cash"), "ck_payment_methods_payment_type"),
    "a method without token": (lambda r: r.method(gateway_token=None), "23502"),
    "an id of one's own": (lambda r: r.method(id=7), "428C9"),
    "a second active fingerprint": (
        lambda r: twice(r.method, fingerprint="f"),
        "uq_payment_methods_active_fingerprint",
    ),
    "a second default": (lambda r: twice(r.method, is_default=True), "uq_payment_methods_default"),
    "giving a method in use to somebody else": (
        lambda r: r.update("payment_methods", r.method_in_use(), user_id="bob"),
        "fk_orders_payment_method_id_user_id",
    ),
    # Orders
    "an order of nobody": (lambda r: r.order(user_id=""), "ck_orders_texts"),
    "an order of nothing": (lambda r: r.order(product_id=""), "ck_orders_texts"),
    "a product of 256 characters": (lambda r: r.order(product_id=LONG), "22001"),
    "no quantity": (lambda r: r.order(quantity=0), "ck_orders_quantity"),
    "a negative quantity": (lambda r: r.order(quantity=-1), "ck_orders_quantity"),
    "a free order": (lambda r: r.order(total_amount=0), "ck_orders_total_amount"),
    "a negative order": (lambda r: r.order(total_amount=-1), "ck_orders_total_amount"),
    "too large an order": (
        lambda r: r.order(total_amount=MAX_AMOUNT + 1),
        "ck_orders_total_amount",
    ),
    "an amount beyond 64 bits": (lambda r: r.order(total_amount=2**63), "22003"),
    "a currency in lower case": (lambda r: r.order(currency="usd"), "ck_orders_currency"),
    "a currency of two letters": (lambda r: r.order(currency="US"), "ck_orders_currency"),
    "a currency of digits": (lambda r: r.order(currency="U5D"), "ck_orders_currency"),
    "a currency of four letters": (lambda r: r.order(currency="USDX"), "22001"),
    "no currency": (lambda r: r.order(currency=None), "23502"),
    "an order with another user's method": (
        lambda r: r.order(payment_method_id=r.method(user_id="bob")),
        "fk_orders_payment_method_id_user_id",
    ),
    "an order with no such method": (
        lambda r: r.order(payment_method_id=2**62),
        "fk_orders_payment_method_id_user_id",
    ),
    # Events
    "an event without its number": (
        lambda r: r.event(order_id=r.order(), sequence=None),
        "ck_events_sequence",
    ),
    "a number without an order": (
        lambda r: r.event(order_id=None, sequence=1),
        "ck_events_sequence",
    ),
    "a number twice": (
        lambda r: twice(r.event, order_id=r.order(), sequence=1),
        "uq_events_order_id_sequence",
    ),
    "an event of no such order": (
        lambda r: r.event(order_id=2**62, sequence=1),
        "fk_events_order_id",
    ),
    # Payments
    "a payment of another user's order": (
        lambda r: r.payment(order_id=r.order(user_id="bob")),
        "fk_payments_order_id_user_id",
    ),
    "a payment with another user's method": (
        lambda r: r.payment(payment_method_id=r.method(user_id="bob")),
        "fk_payments_payment_method_id_user_id",
    ),
    "a payment of nothing": (lambda r: r.payment(amount=0), "ck_payments_amount"),
    "too large a payment": (lambda r: r.payment(amount=MAX_AMOUNT + 1), "ck_payments_amount"),
    "a payment in lower case": (lambda r: r.payment(currency="usd"), "ck_payments_currency"),
    "an unknown way to capture": (
        lambda r: r.payment(capture_method="later"),
        "ck_payments_capture_method",
    ),
    "money taken while pending": (
        lambda r: r.payment(amount_captured=1000),
        "ck_payments_captured_has_amount",
    ),
    "captured without money": (
        lambda r: r.update("payments", r.payment(), status="captured"),
        "ck_payments_captured_has_amount",
    ),
    "more captured than asked": (
        lambda r: r.update("payments", r.payment(), status="captured", amount_captured=1001),
        "ck_payments_amount_captured",
    ),
    "more refunded than captured": (
        lambda r: r.update("payments", r.captured(), status="refunded", amount_refunded=1001),
        "ck_payments_amount_refunded",
    ),
    "refunded with money left": (
        lambda r: r.update("payments", r.captured(), status="refunded", amount_refunded=999),
        "ck_payments_refunded_has_amount",
    ),
    "an open payment nobody will look up": (
        lambda r: r.payment(check_at=None),
        "ck_payments_open_is_checked",
    ),
    "half an operation": (
        lambda r: r.payment(operation="capture", operation_key="k"),
        "ck_payments_operation_whole",
    ),
    "an unknown operation": (
        lambda r: r.payment(operation="x", operation_key="k", operation_amount=1),
        "ck_payments_operation",
    ),
    "one key for two payments": (
        lambda r: twice(r.payment, gateway_key="same"),
        "uq_payments_gateway_key",
    ),
    "one charge for two payments": (
        lambda r: twice(r.payment, gateway_reference="ch_1"),
        "uq_payments_gateway_reference",
    ),
    # Refunds, disputes, the inbox, idempotency keys
    "a refund of nothing": (lambda r: r.refund(amount=0), "ck_refunds_amount"),
    "a refund of what was not captured": (
        lambda r: r.refund(payment_id=r.payment(), amount=1),
        "ck_payments_refund_reserved",
    ),
    "a refund above what was captured": (
        lambda r: r.refund(amount=1001),
        "ck_payments_refund_reserved",
    ),
    "refunds above what was captured together": (refund_twice, "ck_payments_refund_reserved"),
    "a refund above what a failed one gave back": (
        refund_again_after_a_failure,
        "ck_payments_refund_reserved",
    ),
    "an open refund nobody will look up": (
        lambda r: r.refund(check_at=None),
        "ck_refunds_open_is_checked",
    ),
    "one key for two refunds": (
        lambda r: twice(r.refund, gateway_key="same"),
        "uq_refunds_gateway_key",
    ),
    "a gateway's event twice": (
        lambda r: twice(
            lambda: r.insert("gateway_events", gateway="g", event_id="e", type="charge.captured")
        ),
        "uq_gateway_events_gateway_event_id",
    ),
    "one idempotency key twice": (
        lambda r: twice(r.key, user_id="alice", key="k"),
        "uq_idempotency_keys_user_id_key",
    ),
    "half an answer": (lambda r: r.key(status=201), "ck_idempotency_keys_answered"),
    # The sandbox's books
    "a charge above its amount": (
        lambda r: charge(r, amount_captured=1001),
        "ck_charges_amount_captured",
    ),
    "a charge in an unknown status": (lambda r: charge(r, status="lost"), "ck_charges_status"),
    "two charges for one request": (
        lambda r: twice(lambda: charge(r, idempotency_key="k")),
        "uq_charges_idempotency_key",
    ),
    "a second account": (
        lambda r: r.insert("sandbox.account", webhook_secret="s"),
        "pk_account",
    ),
    **{
        f"a second payment beside one that is {status}": (
            lambda r, status=status: live_twice(r, status),  # type: ignore[misc]
            "uq_payments_live",
        )
        for status in LIVE
    },
}


@pytest.mark.parametrize(("attempt", "name"), list(REFUSED.values()), ids=list(REFUSED))
def test_the_database_refuses(attempt: Attempt, name: str, rows: Rows) -> None:
    with pytest.raises(DBAPIError) as error:
        attempt(rows)
    assert name in refusal(error.value), error.value


def deactivated(rows: Rows) -> None:
    first = rows.method(fingerprint="f", is_default=True)
    rows.update("payment_methods", first, is_active=False)
    rows.method(fingerprint="f", is_default=True)


ACCEPTED: dict[str, Attempt] = {
    "the smallest and the largest order": lambda r: (
        r.order(total_amount=1),
        r.order(total_amount=MAX_AMOUNT),
    ),
    "the same card of two users": lambda r: (
        r.method(fingerprint="f", is_default=True),
        r.method(fingerprint="f", is_default=True, user_id="bob"),
    ),
    "a card again after it was removed": deactivated,
    "methods without fingerprint": lambda r: twice(r.method),
    "an order with the user's own method": lambda r: r.order(payment_method_id=r.method()),
    "one number in two orders": lambda r: (
        r.event(order_id=r.order(), sequence=1),
        r.event(order_id=r.order(), sequence=1),
    ),
    "refunds up to what was captured": lambda r: (
        payment := r.captured(),
        r.refund(payment_id=payment, amount=600),
        r.refund(payment_id=payment, amount=400),
    ),
    "one idempotency key of two users": lambda r: (r.key(), r.key(user_id="bob")),
    **{
        f"a payment after one that is {status}": (
            lambda r, status=status: live_twice(r, status)  # type: ignore[misc]
        )
        for status in states.DEAD_PAYMENT_STATUSES
    },
}


@pytest.mark.parametrize("attempt", list(ACCEPTED.values()), ids=list(ACCEPTED))
def test_the_database_accepts(attempt: Attempt, rows: Rows) -> None:
    attempt(rows)
