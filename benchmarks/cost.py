"""What one paid order costs: `make bench-cost`.

    python -m benchmarks.cost [--orders 5000] [--variants]

Orders are placed and paid through the service, and their webhooks delivered, on a PostgreSQL that
goes away afterwards; then its tables, indexes and log are compared with what they were before.
`--variants` tries settings of the tables as well. What was measured is kept in
benchmarks/results/cost.json, and docs/cost-per-order.md is written anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import database
from benchmarks import report, servers
from benchmarks.bench import Tell, teller
from benchmarks.counting import Traffic
from benchmarks.load import Load, Outcome, apart, send
from benchmarks.operations import AMOUNT, Shop, refuse_errors
from benchmarks.results import FOLDER, Counts, keep, read
from benchmarks.servers import Postgres, Secrets
from tests.support.postgres_proxy import PostgresProxy

KEPT: Final = FOLDER / "cost.json"
USERS: Final = 200
WARM_UP: Final = 100
COUNTED: Final = 30
CONNECTIONS: Final = 16
MOST_SECONDS: Final = 3600.0
BATCHES: Final = 5  # VACUUM comes after each where a variant has it
VACUUMS: Final = """
SELECT schemaname || '.' || relname, autovacuum_count FROM pg_stat_user_tables
WHERE autovacuum_count > 0
"""
UPDATED: Final = ("orders", "payments", "idempotency_keys")

# Of each table: its rows that were written, and its bytes (TOAST and maps with them).
TABLES: Final = """
SELECT schemaname || '.' || relname, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del, n_dead_tup,
    pg_table_size(relid), pg_indexes_size(relid)
