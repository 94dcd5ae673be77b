"""The PayPal adapter: charges are PayPal's orders, authorizations, captures and refunds.

A charge is an order of one purchase unit. `Charge.reference` is the id of the order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from config import ConfigurationError, Settings
from domain.states import ChargeStatus
from gateways import base
from gateways.paypal import amounts, disputes, event_lookups, events, signature, vault
from gateways.paypal.certificates import Certificates
from gateways.paypal.client import Client, NotFound, Rejected
from gateways.paypal.disputes import CAPTURES
from gateways.paypal.states import (
    DECLINES,
    Authorization,
    Order,
    charge_of_order,
    decline,
    plain_id,
    read_capture,
    read_order,
    read_refund,
    refund_custom_id,
)
from gateways.paypal.vault import REDIRECT
from gateways.replay import looking_up, replay, require_remembered

T = TypeVar("T")

ORDERS: Final = "/v2/checkout/orders"
AUTHORIZATIONS: Final = "/v2/payments/authorizations"
REFUNDS: Final = "/v2/payments/refunds"

LIVE_API: Final = "https://api-m.paypal.com"
SANDBOX_API: Final = "https://api-m.sandbox.paypal.com"
LIVE_CERT_HOSTS: Final = ("api.paypal.com", "api-m.paypal.com")
SANDBOX_CERT_HOSTS: Final = ("api.sandbox.paypal.com", "api-m.sandbox.paypal.com")

# How long PayPal remembers a PayPal-Request-Id, less a margin for clocks and queues. After that a
# repeat would be a second request. https://developer.paypal.com/api/rest/requests/
ORDER_KEY_LIFETIME: Final = timedelta(hours=6) - timedelta(hours=1)
PAYMENT_KEY_LIFETIME: Final = timedelta(days=45) - timedelta(hours=6)

# The reference_id of the purchase unit of an order that only uses up the key of a lost charge.
FENCE: Final = "fence"

# PayPal keeps an order that nobody has approved at least for so long; then it answers 404.
UNPAID_ORDER_LIFETIME: Final = timedelta(hours=3)

# PayPal guarantees the funds of an authorization for so long; then it should be renewed.
# https://developer.paypal.com/docs/checkout/standard/customize/authorization/
HONOR_PERIOD: Final = timedelta(days=3)

MAX_NOTE: Final = 255  # characters of note_to_payer

# Refusals because the order already has another state: read it.
COMPLETED_BEFORE: Final = frozenset(
    {
        "ORDER_ALREADY_AUTHORIZED",
        "ORDER_ALREADY_CAPTURED",
        "ORDER_COMPLETED_OR_VOIDED",
        "ORDER_NOT_APPROVED",
        "PAYER_ACTION_REQUIRED",
    }
)
NOT_CAPTURABLE: Final = frozenset(
    {
        "AUTHORIZATION_ALREADY_CAPTURED",
        "AUTHORIZATION_EXPIRED",
        "AUTHORIZATION_VOIDED",
        "MAX_CAPTURE_COUNT_EXCEEDED",
    }
)

# The charge waits for the payer, or for `complete`.
WAITING: Final[frozenset[ChargeStatus]] = frozenset({"requires_action", "approved"})
# The statuses of a charge on which the operation had no effect yet.
UNDONE: Final[Mapping[base.ChargeOperation, frozenset[ChargeStatus]]] = {
    "capture": frozenset({"authorized"}),
    "complete": frozenset({"approved"}),
    "void": WAITING | {"authorized"},
}


class PayPalGateway(base.Gateway):
    """PayPal wallets: approved by the payer each time, or kept in PayPal's vault."""

    name = "paypal"
    required_settings = ("paypal_client_id", "paypal_client_secret")
    # PayPal's transaction search lags by up to three hours and has no order ids, so it is no list
    # of charges. The service looks up each of its payments instead.
    capabilities = base.Capabilities(payment_types=frozenset({"paypal"}), lists_disputes=True)

    def __init__(
        self,
        client: Client,
        certificates: Certificates,
        *,
        webhook_id: str | None,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self.client = client
        self._certificates = certificates
        self._webhook_id = webhook_id
        self._now = now

    @classmethod
    def check(cls, settings: Settings) -> None:
        super().check(settings)
        if settings.production and settings.paypal_webhook_id is None:
            raise ConfigurationError(
                "GATEWAYS names paypal, which needs PAYPAL_WEBHOOK_ID in production: without it"
                " no event can be verified; see docs/paypal.md"
            )
        _ca_file(settings.paypal_ca_file)

    @classmethod
    def build(cls, settings: Settings, engine: sa.Engine) -> PayPalGateway:
        client_id, secret = settings.paypal_client_id, settings.paypal_client_secret
        assert client_id is not None
        assert secret is not None
        base_url = settings.paypal_api_base or (LIVE_API if settings.production else SANDBOX_API)
        return cls(
            Client(base_url, client_id, secret.get_secret_value(), settings.gateway_timeout),
            Certificates(
                _cert_hosts(settings), _ca_file(settings.paypal_ca_file), settings.gateway_timeout
            ),
            webhook_id=settings.paypal_webhook_id,
        )

    def close(self) -> None:
        self.client.transport.close()

    def unsupported_amount_reason(self, amount: int, currency: str) -> str | None:
        return amounts.unsupported_reason(amount, currency)

    # Methods ------------------------------------------------------------------------------------

    def save_method(self, request: base.MethodRequest) -> base.SavedMethod:
        return vault.save(self.client, request)

    # Charges ------------------------------------------------------------------------------------

    def charge(self, request: base.ChargeRequest) -> base.Charge:
        if request.off_session and request.token == REDIRECT:
            return _declined_charge(request, "PAYER_ACTION_REQUIRED")
        try:
            answer = self.client.post(ORDERS, _order_body(request), key=request.key)
        except Rejected as refusal:
            if refusal.issue not in DECLINES:
                raise
            return _declined_charge(request, refusal.issue)
        charge = self._charge_of(request, read_order(answer))
        if charge is None:
            raise base.Refused("a fence has used up the key of this charge")
        return charge

    def _charge_of(self, request: base.ChargeRequest, order: Order) -> base.Charge | None:
        """The charge that an order is; None for a fence."""
        if order.unit_reference == FENCE:
            return None
        charge = self._state(order)
        if request.off_session and charge.status == "requires_action":
            # The shopper is absent, and we never complete the order.
            why = decline("PAYER_ACTION_REQUIRED")
            return replace(charge, status="declined", redirect_url=None, decline=why)
        return charge

    def complete(self, request: base.ChangeRequest) -> base.Charge:
        """Capture or authorize an order that its payer has approved."""
        action = "capture" if request.capture else "authorize"
        path = f"{ORDERS}/{_path_id(request.reference)}/{action}"
        try:
            answer = self.client.post(path, {}, key=f"{request.key}-complete")
        except Rejected as refusal:
            return self._state_after(refusal, request, COMPLETED_BEFORE)
        charge = self._state(read_order(answer))
        if charge.status == "approved":
            raise base.OutcomeUnknown("the order does not show its completion")
        return charge

    def capture(self, request: base.ChangeRequest) -> base.Charge:
        """Capture an authorization and release the rest. An old one is renewed first."""
        money = amounts.write(request.amount, request.currency)
        order = self._read_before_request(request)
        if any(one.status != "declined" for one in order.captures):
            # An earlier request or the dashboard has captured. PayPal would capture a second time.
            return self._state(order)
        authorization = order.authorization
        if authorization is None:
            raise base.Refused("the order has no authorization")
        if not authorization.is_over:
            authorization = self._renewed(authorization, request)
        try:
            answer = self.client.post(
                f"{AUTHORIZATIONS}/{authorization.id}/capture",
                {"amount": money, "final_capture": True},
                key=request.key,
            )
        except Rejected as refusal:
            return self._state_after(refusal, request, NOT_CAPTURABLE)
        captured = read_capture(answer)
        return base.Charge(
            reference=request.reference,
            status=captured.status,
            amount=request.charge_amount,
            currency=captured.currency,
            amount_captured=captured.amount if captured.status == "captured" else 0,
            decline=captured.decline,
        )

    def _renewed(self, authorization: Authorization, request: base.ChangeRequest) -> Authorization:
        """The authorization, renewed if its honor period is over and PayPal allows it.

        https://developer.paypal.com/docs/api/payments/v2/#authorizations_reauthorize
        """
        created = authorization.created
        if created is None or self._now() < created + HONOR_PERIOD:
            return authorization
        path = f"{AUTHORIZATIONS}/{authorization.id}/reauthorize"
        whole = {"amount": amounts.write(request.charge_amount, request.currency)}
        try:
            answer = self.client.post(path, whole, key=f"{request.key}-reauthorize")
        except Rejected:
            return authorization  # PayPal renews only once; the old one may still be captured
        except base.OutcomeUnknown as error:
            raise base.NotExecuted(f"reauthorize: {error}") from None  # nothing was captured yet
        new = plain_id(answer.get("id"))
        return replace(authorization, id=new) if new is not None else authorization

    def void(self, request: base.ChangeRequest) -> base.Charge:
        """Void an authorization. An order that waits counts as void: we never complete it."""
        order = self._read_before_request(request)
        state = self._state(order)
        if state.status in WAITING:
            return _voided(state)
        authorization = order.authorization
        if authorization is None or authorization.is_over or state.status == "captured":
            return state
        try:
            answer = self.client.post(f"{AUTHORIZATIONS}/{authorization.id}/void", {})
        except Rejected as refusal:
            if refusal.issue == "PREVIOUSLY_CAPTURED":
                return self._state_instead_of(refusal, request)
            if refusal.issue != "PREVIOUSLY_VOIDED":
                raise
            answer = {"status": "VOIDED"}
        if answer.get("status") == "VOIDED":
            return replace(state, status="voided", capture_before=None)
        after = self._current_state(request)  # 204 has no body, and {} is no answer
        if after.status == "authorized":
            raise base.OutcomeUnknown("the order does not show its void")
        return after

    # Refunds ------------------------------------------------------------------------------------

    def refund(self, request: base.RefundRequest) -> base.Refund:
        money = amounts.write(request.amount, request.currency)
        order = self._read_before_request(request)
        made = order.our_refunds.get(request.key)
        if made is not None:
            return made
        capture = order.capture("captured")
        if capture is None:
            raise base.Refused("nothing is captured")
        body: dict[str, Any] = {
            "amount": money,
            "custom_id": refund_custom_id(request.payment_id, request.refund_id),
            "invoice_id": request.key,
        }
        reason = request.reason
        if reason and len(reason) <= MAX_NOTE and reason.isprintable():
            body["note_to_payer"] = reason
        answer = self.client.post(f"{CAPTURES}/{capture.id}/refund", body, key=request.key)
        return read_refund(answer, request.payment_id)

    # Look-ups -----------------------------------------------------------------------------------

    @looking_up()
    def look_up(self, query: base.ChargeLookup) -> base.Charge | None:
        request = query.request
        if isinstance(request, base.ChangeRequest):
            return self._look_up_change(request, query)
        if query.reference is None:
            return self._look_up_lost_charge(request, query)
        try:
            order = self._read_order(query.reference, request.payment_id)
        except NotFound as missing:
            unpaid = request.token == REDIRECT  # else it was paid at once, or not at all
            if unpaid and self._now() - query.requested_at > UNPAID_ORDER_LIFETIME:
                return base.Charge(query.reference, "voided", request.amount, request.currency)
            raise base.OutcomeNotShown(str(missing)) from None
        if order.key != request.key:
            raise base.OutcomeNotShown("the order was made by another system")
        return self._state(order)

    def _look_up_lost_charge(
        self, request: base.ChargeRequest, query: base.ChargeLookup
    ) -> base.Charge | None:
        """A charge whose order id we never received. PayPal has no search for orders."""
        if query.resend:
            return self._replay(lambda: self.charge(request), query, ORDER_KEY_LIFETIME)
        if request.token == REDIRECT:
            # PayPal takes the money when the payer has approved the order and we complete it. The
            # link to approve it was in the answer that nobody received, so there is no payer. An
            # order that arrives late stays incomplete.
            return None
        return self._fence_charge(request, query)

    def _fence_charge(
        self, request: base.ChargeRequest, query: base.ChargeLookup
    ) -> base.Charge | None:
        """Use up the key of a charge with an order that nobody can pay.

        PayPal answers a second request under a PayPal-Request-Id with what the first one made, as
        it is now, whatever the second one says. So either this returns the charge, or the charge
        is answered with this order should it still arrive. PayPal has to remember the key of the
        charge. It then remembers the key of this order for hours, and no request is under way for
        so long. https://developer.paypal.com/reference/guidelines/idempotency/
        """
        require_remembered(self._now() - query.requested_at, ORDER_KEY_LIFETIME)
        answer = self.client.post(ORDERS, _fence_body(request), key=request.key)
        return self._charge_of(request, read_order(answer))

    def _look_up_change(
        self, request: base.ChangeRequest, query: base.ChargeLookup
    ) -> base.Charge | None:
        state = self._current_state(request)
        if state.status not in UNDONE[request.operation]:
            return state
        if request.operation == "void" and state.status in WAITING:
            return _voided(state)
        if query.resend and request.operation == "capture":
            return self._replay(lambda: self.capture(request), query, PAYMENT_KEY_LIFETIME)
        if query.resend and request.operation == "complete":
            return self._replay(lambda: self.complete(request), query, ORDER_KEY_LIFETIME)
        if query.resend:
            return replay(lambda: self.void(request))  # a second void has no effect, without a key
        if request.operation == "complete":
            return self._fence_completion(request)
        # Only a capture can use up the key of a capture, and a void has no key.
        raise base.OutcomeNotShown("the order does not show it, and it may still arrive")

    def _fence_completion(self, request: base.ChangeRequest) -> base.Charge | None:
        """Change an approved order so that PayPal refuses its completion, however late it arrives.

        PayPal does not capture an order whose intent is AUTHORIZE, nor authorize one whose intent
        is CAPTURE (ACTION_DOES_NOT_MATCH_INTENT).
        https://developer.paypal.com/docs/api/orders/v2/#orders_patch
        """
        intent = "AUTHORIZE" if request.capture else "CAPTURE"
        change = {"op": "replace", "path": "/intent", "value": intent}
        self.client.patch(f"{ORDERS}/{_path_id(request.reference)}", [change])
        state = self._current_state(request)
        return None if state.status in WAITING else state

    @looking_up()
    def look_up_refund(self, query: base.RefundLookup) -> base.Refund | None:
        request = query.request
        if query.reference is not None:
            answer = self.client.get(f"{REFUNDS}/{_path_id(query.reference)}")
            return read_refund(answer, request.payment_id)
        if query.resend:
            return self._replay(lambda: self.refund(request), query, PAYMENT_KEY_LIFETIME)
        order = self._read_order(request.reference, request.payment_id)
        found = order.our_refunds.get(request.key)
        if found is None:  # only a refund can use up the key of a refund
            raise base.OutcomeNotShown("the order does not show it, and it may still arrive")
        return found

    def _replay(
        self,
        call: Callable[[], T],
        query: base.ChargeLookup | base.RefundLookup,
        key_lifetime: timedelta,
    ) -> T | None:
        require_remembered(self._now() - query.requested_at, key_lifetime)
        return replay(call)

    # Disputes and webhooks ----------------------------------------------------------------------

    def list_charges(self, since: datetime | None, cursor: str | None = None) -> base.ChargePage:
        """Charges with a dispute that is new or has changed; see `capabilities`."""
        return disputes.list_changed(self.client, since, cursor, self._now())

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> base.GatewayEvent:
        """An event only says which payment to look up. Disputes and saved methods, which no look-up
        shows, are read here, once for each delivery."""
        if not self._webhook_id:
            raise base.SignatureInvalid
        delivery_id = signature.verify(
            self._webhook_id, self._certificates, headers, body, self._now()
        )
        notice = events.read(body)
        found = event_lookups.Found(notice.subject)
        if notice.subject.is_unclear and not self.is_known_delivery(delivery_id):
            found = event_lookups.look_up(self.client, self.guard, notice.subject)
        return base.GatewayEvent(
            notice.id,
            notice.type,
            payment_id=found.subject.payment_id,
            reference=found.subject.reference,
            key=found.subject.key,
            dispute=found.dispute,
            method=found.method,
            needs_lookup=found.subject.is_known,
            delivery_id=delivery_id,
        )

    # Reading orders -----------------------------------------------------------------------------

    def _state(self, order: Order) -> base.Charge:
        return charge_of_order(order, self._now())

    def _read_order(self, reference: str, payment_id: int) -> Order:
        """Raises OutcomeNotShown for another payment's order, which a forged event may name."""
        order = read_order(self.client.get(f"{ORDERS}/{_path_id(reference)}"))
        if order.payment_id != payment_id:
            raise base.OutcomeNotShown("the order is of another payment")
        return order

    def _read_before_request(self, request: base.ChangeRequest | base.RefundRequest) -> Order:
        """Read the order before a request for money. If that fails, the request is not sent."""
        try:
            return self._read_order(request.reference, request.payment_id)
        except base.OutcomeUnknown as error:
            raise base.NotExecuted(f"reading the order: {error}") from None

    def _current_state(self, request: base.ChangeRequest) -> base.Charge:
        """Read the order after a request for money. If that fails, its outcome is unknown."""
        try:
            return self._state(self._read_order(request.reference, request.payment_id))
        except base.NotExecuted as error:
            raise base.OutcomeUnknown(f"reading the order: {error}") from None

    def _state_after(
        self, refusal: Rejected, request: base.ChangeRequest, changed: frozenset[str]
    ) -> base.Charge:
        """The state of a charge after a refusal: changed already, or declined. Raises Rejected."""
        if refusal.issue in changed:
            return self._state_instead_of(refusal, request)
        if refusal.issue not in DECLINES:
            raise refusal
        amount, why = request.charge_amount, decline(refusal.issue)
        return base.Charge(request.reference, "declined", amount, request.currency, decline=why)

    def _state_instead_of(self, refusal: Rejected, request: base.ChangeRequest) -> base.Charge:
        """The state of a charge that PayPal refused to change because it has changed already."""
        state = self._current_state(request)
        if state.status in UNDONE[request.operation]:
            raise refusal
        return state


def _order_body(request: base.ChargeRequest) -> dict[str, Any]:
    """The same request always makes the same body, because a replay must be identical."""
    wallet: dict[str, Any] = {}
    if request.token != REDIRECT:
        wallet["vault_id"] = request.token
    if not request.off_session:
        wallet["experience_context"] = {
            "return_url": request.return_url,
            "cancel_url": request.return_url,
            "user_action": "PAY_NOW",
            # An eCheck takes days.
            "payment_method_preference": "IMMEDIATE_PAYMENT_REQUIRED",
            "shipping_preference": "NO_SHIPPING",
        }
    return {
        "intent": "CAPTURE" if request.capture else "AUTHORIZE",
        "purchase_units": [
            {
                "amount": amounts.write(request.amount, request.currency),
                "custom_id": str(request.payment_id),
                # Shows that this service made the order. PayPal refuses a second payment with
                # the same invoice_id if the account is set so.
                "invoice_id": request.key,
            }
        ],
        "payment_source": {"paypal": wallet},
    }


def _fence_body(request: base.ChargeRequest) -> dict[str, Any]:
    """An order without a payment source waits for a payer, and nobody has its link."""
    money = amounts.write(request.amount, request.currency)
    return {"intent": "CAPTURE", "purchase_units": [{"reference_id": FENCE, "amount": money}]}


def _declined_charge(request: base.ChargeRequest, issue: str) -> base.Charge:
    """PayPal declined before it made an order, so the key is the reference of the charge."""
    return base.Charge(
        request.key, "declined", request.amount, request.currency, decline=decline(issue)
    )


def _voided(charge: base.Charge) -> base.Charge:
    """PayPal cannot cancel an order. It is void because we never complete it."""
    return replace(charge, status="voided", redirect_url=None)


def _path_id(reference: str) -> str:
    """An id for a path. Raises NotExecuted for anything that could change the path."""
    found = plain_id(reference)
    if found is None:
        raise base.NotExecuted("the reference is no id of PayPal's")
    return found


def _cert_hosts(settings: Settings) -> Collection[str]:
    if settings.paypal_cert_hosts:
        return settings.paypal_cert_hosts
    return LIVE_CERT_HOSTS if settings.production else LIVE_CERT_HOSTS + SANDBOX_CERT_HOSTS


def _ca_file(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise ConfigurationError("PAYPAL_CA_FILE names no file")
    return path
