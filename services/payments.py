"""Charges an order exactly once, and captures or voids what was authorized.

1. Claim: commit the row that says what we are about to ask, and the gateway key that we will send.
2. Call: ask the gateway, outside any transaction and without a connection.
3. Settle: write what the gateway's books show, with the order and the events, in one transaction.

A process that dies in between leaves a claim, and a look-up by its key finds the outcome.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import crud
import errors
import leases
import locks
import schemas
from database import phase
from domain.states import DEAD_PAYMENT_STATUSES, PaymentOperation, PaymentStatus
from gateways import base
from idempotency_keys import StoredResponse
from rows import OrderRow, Payable, PaymentMethodRow, PaymentRow
from sessions import Session
from settlement import apply, gateway_requests
from settlement.context import CallContext
from settlement.gateway_calls import UNKNOWN, GatewayAccess, call_gateway, known_state, settling
from settlement.gateway_requests import RowSnapshot
from settlement.responses import charge_response, operation_response
from settlement.transitions import ChangedBy, LockedPayment, locked_payment
from statements import PooledSender

# Where shoppers land without a `return_url` (see routers/checkout.py).
RETURN_PAGE = "checkout/return"
# An order may change between the look at it and the claim; then it is looked at again.
CLAIM_ATTEMPTS = 4


# Charging ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClaimedCharge:
    """A charge that is claimed and about to be sent."""

    gateway: base.Gateway
    payment: PaymentRow
    request: base.ChargeRequest
    snapshot: RowSnapshot


def pay(
    session: Session,
    context: CallContext,
    access: GatewayAccess,
    order_id: int,
    data: schemas.PaymentCreate,
) -> StoredResponse:
    """Charge an order with one of its user's payment methods.

    Voids an earlier payment that waits for its shopper. 201 when the money is taken or held, or
    waits for the shopper; 402 when it was declined; 202 when the outcome is unknown; 502 when the
    gateway was surely not reached. Raises NotFound, OrderAlreadyPaid, PaymentInProgress,
    PaymentMethodNotFound, OperationNotSupported.
    """
    claim = _claim(session, context, access, order_id, data)
    gateway, request = claim.gateway, claim.request
    charge = call_gateway(gateway, "charge", lambda: gateway.charge(request), access.seconds)
    with settling(session) as outcome:
        if charge is not UNKNOWN:
            by = ChangedBy.gateway(gateway.name, context.request_id)
            with locked_payment(session, by, claim.payment, gateway, context) as locked:
                source = claim.snapshot.source(locked.payment)
                if isinstance(charge, base.NotExecuted):
                    refused = isinstance(charge, base.Refused)
                    apply.settle_not_executed(locked, source, refused=refused)
                else:
                    apply.settle_charge(locked, charge, source)
                settled = context.response or charge_response(locked.payment, context.request_id)
            outcome.response = settled
    return outcome.response or charge_response(claim.payment, context.request_id)


def _claim(
    session: Session,
    context: CallContext,
    access: GatewayAccess,
    order_id: int,
    data: schemas.PaymentCreate,
) -> ClaimedCharge:
    """Claim the charge. An earlier payment that waits for its shopper is voided first, once."""
    voided = False
    visible_to = context.principal.visible_to("get_order")
    for _ in range(CLAIM_ATTEMPTS):
        # What is refused is refused by what is true now. The claim looks again.
        found = locks.find_payable(
            PooledSender.beside(session), order_id, visible_to, data.payment_method_id
        )
        order, live = found.order, found.live
        context.principal.require("pay_order", order.user_id)
        waits = live is not None and live.status == "requires_action" and live.operation is None
        if not waits or voided:
            require_payable(order, live)
        method = _method(found, data.payment_method_id)
        gateway = access.gateway(method.gateway)
        if data.capture_method == "manual" and not gateway.capabilities.manual_capture:
            raise errors.OperationNotSupported(
                "This gateway cannot authorize now and capture later"
            )
        require_supported_amount(gateway, order.total_amount, order.currency)
        if live is not None:
            _void_waiting(session, context, access, live)
            voided = True
            continue
        payment = locks.claim_payment(
            PooledSender.beside(session),
            order,
            method,
            capture_method=data.capture_method,
            return_url=data.return_url or f"{access.service_url or ''}{RETURN_PAGE}",
            # Somebody else pays for the shopper, and names no place to send them to.
            off_session=data.return_url is None and order.user_id != context.principal.user_id,
            lookup_after=access.lookup_after,
            key=context.owned_key,
        )
        if payment is None:
            continue
        session.info["committed"] = True
        context.gateway_key = payment.gateway_key
        request = gateway_requests.charge_request(
            payment, method, service_url=access.service_url, fault=access.fault
        )
        return ClaimedCharge(gateway, payment, request, RowSnapshot.of_payment(payment))
    # The order moves all the time, or a repeat has taken the Idempotency-Key over.
    raise errors.PaymentInProgress


def _void_waiting(
    session: Session, context: CallContext, access: GatewayAccess, seen: PaymentRow
) -> None:
    """Void a payment that waits for its shopper. Raises PaymentInProgress if that is not possible:
    its shopper may have approved meanwhile, or the outcome is unknown."""
    by = ChangedBy.caller(context)
    # A Sandbox-Fault is meant for the charge.
    status = void_waiting_payment(session, replace(access, fault=None), by, seen)
    if status not in DEAD_PAYMENT_STATUSES:
        raise errors.PaymentInProgress(payment_id=seen.id)


def require_payable(order: OrderRow, live: PaymentRow | None) -> None:
    """Raises unless an order may be paid now. `live`: its payment that may have taken money."""
    if live is not None and live.status in ("pending", "requires_action"):
        raise errors.PaymentInProgress(payment_id=live.id)
    if order.status == "canceled":
        raise errors.InvalidStatusTransition(
            "A canceled order cannot be paid", current_status="canceled", allowed_statuses=[]
        )
    if order.status != "pending" or live is not None:
        members: dict[str, Any] = {"payment_id": live.id} if live is not None else {}
        raise errors.OrderAlreadyPaid(**members)


# Changing a charge ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClaimedOperation:
    """A capture or void that is claimed and about to be sent."""

    gateway: base.Gateway
    payment: PaymentRow
    operation: PaymentOperation
    request: base.ChangeRequest
    lookup: base.ChargeLookup  # to look the charge up, should the gateway refuse
    snapshot: RowSnapshot


def capture(
    session: Session,
    context: CallContext,
    access: GatewayAccess,
    payment_id: int,
    amount: int | None,
) -> StoredResponse:
    """Capture an authorization, all of it or `amount`; the rest is released.

    Raises NotFound, Forbidden, AmountExceedsRemaining, InvalidStatusTransition, PaymentInProgress.
    """
    return _operate(session, context, access, payment_id, "capture", amount)


def void(
    session: Session, context: CallContext, access: GatewayAccess, payment_id: int
) -> StoredResponse:
    """Release an authorization, or end a payment that waits for its shopper.

    Raises NotFound, InvalidStatusTransition, PaymentInProgress.
    """
    return _operate(session, context, access, payment_id, "void", None)


def cancel_with_order(
    session: Session, context: CallContext, access: GatewayAccess, payment_id: int
) -> StoredResponse:
    """Void the payment of an order that is to be canceled; the order follows."""
    return _operate(session, context, access, payment_id, "cancel", None)


def void_waiting_payment(
    session: Session, access: GatewayAccess, by: ChangedBy, seen: PaymentRow
) -> PaymentStatus | None:
    """Void a payment that waits for its shopper, if it still does; its order stays.

    Returns the payment's status then; None if the gateway did not answer.
    """
    with locked_payment(session, by, seen) as locked:
        if locked.payment.status != "requires_action" or locked.payment.operation is not None:
            return None
        claim = claim_operation(locked, access, "void")
    return execute_claimed(session, access, claim, by)


def _operate(
    session: Session,
    context: CallContext,
    access: GatewayAccess,
    payment_id: int,
    operation: PaymentOperation,
    amount: int | None,
) -> StoredResponse:
    found = context.require_payment(PooledSender.beside(session), _ACTIONS[operation], payment_id)
    by = ChangedBy.caller(context)
    with locked_payment(session, by, found, context=context) as locked:  # claim
        claim = claim_operation(locked, access, operation, amount)
        locked.link_gateway_request(claim.request.key)
        locked.touch()
        shown: schemas.Out = (
            schemas.Order.model_validate(locked.order)
            if operation == "cancel"
            else schemas.Payment.model_validate(locked.payment)
        )
        unknown = StoredResponse.resource(202, shown)
    asked, charge = _call_operation(claim, access)
    if asked is UNKNOWN:
        return unknown
    with settling(session) as outcome:
        locked = _settle_operation(session, claim, by, asked, charge, context)
        if locked.payment.operation_key != claim.request.key:
            outcome.response = context.response or operation_response(
                locked.order, locked.payment, operation, claim.request.amount, context.request_id
            )
        # Else the gateway only received it, a look-up is under way, or the books contradict us.
    return outcome.response or unknown


def claim_operation(
    locked: LockedPayment,
    access: GatewayAccess,
    operation: PaymentOperation,
    amount: int | None = None,
) -> ClaimedOperation:
    """Claim a capture or void, in the caller's transaction.

    Raises AmountExceedsRemaining, InvalidStatusTransition, OperationNotSupported,
    PaymentInProgress.
    """
    session, payment = locked.session, locked.payment
    gateway = access.gateway(payment.gateway)
    _require_allowed_operation(payment, operation, amount)
    if operation == "capture" and amount not in (None, payment.amount):
        if not gateway.capabilities.partial_capture:
            raise errors.OperationNotSupported("This gateway captures all of it or nothing")
        require_supported_amount(gateway, amount, payment.currency)
    payment.operation = operation
    payment.operation_key = str(uuid.uuid4())
    payment.operation_amount = payment.amount if amount is None else amount
    leases.schedule_first_lookup(payment, locked.now, access.lookup_after)
    method = crud.get_charged_payment_method(session, payment)
    return ClaimedOperation(
        gateway=gateway,
        payment=payment,
        operation=operation,
        request=gateway_requests.operation_request(payment, access.fault),
        lookup=gateway_requests.charge_lookup(payment, method),
        snapshot=RowSnapshot.of_payment(payment),
    )


def execute_claimed(
    session: Session, access: GatewayAccess, claim: ClaimedOperation, by: ChangedBy
) -> PaymentStatus | None:
    """Send a claimed operation and settle it, without a response for anybody.

    Returns the payment's status then; None if the gateway did not answer, or was not reached.
    """
    asked, charge = _call_operation(claim, access)
    if asked is UNKNOWN:
        return None
    payment = _settle_operation(session, claim, by, asked, charge).payment
    answered = charge is not None or isinstance(asked, base.Refused)
    return payment.status if answered else None


def _call_operation(
    claim: ClaimedOperation, access: GatewayAccess
) -> tuple[Any, base.Charge | None]:
    """The gateway's answer, and the charge as it shows it then, if it does."""
    gateway, request = claim.gateway, claim.request
    change = gateway.capture if claim.operation == "capture" else gateway.void
    asked = call_gateway(gateway, claim.operation, lambda: change(request), access.seconds)
    charge = known_state(asked)
    if isinstance(asked, base.NotExecuted):
        # Refused, or not reached: if its books can be read, what they show now decides.
        charge = _look_up(gateway, claim.lookup, access)
    return asked, charge


