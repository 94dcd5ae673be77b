"""Reads disputes from PayPal: one by its id, or all that have changed lately.

The app needs the feature "Disputes".
https://developer.paypal.com/docs/api/customer-disputes/v1/
"""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from gateways.base import ChargePage, ListedCharge, OutcomeUnknown
from gateways.paypal.client import Client
from gateways.paypal.states import (
    Object,
    charge_of_order,
    first_object,
    link,
    objects,
    plain_id,
    read_dispute,
    read_order,
    related,
)
from observability.logs import get_logger

log = get_logger()

DISPUTES: Final = "/v1/customer/disputes"
CAPTURES: Final = "/v2/payments/captures"
ORDERS: Final = "/v2/checkout/orders"
# Disputes of a page. Each takes three more requests, and all share one GATEWAY_TIMEOUT.
PAGE: Final = 4
LISTED_FOR: Final = timedelta(days=180) - timedelta(hours=1)  # PayPal looks back no further
MAX_CURSOR: Final = 1000  # characters


@dataclass(frozen=True, slots=True)
class DisputedCapture:
    """A dispute and the capture that it is about, as PayPal shows them."""

    dispute: Object
    capture: Object


def find(client: Client, dispute_id: str) -> DisputedCapture | None:
    """None if PayPal knows no such dispute, or if it is not about a capture.

    Raises NotExecuted or OutcomeUnknown.
    """
    dispute = client.find(f"{DISPUTES}/{dispute_id}")
    transaction = first_object((dispute or {}).get("disputed_transactions"))
    capture_id = plain_id(transaction.get("seller_transaction_id"))
    if dispute is None or capture_id is None:
        return None
    capture = find_capture(client, capture_id)
    return DisputedCapture(dispute, capture) if capture is not None else None


def find_capture(client: Client, capture_id: str) -> Object | None:
    """Raises NotExecuted or OutcomeUnknown."""
    return client.find(f"{CAPTURES}/{capture_id}")


def list_changed(
    client: Client, since: datetime | None, cursor: str | None, now: datetime
) -> ChargePage:
    """A page of the charges whose dispute was opened or has changed since then.

    The cursor is the query of PayPal's link to the next page; its host and path are not followed.
    Raises NotExecuted or OutcomeUnknown.
    """
    if cursor is None:
        first = max(since or now - LISTED_FOR, now - LISTED_FOR).astimezone(timezone.utc)
        query = {"update_time_after": f"{first:%Y-%m-%dT%H:%M:%S.000Z}", "page_size": PAGE}
        cursor = urlencode(query)
    answer = client.get(f"{DISPUTES}?{cursor}")
    ids = [plain_id(one.get("dispute_id")) for one in objects(answer.get("items"))]
    listed = [_disputed(client, one, now) for one in ids if one is not None]
    return ChargePage(tuple(one for one in listed if one is not None), _next(answer))


def _disputed(client: Client, dispute_id: str, now: datetime) -> ListedCharge | None:
    """None for a dispute that cannot be read, so that the others are still listed."""
    disputed = find(client, dispute_id)
    order_id = related(disputed.capture, "order_id") if disputed is not None else None
    answer = client.find(f"{ORDERS}/{order_id}") if order_id is not None else None
    if disputed is None or answer is None:
        return None
    try:
        order, dispute = read_order(answer), read_dispute(disputed.dispute)
        charge = charge_of_order(order, now)
    except OutcomeUnknown as error:
        log.warning("gateway.dispute_unreadable", dispute=dispute_id, reason=str(error))
        return None
    if order.payment_id is None or order.key is None:
        return ListedCharge(charge, None, None, (dispute,))
    return ListedCharge(charge, order.key, order.payment_id, (dispute,))


def _next(answer: Object) -> str | None:
    href = link(answer, "next")
    if href is None:
        return None
    try:
        cursor = urlencode(parse_qsl(urlsplit(href).query))
    except ValueError:
        cursor = ""
    if not 0 < len(cursor) <= MAX_CURSOR:
        raise OutcomeUnknown("an invalid link to the next page")
    return cursor
