"""Refunds: reserve, call, settle. Never more than was captured, however many at a time."""

from sqlalchemy.orm import Session

import crud
import errors
import schemas
from database import phase
from gateways.base import NotExecuted, Refused
from idempotency_keys import StoredResponse
from models import Payment
from services.payments import require_supported_amount
from settlement import gateway_requests
from settlement.apply import settle_refund, settle_refund_not_executed
from settlement.context import CallContext
from settlement.gateway_calls import UNKNOWN, GatewayAccess, call_gateway, settling
from settlement.gateway_requests import RowSnapshot
from settlement.responses import refund_not_made_response, refund_response
from settlement.transitions import ChangedBy, lock_payment, lock_refund, transition_refund


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
    with phase(session):  # claim: reserve the amount before the gateway is asked
        found = context.require_payment(session, "refund_payment", payment_id)
        by = ChangedBy.caller(context)
        locked = lock_payment(session, by, found)
        payment = locked.payment
        gateway = access.gateway(payment.gateway)
        amount = _amount(payment, data.amount)
        dispute_id = crud.get_blocking_dispute(session, payment)
        if dispute_id is not None and not data.allow_disputed:
            raise errors.PaymentDisputed(dispute_id=dispute_id)
        if amount != payment.amount_captured and not gateway.capabilities.partial_refund:
            raise errors.OperationNotSupported("This gateway refunds all of it or nothing")
        require_supported_amount(gateway, amount, payment.currency)
        row = crud.open_refund(
            session, payment, amount=amount, reason=data.reason, lookup_after=access.lookup_after
        )
        transition_refund(locked, row, "pending")
        context.link_gateway_request(session, row.gateway_key)
        request = gateway_requests.refund_request(payment, row, access.fault)
        unknown = refund_response(row)
        snapshot = RowSnapshot.of_refund(row)
    state = call_gateway(gateway, "refund", lambda: gateway.refund(request), access.seconds)
    if state is UNKNOWN:
        return unknown
    with settling(session, unknown) as outcome:
        locked, row = lock_refund(session, by, found, row.id)
        source = snapshot.source(row)
        if not isinstance(state, NotExecuted):
            settle_refund(locked, row, state, source)
            outcome.response = refund_response(row)
        elif source == "answer":
            refused = isinstance(state, Refused)
            settle_refund_not_executed(locked, row, source, refused=refused)
            outcome.response = refund_not_made_response(
                locked.payment, row, context.request_id, refused=refused
            )
        # Else a look-up is under way, and may have sent the request that we could not.
    return outcome.response


def _amount(payment: Payment, asked: int | None) -> int:
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
