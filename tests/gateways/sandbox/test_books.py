"""The sandbox's books as they are listed, paged and looked up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa

from gateways import base
from gateways.base import Charge, ChargeLookup, ListedCharge, RefundLookup
from gateways.sandbox import SandboxGateway
from tests.support.database import sql
from tests.support.sandbox import (
    change_request,
    charge_request,
    give_back,
    has_due_work,
    make,
    refund_request,
    statements,
)

HOUR, YEAR = timedelta(hours=1), timedelta(days=365)
NOW = datetime.now(timezone.utc)


def listed(sandbox: SandboxGateway, since: datetime | None = None) -> list[ListedCharge]:
    """Everything that a walk through all pages lists."""
    found: list[ListedCharge] = []
    cursor = None
    while True:
        page = sandbox.list_charges(since, cursor)
        assert len(page.charges) <= 200
        found += page.charges
        cursor = page.cursor
        if cursor is None:
            return found


def shown(sandbox: SandboxGateway) -> list[dict[str, Any]]:
    """What `GET /sandbox/charges` shows."""
    return [entry.as_dict() for entry in sandbox.page(limit=200)]


def age(engine: sa.Engine, by: timedelta = YEAR) -> None:
    """Let time pass: everything was made and changed that long ago."""
    sql(
        engine,
        "UPDATE sandbox.charges SET created_at = created_at - :by, changed_at = changed_at - :by",
        by=by,
    )


def fill(engine: sa.Engine, count: int, *, order_id: int = 7, same_moment: bool = False) -> None:
    """So many captured charges, a second apart or all at once; the last is the newest."""
    sql(
        engine,
        "INSERT INTO sandbox.charges (reference, order_id, payment_id, idempotency_key, amount,"
        " currency, outcome, capture, status, amount_captured, created_at, changed_at)"
        " SELECT 'ch_' || n, :order_id, n, 'key ' || n, 1000, 'USD', 'success', true, 'captured',"
        " 1000, moment, moment FROM generate_series(1, :count) n,"
        " LATERAL (SELECT now() - make_interval(secs => CASE WHEN :same_moment THEN 0"
        " ELSE :count - n END) AS moment) m",
        count=count,
        order_id=order_id,
        same_moment=same_moment,
    )


# Changed since then -----------------------------------------------------------------------------


def approve(sandbox: SandboxGateway, charge: Charge) -> None:
    sandbox.answer_action(charge.reference, approve=True)


Act = Callable[[SandboxGateway, sa.Engine, Charge], object]

# Of a charge with this test card, captured at once or not.
ACTS: dict[str, tuple[str, bool, Act]] = {
    "capture": ("success", False, lambda s, _, c: s.capture(change_request("capture", c, 400))),
    "void": ("success", False, lambda s, _, c: s.void(change_request("void", c))),
    "giving up": ("requires_action", True, lambda s, _, c: s.void(change_request("void", c))),
    "approval": ("requires_action", True, lambda s, _, c: approve(s, c)),
    "refund": ("success", True, lambda s, _, c: give_back(s, c, 400)),
    "dashboard refund": ("success", True, lambda s, _, c: s.dashboard.refund(c.reference)),
    "dashboard capture": ("success", False, lambda s, _, c: s.dashboard.capture(c.reference)),
    "dashboard cancellation": ("success", False, lambda s, _, c: s.dashboard.cancel(c.reference)),
    "dispute": ("success", True, lambda s, _, c: s.dashboard.open_dispute(c.reference)),
    "psql": ("success", True, lambda _, e, c: sql(e, LOWER, reference=c.reference)),
}
LOWER = "UPDATE sandbox.charges SET amount_captured = 9 WHERE reference = :reference"


@pytest.mark.parametrize("act", ACTS)
def test_a_charge_made_long_ago_is_listed_once_something_happens_to_it(
    lone: SandboxGateway, lone_engine: sa.Engine, act: str
) -> None:
    outcome, capture, do = ACTS[act]
    charge = make(lone, f"tok_{outcome}", capture=capture)
    make(lone)  # to which nothing happens
    age(lone_engine)
    assert listed(lone, NOW - HOUR) == []
    do(lone, lone_engine, charge)
    assert [entry.charge.reference for entry in listed(lone, NOW - HOUR)] == [charge.reference]


def test_what_time_does_is_listed_too(lone: SandboxGateway, lone_engine: sa.Engine) -> None:
    expires = make(lone, capture=False)
    fails = make(lone, "tok_refund_fails")
    give_back(lone, fails, 400)
    closes = make(lone, "tok_dispute")
    sql(lone_engine, "UPDATE sandbox.charges SET capture_before = '2020-01-01'")
    sql(lone_engine, "UPDATE sandbox.refunds SET fails_at = '2020-01-01'")
    sql(lone_engine, "UPDATE sandbox.disputes SET closes_at = '2020-01-01'")
    age(lone_engine)
    assert listed(lone, NOW - HOUR) == []
    assert lone.tick() == 3
    changed = {entry.charge.reference for entry in listed(lone, NOW - HOUR)}
    assert changed == {expires.reference, fails.reference, closes.reference}


def test_charges_of_all_kinds_are_listed(lone: SandboxGateway) -> None:
    for token in ("tok_success", "tok_generic_decline", "tok_requires_action"):
        make(lone, token)
    make(lone, capture=False)
    statuses = {entry.charge.status for entry in listed(lone, NOW - HOUR)}
    assert statuses == {"captured", "declined", "requires_action", "authorized"}


def test_a_listed_charge_shows_its_key_its_payment_its_refunds_and_its_dispute(
    lone: SandboxGateway,
) -> None:
    request = charge_request(payment_id=42)
    charge = lone.charge(request)
    ours = give_back(lone, charge, 400, refund_id=5)
    theirs = lone.dashboard.refund(charge.reference, 250)
    dispute = lone.dashboard.open_dispute(charge.reference)
    (entry,) = listed(lone)
    assert (entry.key, entry.payment_id) == (request.key, 42)
    assert entry.charge.refunds == (ours, theirs)
    assert (ours.refund_id, theirs.refund_id) == (5, None)
    assert (ours.currency, theirs.amount) == ("USD", 250)
    assert entry.disputes == (dispute,)
    assert dispute.evidence_due_at is not None
    assert dispute.evidence_due_at > NOW


def test_a_statement_of_the_previous_release_moves_what_is_listed(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    # It knows neither `changed_at` nor a refund without the service's id.
    sql(
        lone_engine,
        "INSERT INTO sandbox.charges (reference, order_id, payment_id, idempotency_key, amount,"
        " currency, outcome, capture, status) VALUES ('ch_old', 7, 7, 'k', 1000, 'USD', 'success',"
        " false, 'authorized')",
    )
    assert len(listed(lone, NOW - HOUR)) == 1
    for statement in (
        "UPDATE sandbox.charges SET status = 'captured', amount_captured = 700",
        "INSERT INTO sandbox.refunds (reference, charge, refund_id, amount, status)"
        " VALUES ('re_old', 'ch_old', 1, 100, 'pending')",
        "UPDATE sandbox.refunds SET status = 'failed' WHERE status = 'pending'",
        "INSERT INTO sandbox.disputes (reference, charge, status, closes_at)"
        " VALUES ('dp_old', 'ch_old', 'open', now())",
        "UPDATE sandbox.disputes SET status = 'won' WHERE status = 'open'",
    ):
        age(lone_engine)
        assert listed(lone, NOW - HOUR) == []
        sql(lone_engine, statement)
        assert len(listed(lone, NOW - HOUR)) == 1, statement


def test_what_was_under_way_at_that_moment_is_listed_once_it_is_committed(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    charge = make(lone)
    age(lone_engine)
    with lone_engine.begin() as connection:
        connection.execute(sa.text("UPDATE sandbox.charges SET amount_captured = 1"))
        since = sql(lone_engine, "SELECT clock_timestamp()")[0][0]
        assert listed(lone, since) == []
    assert [entry.charge.reference for entry in listed(lone, since)] == [charge.reference]


# Pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_moment", [False, True])
@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, 450])
def test_the_pages_of_the_list_hold_every_charge_once(
    lone: SandboxGateway, lone_engine: sa.Engine, count: int, same_moment: bool
) -> None:
    fill(lone_engine, count, same_moment=same_moment)
    references = [entry.charge.reference for entry in listed(lone)]
    assert len(references) == count
    assert set(references) == {f"ch_{number}" for number in range(1, count + 1)}


def test_what_changes_between_two_pages_is_listed_as_it_is_then(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    fill(lone_engine, 250)
    first = lone.list_charges(None)
    again, not_yet = first.charges[0].charge.reference, "ch_250"
    for reference in (again, not_yet):
        lone.dashboard.refund(reference)
    rest = lone.list_charges(None, first.cursor).charges
    assert {again, not_yet} <= {entry.charge.reference for entry in rest if entry.charge.refunds}
    both = {entry.charge.reference for entry in (*first.charges, *rest)}
    assert len(both) == 250


def test_a_cursor_of_somebody_elses_is_refused(lone: SandboxGateway) -> None:
    for cursor in ("", "ch_1", "yesterday ch_1", "\0"):
        with pytest.raises(base.NotExecuted):
            lone.list_charges(None, cursor)


def test_a_page_costs_three_statements_however_many_charges_there_are(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    fill(lone_engine, 250)
    for read in (lambda: lone.list_charges(None), lambda: lone.page(limit=200)):
        with statements(lone_engine) as sent:
            read()
        assert len(sent) == 3  # charges, their refunds, their disputes


def test_no_page_needs_more_than_an_index_to_be_found(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    sql(lone_engine, "ALTER TABLE sandbox.charges SET (autovacuum_enabled = off)")
    fill(lone_engine, 5000)
    sql(lone_engine, "UPDATE sandbox.charges SET order_id = payment_id")
    sql(lone_engine, "ANALYZE sandbox.charges")
    reads: list[Callable[[], object]] = [
        lambda: lone.list_charges(NOW - HOUR),
        lambda: lone.list_charges(None, f"{NOW.isoformat()} ch_9"),
        lambda: lone.page(limit=51),
        lambda: lone.page(limit=51, cursor="ch_4000"),
        lambda: lone.page(limit=51, order_id=77),
        lone.tick,
        lambda: has_due_work(lone_engine),
    ]

    def explain(*arguments: object) -> None:
        _, cursor, statement, parameters, _, many = arguments
        assert not many
        if "sandbox.charges" in str(statement):
            cursor.execute(f"EXPLAIN {statement}", parameters)  # type: ignore[attr-defined]
            plans.append("\n".join(row[0] for row in cursor.fetchall()))  # type: ignore[attr-defined]

    plans: list[str] = []
    sa.event.listen(lone_engine, "before_cursor_execute", explain)
    try:
        for read in reads:
            read()
    finally:
        sa.event.remove(lone_engine, "before_cursor_execute", explain)
    assert len(plans) >= len(reads)
    for plan in plans:
        assert "Seq Scan on charges" not in plan, plan
        assert "Index" in plan, plan


# Looking up -------------------------------------------------------------------------------------


@pytest.mark.parametrize("resend", [True, False])
def test_a_look_up_shows_all_refunds_whoever_made_them(lone: SandboxGateway, resend: bool) -> None:
    request = charge_request()
    charge = lone.charge(request)
    query = ChargeLookup(request, charge.reference, NOW, resend)
    found = lone.look_up(query)
    assert found is not None
    assert found.refunds == ()
    ours = give_back(lone, charge, 400, refund_id=5)
    theirs = lone.dashboard.refund(charge.reference)
    found = lone.look_up(query)
    assert found is not None
    assert found.refunds == (ours, theirs)


@pytest.mark.parametrize("resend", [True, False])
def test_a_look_up_moves_no_money_and_keeps_a_late_original_from_doing_so(
    lone: SandboxGateway, resend: bool
) -> None:
    held = make(lone, capture=False)
    paid = make(lone)
    charge, capture = charge_request(), change_request("capture", held)
    refund = refund_request(paid, 400)
    before = shown(lone)
    assert lone.look_up(ChargeLookup(charge, None, NOW, resend)) is None
    assert lone.look_up(ChargeLookup(capture, held.reference, NOW, resend)) is None
    assert lone.look_up_refund(RefundLookup(refund, None, NOW, resend)) is None
    late: list[Callable[[], object]] = [
        lambda: lone.charge(charge),
        lambda: lone.capture(capture),
        lambda: lone.refund(refund),
    ]
    for original in late:
        with pytest.raises(base.NotExecuted):
            original()
    assert shown(lone) == before


def test_what_was_done_is_found_after_its_key_was_forgotten(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    request = charge_request()
    charge = lone.charge(request)
    refund = refund_request(charge, 400, refund_id=5)
    made = lone.refund(refund)
    other = refund_request(charge, 100, refund_id=6)
    sql(lone_engine, "DELETE FROM sandbox.requests")
    for _ in range(2):
        found = lone.look_up(ChargeLookup(request, None, NOW, resend=False))
        assert found is not None
        assert found.reference == charge.reference
        assert lone.look_up_refund(RefundLookup(refund, None, NOW, resend=False)) == made
    assert lone.look_up_refund(RefundLookup(other, None, NOW, resend=False)) is None


def test_a_key_that_is_repeated_gets_the_refund_that_it_made(lone: SandboxGateway) -> None:
    charge = make(lone)
    request = refund_request(charge, 400)
    assert lone.refund(request) == lone.refund(request)
    (entry,) = shown(lone)
    assert entry["amount_refunded"] == 400