def _settle_operation(
    session: Session,
    claim: ClaimedOperation,
    by: ChangedBy,
    asked: Any,
    charge: base.Charge | None,
    context: CallContext | None = None,
) -> LockedPayment:
    with locked_payment(session, by, claim.payment, claim.gateway, context) as locked:
        source = claim.snapshot.source(locked.payment)
        not_executed = isinstance(asked, base.NotExecuted)
        if charge is not None:
            apply.settle_charge(
                locked, charge, source, not_executed=not_executed and source == "answer"
            )
        undecided = charge is None or charge.status in ("authorized", "requires_action")
        if not_executed and undecided and locked.payment.operation_key == claim.request.key:
            apply.settle_not_executed(locked, source)
    return locked


def _look_up(
    gateway: base.Gateway, query: base.ChargeLookup, access: GatewayAccess
) -> base.Charge | None:
    return known_state(
        call_gateway(gateway, "look_up", lambda: gateway.look_up(query), access.seconds)
    )


# The shopper is back ----------------------------------------------------------------------------


def confirm(
    session: Session,
    context: CallContext,
    access: GatewayAccess,
    payment_id: int,
    returned: Mapping[str, str],
) -> StoredResponse:
    """The shopper is back from the redirect: complete the charge, or look it up.

    `returned` is what the gateway added to the return URL. 200 with the payment as it is then; 202
    while its outcome is unknown. Raises NotFound.
    """
    found = context.require_payment(PooledSender.beside(session), "confirm_payment", payment_id)
    by = ChangedBy.gateway(found.gateway, context.request_id)
    with locked_payment(session, by, found) as locked:  # claim
        payment = locked.payment
        gateway = access.gateway(payment.gateway)
        waits = payment.status == "requires_action" and payment.operation is None
        # An earlier completion may have failed: wrong parameters, or no connection.
        goes_on = payment.status == "pending" and payment.gateway_reference is not None
        completes = (
            (waits or goes_on) and bool(returned) and gateway.capabilities.needs_redirect_params
        )
        method = crud.get_charged_payment_method(session, payment)
        charge = gateway_requests.charge_lookup(payment, method)
        next_action = payment.next_action
        if completes and waits:
            apply.record_completion_started(locked)
        request = gateway_requests.completion_request(payment, returned) if completes else None
        snapshot = RowSnapshot.of_payment(payment)
    if waits and request is None:
        state = _look_up(gateway, charge, access)
        if state is not None:
            with locked_payment(session, by, found, gateway) as locked:
                payment = locked.payment
                apply.settle_charge(locked, state, snapshot.source(payment))
                if state.status == "approved" and payment.status == "pending":
                    request = gateway_requests.completion_request(payment)
                    snapshot = RowSnapshot.of_payment(payment)
    if request is not None:
        not_executed = complete(session, gateway, by, found, request, snapshot, access.seconds)
        if not_executed and next_action is not None:  # the parameters were another payment's
            with locked_payment(session, by, found) as locked:
                if (
                    locked.payment.status == "pending"
                    and snapshot.source(locked.payment) == "answer"
                ):
                    apply.record_action_required(locked, next_action)
    with phase(session):
        shown = schemas.Payment.model_validate(
            crud.require_payment(session, payment_id, found.user_id)
        )
        if shown.status == "pending":
            return StoredResponse.resource(202, shown)  # not stored: a repeat asks again
        return context.store_response(session, StoredResponse.resource(200, shown))


