"""What each statement touches when there is much: plans and pages.

Runs what the service runs on a database that `dataset.py` has filled, and explains each statement
in the moment in which it is sent. A page is 8 KiB, counted as often as it is looked at. Each has a
limit, which is the same for any number of orders. `growth_by_size.py` is the command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy import orm

import crud
import database
import idempotency_keys
import invariants
import leases
import schemas
from benchmarks.dataset import BUSY_USER, LOST_USER, OPEN_PAYMENTS
from benchmarks.seen import seen_by_engines
from database import Old, delete_old, read_one
from gateways.sandbox import SandboxGateway, delete_leftovers, has_work
from invariants import INVARIANTS, find_violations
from models import Payment, Refund
from permissions import EVERYONE, VisibleTo
from rows import PaymentRow
from sessions import Session
from statements import Sender

# Pages that a statement may touch.
A_LIST = 100  # 51 rows, each on a page of its own at worst, and a few pages of indexes
A_COUNT = 2 * OPEN_PAYMENTS + 200  # of what is open: an entry and a row each
A_REAPED_BATCH = 4_000  # 500 rows: to find, lock and delete each, and its keys in other tables
A_LOOK = 2_000  # 20 rows that are due, each to be written, with an entry in every index
A_POLL = 200  # whether something is due, and mostly nothing is
A_WINDOW = 100_000  # 10,000 orders or refunds: for each its payment and the last of its events


@dataclass(frozen=True, slots=True)
class Plan:
    """What PostgreSQL did for one statement."""

    statement: str
    scans: str  # which tables and indexes it read, and what it sorted
    rows: int
    removed: int  # rows that were read and thrown away
    pages: int
    milliseconds: float

    @classmethod
    def of(cls, statement: str, explained: dict[str, Any]) -> Plan:
        top = explained["Plan"]
        nodes = list(_nodes(top))
        removed = sum(
            count * node["Actual Loops"]
            for node in nodes
            for name, count in node.items()
            if name.startswith("Rows Removed by")
        )
        touched = ("Shared Hit", "Shared Read", "Temp Read", "Temp Written")
        return cls(
            statement,
            ", ".join(dict.fromkeys(filter(None, map(_scan, nodes)))),
            int(top["Actual Rows"]),
            int(removed),
            sum(top[f"{kind} Blocks"] for kind in touched),
            explained["Execution Time"],
        )


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _scan(node: dict[str, Any]) -> str | None:
    kind: str = node["Node Type"]
    if "Index Name" in node:
        name: str = node["Index Name"]
        return name
    if kind == "Seq Scan":
        return f"SEQ SCAN {node['Relation Name']}"
    return kind.upper() if "Sort" in kind else None


@contextmanager
def explaining(engine: sa.Engine) -> Iterator[list[Plan]]:
    """Collect the plan of every statement that is sent meanwhile.

    Each is explained, which runs it, and taken back, right before it runs for good.
    """
    plans: list[Plan] = []

    def explain(
        _connection: Any, cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        if many or not re.match(r"\s*(SELECT|UPDATE|DELETE|WITH)\b", statement):
            return
        cursor.execute("SAVEPOINT explained")
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
        ((explained,),) = cursor.fetchone()
        cursor.execute("ROLLBACK TO SAVEPOINT explained")
        plans.append(Plan.of(statement, explained))

    sa.event.listen(engine, "before_cursor_execute", explain)
    try:
        with seen_by_engines():
            yield plans
    finally:
        sa.event.remove(engine, "before_cursor_execute", explain)


@dataclass(frozen=True, slots=True)
class Probe:
    """Something that the service does, and how many pages each of its statements may touch."""

    name: str
    limit: int
    run: Callable[[Session], object]


def _name(*words: object) -> str:
    return " ".join(str(word) for word in words if word)


def order_lists(engine: sa.Engine) -> Iterator[Probe]:
    """Every combination of filters, on the first page and near the end of the list."""
    with engine.connect() as connection:
        early, late = _times(connection)
        times: dict[str, dict[str, Any]] = {
            "": {},
            "before long ago": {"created_before": early},
            "after long ago": {"created_after": early},
            "in a year": {"created_after": early, "created_before": late},
        }
        ends = {user: _late_ids(connection, user) for user in (None, BUSY_USER, LOST_USER)}
    for user, status, method, (when, bounds), deep in product(
        (None, BUSY_USER, LOST_USER),
        (None, "delivered", "authorized"),
        (None, 1),  # of the busy user
        times.items(),
        (False, True),
    ):
        yield Probe(
            _name("orders", user, status, method and "of a method", when, deep and "deep"),
            A_LIST,
            _listing(
                crud.list_orders,
                schemas.OrderQuery(
                    status=status,
                    payment_method_id=method,
                    cursor=ends[user] if deep else None,
                    **bounds,
                ),
                user or EVERYONE,
            ),
        )


def payment_lists(engine: sa.Engine) -> Iterator[Probe]:
    with engine.connect() as connection:
        ends = {user: _late_ids(connection, user) for user in (None, BUSY_USER, LOST_USER)}
    for user, status, review, deep in product(
        (None, BUSY_USER, LOST_USER),
        (None, "captured", "failed"),
        (None, True, False),
        (False, True),
    ):
        what = {None: "", True: "to review", False: "not to review"}[review]
        yield Probe(
            _name("payments", user, status, what, deep and "deep"),
            A_LIST + (OPEN_PAYMENTS if review else 0),  # found among all that need one
            _listing(
                crud.list_payments,
                schemas.PaymentQuery(
                    status=status, needs_review=review, cursor=ends[user] if deep else None
                ),
                user or EVERYONE,
            ),
        )


def other_lists(engine: sa.Engine) -> Iterator[Probe]:
    with engine.connect() as connection:
        of, refund = connection.execute(
            sa.text("SELECT user_id, payment_id FROM refunds ORDER BY payment_id DESC LIMIT 1")
        ).one()
    by_order, page = schemas.PaymentQuery(order_id=refund), schemas.Page()
    disputes = {
        "disputes": schemas.DisputeQuery(),
        "disputes open": schemas.DisputeQuery(status="open"),
        "disputes lost": schemas.DisputeQuery(status="lost"),
        "disputes of a payment": schemas.DisputeQuery(payment_id=57),
    }
    methods = schemas.PaymentMethodQuery()
    for name, run in {
        "payments of an order": _listing(crud.list_payments, by_order, EVERYONE),
        "payment methods": _listing(crud.list_payment_methods, methods, BUSY_USER),
        "refunds of a payment": lambda session: crud.list_refunds(session, of, refund, page),
        "events of an order": lambda session: crud.list_order_events(session, of, refund, page),
    }.items():
        yield Probe(name, A_LIST, run)
    for name, query in disputes.items():  # each with its payment
        yield Probe(name, 4 * A_LIST, partial(_disputes, query))


def look_ups(engine: sa.Engine) -> Iterator[Probe]:
    """Payments and refunds that are due, at a gateway and at those that are switched off."""
    for of, gateway in (("sandbox", "sandbox"), ("others", None)):
        due: Any = partial(leases.find_due, gateway=gateway, enabled=["sandbox"], limit=20)
        for lane in get_args(leases.Lane):
            find: Find = partial(due, model=Payment, lane=lane)
            yield Probe(f"look-ups due, {lane}, {of}", A_LOOK, partial(_take, find))
        find = partial(due, model=Refund, lane="open")
        yield Probe(f"look-ups due, refunds, {of}", A_LOOK, partial(_take, find))
    with engine.connect() as connection:
        until = connection.scalar(sa.text("SELECT now()"))
    aged: Any = partial(
        leases.list_aged_payments,
        gateway="sandbox",
        since=until - timedelta(days=300),
        until=until,
        after=None,
        limit=20,
    )
    yield Probe("look-ups, of older payments", A_LOOK, partial(_reread, aged))
    for model in (Payment, Refund):
        find = partial(leases.find_next_unsettled, model=model, after_id=0, limit=20)
        name = f"look-ups, all {model.__tablename__} by id"
        yield Probe(name, A_LOOK, partial(_take, find))


Find = Callable[[Session], list[leases.Due]]


def _take(find: Find, session: Session) -> None:
    for due in find(session):
        leases.take(session, due, seconds=60)
        session.rollback()  # a transaction for each, as the service has


def _reread(find: Callable[[Session], list[leases.Aged]], session: Session) -> None:
    for aged in find(session):
        leases.schedule_reread(session, aged.user_id, aged.id)
        session.rollback()


def _delete(find: Callable[[Session], list[Old]], session: Session) -> None:
    for old in find(session):
        delete_old(session, old)
        session.rollback()


def background(engine: sa.Engine) -> Iterator[Probe]:
    """What roles and scrapers ask for again and again."""
    sandbox = SandboxGateway(engine, timeout=1)
    yield Probe("metrics: open", A_COUNT, lambda session: crud.count_open(session, 10_000))
    yield Probe(
        "metrics: to review", A_COUNT, lambda session: crud.count_needs_review(session, 10_000)
    )
    yield Probe(
        "is anything due", A_POLL, lambda session: leases.find_due_work(session, has_work())
    )
    yield Probe("sandbox: what time does", A_POLL, lambda _: sandbox.tick())
    yield Probe("sandbox: webhooks due", A_POLL, lambda _: sandbox.due_webhooks())
    keys = partial(idempotency_keys.find_expired, limit=500)
    yield Probe("reap keys", A_REAPED_BATCH, partial(_delete, keys))
    events = partial(leases.find_old_gateway_events, days=90, limit=500)
    yield Probe("reap gateway events", A_REAPED_BATCH, partial(_delete, events))
    yield Probe("reap sandbox", A_REAPED_BATCH, lambda _: delete_leftovers(engine, 30, 500))


def windows(engine: sa.Engine) -> Iterator[Probe]:
    yield Probe("window", A_WINDOW, lambda session: list(find_violations(session)))


def comparisons(engine: sa.Engine) -> Iterator[Probe]:
    """Pages of 200 payments to be compared, and of charges with their refunds and disputes."""
    sandbox = SandboxGateway(engine, timeout=1)
    with engine.connect() as connection:
        since = connection.scalar(sa.text("SELECT max(changed_at) FROM sandbox.charges"))
        reference = connection.scalar(
            sa.text(
                "SELECT gateway_reference FROM payments "
                "WHERE gateway = 'sandbox' ORDER BY id LIMIT 1 OFFSET 900"
            )
        )
        after = read_one(
            orm.Session(connection),
            PaymentRow,
            crud.PAYMENTS.where(crud.PAYMENT_COLUMNS.gateway == "paypal").limit(1),
        )
        week_ago = connection.scalar(sa.text("SELECT now() - interval '7 days'"))
    for name in ("sandbox", "paypal"):
        for when, since, last in (
            ("", None, None),
            ("of a week", week_ago, None),
            ("deep", None, after),
        ):
            yield Probe(
                _name("comparing payments at", name, when),
                4 * A_LIST,
                partial(
                    invariants.list_recent_payments,
                    gateway=name,
                    since=since,
                    after=last,
                    limit=200,
                ),
            )
    for name, run in {
        "newest": lambda _: sandbox.page(limit=200),
        "deep": lambda _: sandbox.page(limit=200, cursor=reference),
        "of an order": lambda _: sandbox.page(limit=200, order_id=57),
        "changed lately": lambda _: sandbox.list_charges(since),
        "all": lambda _: sandbox.list_charges(None),
    }.items():
        yield Probe(f"sandbox charges, {name}", 20 * A_LIST, run)


def _listing(
    function: Callable[[Sender, Any, Any], object], query: schemas.Page, visible_to: VisibleTo
) -> Callable[[Session], object]:
    return lambda session: function(session, query, visible_to)


def _disputes(query: schemas.DisputeQuery, session: Session) -> object:
    return crud.list_disputes(session, query)


def _times(connection: sa.Connection) -> list[str]:
    """When a fifth of all orders had been placed, and when three quarters."""
    query = "SELECT percentile_disc(ARRAY[0.2, 0.75]) WITHIN GROUP (ORDER BY created_at)"
    return [time.isoformat() for time in connection.scalar(sa.text(f"{query} FROM orders")) or []]


def _late_ids(connection: sa.Connection, user: str | None) -> str:
    """The payment, and so the order, that a page near the end of a list begins after."""
    query = "SELECT percentile_disc(0.05) WITHIN GROUP (ORDER BY id) FROM payments"
    return str(
        connection.scalar(
            sa.text(f"{query} WHERE user_id = coalesce(:user, user_id)"), {"user": user}
        )
    )


@dataclass(frozen=True, slots=True)
class Line:
    """The plan that touched the most pages of all that a statement had."""

    kind: str
    name: str
    limit: int
    plan: Plan

    @property
    def fails(self) -> bool:
        return self.plan.pages > self.limit


def measure(engine: sa.Engine, tell: Callable[[str], None]) -> list[Line]:
    """Run everything on a database that is filled."""
    lines: list[Line] = []
    for probes in (
        order_lists,
        payment_lists,
        other_lists,
        comparisons,
        look_ups,
        background,
        windows,
    ):
        kind = probes.__name__.replace("_", " ")
        tell(kind)
        lines += _run(engine, kind, probes(engine))
    return lines


def _run(engine: sa.Engine, kind: str, probes: Iterable[Probe]) -> Iterator[Line]:
    for probe in probes:
        with explaining(engine) as plans, database.new_session(engine) as session:
            probe.run(session)
            session.rollback()
        worst: dict[str, Plan] = {}
        for plan in sorted(plans, key=lambda plan: plan.pages):
            worst[plan.statement] = plan
        for plan in worst.values():
            yield Line(kind, _name(probe.name, _invariant(plan.statement)), probe.limit, plan)


def _invariant(statement: str) -> str | None:
    """Which invariant this is the query of."""
    sent = re.sub(r"%\((\w+)\)s", r":\1", statement).replace("%%", "%")
    return next((name for name, query in INVARIANTS.items() if sent.startswith(query)), None)


def table(lines: list[Line]) -> str:
    width = max(len(line.name) for line in lines)
    rows = [f"  {'':{width}} {'pages':>8} {'limit':>8} {'removed':>8} {'rows':>6} {'ms':>7}  read"]
    for line in lines:
        plan = line.plan
        rows.append(
            f"{'!' if line.fails else ' '} {line.name:{width}} {plan.pages:8,} {line.limit:8,} "
            f"{plan.removed:8,} {plan.rows:6,} {plan.milliseconds:7.1f}  {plan.scans}"
        )
    return "\n".join(rows)
