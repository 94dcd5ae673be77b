"""`/payments`, and the payments of an order: charging it, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response

import crud
import schemas
from auth import CurrentUser
from database import SessionDep
from errors import (
    Forbidden,
    GatewayUnavailable,
    InvalidRequest,
    InvalidStatusTransition,
    OrderAlreadyPaid,
    PaymentDeclined,
    PaymentInProgress,
    PaymentMethodNotFound,
)
from routers.lists import Id, next_page, whose
from routers.problems import owned, problems
from routers.route import ContextDep, GatewaysDep, ServiceRoute
from services import payments

router = APIRouter(tags=["Payments"], route_class=ServiceRoute)

PENDING: dict[int | str, dict[str, Any]] = {
    202: {
        "model": schemas.Payment,
        "description": "The outcome is not known yet; the service finds out by itself",
    }
}


@router.post(
    "/orders/{order_id}/payments",
    status_code=201,
    response_model=schemas.Payment,
    operation_id="payOrder",
    summary="Pay an order",
    responses=PENDING
    | owned(
        PaymentMethodNotFound,
        PaymentDeclined,
        PaymentInProgress,
        OrderAlreadyPaid,
        InvalidStatusTransition,
        GatewayUnavailable,
        body=True,
    ),
)
def pay_order(
    session: SessionDep,
    context: ContextDep,
    gateways: GatewaysDep,
    order_id: Id,
    data: Annotated[
        schemas.PaymentCreate | None,
        Body(
            openapi_examples={
                "default": {"summary": "With the order's, or the default method", "value": {}},
                "method": {"summary": "With this method", "value": {"payment_method_id": 1}},
            }
        ),
    ] = None,
) -> Any:
    """One charge per order. A decline is 402, and the order may be paid with another method."""
    return payments.pay(session, context, gateways, order_id, data or schemas.PaymentCreate())


@router.get(
    "/orders/{order_id}/payments",
    response_model=list[schemas.Payment],
    operation_id="listOrderPayments",
    summary="List the payments of an order",
    responses=owned(InvalidRequest),
)
def list_order_payments(
    request: Request,
    response: Response,
    session: SessionDep,
    user: CurrentUser,
    order_id: Id,
    query: Annotated[schemas.Page, Query()],
) -> Sequence[Any]:
    order = crud.require_order(session, order_id, user.payments_of)
    of_order = schemas.PaymentQuery(limit=query.limit, cursor=query.cursor, order_id=order.id)
    rows = crud.list_payments(session, of_order, user.payments_of)
    return next_page(request, response, rows, query)


@router.get(
    "/payments",
    response_model=list[schemas.Payment],
    operation_id="listPayments",
    summary="List payments",
    responses=problems(InvalidRequest, Forbidden),
)
def list_payments(
    request: Request,
    response: Response,
    session: SessionDep,
    user: CurrentUser,
    query: Annotated[schemas.PaymentQuery, Query()],
) -> Sequence[Any]:
    """Newest first. One's own; with `orders:manage` or `payments:manage` everyone's."""
    rows = crud.list_payments(session, query, whose(query.user_id, user.payments_of))
    return next_page(request, response, rows, query)


@router.get(
    "/payments/{payment_id}",
    response_model=schemas.Payment,
    operation_id="getPayment",
    summary="Get a payment",
    responses=owned(),
)
def get_payment(session: SessionDep, user: CurrentUser, payment_id: Id) -> Any:
    return crud.require_payment(session, payment_id, user.payments_of)
