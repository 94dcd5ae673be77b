"""Changes of a user's payment methods take turns: the user's first row stands for all of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

import crud
import database
from tests.support.database import sql
from tests.support.factories import card, place_order, save_card
from tests.support.processes import HANG, wait_for

FIRST = """
    INSERT INTO payment_methods (user_id, payment_type, gateway, gateway_token, details, is_default)
    VALUES (:user, 'card', 'sandbox', 'tok_success', '{}', true)
"""
WAITING = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :query"


def test_of_two_first_methods_at_once_one_is_the_default(
    alice: httpx.Client, user: str, engine: sa.Engine
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with engine.connect() as other:
            other.execute(sa.text(FIRST), {"user": user})
            answer = pool.submit(alice.post, "/payment-methods", json=card())
            query = "%INSERT INTO payment_methods%"
            wait_for(lambda: bool(sql(engine, WAITING, query=query)), "the second waits", 30)
            other.commit()
        saved = answer.result(HANG)
    assert (saved.status_code, saved.json()["is_default"]) == (201, False)
    assert len(alice.get("/payment-methods").json()) == 2


def test_whoever_changes_methods_waits_for_the_first_row_of_the_user(
    alice: httpx.Client, user: str, engine: sa.Engine
) -> None:
    first, second = save_card(alice), save_card(alice, "5555555555554444")
    alice.delete(f"/payment-methods/{first['id']}").raise_for_status()  # it stays the first row
    with engine.connect() as other:
        lock = "SELECT FROM payment_methods WHERE id = :id FOR NO KEY UPDATE"
        other.execute(sa.text(lock), {"id": first["id"]})
        with database.new_session(engine) as session:
            session.execute(sa.text("SET LOCAL lock_timeout = '10ms'"))
            with pytest.raises(OperationalError) as waited:
                crud.lock_user(session, user)
        assert database.sqlstate(waited.value) == "55P03"
    with database.new_session(engine) as session:  # an order refers to a method, and does not wait
        crud.lock_user(session, user)
        place_order(alice, payment_method_id=second["id"])
