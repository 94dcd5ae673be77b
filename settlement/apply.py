"""Writes what `domain/settlement.py` decides: rows, events, look-ups and stored responses.

The request, a webhook, a look-up and a person end here alike. The caller holds the locks; all of it
is one transaction.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import leases
import locks
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
from domain.states import (
    CAPTURED_PAYMENT_STATUSES,
    OrderStatus,
    PaymentStatus,
    ReviewReason,
)
from gateways import base
from observability.logs import get_logger
from rows import PaymentRow, RefundRow
from settlement import responses
from settlement.transitions import (
    LockedPayment,
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


def payment_facts(locked: LockedPayment, *, not_executed: bool = False) -> PaymentFacts:
    """The facts about a payment that `domain/settlement.py` decides by."""
    facts = facts_of(locked.payment, locked.order.status)
    return replace(facts, can_retrieve=locked.can_retrieve, not_executed=not_executed)


def facts_of(
    payment: PaymentRow, order_status: OrderStatus, gateway: base.Gateway | None = None
) -> PaymentFacts:
    """The same of a payment that is not locked."""
    return PaymentFacts(
        status=payment.status,
        amount=payment.amount,
        currency=payment.currency,
        amount_captured=payment.amount_captured,
        capture_method=payment.capture_method,
        reference=payment.gateway_reference,
        operation=payment.operation,
        operation_amount=payment.operation_amount,
        order_status=order_status,
        review_reason=payment.review_reason if payment.needs_review else None,
        can_retrieve=gateway is None or gateway.capabilities.can_retrieve,
    )


def settle_charge(
    locked: LockedPayment, charge: base.Charge, source: Source, *, not_executed: bool = False
) -> None:
    """Apply the state of a charge, and of the refunds that its gateway shows with it.

    `not_executed`: the open operation surely had no effect.
    """
    decision = decide(payment_facts(locked, not_executed=not_executed), charge, source)
    apply_decision(locked, decision, charge)
    if charge.refunds is not None and locked.payment.status in CAPTURED_PAYMENT_STATUSES:
        settle_refunds(locked, charge.refunds, source)


def settle_not_executed(locked: LockedPayment, source: Source, *, refused: bool = False) -> None:
    """The open request surely had no effect. `refused`: the gateway refuses it, now and later."""
    apply_decision(locked, decide_not_executed(payment_facts(locked), source), refused=refused)


def apply_decision(
    locked: LockedPayment,
    decision: Decision,
    charge: base.Charge | None = None,
    *,
    refused: bool = False,
    next_action: dict[str, Any] | None = None,
) -> None:
    """Write a decision about a payment, with all that follows from it."""
    order, payment = locked.order, locked.payment
    if charge is not None and payment.gateway_reference in (None, charge.replaces):
        payment.gateway_reference = charge.reference
    if charge is not None and charge.status == "authorized" and decision.lookup == "at_expiry":
        # An event may have given a rougher time.
        payment.capture_before = charge.capture_before or payment.capture_before
    leases.schedule_lookup(locked.session, payment, locked.now, decision.lookup)
    operation, key, amount = payment.operation, payment.operation_key, payment.operation_amount
    if decision.operation_result is not None:
        payment.operation = payment.operation_key = payment.operation_amount = None
    if decision.ends_review:
        payment.needs_review, payment.review_reason = False, None
    status = decision.payment_status
    if status is not None:
        _set_facts(locked, status, charge, refused=refused, next_action=next_action)
        transition_payment(locked, status)
    if decision.order_status is not None:
        transition_order(locked, decision.order_status)
    if decision.review_reason is not None:
        request_review(locked, decision.review_reason, _evidence(charge, decision.review_reason))
    locked.touch()
    if decision.operation_result is not None and operation and key and amount:
        locked.answer(
            key,
            lambda id: responses.operation_response(
                order, payment, operation, amount, id, locked.show
            ),
        )
    if status is not None and status != "pending":
        locked.answer(
            payment.gateway_key, lambda id: responses.charge_response(payment, id, locked.show)
        )


def request_review(locked: LockedPayment, reason: ReviewReason, seen: str) -> None:
    """Flag a payment for review, unless a person has accepted the same finding already.

    `seen` is what the gateway shows, in short.
    """
    payment = locked.payment
    state = f"{reason} {seen}"
    if payment.review_state == state or (reason == payment.review_reason == "outcome_unknown"):
        return
    log.error("payment.needs_review", payment_id=payment.id, reason=reason, seen=seen)
    # An outcome that is still unknown a day after a person accepted it is flagged again.
    payment.review_state = None if reason == "outcome_unknown" else state
    if payment.review_reason == "second_charge":
        reason = "second_charge"  # the gravest reason stays
    flag_for_review(locked, reason)


def _evidence(charge: base.Charge | None, reason: ReviewReason) -> str:
    if charge is None:
        return ""
    if reason == "second_charge":  # one finding, whatever becomes of that charge
        return charge.reference
    amounts = f"{charge.amount}/{charge.amount_captured} {charge.currency}"
    return f"{charge.reference} {charge.status} {amounts}"


def _set_facts(
    locked: LockedPayment,
    status: PaymentStatus,
    charge: base.Charge | None,
    *,
    refused: bool,
    next_action: dict[str, Any] | None,
) -> None:
    """Set the fields that belong to a new status."""
    payment = locked.payment
    payment.next_action = None
    if status == "pending":
        payment.requested_at = locked.now  # open from now on
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
            "code": responses.NOT_CHARGED,
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


def record_completion_started(locked: LockedPayment) -> None:
    """The shopper has acted; the outcome is open until the gateway answers."""
    apply_decision(locked, Decision(payment_status="pending", lookup="soon"))


def record_action_required(locked: LockedPayment, next_action: dict[str, Any]) -> None:
    """The shopper has not acted on this payment after all; `next_action` is where to send them."""
    decision = Decision(payment_status="requires_action", lookup="soon")
    apply_decision(locked, decision, next_action=next_action)


# Refunds ----------------------------------------------------------------------------------------


def refund_facts(locked: LockedPayment, refund: RefundRow) -> RefundFacts:
    facts = refund_facts_of(refund, locked.payment, locked.order.status)
    return replace(facts, can_retrieve=locked.can_retrieve)


def refund_facts_of(
    refund: RefundRow,
    payment: PaymentRow,
    order_status: OrderStatus,
    gateway: base.Gateway | None = None,
) -> RefundFacts:
    """The same of a refund that is not locked."""
    return RefundFacts(
        status=refund.status,
        amount=refund.amount,
        currency=refund.currency,
        reference=refund.gateway_reference,
        amount_captured=payment.amount_captured,
        amount_refunded=payment.amount_refunded,
        order_status=order_status,
        can_retrieve=gateway is None or gateway.capabilities.can_retrieve,
    )


def settle_refund(
    locked: LockedPayment, refund: RefundRow, state: base.Refund, source: Source
) -> None:
    """Apply the state of a refund, which is locked too."""
    decision = decide_refund(refund_facts(locked, refund), state, source)
    if refund.gateway_reference is None:
        refund.gateway_reference = state.reference
    apply_refund_decision(locked, refund, decision, _refund_evidence(state))


def settle_refund_not_executed(
    locked: LockedPayment, refund: RefundRow, source: Source, *, refused: bool = False
) -> None:
    """The refund was surely never made; its reserved amount is free again."""
    decision = decide_refund_not_executed(refund_facts(locked, refund), source)
    apply_refund_decision(locked, refund, decision, refused=refused)


def apply_refund_decision(
    locked: LockedPayment,
    refund: RefundRow,
    decision: RefundDecision,
    seen: str = "",
    *,
    refused: bool = False,
) -> None:
    """Write a decision about a refund, with all that follows from it."""
    session, payment = locked.session, locked.payment
    leases.schedule_lookup(session, refund, locked.now, decision.lookup)
    if decision.refund_status is not None:
        transition_refund(locked, refund, decision.refund_status)
        if decision.refund_status == "failed":
            # A refund made outside may have waited for this amount.
            leases.schedule_lookup(session, payment, locked.now, "now")
    if decision.payment_status is not None:
        payment.amount_refunded += decision.refunded_change
        payment.status = decision.payment_status
    if decision.order_status is not None:
        transition_order(locked, decision.order_status)
    if decision.review_reason is not None:
        request_review(locked, decision.review_reason, seen)
    elif decision.refund_status is not None and payment.review_reason == "outcome_unknown":
        _end_review_of_refunds(locked)
    locked.touch()
    if refund.gateway_reference is not None:
        locked.answer(refund.gateway_key, lambda _: responses.refund_response(refund, locked.show))
    elif refund.status == "failed":
        locked.answer(
            refund.gateway_key,
            lambda id: responses.refund_not_made_response(payment, refund, id, refused=refused),
        )


def lock_refund_of_state(locked: LockedPayment, state: base.Refund) -> RefundRow | None:
    """The refund of a locked payment that its gateway means, locked."""
    locked.write()  # it may be one that has changed already
    refund = locks.lock_refund_of_state(
        locked.session, locked.payment, state.reference, state.refund_id
    )
    if refund is not None:
        locked.watch(refund)
    return refund


def lock_pending_refunds(locked: LockedPayment) -> list[RefundRow]:
    """The refunds of a locked payment that are not settled, locked."""
    locked.write()
    refunds = locks.lock_pending_refunds(locked.session, locked.payment)
    for refund in refunds:
        locked.watch(refund)
    return refunds


def settle_refunds(locked: LockedPayment, states: Sequence[base.Refund], source: Source) -> None:
    """Apply the refunds of a charge as its gateway shows them, and import those made outside."""
    for state in states:
        refund = lock_refund_of_state(locked, state)
        if refund is not None:
            settle_refund(locked, refund, state, source)
        elif state.status != "failed":
            import_refund(locked, state)


def import_refund(locked: LockedPayment, state: base.Refund) -> None:
    """Record a refund that was made in the gateway's dashboard as one of ours.

    A refund that does not fit (more than was captured, another currency) is flagged for review.
    While a refund of ours is open its failure may make room: then the gateway is asked again
    instead.
    """
    session, payment = locked.session, locked.payment
    room = payment.amount_captured - payment.refund_reserved
    if state.currency != payment.currency or not 0 < state.amount <= room:
        if state.currency != payment.currency or not lock_pending_refunds(locked):
            request_review(locked, "amount_differs", _refund_evidence(state))
        return
    refund = locks.open_refund(
        session, payment, amount=state.amount, reason=None, origin="gateway", lookup_after=0
    )
    locked.watch(refund)
    log.info("refund.imported", payment_id=payment.id, refund_id=refund.id)
    refund.gateway_reference = state.reference
    transition_refund(locked, refund, "pending")
    settle_refund(locked, refund, state, "answer")


def _end_review_of_refunds(locked: LockedPayment) -> None:
    """End the review of an unknown refund once the outcome of every refund is known."""
    payment = locked.payment
    if payment.operation is None and not lock_pending_refunds(locked):
        payment.needs_review, payment.review_reason = False, None


def _refund_evidence(state: base.Refund) -> str:
    return f"{state.reference} {state.status} {state.amount} {state.currency}"


# Disputes ---------------------------------------------------------------------------------------


def settle_dispute(locked: LockedPayment, state: base.Dispute) -> None:
    """Record a dispute, with one event when it opens and one when it closes."""
    payment = locked.payment
    new = locks.add_dispute(
        locked.session,
        payment,
        state.reference,
        status=state.status,
        amount=state.amount,
        currency=state.currency,
        reason=state.reason,
        evidence_due_at=state.evidence_due_at,
    )
    if new is not None:
        record_dispute_event(locked, new)
        return
    locked.write()  # it may be one that has changed already
    known = locks.lock_dispute(locked.session, payment.user_id, payment.gateway, state.reference)
    if known is None:
        return
    locked.watch(known)
    due_at = state.evidence_due_at
    # An earlier time is old news, for gateways only prolong it.
    if due_at is not None and (known.evidence_due_at is None or due_at > known.evidence_due_at):
        known.evidence_due_at = due_at
    if state.status not in ("open", known.status):  # a won one may be lost, none is reopened
        known.status = state.status
        record_dispute_event(locked, known)