FROM pg_stat_user_tables WHERE schemaname IN ('public', 'sandbox')
"""
INDEXES: Final = """
SELECT schemaname || '.' || relname, indexrelname, pg_relation_size(indexrelid)
FROM pg_stat_user_indexes WHERE schemaname IN ('public', 'sandbox')
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings of the tables that are tried."""

    name: str
    alter: str = ""
    vacuum: bool = False  # after each batch, as a busy autovacuum would


DEFAULT: Final = Variant("as it is")
VARIANTS: Final = (
    Variant(
        "fillfactor 90", "".join(f"ALTER TABLE {name} SET (fillfactor = 90);" for name in UPDATED)
    ),
    Variant("fillfactor 90, keys only", "ALTER TABLE idempotency_keys SET (fillfactor = 90)"),
    Variant("VACUUM after each fifth", vacuum=True),
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table; all numbers are for each order paid."""

    inserts: float
    updates: float
    hot: float  # those of the updates that touched no index
    deletes: float
    dead: float  # rows left for VACUUM
    bytes: float
    index_bytes: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What an order costs that is placed, charged, and told about."""

    orders: int
    wal_bytes: float
    tables: dict[str, Table]
    indexes: dict[str, dict[str, float]]  # bytes, by table and index
    autovacuums: dict[str, int]  # how often autovacuum came meanwhile, by table

    @property
    def bytes(self) -> float:
        return sum(table.bytes + table.index_bytes for table in self.tables.values())


@dataclass(frozen=True, slots=True)
class Kept:
    machine: dict[str, Any]
    counts: Counts
    cost: Cost
    variants: dict[str, Cost]


# Measuring --------------------------------------------------------------------------------------


def order_requests(shop: Shop, number: int) -> list[bytes]:
    """To place orders, each with an Idempotency-Key."""
    users = shop.each_user()
    order = {"product_id": "sku-1", "quantity": 1, "total_amount": AMOUNT, "currency": "USD"}
    order |= {"metadata": {"cart": "c-1"}}
    return [shop.request("POST", "/orders", next(users), order, keyed=True) for _ in range(number)]


def payment_requests(shop: Shop, number: int) -> list[bytes]:
    """To pay orders that are not paid, the oldest first."""
    query = "SELECT user_id, id FROM orders WHERE status = 'pending' ORDER BY id LIMIT %(number)s"
    pending = shop.rows(query, number=number)
    return [
        shop.request("POST", f"/orders/{order}/payments", user, {}, keyed=True)
        for user, order in pending
    ]


def pay_orders(
    shop: Shop,
    port: int,
    number: int,
    sender: Callable[[Load], Outcome],
    connections: int = CONNECTIONS,
) -> None:
    """Place so many orders, pay them, and wait until all webhooks are delivered."""
    for label, make in (("placing an order", order_requests), ("paying it", payment_requests)):
        load = Load(port, make(shop, number), False, connections, MOST_SECONDS, 201)
        refuse_errors(label, sender(load))
    shop.drain()


def measure(
    postgres: Postgres,
    orders: int,
    variant: Variant,
    sender: Callable[[Load], Outcome],
    tell: Tell,
) -> tuple[Cost, Counts]:
    """On a database of its own."""
    url = postgres.create()
    try:
        database.migrate(url)
        with tempfile.TemporaryDirectory(prefix="estore-cost-") as name:
            return _measure(url, Secrets.make(Path(name)), orders, variant, sender, tell)
    finally:
        postgres.drop(url)


def _measure(
    url: str,
    secret: Secrets,
    orders: int,
    variant: Variant,
    sender: Callable[[Load], Outcome],
    tell: Tell,
) -> tuple[Cost, Counts]:
    shop = Shop(url, secret, USERS)
    with servers.connect(url) as connection, connection.cursor() as cursor:
        if variant.alter:
            cursor.execute(variant.alter)
    shop.seed(0)
    counts = _count(shop, secret)
    before, indexes, position = _tables(shop), _indexes(shop), shop.wal_position()
    with servers.service(url, secret, 1) as server:
        for batch in range(BATCHES):
            tell(f"{variant.name}: {orders * batch // BATCHES:,} of {orders:,} orders")
            pay_orders(shop, server.port, orders // BATCHES, sender)
            if variant.vacuum:
                with servers.connect(url) as connection, connection.cursor() as cursor:
                    cursor.execute("VACUUM")
    # Its connections are closed: all that they counted is told now.
    number = orders // BATCHES * BATCHES
    after, indexes_after = _tables(shop), _indexes(shop)
    cost = Cost(
        number,
        round((shop.wal_position() - position) / number, 1),
        {
            name: Table(
                *(_each(new - old, number) for old, new in zip(before[name], row, strict=True))
            )
            for name, row in sorted(after.items())
            if row != before[name]
        },
        {
            table: {
                index: _each(size - indexes[table][index], number)
                for index, size in sorted(of.items())
                if size > indexes[table][index]
            }
            for table, of in sorted(indexes_after.items())
            if any(size > indexes[table][index] for index, size in of.items())
        },
        dict(shop.rows(VACUUMS)),
    )
    return cost, counts


def _each(total: int, number: int) -> float:
    return round(total / number, 3)


def _count(shop: Shop, secret: Secrets) -> Counts:
    """The statements of an order that is placed and paid, one after the other."""
    with (
        PostgresProxy(shop.url, pooler=True) as proxy,
        servers.service(proxy.url, secret, 1) as server,
    ):
        pay_orders(shop, server.port, WARM_UP, send)
        begin, position = len(proxy.statements), shop.wal_position()
        pay_orders(shop, server.port, COUNTED, send, connections=1)
        sent, wal_bytes = proxy.statements[begin:], shop.wal_position() - position
    # All messages, as those of the first of so many requests.
    return Traffic([sent, *([[]] * (COUNTED - 1))], wal_bytes, in_background=True).counts()


def _tables(shop: Shop) -> Mapping[str, list[int]]:
    return {name: numbers for name, *numbers in shop.rows(TABLES)}


def _indexes(shop: Shop) -> Mapping[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for table, index, size in shop.rows(INDEXES):
        found.setdefault(table, {})[index] = size
    return found


# Showing ----------------------------------------------------------------------------------------

A_MONTH: Final = 1_000_000  # orders
DAYS: Final = 30
# How many days what is written stays; the others stay for good.
STAYS: Final = {
    "public.idempotency_keys": 3,
    "public.gateway_events": 90,
    "sandbox.webhooks": 30,
}


def _gib(each: float) -> str:
    return f"{each * A_MONTH / 2**30:.2f}"


def _short(name: str) -> str:
    return name.removeprefix("public.")


def summary(kept: Kept) -> str:
    cost, counts = kept.cost, kept.counts
    sizes = {
        name: _size(table) for name, table in cost.tables.items() if not name.startswith("sandbox.")
    }
    own = sum(sizes.values())
    deleted = {name: size for name, size in sizes.items() if name in STAYS}
    most = sum(size * STAYS[name] / DAYS for name, size in deleted.items())
    rows = [
        ("statements of the service", f"{counts.statements:.1f}"),
        ("statements of the sandbox gateway", f"{counts.gateway_statements:.1f}"),
        ("round trips to PostgreSQL, of both", f"{counts.round_trips:.1f}"),
        ("bytes of the write-ahead log, of both", f"{cost.wal_bytes:,.0f}"),
        ("bytes of rows and indexes", f"{own:,.0f}"),
        ("the same, of the sandbox's books", f"{cost.bytes - own:,.0f}"),
        ("GiB that a month of a million orders adds for good", _gib(own - sum(deleted.values()))),
        ("GiB that what is deleted later takes at such a rate, and no more", _gib(most)),
        ("GiB of the write-ahead log in such a month", _gib(cost.wal_bytes)),
    ]
    measured = f"{cost.orders:,} orders on {report.machine(kept.machine)}."
    return f"{measured}\n\n{report.table(('for each order paid', ''), rows)}"


def tables(kept: Kept) -> str:
    rows = []
    for name, table in sorted(kept.cost.tables.items(), key=lambda item: -_size(item[1])):
        hot = f"{table.hot / table.updates:.0%}" if table.updates >= 0.01 else "–"
        days = STAYS.get(name)
        rows.append(
            (
                _short(name),
                f"{table.inserts:.2f}",
                f"{table.updates:.2f}",
                hot,
                f"{table.updates - table.hot + table.deletes:.2f}",
                str(kept.cost.autovacuums.get(name, 0)),
                f"{table.bytes:,.0f}",
                f"{table.index_bytes:,.0f}",
                _gib(_size(table)),
                "for good" if days is None else f"{days} days",
            )
        )
    head = (
        *("table", "inserts", "updates", "HOT", "left for VACUUM", "autovacuums", "row bytes"),
        *("index bytes", "GiB a month", "stays"),
    )
    return report.table(head, rows)


def _size(table: Table) -> float:
    return table.bytes + table.index_bytes


def indexes(kept: Kept) -> str:
    rows = sorted(
        (
            (_short(table), index, size)
            for table, of in kept.cost.indexes.items()
            for index, size in of.items()
        ),
        key=lambda row: -row[2],
    )
    return report.table(
        ("index", "table", "bytes for each order", "GiB a month"),
        [(index, table, f"{size:,.0f}", _gib(size)) for table, index, size in rows],
    )


def variants(kept: Kept) -> str:
    rows = [
        (
            name,
            *(_hot(cost, f"public.{table}") for table in UPDATED),
            f"{cost.bytes:,.0f}",
            f"{cost.wal_bytes:,.0f}",
        )
        for name, cost in {DEFAULT.name: kept.cost, **kept.variants}.items()
    ]
    head = ("settings", *(f"HOT, {table}" for table in UPDATED), "bytes", "WAL bytes")
    return report.table(head, rows)


def _hot(cost: Cost, name: str) -> str:
    table = cost.tables.get(name)
    return f"{table.hot / table.updates:.0%}" if table and table.updates else "–"


def _part(make: Callable[[Kept], str]) -> Callable[[], str]:
    return lambda: make(read(Kept, KEPT))


PARTS: Final = {make.__name__: _part(make) for make in (summary, tables, variants, indexes)}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--orders", type=int, default=5000)
    parser.add_argument("--variants", action="store_true", help="try settings of the tables, too")
    chosen = parser.parse_args()
    tell = teller()
    with servers.throwaway_postgres() as postgres, apart() as sender:
        cost, counts = measure(postgres, chosen.orders, DEFAULT, sender, tell)
        if chosen.variants:
            tried = {
                variant.name: measure(postgres, chosen.orders, variant, sender, tell)[0]
                for variant in VARIANTS
            }
        else:
            tried = read(Kept, KEPT).variants if KEPT.exists() else {}
        kept = Kept(servers.machine(postgres), counts, cost, tried)
    keep(KEPT, kept)
    report.write_docs()
    print(f"{summary(kept)}\n\n{tables(kept)}\n\n{variants(kept)}\n\n{indexes(kept)}\n")
    print(f"Kept in {KEPT.name}; docs/cost-per-order.md is written anew.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
