"""What Stripe's books show: one charge, the one that a lost request made, and all that have moved.

Nothing here makes Stripe do anything. What becomes of a request is decided in `gateway.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Final

import stripe

from gateways.base import (
    Charge,
    ChargePage,
    ChargeRequest,
    Dispute,
    ListedCharge,
    OutcomeUnknown,
    Refund,
    RefundRequest,
)
from gateways.stripe import states
from gateways.stripe.client import Fields, ask
from observability.logs import get_logger

log = get_logger()

CLOCK_SKEW: Final = timedelta(days=1)  # a customer's list is short, and must not miss a charge
PAGE: Final = 100  # the most that a list of Stripe's answers with
# The charge behind a PaymentIntent tells when an authorization ends, and what was refunded.
EXPAND: Final = ["latest_charge.refunds"]

# What has moved since a moment is in four lists, one after the other. Each is a phase of a
# listing: its name stands in the cursor, and is that of the list's service in the SDK.
# An expansion may be four levels deep: https://docs.stripe.com/api/expanding_objects
PAYMENTS: Final = "payment_intents"
PHASES: Final[Mapping[str, Mapping[str, Any]]] = {
    PAYMENTS: {"limit": PAGE, "expand": ["data.latest_charge.refunds"]},
    "refunds": {"limit": PAGE, "expand": ["data.payment_intent.latest_charge.refunds"]},
    "disputes": {"limit": PAGE, "expand": ["data.payment_intent.latest_charge.refunds"]},
    # What happened to older ones. An event shows what was, so each of them is read once more,
    # and so few fit into the time of one call.
    "events": {
        "limit": 10,
        "types": [
            "payment_intent.amount_capturable_updated",
            "payment_intent.succeeded",
            "payment_intent.canceled",
            "refund.updated",
            "refund.failed",
            "charge.dispute.closed",
        ],
    },
}
# Events are kept for 30 days, a day of which is for clocks. What was captured or canceled before
# is found among the charges that are older by as much as an authorization can live:
# https://docs.stripe.com/payments/extended-authorization
EVENTS_KEPT: Final = timedelta(days=29)
LONGEST_AUTHORIZATION: Final = timedelta(days=31)


class Books:
    """Stripe's books, by its lists and by its search."""

    def __init__(self, client: stripe.StripeClient) -> None:
        self._stripe = client.v1

    # One charge ---------------------------------------------------------------------------------

    def read(self, reference: str) -> Charge:
        """A charge with all of its refunds."""
        return self._charge(self._retrieve(reference))

    def find_charge(self, request: ChargeRequest, requested_at: datetime) -> Charge | None:
        """The charge that a request of ours made, by the marks it carries."""
        marks = states.marks(request)
        for intent in self._candidates(request, requested_at):
            if all(states.part(intent, "metadata", name) == marks[name] for name in marks):
                return self.read(states.text(intent, "id"))
        return None

    def _candidates(self, request: ChargeRequest, requested_at: datetime) -> Iterator[Fields]:
        """A customer's list shows what was just written; the search may be a minute behind, and is
        not offered everywhere, so it is only for a charge without a customer."""
        if request.customer is None:
            query = f"metadata['payment_id']:'{request.payment_id}'"
            search = self._stripe.payment_intents.search
            return iter(_listed(ask(lambda: search({"query": query, "limit": PAGE}))))
        since = {"gte": int((requested_at - CLOCK_SKEW).timestamp())}
        return self._all(
            self._stripe.payment_intents.list, {"customer": request.customer, "created": since}
        )

    def find_refund(self, request: RefundRequest) -> Refund | None:
        """The refund that a request of ours made."""
        refunds = self._refunds(request.reference)
        return next((found for found in refunds if found.refund_id == request.refund_id), None)

    def _charge(self, intent: Fields) -> Charge:
        charge = states.charge(intent)
        if charge.refunds is None:  # more than are shown inside a charge
            return replace(charge, refunds=tuple(self._refunds(charge.reference)))
        return charge

    def _retrieve(self, reference: str) -> Fields:
        return ask(lambda: self._stripe.payment_intents.retrieve(reference, {"expand": EXPAND}))

    def _refunds(self, reference: str) -> Iterator[Refund]:
        for found in self._all(self._stripe.refunds.list, {"payment_intent": reference}):
            yield states.refund(found)

    def _all(
        self, list_page: Callable[[Any], stripe.StripeObject], params: Mapping[str, Any]
    ) -> Iterator[Fields]:
        """All that a list holds, the newest first; it is asked for the next page when needed."""
        sent = {**params, "limit": PAGE}
        while True:
            page = ask(partial(list_page, sent))
            found = _listed(page)
            yield from found
            if not found or not page.get("has_more"):
                return
            sent = {**sent, "starting_after": states.text(found[-1], "id")}

    # What has moved -----------------------------------------------------------------------------

    def page(self, since: datetime | None, cursor: str | None) -> ChargePage:
        """Charges of ours that were made or changed since then; a cursor is `phase:last id`."""
        # Among all that were ever made are the refunded, captured and canceled ones.
        phases = list(PHASES) if since is not None else [PAYMENTS, "disputes"]
        phase, _, after = (cursor or phases[0]).partition(":")
        params = {**PHASES[phase]}
        if since is not None:
            params["created"] = {"gte": int(_start(phase, since).timestamp())}
        if after:
            params["starting_after"] = after
        page = ask(lambda: getattr(self._stripe, phase).list(params))
        found = _listed(page)
        if found and page.get("has_more"):
            following: str | None = f"{phase}:{states.text(found[-1], 'id')}"
        else:
            following = next(iter(phases[phases.index(phase) + 1 :]), None)
        if phase == "events" and since is not None:
            found = [about for event in found if (about := _older(event, since)) is not None]
        charges = (self._listed_charge(entry) for entry in found)
        return ChargePage(tuple(charge for charge in charges if charge is not None), following)

    def _listed_charge(self, entry: Fields) -> ListedCharge | None:
        """The charge that an entry of a list is, or is about; None unless it is one of ours."""
        intent = entry if entry.get("object") == "payment_intent" else entry.get("payment_intent")
        if isinstance(intent, str):
            intent = self._retrieve(intent)
        # Every charge of ours carries our key. Nothing else does, no fence either.
        if not isinstance(intent, Mapping) or (key := states.our_key(intent)) is None:
            return None
        payment_id = states.our_id(intent, "payment_id")
        return ListedCharge(self._charge(intent), key, payment_id, _disputes(entry))


