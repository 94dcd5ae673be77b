"""Reads PayPal's orders, authorizations, captures, refunds and disputes.

Nothing here calls PayPal. A status that is not known means that nothing is decided.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Final, Literal

from domain.declines import PAYPAL, normalize_decline_code
from domain.states import ChargeStatus, RefundStatus
from gateways.base import Charge, Decline, Dispute, OutcomeUnknown, Refund
from gateways.paypal import amounts

Object = Mapping[str, Any]

# Refusals because of the payer or the payment method, so another method may succeed.
# https://developer.paypal.com/api/rest/reference/orders/v2/errors/
DECLINES: Final = frozenset(issue for issue in PAYPAL if not issue.isdigit()) | {
    "AGREEMENT_ALREADY_CANCELLED",
    "AUTHORIZATION_DENIED",
    "BILLING_AGREEMENT_NOT_FOUND",
    "DECLINED_DUE_TO_RELATED_TXN",
    "PAYEE_BLOCKED_TRANSACTION",
    "PAYER_ACTION_REQUIRED",
    "PAYMENT_SOURCE_CANNOT_BE_USED",
    "PAYMENT_SOURCE_DECLINED_BY_PROCESSOR",
    "PAYMENT_SOURCE_INFO_CANNOT_BE_VERIFIED",
    "REFERENCED_CARD_EXPIRED",
    "TOKEN_EXPIRED",
    "TOKEN_ID_NOT_FOUND",  # the payer has removed us from their PayPal account
}

CAPTURED: Final = frozenset({"COMPLETED", "PARTIALLY_REFUNDED", "REFUNDED"})
CAPTURE_FAILED: Final = frozenset({"DECLINED", "DENIED", "FAILED"})
AUTHORIZATION_OVER: Final = frozenset({"CAPTURED", "DENIED", "EXPIRED", "VOIDED"})
ENDED: Final = frozenset({"CAPTURED", "DENIED"})
WAITS_FOR_PAYER: Final = frozenset({"CREATED", "PAYER_ACTION_REQUIRED"})
REDIRECTS: Final = ("payer-action", "approve")

REFUNDS: Final[Mapping[str, RefundStatus]] = {
    "COMPLETED": "succeeded",
    "FAILED": "failed",
    "CANCELLED": "failed",
}

# https://developer.paypal.com/docs/api/customer-disputes/v1/#definition-dispute_outcome
DISPUTE_OUTCOMES: Final[Mapping[str, Literal["won", "lost"]]] = {
    "CANCELED_BY_BUYER": "won",
    "RESOLVED_SELLER_FAVOUR": "won",
    "RESOLVED_WITH_PAYOUT": "won",  # PayPal pays the buyer, not the seller
    "ACCEPTED": "lost",
    "DENIED": "lost",
    "RESOLVED_BUYER_FAVOUR": "lost",
}

NEVER: Final = datetime.min.replace(tzinfo=timezone.utc)
ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
PAYMENT_ID: Final = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
KEY: Final = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)  # as ours are


@dataclass(frozen=True, slots=True)
class Capture:
    """One capture of an order."""

    id: str
    status: ChargeStatus  # captured, processing or declined
    amount: int
    currency: str
    decline: Decline | None = None


@dataclass(frozen=True, slots=True)
class Authorization:
    """One authorization of an order. A renewal is another one."""

    id: str
    amount: int
    currency: str
    status: str  # as PayPal names it
    created: datetime | None
    expires: datetime | None
    decline: Decline

    @property
    def is_over(self) -> bool:
        return self.status in AUTHORIZATION_OVER


@dataclass(frozen=True, slots=True)
class Order:
    """An order of one purchase unit, with all that was authorized and captured for it."""

    id: str
    status: str  # as PayPal names it
    amount: int
    currency: str
    redirect_url: str | None
    authorizations: Sequence[Authorization]
    captures: Sequence[Capture]
    refunds: tuple[Refund, ...]  # whoever made them
    our_refunds: Mapping[str, Refund]  # made by this service, by idempotency key
    unit_reference: str | None  # the reference_id of its purchase unit
    payment_id: int | None  # our payment's id
    key: str | None  # the idempotency key of the charge

    @property
    def authorization(self) -> Authorization | None:
        """The newest that is not over, else the newest of all."""
        # The sort is stable: of equal times the later in the list is the newer.
        ordered = sorted(
            self.authorizations, key=lambda one: (not one.is_over, one.created or NEVER)
        )
        return ordered[-1] if ordered else None

    def capture(self, status: ChargeStatus) -> Capture | None:
        return next((one for one in self.captures if one.status == status), None)


def read_order(answer: Object) -> Order:
    """Raises OutcomeUnknown for an answer that is no order with an amount."""
    unit = first_object(answer.get("purchase_units"))
    amount, currency = amounts.read(unit.get("amount"))
    payments = _object(unit.get("payments"))
    payment, _ = our_ids(unit)
    refunds = [(one, read_refund(one, payment)) for one in objects(payments.get("refunds"))]
    return Order(
        id=_id(answer),
        status=_status(answer.get("status")),
        amount=amount,
        currency=currency,
        redirect_url=next((url for rel in REDIRECTS if (url := link(answer, rel))), None),
        authorizations=[read_authorization(one) for one in objects(payments.get("authorizations"))],
        captures=[read_capture(one) for one in objects(payments.get("captures"))],
        refunds=tuple(refund for _, refund in refunds),
        our_refunds={
            key: refund
            for one, refund in refunds
            if refund.refund_id is not None and (key := idempotency_key(one)) is not None
        },
        unit_reference=plain_id(unit.get("reference_id")),
        payment_id=payment,
        key=idempotency_key(unit),
    )


def read_authorization(answer: Object) -> Authorization:
    amount, currency = amounts.read(answer.get("amount"))
    return Authorization(
        id=_id(answer),
        amount=amount,
        currency=currency,
        status=_status(answer.get("status")),
        created=moment(answer.get("create_time")),
        expires=moment(answer.get("expiration_time")),
        decline=_decline(answer),
    )


def read_capture(answer: Object) -> Capture:
    amount, currency = amounts.read(answer.get("amount"))
    word = _status(answer.get("status"))
    if word in CAPTURED:
        return Capture(_id(answer), "captured", amount, currency)
    if word in CAPTURE_FAILED:
        return Capture(_id(answer), "declined", amount, currency, _decline(answer))
    return Capture(_id(answer), "processing", amount, currency)


def read_refund(answer: Object, payment: int | None) -> Refund:
    """A refund of this payment.

    One that this service made carries the ids of the payment and the refund, and its idempotency
    key. One that was made in PayPal's dashboard carries nothing, or what its capture carries.
    """
    amount, currency = amounts.read(answer.get("amount"))
    state = REFUNDS.get(_status(answer.get("status")), "pending")
    of, refund_id = our_ids(answer)
    ours = of is not None and of == payment and idempotency_key(answer) is not None
    return Refund(_id(answer), state, amount, currency, refund_id if ours else None)


def read_dispute(answer: Object) -> Dispute:
    amount, currency = amounts.read(answer.get("dispute_amount"))
    outcome = _object(answer.get("dispute_outcome")).get("outcome_code")
    reason = answer.get("reason")
    return Dispute(
        reference=_id(answer, "dispute_id"),
        status=DISPUTE_OUTCOMES.get(str(outcome), "open"),
        amount=amount,
        currency=currency,
        reason=reason.lower() if isinstance(reason, str) else "other",
        evidence_due_at=moment(answer.get("seller_response_due_date")),
    )


def charge_of_order(order: Order, now: datetime) -> Charge:
    """The charge by the state of its captures, else of its authorization, else of its order."""
    captured = [one for one in order.captures if one.status == "captured"]
    if order.capture("processing"):
        return _charge(order, "processing")
    if captured:
        return _charge(order, "captured", amount_captured=sum(one.amount for one in captured))
    authorization, failed = order.authorization, order.capture("declined")
    if authorization is not None and not (failed and authorization.status in ENDED):
        return _charge_of_authorization(order, authorization, now)
    if failed:
        return _charge(order, "declined", decline=failed.decline)
    if order.status in WAITS_FOR_PAYER:
        return _charge(order, "requires_action", redirect_url=order.redirect_url)
    if order.status == "APPROVED":
        return _charge(order, "approved")
    if order.status == "VOIDED":
        return _charge(order, "voided")
    if order.status == "COMPLETED":
        raise OutcomeUnknown("a completed order without a payment")
    return _charge(order, "processing")


def _charge_of_authorization(order: Order, one: Authorization, now: datetime) -> Charge:
    if one.status == "DENIED":
        return _charge(order, "declined", decline=one.decline)
    expired = one.expires is not None and one.expires <= now
    if one.status in ("VOIDED", "EXPIRED") or (one.status == "CREATED" and expired):
        return _charge(order, "voided")
    if one.status == "CREATED":
        # The amount that is held. The service compares it with the amount of the payment.
        held = replace(order, amount=one.amount, currency=one.currency)
        return _charge(held, "authorized", capture_before=one.expires)
    return _charge(order, "processing")


def _charge(order: Order, status: ChargeStatus, **more: Any) -> Charge:
    return Charge(order.id, status, order.amount, order.currency, refunds=order.refunds, **more)


def decline(issue: str) -> Decline:
    if issue == "PAYER_ACTION_REQUIRED":
        return Decline("authentication_required", issue)
    return Decline(normalize_decline_code(PAYPAL, issue), issue)


def link(answer: Object, rel: str) -> str | None:
    for one in objects(answer.get("links")):
        if one.get("rel") == rel and isinstance(one.get("href"), str):
            return str(one["href"])
    return None


def related(answer: Object, name: str) -> str | None:
    """`order_id`, `authorization_id` or `capture_id` of what an event is about."""
    ids = _object(_object(answer.get("supplementary_data")).get("related_ids"))
    return plain_id(ids.get(name))


def plain_id(value: Any) -> str | None:
    """An id that may stand in a path, or None."""
    return value if isinstance(value, str) and ID.fullmatch(value) else None


def payment_id(value: Any) -> int | None:
    """The id of our payment in a custom_id: a positive integer that fits BIGINT, or None."""
    if not (isinstance(value, str) and PAYMENT_ID.fullmatch(value)):
        return None
    number = int(value)
    return number if number < 2**63 else None


def refund_custom_id(payment: int, refund: int) -> str:
    """The custom_id of our refunds. PayPal allows letters, digits and `-_.,` only."""
    return f"{payment}-{refund}"


def our_ids(answer: Object) -> tuple[int | None, int | None]:
    """The ids of our payment and our refund. Only our refunds carry the second."""
    custom_id = answer.get("custom_id")
    if not isinstance(custom_id, str):
        return None, None
    payment, dash, refund = custom_id.partition("-")
    if dash and (payment_id(payment) is None or payment_id(refund) is None):
        return None, None
    return payment_id(payment), payment_id(refund)


def idempotency_key(answer: Object) -> str | None:
    """The key that this service put into an object, or None."""
    key = answer.get("invoice_id")
    return key if isinstance(key, str) and KEY.fullmatch(key) else None


def moment(value: Any) -> datetime | None:
    """A time of RFC 3339, or None."""
    if not (isinstance(value, str) and len(value) <= 40):
        return None
    try:
        time = datetime.fromisoformat(value.upper().replace("Z", "+00:00"))
    except ValueError:
        return None
    return time if time.tzinfo is not None else None


def _decline(answer: Object) -> Decline:
    code = _object(answer.get("processor_response")).get("response_code")
    if not isinstance(code, str):
        code = _object(answer.get("status_details")).get("reason")
    raw = code if isinstance(code, str) and ID.fullmatch(code) else None
    return Decline(normalize_decline_code(PAYPAL, raw), raw)


def _id(answer: Object, name: str = "id") -> str:
    value = plain_id(answer.get(name))
    if value is None:
        raise OutcomeUnknown("an answer without an id")
    return value


def _status(value: Any) -> str:
    if not isinstance(value, str):
        raise OutcomeUnknown("an answer without a status")
    return value


def _object(value: Any) -> Object:
    return value if isinstance(value, Mapping) else {}


def objects(value: Any) -> list[Object]:
    """The objects of a list; none for anything else."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def first_object(value: Any) -> Object:
    return next(iter(objects(value)), {})
