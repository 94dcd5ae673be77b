"""Reads charges from Stripe: one by its id, one that a lost request made, all that have changed.

Nothing here changes anything at Stripe.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Final

import stripe

from gateways import base
from gateways.stripe import states
from gateways.stripe.client import Fields, send
from observability.logs import get_logger

log = get_logger()

# Generous: a customer's list is short, and must not miss a charge.
CLOCK_SKEW: Final = timedelta(days=1)
PAGE: Final = 100  # the most that a list of Stripe's answers with
# The charge behind a PaymentIntent shows when an authorization ends, and what was refunded.
EXPAND: Final = ["latest_charge.refunds"]

# Four lists, read one after the other, show what has changed since a time. Each is a phase of a
# listing. Its name is in the cursor, and is the name of the list's service in the SDK.
# An expansion may be four levels deep: https://docs.stripe.com/api/expanding_objects
PAYMENTS: Final = "payment_intents"
PHASES: Final[Mapping[str, Mapping[str, Any]]] = {
    PAYMENTS: {"limit": PAGE, "expand": ["data.latest_charge.refunds"]},
    "refunds": {"limit": PAGE, "expand": ["data.payment_intent.latest_charge.refunds"]},
    "disputes": {"limit": PAGE, "expand": ["data.payment_intent.latest_charge.refunds"]},
    # Changes of older ones. An event shows a past state, so each PaymentIntent is read again. Few
    # of them fit into the time of one call.
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
# Stripe keeps events for 30 days; a day less is for clocks that differ. Older captures and
# cancellations are found by listing PaymentIntents from an authorization's lifetime earlier on:
# https://docs.stripe.com/payments/extended-authorization
EVENTS_KEPT: Final = timedelta(days=29)
LONGEST_AUTHORIZATION: Final = timedelta(days=31)


class ChargeReader:
    """Retrieves, lists and searches charges."""

    def __init__(self, client: stripe.StripeClient) -> None:
        self._stripe = client.v1

    # One charge ---------------------------------------------------------------------------------

    def read(self, reference: str) -> base.Charge:
        """A charge with all of its refunds."""
        return self._charge(self._retrieve(reference))

    def find_charge(
        self, request: base.ChargeRequest, requested_at: datetime
    ) -> base.Charge | None:
        """The charge that a request of ours made, by its metadata."""
        metadata = states.charge_metadata(request)
        for intent in self._candidates(request, requested_at):
            if all(
                states.nested(intent, "metadata", name) == value for name, value in metadata.items()
            ):
                return self.read(states.text(intent, "id"))
        return None

    def _candidates(self, request: base.ChargeRequest, requested_at: datetime) -> Iterator[Fields]:
        """Charges among which the request's may be: by customer if it has one, else by search.

        The list of a customer is up to date. The search may lag by a minute, and Stripe does not
        offer it in every country.
        """
        if request.customer is None:
            query = f"metadata['payment_id']:'{request.payment_id}'"
            search = self._stripe.payment_intents.search
            return iter(_listed(send(lambda: search({"query": query, "limit": PAGE}))))
        since = {"gte": int((requested_at - CLOCK_SKEW).timestamp())}
        return self._all(
            self._stripe.payment_intents.list, {"customer": request.customer, "created": since}
        )

    def find_refund(self, request: base.RefundRequest) -> base.Refund | None:
        """The refund that a request of ours made."""
        refunds = self._refunds(request.reference)
        return next((found for found in refunds if found.refund_id == request.refund_id), None)

    def _charge(self, intent: Fields) -> base.Charge:
        charge = states.charge(intent)
        if charge.refunds is None:  # more than Stripe shows inside a charge
            return replace(charge, refunds=tuple(self._refunds(charge.reference)))
        return charge

    def _retrieve(self, reference: str) -> Fields:
        return send(lambda: self._stripe.payment_intents.retrieve(reference, {"expand": EXPAND}))

    def _refunds(self, reference: str) -> Iterator[base.Refund]:
        for found in self._all(self._stripe.refunds.list, {"payment_intent": reference}):
            yield states.refund(found)

    def _all(
        self, list_page: Callable[[Any], stripe.StripeObject], params: Mapping[str, Any]
    ) -> Iterator[Fields]:
        """All entries of a list, the newest first, page by page as they are needed."""
        sent = {**params, "limit": PAGE}
        while True:
            page = send(partial(list_page, sent))
            found = _listed(page)
            yield from found
            if not found or not page.get("has_more"):
                return
            sent = {**sent, "starting_after": states.text(found[-1], "id")}

    # Charges that have changed --------------------------------------------------------------------

    def list_page(self, since: datetime | None, cursor: str | None) -> base.ChargePage:
        """Our charges that were made or changed since then. A cursor is `phase:last id`."""
        # The list of all PaymentIntents includes those that were refunded, captured or canceled.
        phases = list(PHASES) if since is not None else [PAYMENTS, "disputes"]
        phase, _, after = (cursor or phases[0]).partition(":")
        params = {**PHASES[phase]}
        if since is not None:
            params["created"] = {"gte": int(_start(phase, since).timestamp())}
        if after:
            params["starting_after"] = after
        page = send(lambda: getattr(self._stripe, phase).list(params))
        found = _listed(page)
        if found and page.get("has_more"):
            following: str | None = f"{phase}:{states.text(found[-1], 'id')}"
        else:
            following = next(iter(phases[phases.index(phase) + 1 :]), None)
        if phase == "events" and since is not None:
            found = [
                about for event in found if (about := _changed_object(event, since)) is not None
            ]
        charges = (self._listed_charge(entry) for entry in found)
        return base.ChargePage(tuple(charge for charge in charges if charge is not None), following)

    def _listed_charge(self, entry: Fields) -> base.ListedCharge | None:
        """The charge that an entry of a list is or refers to; None unless it is one of ours."""
        intent = entry if entry.get("object") == "payment_intent" else entry.get("payment_intent")
        if isinstance(intent, str):
            intent = self._retrieve(intent)
        # Every charge of ours carries its idempotency key in its metadata; a fence does not.
        if not isinstance(intent, Mapping) or (key := states.idempotency_key(intent)) is None:
            return None
        payment_id = states.id_in_metadata(intent, "payment_id")
        return base.ListedCharge(self._charge(intent), key, payment_id, _disputes(entry))


def _start(phase: str, since: datetime) -> datetime:
    """The time from which a list has to be read to show all that has changed since."""
    too_old_for_events = datetime.now(timezone.utc) - since > EVENTS_KEPT
    return since - LONGEST_AUTHORIZATION if too_old_for_events and phase == PAYMENTS else since


def _changed_object(event: Fields, since: datetime) -> Fields | None:
    """The object of an event; None if it was made since then, because another list shows it."""
    found = states.nested(event, "data", "object")
    if not isinstance(found, Mapping) or states.integer(found, "created") >= int(since.timestamp()):
        return None
    if found.get("object") != "payment_intent":
        return found  # it names the PaymentIntent
    return (
        {"payment_intent": found.get("id")} if states.idempotency_key(found) is not None else None
    )


def _disputes(entry: Fields) -> tuple[base.Dispute, ...]:
    if entry.get("object") != "dispute":
        return ()
    try:
        return (states.dispute(entry),)
    except base.OutcomeUnknown as error:  # the rest of the page is still listed
        log.error("gateway.dispute_unreadable", gateway="stripe", reason=str(error))
        return ()


def _listed(page: Fields) -> list[Fields]:
    data = page.get("data")
    if not isinstance(data, list):
        raise base.OutcomeUnknown("an answer without data")
    return [found for found in data if isinstance(found, Mapping)]
