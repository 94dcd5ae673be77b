"""`/payment-methods`: the cards, wallets and accounts that users have saved."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request

import crud
import schemas
from auth import CurrentUser
from database import SessionDep
from errors import (
    CardNumberNotAccepted,
    DuplicatePaymentMethod,
    Forbidden,
    GatewayUnavailable,
    InvalidRequest,
    PaymentMethodDeclined,
)
from permissions import EVERYONE
from services import payment_methods
from statements import SenderDep
from web.pagination import Id, next_page
from web.problems import problems, resource_problems
from web.route import CallContextDep, GatewaysDep, ServiceRoute, SettingsDep, VisibleToDep

router = APIRouter(prefix="/payment-methods", tags=["Payment methods"], route_class=ServiceRoute)

CREATE_EXAMPLES: dict[str, Any] = {
    "card": {
        "summary": "A card by its number (the sandbox takes numbers)",
        "value": {
            "payment_type": "card",
            "details": {
                "card_number": "4242 4242 4242 4242",
                "exp_month": 12,
                "exp_year": 2034,
                "cvc": "123",
                "cardholder_name": "Alice Example",
            },
        },
    },
    "token": {
        "summary": "A card by a gateway's token",
        "value": {
            "payment_type": "card",
            "gateway": "sandbox",
            "details": {"token": "tok_insufficient_funds"},
        },
    },
    "paypal": {
        "summary": "A PayPal account",
        "value": {"payment_type": "paypal", "details": {"email": "alice@example.com"}},
    },
    "bank_account": {
        "summary": "A bank account",
        "value": {
            "payment_type": "bank_account",
            "details": {
                "iban": "DE89 3704 0044 0532 0130 00",
                "account_holder": "Alice Example",
            },
        },
    },
}


@router.post(
    "",
    status_code=201,
    response_model=schemas.PaymentMethod,
    operation_id="createPaymentMethod",
    summary="Save a payment method",
    responses=problems(
        Forbidden,
        CardNumberNotAccepted,
        PaymentMethodDeclined,
        DuplicatePaymentMethod,
        GatewayUnavailable,
        body=True,
    ),
)
def create_payment_method(
    session: SessionDep,
    context: CallContextDep,
    gateways: GatewaysDep,
    settings: SettingsDep,
    data: Annotated[schemas.PaymentMethodCreate, Body(openapi_examples=CREATE_EXAMPLES)],
) -> Any:
    """The number goes to the gateway and is forgotten; brand, last four and expiry stay.

    The same card again is 409 and names the method that the user already has.
    """
    return payment_methods.create(
        session, context, gateways, settings.fingerprint_keys, settings.default_currency, data
    )


@router.get(
    "",
    response_model=list[schemas.PaymentMethod],
    operation_id="listPaymentMethods",
    summary="List payment methods",
    responses=problems(InvalidRequest, Forbidden),
)
def list_payment_methods(
    request: Request,
    sender: SenderDep,
    user: CurrentUser,
    query: Annotated[schemas.PaymentMethodQuery, Query()],
) -> Any:
    """One's own active methods; with `orders:manage` those of the user in `user_id`."""
    user_id = user.visible_to("list_payment_methods", query.user_id)
    if user_id is EVERYONE:
        raise InvalidRequest.of("user_id", "missing", "Name the user whose methods to list")
    rows = crud.list_payment_methods(sender, query, user_id)
    return next_page(request, rows, query)


@router.get(
    "/{method_id}",
    response_model=schemas.PaymentMethod,
    operation_id="getPaymentMethod",
    summary="Get a payment method",
    responses=resource_problems(),
)
def get_payment_method(sender: SenderDep, visible_to: VisibleToDep, method_id: Id) -> Any:
    """An active method, as it is shown to shoppers: never more than brand, last four and expiry."""
    return crud.show_payment_method(sender, method_id, visible_to)


@router.patch(
    "/{method_id}",
    response_model=schemas.PaymentMethod,
    operation_id="updatePaymentMethod",
    summary="Change a payment method",
    responses=resource_problems(body=True),
)
def update_payment_method(
    session: SessionDep,
    context: CallContextDep,
    method_id: Id,
    data: Annotated[
        schemas.PaymentMethodUpdate,
        Body(
            openapi_examples={
                "expiry": {
                    "summary": "The card was renewed",
                    "value": {"details": {"exp_month": 11, "exp_year": 2035}},
                },
                "default": {"summary": "Pay with this by default", "value": {"is_default": True}},
            }
        ),
    ],
) -> Any:
    """A card's expiry and holder, or which method is the default. All parts are optional."""
    return payment_methods.update(session, context, method_id, data)


@router.delete(
    "/{method_id}",
    status_code=204,
    response_model=None,
    operation_id="deletePaymentMethod",
    summary="Remove a payment method",
    responses=resource_problems(),
)
def delete_payment_method(session: SessionDep, context: CallContextDep, method_id: Id) -> Any:
    """It leaves every list and read; its orders and payments stay. It may be saved again."""
    return payment_methods.delete(session, context, method_id)
