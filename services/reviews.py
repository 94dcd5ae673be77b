"""Ends a review: a person says what the gateway's books show, and that settles the payment.

The statement is applied by the same rules as a gateway's answer. What cannot follow from the
payment's state is refused.
"""

from dataclasses import replace
from typing import Final

import crud
import locks
import schemas
from domain.settlement import CHARGE_STATUSES_WITH_MONEY, Decision, decide, decide_not_executed
from domain.states import ChargeStatus, PaymentStatus, ReviewResolution
from errors import AmountExceedsRemaining, InvalidRequest, InvalidStatusTransition, NotFound
from gateways import base
from idempotency_keys import StoredResponse
from permissions import EVERYONE
from rows import PaymentRow
from sessions import Session
from settlement import apply
from settlement.context import CallContext
from settlement.transitions import (
    ChangedBy,
    LockedPayment,
    lock_refund,
    locked_payment,
    record_review_ended,
)
from statements import PooledSender

CHARGE_STATUS_OF_RESOLUTION: Final[dict[ReviewResolution, ChargeStatus]] = {
    "captured": "captured",
    "authorized": "authorized",
    "voided": "voided",
}
# The statuses that a payment may have once this is applied.
STATUSES_AFTER: Final[dict[ReviewResolution, frozenset[PaymentStatus]]] = {
    "captured": frozenset({"captured", "partially_refunded", "refunded"}),
    "authorized": frozenset({"authorized"}),
    "voided": frozenset({"voided", "canceled"}),
    "not_charged": frozenset({"failed"}),
}
REFUND_RESOLUTIONS: Final[frozenset[ReviewResolution]] = frozenset({"refunded", "not_refunded"})


def end_review(
    session: Session, context: CallContext, payment_id: int, data: schemas.ReviewCreate
) -> StoredResponse:
    """End the review of a payment. Raises Forbidden, and what `resolve` raises."""
    found = context.require_payment(PooledSender.beside(session), "review_payment", payment_id)
    with locked_payment(session, ChangedBy.caller(context), found) as locked:
        shown = _resolve(locked, data)
        return context.store_response(session, StoredResponse.resource(200, shown))


def resolve(
    session: Session, by: ChangedBy, payment_id: int, data: schemas.ReviewCreate
) -> schemas.Payment:
    """End the review of a payment, and return the payment as it is then.

    Raises NotFound, InvalidRequest, AmountExceedsRemaining, and InvalidStatusTransition for a
    payment that needs no review and for what cannot follow from its state.
    """
    found = crud.require_payment(PooledSender.beside(session), payment_id, EVERYONE)
    with locked_payment(session, by, found) as locked:
        return _resolve(locked, data)


def _resolve(locked: LockedPayment, data: schemas.ReviewCreate) -> schemas.Payment:
    payment = locked.payment
    if not payment.needs_review:
        raise InvalidStatusTransition(
            "The payment needs no review", current_status=payment.status, allowed_statuses=[]
        )
    if (data.refund_id is not None) != (data.resolution in REFUND_RESOLUTIONS):
        raise InvalidRequest.of(
            "refund_id",
            "refund_id",
            "Name a refund with `refunded` or `not_refunded`, and with nothing else",
        )
    reason = payment.review_reason
    if data.refund_id is not None:
        _settle_refund(locked, data.refund_id, data)
    elif data.resolution != "accepted":
        _settle_charge(locked, data)
        payment.review_state = None
    # Settling may have ended the review, or have flagged another one.
    payment.review_reason = reason
    record_review_ended(locked, resolution=data.resolution, note=data.note)
    return schemas.Payment.model_validate(payment)


def _settle_charge(locked: LockedPayment, data: schemas.ReviewCreate) -> None:
    payment = locked.payment
    # A person may state any amount up to what was authorized.
    ours = replace(apply.payment_facts(locked), capture_method="manual")
    charge = None
    if data.resolution == "not_charged":
        decision = decide_not_executed(ours, "answer")
        if payment.status == "requires_action":
            decision = Decision(payment_status="failed", lookup="never")
            if payment.operation is not None:
                decision = replace(decision, operation_result="not_executed")
    else:
        charge = _stated(locked.session, payment, data)
        if payment.operation == "capture":
            ours = replace(ours, operation_amount=charge.amount_captured)
        decision = decide(ours, charge, "answer")
        if payment.operation is not None and decision.operation_result is None:
            # The books show the charge as it was: the capture or void was not done.
            decision = decide_not_executed(ours, "answer")
    status = decision.payment_status or payment.status
    if decision.review_reason is not None or status not in STATUSES_AFTER[data.resolution]:
        raise InvalidStatusTransition(
            f"A payment that is {payment.status} cannot be {data.resolution}",
            current_status=payment.status,
            allowed_statuses=[],
        )
    apply.apply_decision(locked, decision, charge)


def _stated(session: Session, payment: PaymentRow, data: schemas.ReviewCreate) -> base.Charge:
    """The charge that the gateway's books show, by the person's statement."""
    status = CHARGE_STATUS_OF_RESOLUTION[data.resolution]
    reference = data.gateway_reference or payment.gateway_reference
    if reference is None and status in CHARGE_STATUSES_WITH_MONEY:
        raise InvalidRequest.of(
            "gateway_reference", "missing", "Name the charge: a refund needs its reference"
        )
    if data.gateway_reference is not None and crud.is_other_payments_reference(
        session, payment, data.gateway_reference
    ):
        raise InvalidRequest.of("gateway_reference", "taken", "This is another payment's charge")
    captured = 0
    if status == "captured":
        asked = payment.operation_amount if payment.operation == "capture" else None
        captured = data.amount or payment.amount_captured or asked or payment.amount
        if captured > payment.amount:
            raise AmountExceedsRemaining(remaining=payment.amount)
    return base.Charge(
        reference=reference or payment.gateway_key,
        status=status,
        amount=payment.amount,
        currency=payment.currency,
        amount_captured=captured,
        capture_before=payment.capture_before,
        replaces=payment.gateway_reference,
    )


def _settle_refund(locked: LockedPayment, refund_id: int, data: schemas.ReviewCreate) -> None:
    payment = locked.payment
    refund = lock_refund(locked, refund_id)
    if refund is None:
        raise NotFound
    if refund.status != "pending":
        raise InvalidStatusTransition(
            f"The refund is {refund.status}", current_status=payment.status, allowed_statuses=[]
        )
    if data.resolution == "not_refunded":
        apply.settle_refund_not_executed(locked, refund, "answer")
        return
    reference = data.gateway_reference or refund.gateway_reference
    if reference is None:
        raise InvalidRequest.of("gateway_reference", "missing", "Name the gateway's refund")
    named = locks.lock_refund_of_state(locked.session, payment, reference, None)
    if named is not None and named.id != refund.id:
        raise InvalidRequest.of("gateway_reference", "taken", "This is another refund")
    state = base.Refund(reference, "succeeded", refund.amount, refund.currency)
    apply.settle_refund(locked, refund, state, "answer")
