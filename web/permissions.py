"""Who may call an endpoint at all: checked before it runs, and before its answer is repeated.

Given to `route.permission`, which passes arguments of the endpoint by their names.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

import crud
import schemas
from auth import require_scope
from permissions import PAYMENTS_MANAGE
from settlement.context import CallContext


def require_owner(
    context: CallContext, data: schemas.OrderCreate | schemas.PaymentMethodCreate
) -> None:
    """Raises Forbidden when it is for somebody else, without `orders:manage`."""
    context.owner(data.user_id)


def require_order(session: Session, context: CallContext, order_id: int) -> None:
    """Raises NotFound for an order the caller may not see."""
    crud.require_order(session, order_id, context.principal.orders_visible_to)


def require_payment(session: Session, context: CallContext, payment_id: int) -> None:
    """Raises NotFound for a payment the caller may not see."""
    crud.require_payment(session, payment_id, context.principal.payments_visible_to)


def require_managed_payment(session: Session, context: CallContext, payment_id: int) -> None:
    """Raises NotFound for a payment the caller may not see, Forbidden for one they may only see."""
    require_payment(session, context, payment_id)
    require_scope(context.principal, PAYMENTS_MANAGE)