def _start(phase: str, since: datetime) -> datetime:
    """From when on a list is read, so that it shows all that has moved since."""
    too_old_for_events = datetime.now(timezone.utc) - since > EVENTS_KEPT
    return since - LONGEST_AUTHORIZATION if too_old_for_events and phase == PAYMENTS else since


def _older(event: Fields, since: datetime) -> Fields | None:
    """What an event is about; None if it was made since then, so that another list shows it."""
    found = states.part(event, "data", "object")
    if not isinstance(found, Mapping) or states.whole(found, "created") >= int(since.timestamp()):
        return None
    if found.get("object") != "payment_intent":
        return found  # it names the PaymentIntent
    return {"payment_intent": found.get("id")} if states.our_key(found) is not None else None


def _disputes(entry: Fields) -> tuple[Dispute, ...]:
    if entry.get("object") != "dispute":
        return ()
    try:
        return (states.dispute(entry),)
    except OutcomeUnknown as error:  # the others of the page are not kept waiting by it
        log.error("gateway.dispute_unreadable", gateway="stripe", reason=str(error))
        return ()


def _listed(page: Fields) -> list[Fields]:
    data = page.get("data")
    if not isinstance(data, list):
        raise OutcomeUnknown("an answer without data")
    return [found for found in data if isinstance(found, Mapping)]
