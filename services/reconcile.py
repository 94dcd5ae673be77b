"""Finding out what became of what nobody answered, and comparing our books with the gateways'.

It asks, re-reads under the lock, then applies. What a gateway cannot tell within a day is handed
to a person; it is never failed by a timer and never charged again to be sure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

import crud
from database import phase
from domain.states import DEAD_PAYMENT_STATUSES
from gateways.base import Gateway, NotDone
from gateways.registry import Gateways
from models import Payment, Refund
from observability.logs import get_logger
from services import payments, questions, refunds
from services.calling import UNKNOWN, ask, state_of
from services.history import By, ask_for_review
from services.settlement import (
    charge_not_done,
    operation_not_done,
    refund_not_done,
    settle_charge,
    settle_refund,
)

log = get_logger()

BATCH = 20  # between two looks at whether to stop
REVIEW_AFTER = timedelta(hours=24)  # longer than any gateway's own reports take
BY = By.service("reconciler")


def run_once(
    session: Session,
    gateways: Gateways,
    *,
    of: str | None = None,
    but: Sequence[str] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Look up what is due at all gateways, at one, or at all but these.

    Returns how many payments and refunds were taken.
    """
    with phase(session):
        due_payments = crud.take_due_payments(session, BATCH, of=of, but=but)
        due_refunds = crud.take_due_refunds(session, BATCH, of=of, but=but)
    _look_up_all(session, gateways, due_payments, due_refunds, stopping)
    return len(due_payments) + len(due_refunds)


