"""Placing orders and moving them through their life, each move with its event."""

from __future__ import annotations

from sqlalchemy.orm import Session

import crud
import schemas
from database import phase
from domain.events import Actor
from domain.states import ORDER_MOVES, Mover, OrderStatus, allowed_moves
from errors import Forbidden, InvalidStatusTransition, PaymentInProgress, PaymentMethodNotFound
from models import Order
from services.context import Answer, Context


def create(
    session: Session, context: Context, data: schemas.OrderCreate, default_currency: str
) -> Answer:
    """Place an order. Raises PaymentMethodNotFound for a method that is not the user's."""
    user_id = context.owner(data.user_id)
    with phase(session):
        order = crud.create_order(
            session, data, user_id=user_id, currency=data.currency or default_currency
        )
        if order is None:
            raise PaymentMethodNotFound(payment_method_id=data.payment_method_id)
        shown = schemas.Order.model_validate(order)
        crud.add_event(
            session,
            "order.created",
            user_id=user_id,
            order=order,
            actor=context.actor,
            request_id=context.request_id,
            data=shown.model_dump(mode="json"),
        )
        return Answer.resource(201, shown, f"/orders/{order.id}")


def set_status(session: Session, context: Context, order_id: int, status: OrderStatus) -> Answer:
    """Move an order by hand.

    Raises NotFound, InvalidStatusTransition for an illegal move, Forbidden for a legal one that
    this caller may not make, PaymentInProgress while a payment's outcome is open.
    """
    with phase(session):
        order = crud.lock_order(session, order_id, context.principal.orders_of)
        if order.status != status:
            _check_move(order, status, _roles(context, order))
            live = crud.get_live_payment(session, order.id)
            if live is not None and live.status in ("pending", "requires_action"):
                raise PaymentInProgress(payment_id=live.id)
            move(session, order, status, actor=context.actor, request_id=context.request_id)
        return Answer.resource(200, schemas.Order.model_validate(order))


def move(
    session: Session, order: Order, status: OrderStatus, *, actor: Actor, request_id: str | None
) -> None:
    """Set the status of a locked order and write the event that tells of it."""
    crud.set_order_status(session, order, status)
    crud.add_event(
        session,
        "order.status_changed",
        user_id=order.user_id,
        order=order,
        actor=actor,
        request_id=request_id,
        data=schemas.Order.model_validate(order).model_dump(mode="json"),
    )


def _roles(context: Context, order: Order) -> frozenset[Mover]:
    roles: set[Mover] = set()
    if order.user_id == context.principal.user_id:
        roles.add("owner")
    if context.principal.manages_orders:
        roles.add("manager")
    return frozenset(roles)


def _check_move(order: Order, status: OrderStatus, roles: frozenset[Mover]) -> None:
    movers = ORDER_MOVES.get((order.status, status))
    if movers is None:
        raise InvalidStatusTransition(
            f"An order cannot move from {order.status} to {status}",
            current_status=order.status,
            allowed_statuses=allowed_moves(order.status, roles),
        )
    if not movers & roles:
        who = "the scope orders:manage" if "manager" in movers else "a payment, not a caller"
        raise Forbidden(f"Moving an order from {order.status} to {status} takes {who}")
