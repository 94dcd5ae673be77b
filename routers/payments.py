"""`/payments`, and the payments of an order: charging it, and what came of it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request

import crud
import fields
import schemas
from auth import CurrentUser
from config import Settings
from database import SessionDep
from errors import (
    AmountExceedsRemaining,
    Forbidden,
    GatewayUnavailable,
    InvalidRequest,
    InvalidStatusTransition,
    OperationNotSupported,
    OrderAlreadyPaid,
    PaymentDeclined,
    PaymentDisputed,
    PaymentInProgress,
    PaymentMethodNotFound,
)
from services import payments, refunds, reviews
from statements import SenderDep
from web.pagination import Id, next_page
from web.problems import problems, resource_problems
from web.route import CallContextDep, GatewayAccessDep, ServiceRoute, SettingsDep, VisibleToDep

router = APIRouter(tags=["Payments"], route_class=ServiceRoute)

PENDING: dict[int | str, dict[str, Any]] = {
    202: {
        "model": schemas.Payment,
        "description": "The outcome is not known yet; the service finds out by itself",
    }
}


PENDING_REFUND: dict[int | str, dict[str, Any]] = {202: {**PENDING[202], "model": schemas.Refund}}
MANAGED_ERRORS = (
    InvalidStatusTransition,
    AmountExceedsRemaining,
    OperationNotSupported,
    PaymentInProgress,
    GatewayUnavailable,
)
MANAGED = resource_problems(*MANAGED_ERRORS, body=True)


@router.post(
    "/orders/{order_id}/payments",
    status_code=201,
    response_model=schemas.Payment,
    operation_id="payOrder",
    summary="Pay an order",
    responses=PENDING
    | resource_problems(
        PaymentMethodNotFound,
        PaymentDeclined,
        PaymentInProgress,
        OrderAlreadyPaid,
        InvalidStatusTransition,
        OperationNotSupported,
        GatewayUnavailable,
        body=True,
    ),
)
def pay_order(
    session: SessionDep,
    context: CallContextDep,
    access: GatewayAccessDep,
    settings: SettingsDep,
    order_id: Id,
    data: Annotated[
        schemas.PaymentCreate | None,
        Body(
            openapi_examples={
                "default": {"summary": "With the order's, or the default method", "value": {}},
                "method": {"summary": "With this method", "value": {"payment_method_id": 1}},
                "authorize": {
                    "summary": "Authorize now, capture later",
                    "value": {"capture_method": "manual"},
                },
            }
        ),
    ] = None,
) -> Any:
    """One charge per order. A decline is 402, and the order may be paid with another method."""
    data = data or schemas.PaymentCreate()
    _check_return_url(settings, data.return_url)
    return payments.pay(session, context, access, order_id, data)


@router.get(
    "/orders/{order_id}/payments",
    response_model=list[schemas.Payment],
    operation_id="listOrderPayments",
    summary="List the payments of an order",
    responses=resource_problems(InvalidRequest),
)
def list_order_payments(
    request: Request,
    sender: SenderDep,
    visible_to: VisibleToDep,
    order_id: Id,
    query: Annotated[schemas.Page, Query()],
) -> Any:
    """Newest first: every attempt, the declined ones too."""
    order = crud.require_order(sender, order_id, visible_to)
    of_order = schemas.PaymentQuery(limit=query.limit, cursor=query.cursor, order_id=order.id)
    rows = crud.list_payments(sender, of_order, visible_to)
    return next_page(request, rows, query)


@router.get(
    "/payments",
    response_model=list[schemas.Payment],
    operation_id="listPayments",
    summary="List payments",
    responses=problems(InvalidRequest, Forbidden),
)
def list_payments(
    request: Request,
    sender: SenderDep,
    user: CurrentUser,
    query: Annotated[schemas.PaymentQuery, Query()],
) -> Any:
    """Newest first. One's own; with `orders:manage` or `payments:manage` everyone's."""
    rows = crud.list_payments(sender, query, user.visible_to("list_payments", query.user_id))
    return next_page(request, rows, query)


@router.get(
    "/payments/{payment_id}",
    response_model=schemas.Payment,
    operation_id="getPayment",
    summary="Get a payment",
    responses=resource_problems(),
)
def get_payment(sender: SenderDep, visible_to: VisibleToDep, payment_id: Id) -> Any:
    """Ask this again while the status is `pending`; it settles by itself within seconds."""
    return crud.show_payment(sender, payment_id, visible_to)


@router.post(
    "/payments/{payment_id}/confirm",
    response_model=schemas.Payment,
    operation_id="confirmPayment",
    summary="The shopper is back from a redirect",
    responses=PENDING | resource_problems(GatewayUnavailable, body=True),
)
def confirm_payment(
    session: SessionDep,
    context: CallContextDep,
    access: GatewayAccessDep,
    payment_id: Id,
    data: Annotated[
        schemas.PaymentConfirm | None,
        Body(
            openapi_examples={
                "back": {"summary": "The shopper is back", "value": {}},
                "returned": {
                    "summary": "With what the gateway added to the return URL",
                    "value": {"returned": {"redirectResult": "X3XtfGC7"}},
                },
            }
        ),
    ] = None,
) -> Any:
    """Goes on with the payment at once, instead of when the gateway's webhook comes.

    Answers with the payment as it is then. Only Adyen needs it, with what it added to the URL.
    """
    returned = data.returned if data is not None else {}
    return payments.confirm(session, context, access, payment_id, returned)


@router.post(
    "/payments/{payment_id}/capture",
    response_model=schemas.Payment,
    operation_id="capturePayment",
    summary="Capture an authorized payment",
    responses=PENDING | MANAGED,
)
def capture_payment(
    session: SessionDep,
    context: CallContextDep,
    access: GatewayAccessDep,
    payment_id: Id,
    data: Annotated[
        schemas.CaptureCreate | None,
        Body(
            openapi_examples={
                "all": {"summary": "All of it", "value": {}},
                "part": {"summary": "A part; the rest is released", "value": {"amount": 500}},
            }
        ),
    ] = None,
) -> Any:
    """Takes the money that is held, all of it or `amount`. Needs the scope `payments:manage`."""
    amount = data.amount if data is not None else None
    return payments.capture(session, context, access, payment_id, amount)


@router.post(
    "/payments/{payment_id}/void",
    response_model=schemas.Payment,
    operation_id="voidPayment",
    summary="Void an authorized payment",
    responses=PENDING | MANAGED,
)
def void_payment(
    session: SessionDep,
    context: CallContextDep,
    access: GatewayAccessDep,
    payment_id: Id,
    data: Annotated[
        schemas.VoidCreate | None,
        Body(openapi_examples={"void": {"summary": "Release the money", "value": {}}}),
    ] = None,
) -> Any:
    """Releases the money that is held. Needs the scope `payments:manage`."""
    return payments.void(session, context, access, payment_id)


@router.post(
    "/payments/{payment_id}/refunds",
    status_code=201,
    response_model=schemas.Refund,
    operation_id="refundPayment",
    summary="Refund a captured payment",
    responses=PENDING_REFUND | resource_problems(*MANAGED_ERRORS, PaymentDisputed, body=True),
)
def refund_payment(
    session: SessionDep,
    context: CallContextDep,
    access: GatewayAccessDep,
    payment_id: Id,
    data: Annotated[
        schemas.RefundCreate | None,
        Body(
            openapi_examples={
                "all": {"summary": "What is left", "value": {}},
                "part": {
                    "summary": "A part",
                    "value": {"amount": 500, "reason": "one of two came back"},
                },
            }
        ),
    ] = None,
) -> Any:
    """Never more than was captured, however many arrive at once. Needs `payments:manage`."""
    return refunds.refund(session, context, access, payment_id, data or schemas.RefundCreate())


@router.post(
    "/payments/{payment_id}/review",
    response_model=schemas.Payment,
    operation_id="reviewPayment",
    summary="End the review of a payment",
    responses=resource_problems(InvalidStatusTransition, AmountExceedsRemaining, body=True),
)
def review_payment(
    session: SessionDep,
    context: CallContextDep,
    payment_id: Id,
    data: Annotated[
        schemas.ReviewCreate,
        Body(
            openapi_examples={
                "captured": {
                    "summary": "The gateway's books show the charge",
                    "value": {
                        "resolution": "captured",
                        "gateway_reference": "pi_3Q",
                        "note": "dashboard, 1099 captured on 3 May",
                    },
                },
                "not_charged": {
                    "summary": "The gateway knows of no charge",
                    "value": {"resolution": "not_charged", "note": "searched by order and time"},
                },
            }
        ),
    ],
) -> Any:
    """Settles the payment as if the gateway had said it. Needs the scope `payments:manage`."""
    return reviews.end_review(session, context, payment_id, data)


@router.get(
    "/payments/{payment_id}/refunds",
    response_model=list[schemas.Refund],
    operation_id="listRefunds",
    summary="List the refunds of a payment",
    responses=resource_problems(InvalidRequest),
)
def list_refunds(
    request: Request,
    sender: SenderDep,
    visible_to: VisibleToDep,
    payment_id: Id,
    query: Annotated[schemas.Page, Query()],
) -> Any:
    """Newest first."""
    payment = crud.require_payment(sender, payment_id, visible_to)
    rows = crud.list_refunds(sender, payment.user_id, payment.id, query)
    return next_page(request, rows, query)


@router.get(
    "/payments/{payment_id}/refunds/{refund_id}",
    response_model=schemas.Refund,
    operation_id="getRefund",
    summary="Get a refund",
    responses=resource_problems(),
)
def get_refund(sender: SenderDep, visible_to: VisibleToDep, payment_id: Id, refund_id: Id) -> Any:
    """A refund that is `pending` is not known yet, or still being worked on by the gateway."""
    payment = crud.require_payment(sender, payment_id, visible_to)
    return crud.show_refund(sender, payment.user_id, payment.id, refund_id)


def _check_return_url(settings: Settings, return_url: str | None) -> None:
    """Raises InvalidRequest for an address that shoppers are not sent to from here."""
    allowed = settings.return_url_origins
    if return_url is not None and allowed and fields.web_origin(return_url) not in allowed:
        raise InvalidRequest.of(
            "return_url", "return_url_origin", "Shoppers may not be sent to this origin"
        )
