"""Finding out by itself: the reconciler, the workers, the commands, and proof that they can see."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

import database
from config import Settings
from gateways import base
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from invariants import INVARIANTS, find_violations
from leases import MAX_PAUSE
from services import reconciliation
from sessions import Session
from tests.support.database import sql
from tests.support.paths import ROOT
from tests.support.quiet import (
    LOST,
    REPORT,
    UNHEARD,
    command,
    environment,
    make_due,
    pay,
    rules,
    run_once,
    unknown,
)
from tests.support.shop import (
    ACTION,
    DECLINED,
    MANAGES,
    Bearer,
    Shop,
    problem,
    seen,
    tell,
    together,
    until,
)

# The reconciler ---------------------------------------------------------------------------------


def test_nothing_is_settled_while_nobody_asks_and_all_is_when_somebody_does(
    quiet: Shop, gateways: Gateways
) -> None:
    found, missing = pay(quiet, UNHEARD), pay(quiet, LOST)
    held = pay(quiet, UNHEARD, capture_method="manual")
    assert quiet.status(found) == quiet.status(missing) == ("pending", "pending")
    report = reconciliation.reconcile(quiet.engine, rules(gateways))
    assert set(report) == REPORT
    assert (report["settled"], report["still_open"], report["mismatches"]) == (3, 0, [])
    assert report["checked"] >= 3
    assert quiet.status(found) == ("captured", "paid")
    assert quiet.status(missing) == ("failed", "pending")
    assert quiet.status(held) == ("authorized", "authorized")


def test_a_payment_is_due_reconcile_after_seconds_after_it_was_asked(
    quiet: Shop, gateways: Gateways
) -> None:
    payment = pay(quiet, UNHEARD)
    query = "SELECT extract(epoch FROM check_at - asked_at) AS after FROM payments WHERE id = :id"
    assert sql(quiet.engine, query, id=payment["id"])[0].after == 1


def test_the_pauses_grow_and_have_a_limit(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = pay(quiet, UNHEARD)
    pauses = []
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", unknown)
        for _ in range(12):
            due = "UPDATE payments SET check_at = now() WHERE id = :id"
            sql(quiet.engine, due, id=payment["id"])
            assert run_once(quiet, gateways) == 1
            assert run_once(quiet, gateways) == 0  # not due yet
            query = "SELECT extract(epoch FROM check_at - now()) FROM payments WHERE id = :id"
            pauses.append(float(sql(quiet.engine, query, id=payment["id"])[0][0]))
    expected = [min(2**number, MAX_PAUSE) for number in range(12)]
    for pause, most in zip(pauses, expected, strict=True):
        assert pause <= most
        assert pause > most / 2 - 1
    assert quiet.status(payment) == ("pending", "pending")
    assert quiet.payment(payment)["needs_review"] is False


@pytest.mark.parametrize("what", ["charge", "capture", "void", "refunds"])
def test_what_a_gateway_does_not_know_after_a_day_goes_to_a_person(
    quiet: Shop,
    gateways: Gateways,
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    if what == "charge":
        payment = pay(quiet, UNHEARD)
    else:
        payment = quiet.paid() if what == "refunds" else quiet.authorized()
        assert quiet.do(payment, what, UNHEARD).status_code == 202
    table = "refunds" if what == "refunds" else "payments"
    column = "payment_id" if what == "refunds" else "id"
    before = quiet.status(payment)
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", unknown)
        patch.setattr(gateway, "look_up_refund", unknown)
        for hours, review in ((23, False), (25, True), (26, True)):
            sql(
                quiet.engine,
                f"UPDATE {table} SET asked_at = now() - make_interval(hours => :hours), "
                f"check_at = now(), checks = 300 WHERE {column} = :id",
                hours=hours,
                id=payment["id"],
            )
            run_once(quiet, gateways)
            assert quiet.payment(payment)["needs_review"] is review, hours
        assert quiet.status(payment) == before  # it is never failed by a timer
        listed = quiet.shopper.get("/payments?needs_review=true").json()
        assert [row["id"] for row in listed] == [payment["id"]]
    events = quiet.events(payment["order_id"])
    reviews = [event for event in events if event["type"] == "payment.needs_review"]
    assert len(reviews) == 1
    assert reviews[0]["actor"] == {"type": "service", "id": "reconciler"}
    assert reviews[0]["data"]["needs_review"] is True


def test_a_truth_that_cannot_be_written_down_goes_to_a_person_in_the_end(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway answers with the reference of another payment: the database refuses that."""
    other, payment = quiet.paid(), pay(quiet, UNHEARD)
    answer = base.Charge(other["gateway_reference"], "captured", 1099, "USD", 1099)
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", lambda query: answer)
        sql(
            quiet.engine,
            "UPDATE payments SET asked_at = now() - interval '25 hours', check_at = now(), "
            "checks = 300 WHERE id = :id",
            id=payment["id"],
        )
        run_once(quiet, gateways)
    assert quiet.status(payment) == ("pending", "pending")
    assert quiet.payment(payment)["needs_review"] is True


