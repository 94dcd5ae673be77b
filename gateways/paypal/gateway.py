"""The PayPal adapter: our requests as PayPal's orders, authorizations, captures and refunds.

A charge is an order of one purchase unit, and `Charge.reference` is always its order's id.
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
from gateways.base import (
    Capabilities,
    ChangeRequest,
    Charge,
    ChargeLookup,
    ChargeOperation,
    ChargePage,
    ChargeRequest,
    Gateway,
    GatewayEvent,
    MethodRequest,
    NotExecuted,
    OutcomeNotShown,
    OutcomeUnknown,
    Refund,
    RefundLookup,
    RefundRequest,
    Refused,
    RetryLater,
    SavedMethod,
    SignatureInvalid,
)
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

R = TypeVar("R")
T = TypeVar("T")

ORDERS: Final = "/v2/checkout/orders"
AUTHORIZATIONS: Final = "/v2/payments/authorizations"
REFUNDS: Final = "/v2/payments/refunds"

LIVE_API: Final = "https://api-m.paypal.com"
SANDBOX_API: Final = "https://api-m.sandbox.paypal.com"
LIVE_CERT_HOSTS: Final = ("api.paypal.com", "api-m.paypal.com")
SANDBOX_CERT_HOSTS: Final = ("api.sandbox.paypal.com", "api-m.sandbox.paypal.com")

# How long PayPal remembers a PayPal-Request-Id, less what clocks and queues may take. Later than
# that a repeat would be a second request. https://developer.paypal.com/api/rest/requests/
ORDER_KEYS: Final = timedelta(hours=6) - timedelta(hours=1)
PAYMENT_KEYS: Final = timedelta(days=45) - timedelta(hours=6)

# What the purchase unit of an order is called that only uses up the key of a lost charge.
FENCE: Final = "fence"

# For so long PayPal keeps an order that nobody has approved, at least; then it is gone (404).
UNPAID_ORDER_LIFE: Final = timedelta(hours=3)

# For so long after an authorization its funds are held for certain; then it is to be renewed.
# https://developer.paypal.com/docs/checkout/standard/customize/authorization/
HONOR_PERIOD: Final = timedelta(days=3)

MAX_NOTE: Final = 255  # characters of note_to_payer

# Refusals that say that the books already show something else: read them.
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

# For the payer, or for `complete`.
WAITING: Final[frozenset[ChargeStatus]] = frozenset({"requires_action", "approved"})
# What the books show while they do not show that the operation was done.
UNDONE: Final[Mapping[ChargeOperation, frozenset[ChargeStatus]]] = {
    "capture": frozenset({"authorized"}),
    "complete": frozenset({"approved"}),
    "void": WAITING | {"authorized"},
}


class PayPalGateway(Gateway):
    """PayPal wallets: approved by the payer each time, or kept in PayPal's vault."""

    name = "paypal"
    needs = ("paypal_client_id", "paypal_client_secret")
    # PayPal's transaction search is no list of charges: what happens appears in it up to three
    # hours later, and without the ids of orders. So our own payments are read one by one.
    capabilities = Capabilities(payment_types=frozenset({"paypal"}), lists_disputes=True)

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
        return amounts.refuse(amount, currency)

    # Methods ------------------------------------------------------------------------------------

    def save_method(self, request: MethodRequest) -> SavedMethod:
        return vault.save(self.client, request)

    # Charges ------------------------------------------------------------------------------------

    def charge(self, request: ChargeRequest) -> Charge:
        if request.off_session and request.token == REDIRECT:
            return _declined_charge(request, "PAYER_ACTION_REQUIRED")
        try:
            answer = self.client.post(ORDERS, _order_body(request), key=request.key)
        except Rejected as refusal:
            if refusal.issue not in DECLINES:
                raise
            return _declined_charge(request, refusal.issue)
        charge = self._made(request, read_order(answer))
        if charge is None:
            raise Refused("the charge was given up before")
        return charge

    def _made(self, request: ChargeRequest, order: Order) -> Charge | None:
        """The charge that an order is; None for the one that only uses up the charge's key."""
        if order.unit == FENCE:
            return None
        charge = self._state(order)
        if request.off_session and charge.status == "requires_action":
            # Nobody is there to be asked, and nobody will complete it.
            why = decline("PAYER_ACTION_REQUIRED")
            return replace(charge, status="declined", redirect_url=None, decline=why)
        return charge

    def complete(self, request: ChangeRequest) -> Charge:
        """Capture or authorize an order that its payer has approved."""
        action = "capture" if request.capture else "authorize"
        path = f"{ORDERS}/{_path_id(request.reference)}/{action}"
        try:
            answer = self.client.post(path, {}, key=f"{request.key}-complete")
        except Rejected as refusal:
            if refusal.issue in COMPLETED_BEFORE:
                return self._state_instead_of(refusal, request)
            if refusal.issue not in DECLINES:
                raise
            return _declined(request, refusal.issue)
        charge = self._state(read_order(answer))
        if charge.status == "approved":
            raise OutcomeUnknown("a completion that the books do not show")
        return charge

    def capture(self, request: ChangeRequest) -> Charge:
        """Capture an authorization and release the rest, renewing it first when it is old."""
        money = amounts.write(request.amount, request.currency)
        order = self._read_before_request(request)
        if any(one.status != "declined" for one in order.captures):
            # By an earlier request, or in PayPal's dashboard. PayPal would take more on top of it.
            return self._state(order)
        authorization = order.authorization
        if authorization is None:
            raise Refused("the order has no authorization")
        if not authorization.over:
            authorization = self._renewed(authorization, request)
        try:
            answer = self.client.post(
                f"{AUTHORIZATIONS}/{authorization.id}/capture",
                {"amount": money, "final_capture": True},
                key=request.key,
            )
        except Rejected as refusal:
            if refusal.issue in NOT_CAPTURABLE:
                return self._state_instead_of(refusal, request)
            if refusal.issue not in DECLINES:
                raise
            return _declined(request, refusal.issue)
        captured = read_capture(answer)
        return Charge(
            reference=request.reference,
            status=captured.status,
            amount=request.charged,
            currency=captured.currency,
            amount_captured=captured.amount if captured.status == "captured" else 0,
            decline=captured.decline,
        )

    def _renewed(self, authorization: Authorization, request: ChangeRequest) -> Authorization:
        """After the honor period: reauthorized, if PayPal will; else as it was.

        https://developer.paypal.com/docs/api/payments/v2/#authorizations_reauthorize
        """
        created = authorization.created
        if created is None or self._now() < created + HONOR_PERIOD:
            return authorization
        path = f"{AUTHORIZATIONS}/{authorization.id}/reauthorize"
        whole = {"amount": amounts.write(request.charged, request.currency)}
        try:
            answer = self.client.post(path, whole, key=f"{request.key}-reauthorize")
        except Rejected:
            return authorization  # once only, not every day; the old one may still be captured
        except OutcomeUnknown as error:
            raise NotExecuted(f"reauthorize: {error}") from None  # surely nothing was captured
        new = plain_id(answer.get("id"))
        return replace(authorization, id=new) if new is not None else authorization

    def void(self, request: ChangeRequest) -> Charge:
        """Void an authorization, or give up an order that is not paid.

        An order cannot be canceled at PayPal: one that waits is voided by our never completing it.
        """
        order = self._read_before_request(request)
        state = self._state(order)
        if state.status in WAITING:
            return _given_up(state)
        authorization = order.authorization
        if authorization is None or authorization.over or state.status == "captured":
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
            raise OutcomeUnknown("a void that the books do not show")
        return after

    # Refunds ------------------------------------------------------------------------------------

    def refund(self, request: RefundRequest) -> Refund:
        money = amounts.write(request.amount, request.currency)
        order = self._read_before_request(request)
        made = order.our_refunds.get(request.key)
        if made is not None:
            return made
        capture = order.capture("captured")
        if capture is None:
            raise Refused("nothing is captured")
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

    # Questions ----------------------------------------------------------------------------------

    def look_up(self, query: ChargeLookup) -> Charge | None:
        request = query.request
        if isinstance(request, ChangeRequest):
            return self._look_up_change(request, query)
        if query.reference is None:
            return self._look_up_unheard(request, query)
        try:
            order = self._read_order(query.reference, request.payment_id)
            if order.key != request.key:
                raise OutcomeNotShown("the order was made by another system")
            return self._state(order)
        except NotFound as gone:
            unpaid = request.token == REDIRECT  # else it was paid at once, or not at all
            if unpaid and self._now() - query.requested_at > UNPAID_ORDER_LIFE:
                return Charge(query.reference, "voided", request.amount, request.currency)
            raise OutcomeNotShown(str(gone)) from None
        except NotExecuted as error:
            raise _untold(error) from None

    def _look_up_unheard(self, request: ChargeRequest, query: ChargeLookup) -> Charge | None:
        """A charge of whose order we have not heard. PayPal cannot be searched for it, but it can
        be asked the same again."""
        if query.resend:
            return self._repeat(self.charge, request, query.requested_at, ORDER_KEYS)
        if request.token == REDIRECT:
            # An order is paid when its payer has approved it and we complete it. The link to the
            # page where payers approve is in the answer that nobody has heard, so there never was
            # a payer, and what arrives late is an order that we never complete.
            return None
        return self._fence_charge(request, query.requested_at)

    def _fence_charge(self, request: ChargeRequest, requested_at: datetime) -> Charge | None:
        """Use up the key of a charge with an order that can take no money: nobody pays it.

        Whatever a second request says, PayPal answers it with what the first with the same
        PayPal-Request-Id has made, as it is now. So either this finds the charge, or the charge
        is answered with this order should it still arrive. PayPal must not have forgotten the key
        of a charge that was made; it keeps this order's for hours, and no request is under way so
        long. https://developer.paypal.com/reference/guidelines/idempotency/
        """
        self._require_remembered(requested_at, ORDER_KEYS)
        try:
            answer = self.client.post(ORDERS, _fence_body(request), key=request.key)
        except NotExecuted as error:
            raise _untold(error) from None
        return self._made(request, read_order(answer))

    def _look_up_change(self, request: ChangeRequest, query: ChargeLookup) -> Charge | None:
        state = self._current_state(request)
        if state.status not in UNDONE[request.operation]:
            return state
        if request.operation == "void" and state.status in WAITING:
            return _given_up(state)
        if query.resend:
            return self._repeat_change(request, query.requested_at)
        if request.operation == "complete":
            return self._fence_completion(request)
        # The key of a capture can be used up by a capture only, and a void has no key.
        raise OutcomeNotShown("the books do not show it, and it may still arrive")

    def _repeat_change(self, request: ChangeRequest, requested_at: datetime) -> Charge | None:
        if request.operation == "capture":
            return self._repeat(self.capture, request, requested_at, PAYMENT_KEYS)
        if request.operation == "complete":
            return self._repeat(self.complete, request, requested_at, ORDER_KEYS)
        # To give up twice is to give up: a void needs no key.
        return self._repeat(self.void, request, requested_at, timedelta.max)

    def _fence_completion(self, request: ChangeRequest) -> Charge | None:
        """Make an approved order one that a completion cannot complete, however late it arrives.

        PayPal captures no order whose intent is to be authorized, and the other way round
        (ACTION_DOES_NOT_MATCH_INTENT). https://developer.paypal.com/docs/api/orders/v2/#orders_patch
        """
        intent = "AUTHORIZE" if request.capture else "CAPTURE"
        change = {"op": "replace", "path": "/intent", "value": intent}
        try:
            self.client.patch(f"{ORDERS}/{_path_id(request.reference)}", [change])
        except NotExecuted as error:
            raise _untold(error) from None
        state = self._current_state(request)
        return None if state.status in WAITING else state

    def look_up_refund(self, query: RefundLookup) -> Refund | None:
        request = query.request
        if query.reference is None and query.resend:
            return self._repeat(self.refund, request, query.requested_at, PAYMENT_KEYS)
        try:
            if query.reference is not None:
                answer = self.client.get(f"{REFUNDS}/{_path_id(query.reference)}")
                return read_refund(answer, request.payment_id)
            order = self._read_order(request.reference, request.payment_id)
        except NotExecuted as error:
            raise _untold(error) from None
        made = order.our_refunds.get(request.key)
        if made is None:  # the key of a refund can be used up by a refund only
            raise OutcomeNotShown("the books do not show it, and it may still arrive")
        return made

    def _repeat(
        self, ask: Callable[[R], T], request: R, requested_at: datetime, lifetime: timedelta
    ) -> T | None:
        """The same request under the same key has no second effect while PayPal remembers it.

        None if PayPal's own checks refuse it: then the first had no effect either.
        """
        self._require_remembered(requested_at, lifetime)
        try:
            return ask(request)
        except Refused:
            return None
        except NotExecuted as error:  # that says nothing about the first request
            raise _untold(error) from None

    def _require_remembered(self, requested_at: datetime, lifetime: timedelta) -> None:
        if self._now() - requested_at > lifetime:
            raise OutcomeNotShown("asked too long ago to be asked again")

    # Changes that nobody asked us for -----------------------------------------------------------

    def list_charges(self, since: datetime | None, cursor: str | None = None) -> ChargePage:
        """The charges that were disputed. See `capabilities` for why it is not all charges."""
        return disputes.list_changed(self.client, since, cursor, self._now())

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> GatewayEvent:
        """An event only says which payment to ask about. What no look-up of a payment shows,
        disputes and saved methods, is asked here; but once for each signature."""
        if not self._webhook_id:
            raise SignatureInvalid
        delivery_id = signature.verify(
            self._webhook_id, self._certificates, headers, body, self._now()
        )
        notice = events.read(body)
        answer = event_lookups.Answer(notice.subject)
        if notice.subject.is_unclear and not self.is_known(delivery_id):
            answer = event_lookups.ask_about(self.client, self.guard, notice.subject)
        return GatewayEvent(
            notice.id,
            notice.type,
            payment_id=answer.subject.payment_id,
            reference=answer.subject.reference,
            key=answer.subject.key,
            dispute=answer.dispute,
            method=answer.method,
            ask=answer.subject.is_known,
            delivery_id=delivery_id,
        )

    # Inside -------------------------------------------------------------------------------------

    def _state(self, order: Order) -> Charge:
        return charge_of_order(order, self._now())

    def _read_order(self, reference: str, payment_id: int) -> Order:
        """Raises OutcomeNotShown for the order of another payment: we may have been told a
        reference by an event that is not PayPal's."""
        order = read_order(self.client.get(f"{ORDERS}/{_path_id(reference)}"))
        if order.payment_id != payment_id:
            raise OutcomeNotShown("the order is of another payment")
        return order

    def _read_before_request(self, request: ChangeRequest | RefundRequest) -> Order:
        """Before money is asked for: whatever fails here, surely nothing was done."""
        try:
            return self._read_order(request.reference, request.payment_id)
        except OutcomeUnknown as error:
            raise NotExecuted(f"reading the order: {error}") from None

    def _current_state(self, request: ChangeRequest) -> Charge:
        """After money was asked for: whatever fails here leaves that unknown."""
        try:
            return self._state(self._read_order(request.reference, request.payment_id))
        except NotExecuted as error:
            raise OutcomeUnknown(f"reading the order: {error}") from None

    def _state_instead_of(self, refusal: Rejected, request: ChangeRequest) -> Charge:
        """What the books show where a refusal says that they show something else by now."""
        state = self._current_state(request)
        if state.status in UNDONE[request.operation]:
            raise refusal
        return state


