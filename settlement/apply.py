"""Writes what `domain/settlement.py` decides: rows, events, look-ups and stored responses.

Whoever learns of an outcome calls this module: the request, a webhook, a look-up, a person. The
caller holds the locks of the order and the payment, taken in that order; all of it is one
transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.orm import Session

import crud
import leases
from database import NOW
from domain.declines import RETRYABLE_DECLINES, decline_message
from domain.settlement import (
    Decision,
    PaymentFacts,
    RefundDecision,
    RefundFacts,
    Source,
    decide,
    decide_not_executed,
    decide_refund,
    decide_refund_not_executed,
)
from domain.states import CAPTURED_PAYMENT_STATUSES, PaymentStatus, ReviewReason
from gateways import base
from models import Order, Payment, Refund
from observability.logs import get_logger
from settlement.context import answer_waiting_requests
from settlement.responses import (
    NOT_CHARGED,
    charge_response,
    operation_response,
    refund_not_made_response,
    refund_response,
)
from settlement.transitions import (
    ChangedBy,
    flag_for_review,
    record_dispute_event,
    transition_order,
    transition_payment,
    transition_refund,
)

log = get_logger()

NOT_REACHED: Final = "The gateway was not reached; nothing was charged."
REFUSED: Final = "The gateway refuses this request by its own rules; nothing was charged."


# Charges ----------------------------------------------------------------------------------------


def payment_facts(
    order: Order, payment: Payment, *, can_retrieve: bool = True, not_executed: bool = False
) -> PaymentFacts:
    """The facts about a payment that `domain/settlement.py` decides by."""
    return PaymentFacts(
        status=payment.status,
        amount=payment.amount,
        currency=payment.currency,
        amount_captured=payment.amount_captured,
        capture_method=payment.capture_method,
        reference=payment.gateway_reference,
        operation=payment.operation,
        operation_amount=payment.operation_amount,
        order_status=order.status,
        review_reason=payment.review_reason if payment.needs_review else None,
        can_retrieve=can_retrieve,
        not_executed=not_executed,
    )


def settle_charge(
    session: Session,
    by: ChangedBy,
    order: Order,
    payment: Payment,
    charge: base.Charge,
    source: Source,
    *,
    can_retrieve: bool = True,
    not_executed: bool = False,
) -> None:
    """Apply the state of a charge, and of the refunds that its gateway shows with it.

    `not_executed`: the open operation surely had no effect.
    """
    ours = payment_facts(order, payment, can_retrieve=can_retrieve, not_executed=not_executed)
    decision = decide(ours, charge, source)
    apply_decision(session, by, order, payment, decision, charge)
    if charge.refunds is not None and payment.status in CAPTURED_PAYMENT_STATUSES:
        settle_refunds(session, by, order, payment, charge.refunds, source)


def settle_not_executed(
    session: Session,
    by: ChangedBy,
    order: Order,
    payment: Payment,
    source: Source,
    *,
    refused: bool = False,
) -> None:
    """The open request surely had no effect. `refused`: the gateway refuses it, now and later."""
    decision = decide_not_executed(payment_facts(order, payment), source)
    apply_decision(session, by, order, payment, decision, refused=refused)


def apply_decision(
    session: Session,
    by: ChangedBy,
    order: Order,
    payment: Payment,
    decision: Decision,
    charge: base.Charge | None = None,
    *,
    refused: bool = False,
    next_action: dict[str, Any] | None = None,
) -> None:
    """Write a decision about a locked payment, with all that follows from it."""
    if charge is not None and payment.gateway_reference in (None, charge.replaces):
        payment.gateway_reference = charge.reference
    if charge is not None and charge.status == "authorized" and decision.lookup == "at_expiry":
        # An event may have given a rougher time.
        payment.capture_before = charge.capture_before or payment.capture_before
    leases.schedule_lookup(payment, decision.lookup)
    operation, key, amount = payment.operation, payment.operation_key, payment.operation_amount
    if decision.operation_result is not None:
        payment.operation = payment.operation_key = payment.operation_amount = None
    if decision.ends_review:
        payment.needs_review, payment.review_reason = False, None
    if decision.payment_status is not None:
        _set_facts(
            payment, decision.payment_status, charge, refused=refused, next_action=next_action
        )
        transition_payment(session, by, order, payment, decision.payment_status)
    if decision.order_status is not None:
        transition_order(session, by, order, decision.order_status)
    if decision.review_reason is not None:
        request_review(
            session,
            by,
            order,
            payment,
            decision.review_reason,
            _evidence(charge, decision.review_reason),
        )
    session.flush()
    if decision.operation_result is not None and operation and key and amount:
        answer_waiting_requests(
            session, key, lambda id: operation_response(order, payment, operation, amount, id)
        )
    if payment.status != "pending":
        answer_waiting_requests(
            session, payment.gateway_key, lambda id: charge_response(payment, id)
        )


def request_review(
    session: Session, by: ChangedBy, order: Order, payment: Payment, reason: ReviewReason, seen: str
) -> None:
    """Flag a payment for review, unless a person has accepted the same finding already.

    `seen` is what the gateway shows, in short.
    """
    state = f"{reason} {seen}"
    if payment.review_state == state or (reason == payment.review_reason == "outcome_unknown"):
        return
    log.error("payment.needs_review", payment_id=payment.id, reason=reason, seen=seen)
    # An outcome that is still unknown a day after a person accepted it is flagged again.
    payment.review_state = None if reason == "outcome_unknown" else state
    if payment.review_reason == "second_charge":
        reason = "second_charge"  # the gravest reason stays
    flag_for_review(session, by, order, payment, reason)


def _evidence(charge: base.Charge | None, reason: ReviewReason) -> str:
    if charge is None:
        return ""
    if reason == "second_charge":  # one finding, whatever becomes of that charge
        return charge.reference
    amounts = f"{charge.amount}/{charge.amount_captured} {charge.currency}"
    return f"{charge.reference} {charge.status} {amounts}"


def _set_facts(
    payment: Payment,
    status: PaymentStatus,
    charge: base.Charge | None,
    *,
    refused: bool,
    next_action: dict[str, Any] | None,
) -> None:
    """Set the fields that belong to a new status."""
    payment.next_action = None
    if status == "pending":
        payment.requested_at = NOW  # open from now on
    elif status == "requires_action":
        url = charge.redirect_url if charge is not None else None
        payment.next_action = (
            {"type": "redirect", "url": url} if next_action is None else next_action
        )
    elif status == "captured":
        assert charge is not None
        payment.amount_captured = charge.amount_captured
    elif status == "failed" and charge is None:
        payment.failure = {
            "code": NOT_CHARGED,
            "decline_code": None,
            "message": REFUSED if refused else NOT_REACHED,
            "retryable": not refused,
        }
    elif status == "failed":
        decline = (charge.decline if charge is not None else None) or base.Decline(
            "generic_decline"
        )
        log.info("payment.declined", payment_id=payment.id, gateway_code=decline.raw)
        payment.failure = {
            "code": "payment_declined",
            "decline_code": decline.code,
            "message": decline_message(decline.code),
            # For operators; the API shows shoppers the three above only.
            "gateway_code": decline.raw,
            "retryable": decline.code in RETRYABLE_DECLINES,
        }


def record_completion_started(
    session: Session, by: ChangedBy, order: Order, payment: Payment
) -> None:
    """The shopper has acted; the outcome is open until the gateway answers."""
    apply_decision(session, by, order, payment, Decision(payment_status="pending", lookup="soon"))


def record_action_required(
    session: Session, by: ChangedBy, order: Order, payment: Payment, next_action: dict[str, Any]
) -> None:
    """The shopper has not acted on this payment after all; `next_action` is where to send them."""
    apply_decision(
        session,
        by,
        order,
        payment,
        Decision(payment_status="requires_action", lookup="soon"),
        next_action=next_action,
    )


# Refunds ----------------------------------------------------------------------------------------


def refund_facts(
    order: Order, payment: Payment, refund: Refund, *, can_retrieve: bool = True
) -> RefundFacts:
    return RefundFacts(
        status=refund.status,
        amount=refund.amount,
        currency=refund.currency,
        reference=refund.gateway_reference,
        amount_captured=payment.amount_captured,
        amount_refunded=payment.amount_refunded,
        order_status=order.status,
        can_retrieve=can_retrieve,
    )


def settle_refund(
    session: Session,
    by: ChangedBy,
    order: Order,
    payment: Payment,
    refund: Refund,
    state: base.Refund,
    source: Source,
    *,
    can_retrieve: bool = True,
) -> None:
    """Apply the state of a refund. All three rows are locked."""
    decision = decide_refund(
        refund_facts(order, payment, refund, can_retrieve=can_retrieve), state, source
    )
    if refund.gateway_reference is None:
        refund.gateway_reference = state.reference
    apply_refund_decision(session, by, order, payment, refund, decision, _refund_evidence(state))


def settle_refund_not_executed(
    session: Session,
    by: ChangedBy,
    order: Order,
    payment: Payment,
    refund: Refund,
    source: Source,
    *,
    refused: bool = False,
) -> None:
    """The refund was surely never made; its reserved amount is free again."""
    decision = decide_refund_not_executed(refund_facts(order, payment, refund), source)
    apply_refund_decision(session, by, order, payment, refund, decision, refused=refused)


def apply_refund_decision(
    session: Session,
    by: ChangedBy,
    order: Order,
    payment: Payment,
    refund: Refund,
    decision: RefundDecision,
    seen: str = "",
    *,
    refused: bool = False,
) -> None:
    """Write a decision about a locked refund, with all that follows from it."""
    leases.schedule_lookup(refund, decision.lookup)
    if decision.refund_status is not None:
        transition_refund(session, by, order, refund, decision.refund_status)
        session.refresh(payment, ["refund_reserved"])  # a trigger has counted it
        if (
            decision.refund_status == "failed"
        ):  # a refund made outside may have waited for this amount
            leases.schedule_lookup(payment, "now")
    if decision.payment_status is not None:
        payment.amount_refunded += decision.refunded_change
        payment.status = decision.payment_status
        session.flush()
    if decision.order_status is not None:
        transition_order(session, by, order, decision.order_status)
    if decision.review_reason is not None:
        request_review(session, by, order, payment, decision.review_reason, seen)
    elif decision.refund_status is not None and payment.review_reason == "outcome_unknown":
        _end_review_of_refunds(session, payment)
    session.flush()
    if refund.gateway_reference is not None:
        answer_waiting_requests(session, refund.gateway_key, lambda _: refund_response(refund))
    elif refund.status == "failed":
        answer_waiting_requests(
            session,
            refund.gateway_key,
            lambda id: refund_not_made_response(payment, refund, id, refused=refused),
        )


def settle_refunds(
    session: Session,
    by: ChangedBy,
    order: Order,
    payment: Payment,
    states: Sequence[base.Refund],
    source: Source,
) -> None:
    """Apply the refunds of a charge as its gateway shows them, and import those made outside."""
    for state in states:
        refund = crud.lock_refund_of_state(session, payment, state.reference, state.refund_id)
        if refund is not None:
            settle_refund(session, by, order, payment, refund, state, source)
        elif state.status != "failed":
            import_refund(session, by, order, payment, state)


def import_refund(
    session: Session, by: ChangedBy, order: Order, payment: Payment, state: base.Refund
) -> None:
    """Record a refund that was made in the gateway's dashboard as one of ours.

    A refund that does not fit (more than was captured, another currency) is flagged for review.
    While a refund of ours is open its failure may make room: then the gateway is asked again
    instead.
    """
    room = payment.amount_captured - payment.refund_reserved
    if state.currency != payment.currency or not 0 < state.amount <= room:
        if state.currency != payment.currency or not crud.lock_pending_refunds(session, payment):
            request_review(session, by, order, payment, "amount_differs", _refund_evidence(state))
        return
    refund = crud.open_refund(
        session, payment, amount=state.amount, reason=None, origin="gateway", lookup_after=0
    )
    log.info("refund.imported", payment_id=payment.id, refund_id=refund.id)
    refund.gateway_reference = state.reference
    transition_refund(session, by, order, refund, "pending")
    settle_refund(session, by, order, payment, refund, state, "answer")


def _end_review_of_refunds(session: Session, payment: Payment) -> None:
    """End the review of an unknown refund once the outcome of every refund is known."""
    if payment.operation is None and not crud.lock_pending_refunds(session, payment):
        payment.needs_review, payment.review_reason = False, None


def _refund_evidence(state: base.Refund) -> str:
    return f"{state.reference} {state.status} {state.amount} {state.currency}"


# Disputes ---------------------------------------------------------------------------------------


def settle_dispute(
    session: Session, by: ChangedBy, order: Order, payment: Payment, state: base.Dispute
) -> None:
    """Record a dispute, with one event when it opens and one when it closes."""
    dispute = crud.save_dispute(
        session,
        user_id=payment.user_id,
        payment_id=payment.id,
        gateway=payment.gateway,
        gateway_reference=state.reference,
        status=state.status,
        amount=state.amount,
        currency=state.currency,
        reason=state.reason,
        evidence_due_at=state.evidence_due_at,
    )
    if dispute is not None:
        record_dispute_event(session, by, order, dispute)