def test_one_look_up_that_fails_does_not_stop_the_others(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, fine = pay(quiet, UNHEARD), pay(quiet, UNHEARD)
    look_up = gateway.look_up

    def some(query: base.ChargeLookup) -> base.Charge | None:
        if query.request.payment_id == broken["id"]:
            raise ZeroDivisionError
        return look_up(query)

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", some)
        make_due(quiet)
        run_once(quiet, gateways)
    assert quiet.status(broken) == ("pending", "pending")
    assert quiet.status(fine) == ("captured", "paid")


def test_a_gateway_that_is_switched_off_leaves_its_payments_as_they_are(
    quiet: Shop, gateways: Gateways
) -> None:
    payment = pay(quiet, UNHEARD)
    make_due(quiet)
    run_once(quiet, Gateways([]))
    assert quiet.status(payment) == ("pending", "pending")


@pytest.mark.parametrize("number", [2, 5])
def test_several_reconcilers_at_once_apply_each_outcome_once(
    quiet: Shop, gateways: Gateways, number: int
) -> None:
    found = [pay(quiet, UNHEARD) for _ in range(6)]
    captured = quiet.paid(1000)
    assert quiet.do(captured, "refunds", UNHEARD, amount=400).status_code == 202
    held = quiet.authorized()
    assert quiet.do(held, "capture", UNHEARD).status_code == 202

    def reconcile_all(_: int) -> None:
        reconciliation.reconcile(quiet.engine, rules(gateways))

    together(number, reconcile_all)
    reconcile_all(0)
    for payment in found:
        assert quiet.told(payment["order_id"]) == ["payment.captured", "order.status_changed"]
    assert quiet.payment(captured)["amount_refunded"] == 400
    assert quiet.told(captured["order_id"])[2:] == ["refund.created", "refund.succeeded"]
    assert quiet.told(held["order_id"])[2:] == ["payment.captured", "order.status_changed"]


def test_a_look_up_that_was_overtaken_changes_nothing(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is old by the time it comes: it is re-read under the lock."""
    payment = quiet.authorized()
    look_up = gateway.look_up

    def overtaken(query: base.ChargeLookup) -> base.Charge | None:
        answer = look_up(query)  # still authorized
        with monkeypatch.context() as inner:
            inner.setattr(gateway, "look_up", look_up)
            assert quiet.do(payment, "capture").status_code == 200
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", overtaken)
        make_due(quiet)
        run_once(quiet, gateways)
    assert quiet.status(payment) == ("captured", "paid")
    assert quiet.payment(payment)["needs_review"] is False


# The commands and the workers as processes ------------------------------------------------------


def test_the_commands_report_books_that_agree_and_books_that_do_not(
    quiet: Shop, quiet_settings: Settings, tmp_path: Path
) -> None:
    payment, captured = pay(quiet, UNHEARD), quiet.paid()
    code, report = command(quiet_settings, "reconcile")
    assert code == 0, report
    assert set(report) == REPORT
    assert (report["settled"], report["still_open"], report["mismatches"]) == (1, 0, [])
    assert quiet.status(payment) == ("captured", "paid")
    assert command(quiet_settings, "invariants") == (0, {"ok": True, "violations": []})

    plant = "UPDATE sandbox.charges SET amount_captured = :amount WHERE payment_id = :id"
    sql(quiet.engine, plant, amount=1098, id=captured["id"])
    try:
        code, report = command(quiet_settings, "reconcile")
        assert code == 1
        (mismatch,) = report["mismatches"]
        assert mismatch["payment_id"] == captured["id"]
        assert (mismatch["what"], mismatch["ours"], mismatch["theirs"]) == (
            "amount_captured",
            1099,
            1098,
        )
        code, report = command(quiet_settings, "invariants")
        assert (code, report["ok"]) == (1, False)
        assert report["violations"][0]["invariant"] == "books_agree"
        assert report["violations"][0]["payment_id"] == captured["id"]
    finally:
        sql(quiet.engine, plant, amount=1099, id=captured["id"])


def test_workers_in_a_process_of_their_own_settle_what_is_open_and_stop_cleanly(
    quiet: Shop, quiet_settings: Settings, tmp_path: Path
) -> None:
    found, missing = pay(quiet, UNHEARD), pay(quiet, LOST)
    log = (tmp_path / "log").open("wb")
    with log:
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "workers"],
                cwd=ROOT,
                env=environment(quiet_settings),
                stdout=log,
                stderr=log,
            )
            for _ in range(2)
        ]
        try:
            until(lambda: quiet.status(found) == ("captured", "paid"), "it is found", 60)
            until(lambda: quiet.status(missing) == ("failed", "pending"), "it is found", 60)
            query = "SELECT count(*) FROM sandbox.webhooks WHERE delivered_at IS NULL"
            until(lambda: sql(quiet.engine, query)[0][0] == 0, "webhooks are delivered", 60)
            # One may have done it all before the other was there to be stopped.
            told = (tmp_path / "log").read_text
            until(lambda: told().count("workers.started") == len(workers), "both have started", 60)
        finally:
            for number, worker in enumerate(workers):
                worker.send_signal((signal.SIGTERM, signal.SIGINT)[number])
            codes = [worker.wait(30) for worker in workers]
    assert codes == [0, 0], (tmp_path / "log").read_text()[-2000:]
    assert quiet.told(found["order_id"]) == ["payment.captured", "order.status_changed"]


# Each invariant sees what it is there for --------------------------------------------------------


PLANT: dict[str, list[str]] = {
    "captured_within_authorized": [
        "UPDATE payments SET amount_captured = amount + 1 WHERE id = {captured}"
    ],
    "refunded_within_captured": [
        "UPDATE payments SET amount_refunded = amount_captured + 1 WHERE id = {captured}"
    ],
    "refunds_add_up": ["UPDATE payments SET amount_refunded = 1 WHERE id = {captured}"],
    "one_live_payment_per_order": [
        "INSERT INTO payments (order_id, user_id, payment_method_id, gateway, gateway_key, amount, "
        "currency, capture_method) SELECT order_id, user_id, payment_method_id, gateway, "
        "'planted', amount, currency, capture_method FROM payments WHERE id = {captured}"
    ],
    "payment_is_of_its_order": ["UPDATE payments SET currency = 'EUR' WHERE id = {captured}"],
    "order_agrees_with_payment": [
        "UPDATE orders SET status = 'pending' WHERE id = {captured_order}"
    ],
    "order_is_what_its_events_say": [
        "UPDATE orders SET status = 'shipped' WHERE id = {captured_order}"
    ],
    "payment_is_what_its_events_say": [
        "UPDATE payments SET status = 'voided' WHERE id = {authorized}"
    ],
    "refund_is_what_its_events_say": ["UPDATE refunds SET status = 'pending' WHERE id = {refund}"],
    "events_have_no_gaps": [
        "DELETE FROM events WHERE order_id = {captured_order} AND sequence = 2"
    ],
    "one_default_method_per_user": [
        "UPDATE payment_methods SET is_default = false WHERE id = {method}"
    ],
    "no_card_saved_twice": [
        "INSERT INTO payment_methods (user_id, payment_type, gateway, gateway_token, fingerprint, "
        "details) SELECT user_id, payment_type, gateway, gateway_token, fingerprint, details "
        "FROM payment_methods WHERE id = {method}"
    ],
}
# Other ways to break the same.
MORE_PLANTS = [
    ("refunded_within_captured", "UPDATE refunds SET amount = 5000 WHERE id = {refund}"),
    ("refunds_add_up", "UPDATE payments SET refund_reserved = 0 WHERE id = {refunded}"),
    ("refunds_add_up", "DELETE FROM refunds WHERE id = {refund}"),
    ("payment_is_of_its_order", "UPDATE payments SET amount = amount + 1 WHERE id = {captured}"),
    ("payment_is_of_its_order", "UPDATE payments SET user_id = 'mallory' WHERE id = {captured}"),
    ("order_agrees_with_payment", "UPDATE orders SET status = 'paid' WHERE id = {waiting_order}"),
    ("order_agrees_with_payment", "UPDATE orders SET status = 'paid' WHERE id = {refunded_order}"),
    (
        "order_agrees_with_payment",
        "UPDATE orders SET status = 'refunded' WHERE id = {failed_order}",
    ),
    ("events_have_no_gaps", "UPDATE orders SET last_sequence = 99 WHERE id = {captured_order}"),
    (
        "payment_is_what_its_events_say",
        "DELETE FROM events WHERE order_id = {captured_order} AND type = 'payment.captured'",
    ),
    ("one_default_method_per_user", "UPDATE payment_methods SET is_default = true"),
]


@pytest.fixture(scope="module")
def whole(quiet_url: str, quiet_app: FastAPI, bearer: Bearer) -> dict[str, int]:
    """One of each, to be broken in a transaction that is rolled back."""
    user = f"whole-{secrets.token_hex(4)}"
    clerk = bearer(f"clerk-{user}", MANAGES)
    with (
        httpx.Client(base_url=quiet_url, headers=bearer(user), timeout=60) as shopper,
        httpx.Client(base_url=quiet_url, headers=clerk, timeout=60) as manager,
    ):
        shop = Shop(shopper, manager, quiet_app.state.engine)
        captured, refunded = shop.paid(), shop.paid()
        refund = shop.do(refunded, "refunds").json()
        authorized, waiting = shop.authorized(), shop.pay(shop.place(), ACTION)
        failed_order = shop.place()
        assert problem(shop.try_pay(failed_order, DECLINED)) == (402, "payment_declined")
        return {
            "captured": captured["id"],
            "captured_order": captured["order_id"],
            "refunded": refunded["id"],
            "refunded_order": refunded["order_id"],
            "refund": refund["id"],
            "authorized": authorized["id"],
            "waiting_order": waiting["order_id"],
            "failed_order": failed_order,
            "method": shop.method(),
        }


def drop_guards(connection: sa.Connection) -> None:
    """Until the rollback: no trigger, no foreign key, no CHECK, no unique index."""
    connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
    lookup_count = connection.execute(
        sa.text(
            "SELECT conrelid::regclass::text AS name, conname FROM pg_constraint "
            "WHERE contype = 'c' AND connamespace = 'public'::regnamespace AND conrelid <> 0"
        )
    ).all()
    for check in lookup_count:
        connection.execute(sa.text(f"ALTER TABLE {check.name} DROP CONSTRAINT {check.conname}"))
    for index in ("uq_payments_live", "uq_payment_methods_active_fingerprint"):
        connection.execute(sa.text(f"DROP INDEX {index}"))
    connection.execute(sa.text("DROP INDEX uq_payment_methods_default"))


def violations(session: Session) -> dict[str, list[int]]:
    """The ids of offending rows, by invariant, in windows that are smaller than what is there."""
    found: dict[str, list[int]] = {}
    for checked in find_violations(session, window=3):
        for name, ids in checked.violations.items():
            found[name] = [*found.get(name, []), *ids]
    return found


def test_each_invariant_has_a_planted_violation() -> None:
    assert PLANT.keys() == INVARIANTS.keys()


@pytest.mark.parametrize(
    ("invariant", "statement"),
    [(name, statement) for name, statements in PLANT.items() for statement in statements]
    + MORE_PLANTS,
)
def test_an_invariant_sees_a_planted_violation(
    quiet_app: FastAPI, whole: dict[str, int], invariant: str, statement: str
) -> None:
    with database.new_session(quiet_app.state.engine) as session:
        assert violations(session) == {}
        session.rollback()
        drop_guards(session.connection())
        planted = session.execute(sa.text(statement.format(**whole)))
        assert planted.rowcount >= 1  # type: ignore[attr-defined]
        found = violations(session)
        assert invariant in found, found
        assert found[invariant]
        session.rollback()
        assert violations(session) == {}
        session.rollback()


BOOKS = [
    ("amount_captured", "UPDATE sandbox.charges SET amount_captured = 1 WHERE payment_id = :id"),
    ("amount", "UPDATE sandbox.charges SET amount = 5000 WHERE payment_id = :id"),
    ("currency", "UPDATE sandbox.charges SET currency = 'EUR' WHERE payment_id = :id"),
    ("status", "UPDATE sandbox.charges SET status = 'voided' WHERE payment_id = :id"),
    (
        "number_of_charges",
        "INSERT INTO sandbox.charges (reference, order_id, payment_id, idempotency_key, amount, "
        "currency, outcome, capture, status, amount_captured) SELECT 'ch_planted', order_id, "
        "payment_id, 'planted', amount, currency, outcome, capture, status, amount_captured "
        "FROM sandbox.charges WHERE payment_id = :id",
    ),
    (
        "refund",
        "INSERT INTO sandbox.refunds (reference, charge, refund_id, amount, status) "
        "SELECT 're_planted', reference, 1, 100, 'succeeded' FROM sandbox.charges "
        "WHERE payment_id = :id",
    ),
    (
        "charge_without_payment",
        "INSERT INTO sandbox.charges (reference, order_id, payment_id, idempotency_key, amount, "
        "currency, outcome, capture, status) VALUES ('ch_planted', 1, 987654321, 'planted', 1, "
        "'USD', 'success', true, 'captured')",
    ),
    ("number_of_charges", "DELETE FROM sandbox.charges WHERE payment_id = :id"),
]


@pytest.mark.parametrize(("what", "statement"), BOOKS)
def test_the_comparison_of_books_sees_a_planted_difference(
    quiet_app: FastAPI, whole: dict[str, int], what: str, statement: str
) -> None:
    engine: sa.Engine = quiet_app.state.engine
    with engine.connect() as connection, connection.begin() as transaction:
        # The gateway reads its books through the very connection that is rolled back.
        class Planted(SandboxGateway):
            def __init__(self) -> None:
                super().__init__(engine, timeout=1)

        gateway = Planted()
        gateway.engine = _Only(connection)  # type: ignore[assignment]
        connection.execute(
            sa.text(statement), {"id": whole["captured"]} if ":id" in statement else {}
        )
        with database.new_session(engine) as session:
            mismatches = list(reconciliation.compare(session, gateway))
        transaction.rollback()
    expected = 987654321 if what == "charge_without_payment" else whole["captured"]
    assert [(mismatch["payment_id"], mismatch["what"]) for mismatch in mismatches] == [
        (expected, what)
    ]


class _Only:
    """An engine that has one connection, in a transaction that never ends by itself."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection

    def connect(self) -> _Only:
        return self

    def __enter__(self) -> sa.Connection:
        return self.connection

    def __exit__(self, *_: object) -> None:
        return None


def test_an_approval_that_we_were_never_told_of_is_found(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway
) -> None:
    """The shopper approved, the answer was lost, and the webhook never comes."""
    payment = quiet.pay(quiet.place(), ACTION)
    reference = payment["gateway_reference"]
    assert gateway.answer_action(reference, approve=True) is not None
    sql(
        quiet.engine,
        "DELETE FROM sandbox.webhooks WHERE payload ->> 'reference' = :reference",
        reference=reference,
    )
    try:
        report = reconciliation.reconcile(quiet.engine, rules(gateways))
        assert report["mismatches"] == []
        assert quiet.status(payment) == ("captured", "paid")
    finally:  # whatever came of it, the page asks again; the other tests find the books whole
        quiet.answer_page(payment, "approve")


def test_old_news_does_not_call_off_a_look_up_that_a_contradiction_asked_for(
    quiet: Shop, gateways: Gateways
) -> None:
    """A webhook says that money is held for a payment we gave up; then an older one comes late."""
    payment = quiet.authorized()
    assert quiet.do(payment, "void").status_code == 200
    books = (
        "UPDATE sandbox.charges SET status = :status, amount_captured = :amount "
        "WHERE payment_id = :id"
    )
    sql(quiet.engine, books, status="captured", amount=1099, id=payment["id"])
    try:
        tell(quiet.engine, payment, seen(payment, "captured", 1099), hint=True)
        tell(quiet.engine, payment, seen(payment, "processing"), hint=True)
        run_once(quiet, gateways)
        assert quiet.payment(payment)["needs_review"] is True
        assert quiet.status(payment) == ("voided", "canceled")
    finally:
        sql(quiet.engine, books, status="voided", amount=0, id=payment["id"])
