"""Places orders and changes their status, each change with its event."""

from __future__ import annotations

import crud
import schemas
from domain.states import ORDER_TRANSITIONS, OrderStatus, TransitionRole, allowed_transitions
from errors import Forbidden, InvalidStatusTransition, PaymentInProgress
from idempotency_keys import StoredResponse
from permissions import ORDERS_MANAGE
from rows import OrderRow
from services import payments
from sessions import Session
from settlement.context import CallContext
from settlement.gateway_calls import GatewayAccess
from settlement.transitions import locked_order, transition_order
from statements import PooledSender


def create(
    session: Session, context: CallContext, data: schemas.OrderCreate, default_currency: str
) -> StoredResponse:
    """Place an order. Raises PaymentMethodNotFound for a method that is not the user's."""
    order_id, order = crud.create_order(
        PooledSender.beside(session),
        data,
        user_id=context.require_owner("create_order", data.user_id),
        currency=data.currency or default_currency,
        actor=context.actor,
        request_id=context.request_id,
        key=context.owned_key,
    )
    if context.key is not None:
        context.key.is_answered = True
    return StoredResponse.json(201, order, f"/orders/{order_id}")


def set_status(
    session: Session,
    context: CallContext,
    access: GatewayAccess,
    order_id: int,
    status: OrderStatus,
) -> StoredResponse:
    """Set the status of an order; canceling it also voids a payment that has captured nothing.

    Raises NotFound, InvalidStatusTransition for an illegal transition, Forbidden for a legal one
    that this caller may not make, PaymentInProgress while a payment's outcome is open.
    """
    found = context.require_order(PooledSender.beside(session), "set_order_status", order_id)
    with locked_order(session, context, found.user_id, found.id) as locked:
        order = locked.order
        live = crud.get_live_payment(session, order.user_id, order.id)
        if order.status != status:
            _check_move(order, status, _roles(context, order))
        if order.status == status or live is None or live.amount_captured > 0:
            if order.status != status:
                transition_order(locked, status)
            shown = schemas.Order.model_validate(order)
            return context.store_response(session, StoredResponse.resource(200, shown))
        if status != "canceled" or live.status == "pending":
            raise PaymentInProgress(payment_id=live.id)
    return payments.cancel_with_order(session, context, access, live.id)


def _roles(context: CallContext, order: OrderRow) -> frozenset[TransitionRole]:
    roles: set[TransitionRole] = set()
    if order.user_id == context.principal.user_id:
        roles.add("owner")
    if ORDERS_MANAGE in context.principal.scopes:
        roles.add("manager")
    return frozenset(roles)


def _check_move(order: OrderRow, status: OrderStatus, roles: frozenset[TransitionRole]) -> None:
    movers = ORDER_TRANSITIONS.get((order.status, status))
    if movers is None:
        raise InvalidStatusTransition(
            f"An order cannot move from {order.status} to {status}",
            current_status=order.status,
            allowed_statuses=allowed_transitions(order.status, roles),
        )
    if not movers & roles:
        who = "the scope orders:manage" if "manager" in movers else "a payment, not a caller"
        raise Forbidden(f"Moving an order from {order.status} to {status} needs {who}")
