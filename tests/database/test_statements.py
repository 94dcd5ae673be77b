"""Every statement that writes or locks the rows of a user names the user.

See `tests.support.statements`.
All tests are watched (tests/conftest.py). Here: that the watch sees, and what it does not hear of.
"""

from __future__ import annotations

import re

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from invariants import INVARIANTS
from models import Base, Order, Payment, Refund
from statements import PooledSender, Statement
from tests.support.paths import ROOT
from tests.support.statements import OF_USERS, READS, WATCH, faults_of, parts_of

ORDERS, PAYMENTS, REFUNDS = Order.__table__, Payment.__table__, Refund.__table__
A_USER, AN_ID = PAYMENTS.c.user_id == "alice", PAYMENTS.c.id == 1
BOTH = REFUNDS.c.payment_id == PAYMENTS.c.id

FAULTY = {
    "writes": sa.update(Payment).where(AN_ID).values(amount=1),
    "deletes": sa.delete(Payment).where(AN_ID),
    "locks": sa.select(PAYMENTS).where(AN_ID).with_for_update(),
    "locks to insert": sa.select(PAYMENTS).where(AN_ID).with_for_update(key_share=True, read=True),
    "locks inside": sa.update(Payment)
    .where(A_USER, PAYMENTS.c.id == sa.select(PAYMENTS.c.id).with_for_update().scalar_subquery())
    .values(amount=1),
    "writes what another query has locked": sa.update(Payment)
    .where(
        PAYMENTS.c.id == sa.select(PAYMENTS.c.id).where(A_USER).with_for_update().scalar_subquery()
    )
    .values(amount=1),
    "sets the user": sa.update(Payment).where(AN_ID).values(user_id="alice"),
    "joins": sa.select(REFUNDS.c.id).join(PAYMENTS, BOTH),
    "groups": sa.select(PAYMENTS.c.order_id).group_by(PAYMENTS.c.order_id),
    "inserts": sa.insert(Refund).values(payment_id=1, amount=1),
}
SOUND = {
    "writes": sa.update(Payment).where(A_USER, AN_ID).values(amount=1),
    "locks": sa.select(PAYMENTS).where(A_USER, AN_ID).with_for_update(skip_locked=True),
    "joins": sa.select(REFUNDS.c.id).join(
        PAYMENTS, sa.and_(PAYMENTS.c.user_id == REFUNDS.c.user_id, BOTH)
    ),
    "reads by id": sa.select(PAYMENTS).where(AN_ID),
    "inserts": sa.insert(Refund).values(payment_id=1, user_id="alice", amount=1),
}


def text_of(statement: sa.Executable) -> str:
    assert isinstance(statement, sa.ClauseElement)
    return str(statement.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("statement", FAULTY.values(), ids=FAULTY)
def test_a_statement_that_names_no_user_is_seen(statement: sa.Executable) -> None:
    assert faults_of(text_of(statement))


@pytest.mark.parametrize("statement", SOUND.values(), ids=SOUND)
def test_a_statement_that_names_the_user_is_in_order(statement: sa.Executable) -> None:
    assert faults_of(text_of(statement)) == ()


def test_the_suite_is_watched(engine: sa.Engine) -> None:
    """A test that sends such a statement fails, and so does one whose service does."""
    with Session(engine) as session:
        session.execute(sa.update(Payment).where(Payment.id == 0).values(amount=1))
    (fault,) = WATCH.take()
    assert fault.startswith("writes without the user: UPDATE payments")


def test_a_transaction_of_several_users_is_seen(engine: sa.Engine) -> None:
    with Session(engine) as session:
        for user in ("alice", "bob"):
            session.execute(sa.update(Payment).where(Payment.user_id == user).values(amount=1))
            session.commit()
        assert WATCH.take() == []
        for user in ("alice", "bob"):
            session.execute(sa.update(Payment).where(Payment.user_id == user).values(amount=1))
    (fault,) = WATCH.take()
    assert fault.startswith("a transaction of several users: UPDATE payments")


def test_what_the_mapper_sends_names_the_user() -> None:
    mapped = {str(mapper.local_table): mapper for mapper in Base.registry.mappers}
    for name in {*OF_USERS} - {"gateway_events"}:  # which are only inserted and deleted
        identity = [column.name for column in mapped[name].primary_key]
        assert identity == ["user_id", "id"], name
        assert [column.name for column in mapped[name].local_table.primary_key] == ["id"]


@pytest.mark.parametrize("name", INVARIANTS)
def test_every_query_inside_an_invariant_stays_with_one_user(name: str) -> None:
    assert faults_of(INVARIANTS[name]) == ()
    *inside, _ = parts_of(INVARIANTS[name])
    assert [part for part in inside if READS.search(part) and "user_id" not in part] == []


def test_the_product_writes_no_rows_by_text() -> None:
    """Text is not watched."""
    text = re.compile(r"""text\(\s*f?["']+\s*(?:WITH|INSERT|UPDATE|DELETE)\b""")
    product = [*ROOT.glob("*.py"), *ROOT.glob("s*/**/*.py"), *ROOT.glob("w*/**/*.py")]
    found = [path.name for path in product if text.search(path.read_text())]
    assert found == []


def test_a_statement_that_is_sent_alone_is_seen(engine: sa.Engine) -> None:
    sender = PooledSender(engine)
    sender.rows(Statement("SELECT id FROM payments WHERE id = 1 FOR UPDATE"))
    assert WATCH.take()
    sender.rows(Statement("SELECT id FROM payments WHERE user_id = 'alice' AND id = 1 FOR UPDATE"))
    assert WATCH.take() == []