def _order_body(request: ChargeRequest) -> dict[str, Any]:
    """The same request makes the same body: it is repeated under the same key."""
    wallet: dict[str, Any] = {}
    if request.token != REDIRECT:
        wallet["vault_id"] = request.token
    if not request.off_session:
        wallet["experience_context"] = {
            "return_url": request.return_url,
            "cancel_url": request.return_url,
            "user_action": "PAY_NOW",
            # An eCheck would leave the store waiting for days.
            "payment_method_preference": "IMMEDIATE_PAYMENT_REQUIRED",
            "shipping_preference": "NO_SHIPPING",
        }
    return {
        "intent": "CAPTURE" if request.capture else "AUTHORIZE",
        "purchase_units": [
            {
                "amount": amounts.write(request.amount, request.currency),
                "custom_id": str(request.payment_id),
                # Which system made it, should others use the account; and PayPal takes no second
                # payment for it, where the account is set so.
                "invoice_id": request.key,
            }
        ],
        "payment_source": {"paypal": wallet},
    }


def _fence_body(request: ChargeRequest) -> dict[str, Any]:
    """Without a payment source: such an order waits for a payer, and nobody is given its link."""
    money = amounts.write(request.amount, request.currency)
    return {"intent": "CAPTURE", "purchase_units": [{"reference_id": FENCE, "amount": money}]}


