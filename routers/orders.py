"""`/orders`: what users buy, its status and its history."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request

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
from services import orders
from statements import SenderDep
from web.pagination import Id, next_page
from web.problems import problems, resource_problems
from web.route import CallContextDep, GatewayAccessDep, ServiceRoute, SettingsDep, VisibleToDep

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
def create_order(
    session: SessionDep,
    context: CallContextDep,
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
    sender: SenderDep,
    user: CurrentUser,
    query: Annotated[schemas.OrderQuery, Query()],
) -> Any:
    """Newest first. One's own; with `orders:manage` everyone's, or those of `user_id`."""
    rows = crud.list_orders(sender, query, user.visible_to("list_orders", query.user_id))
    return next_page(request, rows, query)


@router.get(
    "/{order_id}",
    response_model=schemas.Order,
    operation_id="getOrder",
    summary="Get an order",
    responses=resource_problems(),
)
def get_order(sender: SenderDep, visible_to: VisibleToDep, order_id: Id) -> Any:
    """One's own order, or with `orders:manage` anybody's. Any other is 404."""
    return crud.show_order(sender, order_id, visible_to)


@router.put(
    "/{order_id}/status",
    response_model=schemas.Order,
    operation_id="setOrderStatus",
    summary="Move an order",
    responses=resource_problems(InvalidStatusTransition, PaymentInProgress, body=True),
)
def set_order_status(
    session: SessionDep,
    context: CallContextDep,
    access: GatewayAccessDep,
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
    return orders.set_status(session, context, access, order_id, data.status)


@router.get(
    "/{order_id}/events",
    response_model=list[schemas.Event],
    operation_id="listOrderEvents",
    summary="The history of an order",
    responses=resource_problems(InvalidRequest),
)
def list_order_events(
    request: Request,
    sender: SenderDep,
    visible_to: VisibleToDep,
    order_id: Id,
    query: Annotated[schemas.Page, Query()],
) -> Any:
    """Newest first: what happened, when, who did it, and under which request."""
    order = crud.require_order(sender, order_id, visible_to)
    rows = crud.list_order_events(sender, order.user_id, order.id, query)
    return next_page(request, rows, query)
