"""The Stripe adapter: which requests it sends under which key, and how it looks up lost ones.

`states.py` reads Stripe's objects, `client.py` its errors, `retrieval.py` its lists.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Final, Literal, TypeVar

import stripe
from sqlalchemy import Engine
from stripe.params import PaymentIntentCreateParams, PaymentMethodCreateParams, RefundCreateParams

from config import ConfigurationError, Settings, split_keys
from domain.states import ChargeStatus
from gateways import base
from gateways.replay import looking_up, replay
from gateways.stripe import amounts, events, states
from gateways.stripe.client import (
    CardDeclined,
    Fields,
    HttpxClient,
    KeyInUse,
    KeyReused,
    RequestRefused,
    new_client,
    send,
)
from gateways.stripe.retrieval import ChargeReader

T = TypeVar("T")

# Stripe forgets keys after 24 hours; the hour is for clocks that differ and slow requests.
# https://docs.stripe.com/api/idempotent_requests
KEY_LIFETIME: Final = timedelta(hours=23)

TOKEN: Final = re.compile(r"pm_[A-Za-z0-9_]{1,250}")
WHAT_TO_SEND: Final = (
    "Send the id of a new card PaymentMethod, pm_…, that Stripe.js made and nobody else keeps"
)
CUSTOMER_TRIES: Final = 3  # people delete customers by hand, hardly several in a row

# The reasons that Stripe knows; others stand in the metadata.
RefundReason = Literal["duplicate", "fraudulent", "requested_by_customer"]
REFUND_REASONS: Final[Mapping[str, RefundReason]] = {
    "duplicate": "duplicate",
    "fraudulent": "fraudulent",
    "requested_by_customer": "requested_by_customer",
}
MAX_METADATA: Final = 500  # characters of a value
UNCHANGED: Final[frozenset[ChargeStatus]] = frozenset({"authorized", "requires_action"})

# The charge behind a PaymentIntent shows when its authorization expires.
EXPAND: Final = ["latest_charge"]


class StripeGateway(base.Gateway):
    """Cards by PaymentIntents: created and confirmed in one request."""

    name = "stripe"
    required_settings = ("stripe_api_key", "stripe_webhook_secret")

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str,
        webhook_secrets: Sequence[str],
        raw_cards: bool,
        timeout: float,
    ) -> None:
        """`timeout` is in seconds, for each read from the socket."""
        # Card numbers that pass through this service put the store into PCI DSS SAQ D (some 250
        # requirements, and scans) instead of SAQ A. Stripe has to allow it for the account, too.
        self.capabilities = base.Capabilities(
            payment_types=frozenset({"card"}), card_numbers=raw_cards, lists_charges=True
        )
        self._webhook_secrets = tuple(webhook_secrets)
        self._http = HttpxClient(timeout)
        client = new_client(api_key, base_url, self._http)
        self._stripe = client.v1
        self._reader = ChargeReader(client)

    @classmethod
    def check(cls, settings: Settings) -> None:
        super().check(settings)
        if os.environ.get("STRIPE_LOG") in ("debug", "info"):
            raise ConfigurationError(
                "STRIPE_LOG is set; with it the SDK prints what must not be kept, cards included"
            )

    @classmethod
    def build(cls, settings: Settings, engine: Engine) -> StripeGateway:
        key, secret = settings.stripe_api_key, settings.stripe_webhook_secret
        assert key is not None
        assert secret is not None
        return cls(
            key.get_secret_value(),
            base_url=settings.stripe_api_base,
            webhook_secrets=split_keys(secret.get_secret_value()),
            raw_cards=settings.stripe_raw_cards,
            timeout=settings.gateway_timeout,
        )

    def close(self) -> None:
        """Close the idle connections."""
        self._http.close()

    def unsupported_amount_reason(self, amount: int, currency: str) -> str | None:
        return amounts.unsupported_reason(amount, currency)

    # Methods ------------------------------------------------------------------------------------

    def save_method(self, request: base.MethodRequest) -> base.SavedMethod:
        """Attach the card to the user's customer: one that is not attached works only once."""
        try:
            if request.card_number is not None:
                method = self._create_method(request)
                saved = self._attach(states.text(method, "id"), method, request)
                # Stripe does not need the name, so it stays here.
                name = request.details.get("cardholder_name")
                return replace(saved, details={**saved.details, "cardholder_name": name})
            token = request.token or ""
            return self._attach(token, self._find_method(token), request)
        except CardDeclined as error:
            raise base.MethodDeclined(error.decline.code) from None

    def _create_method(self, request: base.MethodRequest) -> Fields:
        params: PaymentMethodCreateParams = {
            "type": "card",
            "card": {
                "number": request.card_number or "",
                "exp_month": int(request.details["exp_month"]),
                "exp_year": int(request.details["exp_year"]),
            },
        }
        if request.cvc is not None:
            params["card"]["cvc"] = request.cvc
        return send(lambda: self._stripe.payment_methods.create(params))

    def _find_method(self, token: str) -> Fields:
        """The PaymentMethod behind a token. Raises MethodInvalid unless it is a card."""
        if not TOKEN.fullmatch(token):
            raise _token_unknown()
        try:
            method = send(lambda: self._stripe.payment_methods.retrieve(token))
        except RequestRefused:
            raise _token_unknown() from None
        if states.text(method, "type") != "card":
            raise _token_unknown()
        return method

    def _attach(self, token: str, method: Fields, request: base.MethodRequest) -> base.SavedMethod:
        customer = request.customer or self._customer(request.user_id)
        for _ in range(CUSTOMER_TRIES):
            if method.get("customer") == customer:  # an earlier try attached it
                return states.saved_method(method, customer)
            try:
                return states.saved_method(self._attach_to(token, customer), customer)
            except RequestRefused as error:
                # It is attached to another customer, or was detached: it cannot be attached.
                if error.code != "resource_missing":
                    raise _token_unknown() from None
            # The method was there a moment ago, so the customer is the one that is missing.
            customer = self._customer(request.user_id, instead_of=customer)
        raise base.OutcomeNotShown("the customers of this user are missing")

    def _attach_to(self, token: str, customer: str) -> Fields:
        return send(lambda: self._stripe.payment_methods.attach(token, {"customer": customer}))

    def _customer(self, user_id: str, *, instead_of: str = "") -> str:
        """A new customer. Saves within a day share one key, so they get the same customer."""
        digest = hashlib.sha256(f"{user_id}\0{instead_of}".encode()).hexdigest()
        try:
            made = send(
                lambda: self._stripe.customers.create(
                    {"metadata": {"user_id": user_id[:MAX_METADATA]}},
                    {"idempotency_key": f"customer-{digest}"},
                )
            )
        except KeyInUse as error:  # by another save of this user; it moves no money
            raise base.RetryLater(str(error)) from None
        return states.text(made, "id")

    # Money --------------------------------------------------------------------------------------

    def charge(self, request: base.ChargeRequest) -> base.Charge:
        params: PaymentIntentCreateParams = {
            "amount": _units(request.amount, request.currency),
            "currency": request.currency.lower(),
            "payment_method": request.token,
            "capture_method": "automatic" if request.capture else "manual",
            "confirm": True,
            "metadata": states.charge_metadata(request),
            "expand": EXPAND,
        }
        if request.customer is not None:
            params["customer"] = request.customer
        if request.off_session:
            params["off_session"] = True
            params["automatic_payment_methods"] = {"enabled": True, "allow_redirects": "never"}
        else:
            # With a return URL 3-D Secure comes as a redirect; redirects have to be allowed then.
            params["automatic_payment_methods"] = {"enabled": True}
            params["return_url"] = request.return_url
        return _send_charge(
            lambda: self._stripe.payment_intents.create(params, {"idempotency_key": request.key})
        )

    def capture(self, request: base.ChangeRequest) -> base.Charge:
        units = _units(request.amount, request.currency)
        return _send_charge(
            lambda: self._stripe.payment_intents.capture(
                request.reference,
                {"amount_to_capture": units, "expand": EXPAND},
                {"idempotency_key": request.key},
            )
        )

    def void(self, request: base.ChangeRequest) -> base.Charge:
        return _send_charge(
            lambda: self._stripe.payment_intents.cancel(
                request.reference, {"expand": EXPAND}, {"idempotency_key": request.key}
            )
        )

    def refund(self, request: base.RefundRequest) -> base.Refund:
        metadata = {
            "payment_id": str(request.payment_id),
            "refund_id": str(request.refund_id),
            "key": request.key,
        }
        params: RefundCreateParams = {
            "payment_intent": request.reference,
            "amount": _units(request.amount, request.currency),
            "metadata": metadata,
        }
        reason = request.reason or ""
        if reason in REFUND_REASONS:
            params["reason"] = REFUND_REASONS[reason]
        elif reason:
            metadata["reason"] = reason[:MAX_METADATA]
        return states.refund(
            send(lambda: self._stripe.refunds.create(params, {"idempotency_key": request.key}))
        )

    # Look-ups -----------------------------------------------------------------------------------

    @looking_up()
    def look_up(self, query: base.ChargeLookup) -> base.Charge | None:
        request, reference = query.request, query.reference
        if isinstance(request, base.ChangeRequest):
            return self._look_up_change(request, query)
        if reference is not None:
            return self._reader.read(reference)

        def find() -> base.Charge | None:
            return self._reader.find_charge(request, query.requested_at)

        if _may_replay(query):
            return _replay_or_find(lambda: self.charge(request), find)
        return _find_or_fence(lambda: self._fence_charge(request), find, query)

    def _look_up_change(
        self, request: base.ChangeRequest, query: base.ChargeLookup
    ) -> base.Charge | None:
        def find() -> base.Charge | None:
            found = self._reader.read(query.reference or request.reference)
            return None if found.status in UNCHANGED else found

        if _may_replay(query):
            change = self.capture if request.operation == "capture" else self.void
            return find() or _replay_or_find(lambda: change(request), find)
        return _find_or_fence(lambda: self._fence_change(request), find, query)

    @looking_up()
    def look_up_refund(self, query: base.RefundLookup) -> base.Refund | None:
        request, reference = query.request, query.reference

        def find() -> base.Refund | None:
            return self._reader.find_refund(request)

        if reference is not None:
            return states.refund(send(lambda: self._stripe.refunds.retrieve(reference)))
        if _may_replay(query):
            return _replay_or_find(lambda: self.refund(request), find)
        return _find_or_fence(lambda: self._fence_change(request), find, query)

    def list_charges(self, since: datetime | None, cursor: str | None = None) -> base.ChargePage:
        return self._reader.list_page(since, cursor)

    # Fences use up a key by a harmless request, so that Stripe refuses a late original ------------

    def _fence_charge(self, request: base.ChargeRequest) -> None:
        """Create a PaymentIntent that nobody can pay; a repeat returns the same one.

        It carries none of the metadata of a charge, so nothing takes it for one. Raises KeyReused,
        NotExecuted or OutcomeUnknown.
        """
        params: PaymentIntentCreateParams = {
            "amount": _units(request.amount, request.currency),
            "currency": request.currency.lower(),
            "description": "Nothing to pay: keeps a lost request from charging late",
            "metadata": {"fence": request.key},
        }
        made = send(
            lambda: self._stripe.payment_intents.create(params, {"idempotency_key": request.key})
        )
        with suppress(RequestRefused):  # somebody has canceled it in the dashboard
            send(
                lambda: self._stripe.payment_intents.cancel(
                    states.text(made, "id"), {}, {"idempotency_key": f"{request.key}-fence"}
                )
            )

    def _fence_change(self, request: base.ChangeRequest | base.RefundRequest) -> None:
        """Write metadata that is there already. Raises KeyReused, NotExecuted or OutcomeUnknown."""
        send(
            lambda: self._stripe.payment_intents.update(
                request.reference,
                {"metadata": {"payment_id": str(request.payment_id)}},
                {"idempotency_key": request.key},
            )
        )

    # Webhooks -----------------------------------------------------------------------------------

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> base.GatewayEvent:
        events.verify(self._webhook_secrets, headers.get("stripe-signature"), body)
        return events.read(body)