def complete(
    session: Session,
    gateway: base.Gateway,
    by: ChangedBy,
    seen: PaymentRow,
    request: base.ChangeRequest,
    snapshot: RowSnapshot,
    seconds: float | None = None,
) -> bool:
    """Complete a charge that its shopper has approved.

    The payment is `pending`: that is the claim, so nobody voids it meanwhile. Returns whether it
    was surely not executed.
    """
    asked = call_gateway(gateway, "complete", lambda: gateway.complete(request), seconds)
    charge = known_state(asked)
    if charge is not None:  # else a look-up asks again
        with locked_payment(session, by, seen, gateway) as locked:
            apply.settle_charge(locked, charge, snapshot.source(locked.payment))
    return isinstance(asked, base.NotExecuted)


# What is refused --------------------------------------------------------------------------------


def require_supported_amount(gateway: base.Gateway, amount: int | None, currency: str) -> None:
    """Raises OperationNotSupported for what this gateway cannot move, such as 10.50 HUF."""
    why = gateway.unsupported_amount_reason(amount, currency) if amount is not None else None
    if why is not None:
        raise errors.OperationNotSupported(why)


def _require_allowed_operation(
    payment: PaymentRow, operation: PaymentOperation, amount: int | None
) -> None:
    if payment.status == "pending" or payment.operation is not None:
        raise errors.PaymentInProgress(payment_id=payment.id)
    ready = ("authorized",) if operation == "capture" else ("authorized", "requires_action")
    if payment.status not in ready:
        raise errors.InvalidStatusTransition(
            f"A payment that is {payment.status} cannot be {_PAST_PARTICIPLE[operation]}",
            current_status=payment.status,
            allowed_statuses=_ALLOWED_STATUSES.get(payment.status, []),
        )
    if amount is not None and amount > payment.amount:
        raise errors.AmountExceedsRemaining(remaining=payment.amount)


# What the caller of each must be allowed to do.
_ACTIONS = {"capture": "capture_payment", "void": "void_payment", "cancel": "set_order_status"}
_PAST_PARTICIPLE = {"capture": "captured", "void": "voided", "cancel": "voided"}
_ALLOWED_STATUSES = {"authorized": ["captured", "voided"], "requires_action": ["canceled"]}


def _method(found: Payable, named: int | None) -> PaymentMethodRow:
    if found.method is not None:
        return found.method
    if named is None and found.order.payment_method_id is None:
        raise errors.InvalidRequest.of(
            "payment_method_id", "missing", "Name a payment method, or save one first"
        )
    raise errors.PaymentMethodNotFound
