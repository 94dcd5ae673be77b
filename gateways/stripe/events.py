"""Stripe's webhooks: verifies the signature, then reads the event.

https://docs.stripe.com/webhooks#verify-manually. The SDK's own verification accepts timestamps in
the future and raises any exception on odd bytes, so we do it here.
"""

import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from gateways.base import GatewayEvent, MethodChange, OutcomeUnknown, SignatureInvalid
from gateways.stripe import states
from gateways.stripe.client import Fields

TOLERANCE_SECONDS = 300  # in both directions; Stripe's SDKs allow as much for the past
TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")


def verify(secrets: Iterable[str], header: str | None, body: bytes) -> None:
    """Raises SignatureInvalid unless one of the secrets signed the body within the tolerance."""
    fields = [field.partition("=")[::2] for field in (header or "").split(",")]
    timestamps = [value for name, value in fields if name == "t"]
    signatures = [value.encode(errors="replace") for name, value in fields if name == "v1"]
    if len(timestamps) != 1 or not TIMESTAMP.fullmatch(timestamps[0]) or not signatures:
        raise SignatureInvalid("no timestamp and signature")
    signed = timestamps[0].encode() + b"." + body
    expected = [
        hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode() for secret in secrets
    ]
    if not any(hmac.compare_digest(ours, theirs) for ours in expected for theirs in signatures):
        raise SignatureInvalid("the signature is of another secret or body")
    if abs(time.time() - int(timestamps[0])) > TOLERANCE_SECONDS:
        raise SignatureInvalid("the timestamp is too far from now")


def read(body: bytes) -> GatewayEvent:
    """A verified event. Raises SignatureInvalid for what no event of Stripe's looks like."""
    try:
        event = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise SignatureInvalid("the body is not JSON") from None
    if not isinstance(event, Mapping):
        raise SignatureInvalid("the body is not an event")
    try:
        event_id, kind = states.text(event, "id"), states.text(event, "type")
        reader = READERS.get(kind)
        if reader is None:
            return GatewayEvent(event_id, kind, None, None)
        found = states.nested(event, "data", "object")
        if not isinstance(found, Mapping):
            raise SignatureInvalid("an event without its object")
        return GatewayEvent(event_id, kind, **reader(found))
    except OutcomeUnknown as error:
        raise SignatureInvalid(f"not an event as we know it: {error}") from None


def _charge(intent: Fields) -> dict[str, Any]:
    key = states.idempotency_key(intent)
    if key is None:
        return NOTHING  # another system that shares the account made it
    return {
        "payment_id": states.id_in_metadata(intent, "payment_id"),
        "reference": states.text(intent, "id"),
        "key": key,
        "charge": states.charge(intent),
    }


def _expired(gateway_charge: Fields) -> dict[str, Any]:
    if not _intent(gateway_charge):
        return NOTHING
    of = {**_of_intent(gateway_charge), "key": states.idempotency_key(gateway_charge)}
    return {**of, "charge": states.expired(gateway_charge)}


def _refund(refund: Fields) -> dict[str, Any]:
    return {
        **_of_intent(refund),
        "refund": states.refund(refund),
        "refund_key": states.idempotency_key(refund),
    }


def _refunded(gateway_charge: Fields) -> dict[str, Any]:
    # It holds the sum of all refunds, not the refunds.
    return {**_of_intent(gateway_charge), "needs_lookup": _intent(gateway_charge) is not None}


def _dispute(dispute: Fields) -> dict[str, Any]:
    return {**_of_intent(dispute), "dispute": states.dispute(dispute)}


def _method_updated(method: Fields) -> dict[str, Any]:
    if method.get("type") != "card":
        return NOTHING
    change = MethodChange(states.text(method, "id"), states.card_details(method))
    return {**NOTHING, "method": change}


def _method_gone(method: Fields) -> dict[str, Any]:
    return {**NOTHING, "method": MethodChange(states.text(method, "id"), None)}


def _of_intent(fields: Fields) -> dict[str, Any]:
    return {"payment_id": states.id_in_metadata(fields, "payment_id"), "reference": _intent(fields)}


def _intent(fields: Fields) -> str | None:
    """The PaymentIntent that an object belongs to; None for a charge made without one."""
    found = fields.get("payment_intent")
    return found if isinstance(found, str) and found else None


NOTHING: Final[dict[str, Any]] = {"payment_id": None, "reference": None}

READERS: Final[Mapping[str, Callable[[Fields], dict[str, Any]]]] = {
    "payment_intent.amount_capturable_updated": _charge,
    "payment_intent.succeeded": _charge,
    "payment_intent.processing": _charge,
    "payment_intent.requires_action": _charge,
    "payment_intent.payment_failed": _charge,
    "payment_intent.canceled": _charge,
    "charge.expired": _expired,
    "refund.created": _refund,
    "refund.updated": _refund,
    "refund.failed": _refund,
    "charge.refunded": _refunded,
    "charge.dispute.created": _dispute,
    "charge.dispute.updated": _dispute,
    "charge.dispute.closed": _dispute,
    "payment_method.automatically_updated": _method_updated,
    "payment_method.detached": _method_gone,
}