def _send_charge(call: Callable[[], stripe.StripeObject]) -> base.Charge:
    """Send a request for money. Stripe reports a decline as an error that holds the charge."""
    try:
        return states.charge(send(call))
    except CardDeclined as error:
        if error.intent is None:
            raise
        state = states.charge(error.intent, error.decline)
        if state.status == "authorized":  # its capture was declined; the authorization still holds
            return replace(state, status="declined", decline=error.decline, capture_before=None)
        return state


def _may_replay(query: base.ChargeLookup | base.RefundLookup) -> bool:
    return query.resend and not _is_key_forgotten(query)


def _replay_or_find(call: Callable[[], T], find: Callable[[], T | None]) -> T | None:
    """Replay a request; if the answer does not tell the outcome, find what the request made.

    Stripe answers a key with its first answer, even if that was a 500. Raises NotExecuted and
    OutcomeUnknown.
    """
    with suppress(base.OutcomeUnknown):
        return replay(call)
    found = find()
    if found is None:
        raise base.OutcomeNotShown("no trace of the request")
    return found


def _find_or_fence(
    fence: Callable[[], None],
    find: Callable[[], T | None],
    query: base.ChargeLookup | base.RefundLookup,
) -> T | None:
    """Find what a request made; if it made nothing, use up its key so that it never will.

    None: the request had no effect and will have none. Raises NotExecuted and OutcomeUnknown.
    """
    found = find()
    if found is not None or _is_key_forgotten(query):
        return found  # after a day no request is under way, so the list is complete
    try:
        fence()
    except KeyReused:  # the request itself used the key, perhaps since we looked
        found = find()
        if found is None:  # Stripe refused it or failed; once the key is forgotten we can tell
            raise base.OutcomeNotShown(
                "the request arrived, and nothing shows its outcome"
            ) from None
    return found


def _is_key_forgotten(query: base.ChargeLookup | base.RefundLookup) -> bool:
    return datetime.now(timezone.utc) - query.requested_at >= KEY_LIFETIME


def _units(amount: int, currency: str) -> int:
    units = amounts.to_stripe(amount, currency)
    if units is None:
        raise base.Refused("Stripe cannot express this amount")
    return units


def _token_unknown() -> base.MethodInvalid:
    return base.MethodInvalid("details.token", "token_unknown", WHAT_TO_SEND)