def _look_up_all(
    session: Session,
    gateways: Gateways,
    due_payments: Sequence[Row[Any]],
    due_refunds: Sequence[Row[Any]],
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """One that fails does not keep the others waiting; its own next look-up is set already."""
    for look_up, due in ((look_up_payment, due_payments), (look_up_refund, due_refunds)):
        for row in due:
            if stopping():
                return
            try:
                look_up(session, gateways, row)
            except Exception as error:
                session.rollback()
                log.error("reconcile.failed", id=row.id, error=type(error).__name__)
                _review_if_old(session, row, getattr(row, "payment_id", row.id))


def _review_if_old(session: Session, seen: Row[Any], payment_id: int) -> None:
    """Hand over to a person what could not be settled for a day."""
    if datetime.now(timezone.utc) - seen.asked_at > REVIEW_AFTER:
        _hand_over(session, seen, payment_id)


def _hand_over(session: Session, seen: Row[Any], payment_id: int) -> None:
    """A payment, or a refund of it, is a person's to settle.

    What is open is looked up all the same; of what was given up nothing more can be learned.
    """
    with phase(session):
        found = crud.require_payment(session, payment_id, None)
        order, payment = payments.lock(session, found.order_id, payment_id)
        ask_for_review(session, BY, order, payment)
        row: Payment | Refund | None = payment
        if hasattr(seen, "payment_id"):
            row = crud.lock_refund(session, seen.id, payment_id)
        if row is not None and row.status in DEAD_PAYMENT_STATUSES:
            row.check_at = None
        session.flush()


def _must_not_be_asked(gateway: Gateway, seen: Row[Any]) -> bool:
    """Whether to ask would be to send anew what was given up here (see ADR 4)."""
    nameless = seen.status != "pending" and seen.gateway_reference is None
    given_up = seen.status in DEAD_PAYMENT_STATUSES
    return nameless or (given_up and not gateway.capabilities.reads_back)


def look_up_payment(session: Session, gateways: Gateways, seen: Row[Any]) -> None:
    """Ask the gateway about one payment, and apply what it says if the question still stands."""
    gateway = gateways.get(seen.gateway)
    if gateway is None:
        log.warning("reconcile.gateway_off", payment_id=seen.id, gateway=seen.gateway)
        _review_if_old(session, seen, seen.id)
        return
    with phase(session):
        # Others of the batch may have taken long, and to ask may be to do (see ADR 4).
        fresh = crud.require_payment(session, seen.id, None)
        if (fresh.status, fresh.operation_key) != (seen.status, seen.operation_key):
            return
        seen = fresh
        method = crud.get_charged_payment_method(session, seen.payment_method_id)
    if _must_not_be_asked(gateway, seen):
        _hand_over(session, seen, seen.id)
        return
    question = questions.about_charge(seen, method)
    not_done = False
    if seen.operation_key is not None:
        about_operation = questions.about_operation(seen)
        answer = ask(gateway, "look_up", lambda: gateway.look_up(about_operation))
        not_done = answer is None
        if not_done:  # then how is the charge itself?
            answer = ask(gateway, "look_up", lambda: gateway.look_up(question))
    else:
        answer = ask(gateway, "look_up", lambda: gateway.look_up(question))
    if (answer is UNKNOWN or isinstance(answer, NotDone)) and not not_done:
        _review_if_old(session, seen, seen.id)
        return
    with phase(session):
        order, payment = payments.lock(session, seen.order_id, seen.id)
        if (payment.status, payment.operation_key) != (seen.status, seen.operation_key):
            state = state_of(answer)
            if state is not None:  # settled while we asked; then it is as good as a webhook
                settle_charge(session, BY, order, payment, state, hint=True)
            return
        if answer is UNKNOWN or isinstance(answer, NotDone):
            operation_not_done(session, BY, payment)
            return
        if answer is None:
            charge_not_done(session, BY, order, payment)
            return
        settle_charge(session, BY, order, payment, answer)
        if not_done and payment.operation_key == seen.operation_key:
            operation_not_done(session, BY, payment)
        log.info("reconcile.payment", payment_id=payment.id, status=payment.status)
        is_open = payment.status == "pending" or payment.operation is not None
        approved = answer.status == "approved" and payment.status == "pending"
        request = questions.completion_request(payment) if approved else None
    if request is not None:
        payments.complete(session, gateway, BY, seen.order_id, request)
    elif is_open:
        _review_if_old(session, seen, seen.id)


def look_up_refund(session: Session, gateways: Gateways, seen: Row[Any]) -> None:
    """Ask the gateway about one refund, and apply what it says if the question still stands."""
    with phase(session):
        of = crud.require_payment(session, seen.payment_id, None)
        fresh = crud.require_refund(session, seen.payment_id, seen.id)
        if fresh.status != seen.status:
            return
        seen = fresh
    gateway = gateways.get(of.gateway)
    if gateway is None:
        log.warning("reconcile.gateway_off", payment_id=of.id, gateway=of.gateway)
        _review_if_old(session, seen, of.id)
        return
    if _must_not_be_asked(gateway, seen):
        _hand_over(session, seen, of.id)
        return
    question = questions.about_refund(of, seen)
    answer = ask(gateway, "look_up_refund", lambda: gateway.look_up_refund(question))
    if answer is UNKNOWN or isinstance(answer, NotDone):
        _review_if_old(session, seen, of.id)
        return
    with phase(session):
        order, payment, refund = refunds.lock(session, of.order_id, of.id, seen.id)
        if answer is not None:
            late = refund.status != seen.status  # settled while we asked; as good as a webhook
            settle_refund(session, BY, order, payment, refund, answer, hint=late)
        elif refund.status == "pending":
            refund_not_done(session, BY, order, payment, refund)
        else:
            refund.check_at = None  # as we have it
        log.info("reconcile.refund", refund_id=refund.id, status=refund.status)


def reconcile(session: Session, gateways: Gateways) -> dict[str, Any]:
    """Settle once everything that is open, due or not, then compare both sets of books."""
    with phase(session):
        open_before = crud.count_open(session)
        payment_ids, refund_ids = crud.list_unsettled(session)
        open_payments = crud.take_due_payments(session, len(payment_ids), payment_ids)
        open_refunds = crud.take_due_refunds(session, len(refund_ids), refund_ids)
    _look_up_all(session, gateways, open_payments, open_refunds)
    with phase(session):
        still_open = crud.count_open(session)
        needs_review = crud.count_needs_review(session)
    return {
        "checked": len(open_payments) + len(open_refunds),
        "settled": max(0, open_before - still_open),
        "still_open": still_open,
        "needs_review": needs_review,
        "mismatches": [
            mismatch
            for gateway in gateways.by_name.values()
            for mismatch in compare(session, gateway)
        ],
    }


def compare(session: Session, gateway: Gateway) -> list[dict[str, Any]]:
    """Where our books and the gateway's differ. Empty for a gateway that shows no books."""
    books = gateway.books()
    if books is None:
        return []
    with phase(session):
        ours = crud.list_charged_payments(session, gateway.name)
    mismatches: list[dict[str, Any]] = []
    theirs: dict[int, list[dict[str, Any]]] = {}
    for entry in books:
        theirs.setdefault(entry["payment_id"], []).append(entry)
    for payment in ours:
        entries = theirs.pop(payment.id, [])
        difference = _difference(payment, entries)
        if difference is not None:
            mismatches.append({"payment_id": payment.id, **difference})
    for payment_id, entries in theirs.items():
        mismatches += [
            {"payment_id": payment_id, "what": "charge_without_payment", "theirs": entry["status"]}
            for entry in entries
        ]
    return mismatches


# How a payment's status reads in a gateway's books.
_READS = {
    "requires_action": {"requires_action"},
    "authorized": {"authorized"},
    "captured": {"captured"},
    "partially_refunded": {"captured"},
    "refunded": {"captured"},
    "failed": {"declined"},
    "voided": {"voided"},
    "canceled": {"voided"},
}


def _difference(payment: Row[Any], entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if payment.status == "pending" or payment.operation is not None:
        return None  # counted as still open
    not_charged = payment.status == "failed" and payment.failure["code"] == "not_charged"
    if len(entries) != (0 if not_charged else 1):
        return {"what": "number_of_charges", "ours": payment.status, "theirs": len(entries)}
    if not entries:
        return None
    entry = entries[0]
    if entry["status"] not in _READS[payment.status]:
        return {"what": "status", "ours": payment.status, "theirs": entry["status"]}
    for name in ("amount", "currency", "amount_captured", "amount_refunded"):
        if getattr(payment, name) != entry[name]:
            return {"what": name, "ours": getattr(payment, name), "theirs": entry[name]}
    return None