def _declined_charge(request: ChargeRequest, issue: str) -> Charge:
    """Declined without an order at PayPal; our key is all there is to name the charge by."""
    return Charge(request.key, "declined", request.amount, request.currency, decline=decline(issue))


def _given_up(charge: Charge) -> Charge:
    """An order cannot be canceled at PayPal. It is voided by our never completing it."""
    return replace(charge, status="voided", redirect_url=None)


def _declined(request: ChangeRequest, issue: str) -> Charge:
    return Charge(
        request.reference, "declined", request.charged, request.currency, decline=decline(issue)
    )


def _untold(error: NotExecuted) -> OutcomeUnknown:
    """A question that PayPal refuses says nothing about the request, and nothing against PayPal."""
    return (
        OutcomeUnknown(str(error)) if isinstance(error, RetryLater) else OutcomeNotShown(str(error))
    )


def _path_id(reference: str) -> str:
    """Raises NotExecuted for what is no id of PayPal's: it must not choose the path."""
    found = plain_id(reference)
    if found is None:
        raise NotExecuted("the reference is no id of PayPal's")
    return found


def _cert_hosts(settings: Settings) -> Collection[str]:
    if settings.paypal_cert_hosts:
        return settings.paypal_cert_hosts
    return LIVE_CERT_HOSTS if settings.production else LIVE_CERT_HOSTS + SANDBOX_CERT_HOSTS


def _ca_file(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise ConfigurationError("PAYPAL_CA_FILE names no file")
    return path
