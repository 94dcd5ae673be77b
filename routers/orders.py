"""`/orders`: what users buy, its status and its history."""

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
    InvalidRequest,
    InvalidStatusTransition,
    PaymentInProgress,
    PaymentMethodNotFound,
)
from routers.lists import Id, next_page, whose
from routers.permissions import require_order, require_owner
from routers.problems import owned, problems
from routers.route import AskingDep, ContextDep, ServiceRoute, SettingsDep, permission
from services import orders

router = APIRouter(prefix="/orders", tags=["Orders"], route_class=ServiceRoute)

CREATE_EXAMPLES: dict[str, Any] = {
    "order": {
        "summary": "One thing for 10.99 USD",
        "value": {
            "product_id": "sku-42",
            "quantity": 1,
            "total_amount": 1099,
            "currency": "USD",
            "metadata": {"cart": "c-1001"},
        },
    },
    "yen": {
        "summary": "Three things for 4500 JPY, with the method to pay with",
        "value": {
            "product_id": "sku-7",
            "quantity": 3,
            "total_amount": 4500,
            "currency": "JPY",
            "payment_method_id": 1,
        },
    },
}


@router.post(
    "",
    status_code=201,
    response_model=schemas.Order,
    operation_id="createOrder",
    summary="Place an order",
    responses=problems(Forbidden, PaymentMethodNotFound, body=True),
)
@permission(require_owner)
def create_order(
    session: SessionDep,
    context: ContextDep,
    settings: SettingsDep,
    data: Annotated[schemas.OrderCreate, Body(openapi_examples=CREATE_EXAMPLES)],
) -> Any:
    """Amounts are integers in the currency's minor unit: 1099 with USD is 10.99 USD."""
    return orders.create(session, context, data, settings.default_currency)


@router.get(
    "",
    response_model=list[schemas.Order],
    operation_id="listOrders",
    summary="List orders",
    responses=problems(InvalidRequest, Forbidden),
)
def list_orders(
    request: Request,
    response: Response,
    session: SessionDep,
    user: CurrentUser,
    query: Annotated[schemas.OrderQuery, Query()],
) -> Sequence[Any]:
    """Newest first. One's own; with `orders:manage` everyone's, or those of `user_id`."""
    rows = crud.list_orders(session, query, whose(query.user_id, user.orders_of))
    return next_page(request, response, rows, query)


@router.get(
    "/{order_id}",
    response_model=schemas.Order,
    operation_id="getOrder",
    summary="Get an order",
    responses=owned(),
)
def get_order(session: SessionDep, user: CurrentUser, order_id: Id) -> Any:
    """One's own order, or with `orders:manage` anybody's. Any other is 404."""
    return crud.require_order(session, order_id, user.orders_of)


@router.put(
    "/{order_id}/status",
    response_model=schemas.Order,
    operation_id="setOrderStatus",
    summary="Move an order",
    responses=owned(InvalidStatusTransition, PaymentInProgress, body=True),
)
@permission(require_order)
def set_order_status(
    session: SessionDep,
    context: ContextDep,
    asking: AskingDep,
    order_id: Id,
    data: Annotated[
        schemas.OrderStatusUpdate,
        Body(
            openapi_examples={
                "cancel": {"summary": "Cancel it", "value": {"status": "canceled"}},
                "ship": {"summary": "It was shipped (managers)", "value": {"status": "shipped"}},
            }
        ),
    ],
) -> Any:
    """An illegal move is 409 and names the moves that this caller may make."""
    return orders.set_status(session, context, asking, order_id, data.status)


@router.get(
    "/{order_id}/events",
    response_model=list[schemas.Event],
    operation_id="listOrderEvents",
    summary="The history of an order",
    responses=owned(InvalidRequest),
)
def list_order_events(
    request: Request,
    response: Response,
    session: SessionDep,
    user: CurrentUser,
    order_id: Id,
    query: Annotated[schemas.Page, Query()],
) -> Sequence[Any]:
    """Newest first: what happened, when, who did it, and under which request."""
    crud.require_order(session, order_id, user.orders_of)
    rows = crud.list_order_events(session, order_id, query)
    return next_page(request, response, rows, query, key="sequence")
