"""Refunds: reserve, call, settle. Never more than was captured, however many at a time."""

import crud
import errors
import locks
import schemas
from gateways.base import Gateway, NotExecuted, Refund, Refused
from idempotency_keys import StoredResponse
from rows import PaymentRow
from services.payments import require_supported_amount
from sessions import Session
from settlement import gateway_requests
from settlement.apply import settle_refund, settle_refund_not_executed
from settlement.context import CallContext
from settlement.gateway_calls import UNKNOWN, GatewayAccess, call_gateway, settling
from settlement.gateway_requests import RowSnapshot
from settlement.responses import refund_not_made_response, refund_response
from settlement.transitions import ChangedBy, lock_refund, locked_payment, transition_refund
from statements import PooledSender


def refund(
    session: Session,
    context: CallContext,
    access: GatewayAccess,
    payment_id: int,
    data: schemas.RefundCreate,
) -> StoredResponse:
    """Refund a captured payment, what is left of it or `amount`.

    201 when the gateway has accepted it; 202 while its outcome is unknown. Raises NotFound,
    AmountExceedsRemaining, InvalidStatusTransition, OperationNotSupported, and PaymentDisputed when
    the shopper's bank gives the money back or may do so, unless the caller allows that.
    """
    found = context.require_payment(PooledSender.beside(session), "refund_payment", payment_id)
    by = ChangedBy.caller(context)
    # Claim: reserve the amount before the gateway is asked.
    with locked_payment(session, by, found, context=context) as locked:
        payment = locked.payment
        gateway = access.gateway(payment.gateway)
        amount = _amount(payment, data.amount)
        dispute_id = crud.get_blocking_dispute(session, payment)
        if dispute_id is not None and not data.allow_disputed:
            raise errors.PaymentDisputed(dispute_id=dispute_id)
        if amount != payment.amount_captured and not gateway.capabilities.partial_refund:
            raise errors.OperationNotSupported("This gateway refunds all of it or nothing")
        require_supported_amount(gateway, amount, payment.currency)
        row = locks.open_refund(
            session, payment, amount=amount, reason=data.reason, lookup_after=access.lookup_after
        )
        transition_refund(locked, row, "pending")
        locked.link_gateway_request(row.gateway_key)
        request = gateway_requests.refund_request(payment, row, access.fault)
        snapshot = RowSnapshot.of_refund(row)
    state = call_gateway(gateway, "refund", lambda: gateway.refund(request), access.seconds)
    with settling(session) as outcome:
        if state is not UNKNOWN:
            outcome.response = _settle(session, context, found, row.id, gateway, snapshot, state)
    return outcome.response or refund_response(row)


def _settle(
    session: Session,
    context: CallContext,
    found: PaymentRow,
    refund_id: int,
    gateway: Gateway,
    snapshot: RowSnapshot,
    state: Refund | NotExecuted,
) -> StoredResponse | None:
    """Settle a refund by its gateway's answer; None: it stays open."""
    by = ChangedBy.caller(context)
    with locked_payment(session, by, found, gateway, context) as locked:
        refund = lock_refund(locked, refund_id)
        assert refund is not None  # rows of money are never deleted
        source = snapshot.source(refund)
        if not isinstance(state, NotExecuted):
            settle_refund(locked, refund, state, source)
            return context.response or refund_response(refund)
        if source == "answer":
            refused = isinstance(state, Refused)
            settle_refund_not_executed(locked, refund, source, refused=refused)
            return context.response or refund_not_made_response(
                locked.payment, refund, context.request_id, refused=refused
            )
        return None  # a look-up is under way, and may have sent the request that we could not


def _amount(payment: PaymentRow, asked: int | None) -> int:
    if payment.amount_captured == 0:
        raise errors.InvalidStatusTransition(
            f"A payment that is {payment.status} cannot be refunded",
            current_status=payment.status,
            allowed_statuses=[],
        )
    remaining = payment.amount_captured - payment.refund_reserved
    amount = remaining if asked is None else asked
    if amount > remaining or amount < 1:
        raise errors.AmountExceedsRemaining(remaining=remaining)
    return amount
