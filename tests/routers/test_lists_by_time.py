"""Lists are newest first by time, whatever the ids say, in pages that miss and repeat nothing.

Compared with the same list made in Python, for every combination of filters, over rows whose times
are not in the order of their ids, and of which many have the same time.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import product
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa

import crud
import database
import invariants
import schemas
from permissions import EVERYONE, VisibleTo
from sessions import Session
from statements import NO_ROWS, Listed
from tests.support.clients import Api

BEGIN = datetime(2026, 3, 1, tzinfo=timezone.utc)
USERS = ("ann", "bob")
STATUSES = ("pending", "paid", "canceled")
ROWS = 240
SEEN_BY: tuple[VisibleTo, ...] = (EVERYONE, *USERS)
TIMES = (None, BEGIN + timedelta(seconds=5), BEGIN + timedelta(seconds=14))


@pytest.fixture(scope="module")
def session(make_database: Callable[[], str]) -> Iterator[Session]:
    """Orders and payments with twenty different times, in no order."""
    url = make_database()
    database.migrate(url)
    engine = database.create_engine(url, pool_size=1)
    dice = random.Random(7)
    with engine.begin() as connection:
        # Without triggers and foreign keys: only what lists look at has to be right.
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        for number, user in enumerate(USERS, 1):
            connection.execute(
                sa.text(
                    "INSERT INTO payment_methods (user_id, payment_type, gateway, gateway_token, "
                    "details) VALUES (:user, 'card', 'sandbox', :token, '{}')"
                ),
                {"user": user, "token": f"tok_{number}"},
            )
        for _ in range(ROWS):
            owner = dice.randrange(2)
            values = {
                "user": USERS[owner],
                "status": dice.choice(STATUSES),
                "method": dice.choice((owner + 1, None)),
                "at": BEGIN + timedelta(seconds=dice.randrange(20)),
                "order": dice.randrange(1, 60),
                "review": dice.random() < 0.4,
            }
            connection.execute(
                sa.text(
                    "INSERT INTO orders (user_id, product_id, quantity, total_amount, currency, "
                    "status, payment_method_id, created_at) "
                    "VALUES (:user, 'sku', 1, 1099, 'USD', :status, :method, :at)"
                ),
                values,
            )
            connection.execute(
                sa.text(
                    "INSERT INTO payments (order_id, user_id, payment_method_id, gateway, "
                    "gateway_key, status, amount, currency, capture_method, needs_review, "
                    "created_at) VALUES (:order, :user, 1, 'sandbox', gen_random_uuid(), "
                    "CASE :status WHEN 'pending' THEN 'voided' WHEN 'paid' THEN 'failed' "
                    "ELSE 'canceled' END, 1099, 'USD', 'manual', :review, :at)"
                ),
                values,
            )
    with database.new_session(engine) as session:
        yield session
    engine.dispose()


def newest_first(rows: Sequence[Any]) -> list[int]:
    return [row.id for row in sorted(rows, key=lambda row: (row.created_at, row.id), reverse=True)]


def all_pages(read: Callable[..., Listed], limit: int) -> list[int]:
    """The ids of all pages; each page asks for one row more than it shows."""
    found: list[int] = []
    cursor = None
    while True:
        listed = read(limit=limit, cursor=cursor)
        found += [row["id"] for row in json.loads(listed.page(limit))]
        if listed.number <= limit:
            return found
        assert listed.last == found[-1]
        cursor = str(listed.last)


def orders(session: Session, user: VisibleTo, **query: Any) -> Listed:
    return crud.list_orders(session, schemas.OrderQuery(**query), user)


def payments(session: Session, user: VisibleTo, **query: Any) -> Listed:
    return crud.list_payments(session, schemas.PaymentQuery(**query), user)


def all_orders(session: Session) -> Sequence[Any]:
    return session.execute(sa.text("SELECT * FROM orders")).all()


def test_there_are_times_that_ids_do_not_tell(session: Session) -> None:
    rows = all_orders(session)
    assert newest_first(rows) != sorted((row.id for row in rows), reverse=True)
    assert len({row.created_at for row in rows}) < len(rows) / 5


@pytest.mark.parametrize("limit", [1, 7, 200])
def test_orders_with_any_filters_are_those_that_fit_and_each_once(
    session: Session, limit: int
) -> None:
    rows = all_orders(session)
    for user, status, method, after, before in product(
        SEEN_BY, (None, "paid"), (None, 1), TIMES, TIMES
    ):
        fitting = [
            row
            for row in rows
            if (user is EVERYONE or row.user_id == user)
            and (status is None or row.status == status)
            and (method is None or row.payment_method_id == method)
            and (after is None or row.created_at > after)
            and (before is None or row.created_at < before)
        ]

        read = partial(
            orders,
            session,
            user,
            status=status,
            payment_method_id=method,
            created_after=after and after.isoformat(),
            created_before=before and before.isoformat(),
        )
        assert all_pages(read, limit) == newest_first(fitting), (user, status, method)


@pytest.mark.parametrize("limit", [1, 7, 200])
def test_payments_with_any_filters_are_those_that_fit_and_each_once(
    session: Session, limit: int
) -> None:
    rows = session.execute(sa.text("SELECT * FROM payments")).all()
    for user, status, order, review in product(
        SEEN_BY, (None, "failed"), (None, 3), (None, True, False)
    ):
        fitting = [
            row
            for row in rows
            if (user is EVERYONE or row.user_id == user)
            and (status is None or row.status == status)
            and (order is None or row.order_id == order)
            and (review is None or row.needs_review == review)
        ]

        read = partial(payments, session, user, status=status, order_id=order, needs_review=review)
        assert all_pages(read, limit) == newest_first(fitting), (user, status, order, review)


@pytest.mark.parametrize("limit", [1, 7, 200])
@pytest.mark.parametrize("since", TIMES)
def test_payments_to_compare_are_all_since_then_and_each_once(
    session: Session, since: datetime | None, limit: int
) -> None:
    rows = session.execute(sa.text("SELECT * FROM payments")).all()
    found: list[int] = []
    after = None
    while page := invariants.list_recent_payments(session, "sandbox", since, after, limit):
        found += [row.id for row in page]
        after = page[-1]
    fitting = [row for row in rows if since is None or row.created_at >= since]
    assert found == newest_first(fitting)
    assert invariants.list_recent_payments(session, "stripe", since, None, limit) == []


def test_a_cursor_of_another_user_tells_nothing(session: Session) -> None:
    rows = all_orders(session)
    of_bob = next(row for row in rows if row.user_id == "bob")
    assert orders(session, "ann", cursor=str(of_bob.id)) == NO_ROWS
    later = "2030-01-01T00:00:00Z"
    assert orders(session, "ann", cursor=str(of_bob.id), created_before=later) == NO_ROWS


def test_a_cursor_from_beyond_the_end_leads_to_where_the_list_begins(session: Session) -> None:
    """As from a list with other filters: it shows nothing that the filters do not."""
    rows = all_orders(session)
    before = BEGIN + timedelta(seconds=5)
    newest = newest_first(rows)[0]
    shown = orders(
        session, EVERYONE, limit=200, cursor=str(newest), created_before=before.isoformat()
    )
    assert [row["id"] for row in json.loads(shown.page(200))] == newest_first(
        [row for row in rows if row.created_at < before]
    )


def test_links_lead_through_all_orders_of_a_time(api: Api, user: str) -> None:
    client = api(user)
    order = {"product_id": "sku", "quantity": 1, "total_amount": 1099}
    placed = [client.post("/orders", json=order).json() for _ in range(7)]
    path = "/orders"
    query: dict[str, Any] = {
        "limit": 2,
        "created_after": placed[0]["created_at"],
        "created_before": placed[6]["created_at"],
    }
    found: list[int] = []
    while True:
        answer = client.get(path, params=query)
        assert answer.status_code == 200
        found += [shown["id"] for shown in answer.json()]
        if "next" not in answer.links:
            break
        parts = urlsplit(answer.links["next"]["url"])
        path, query = parts.path, dict(parse_qs(parts.query))
    assert found == [shown["id"] for shown in placed[5:0:-1]]
