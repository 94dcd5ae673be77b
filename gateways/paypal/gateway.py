"""The PayPal adapter: our requests as PayPal's orders, authorizations, captures and refunds.

A charge is an order of one purchase unit, and `Charge.reference` is always its order's id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from config import ConfigurationError, Settings
from domain.declines import PAYPAL, normalized
from domain.masking import mask_email
from gateways.base import (
    Busy,
    CannotTell,
    Capabilities,
    ChangeRequest,
    Charge,
    ChargeRequest,
    Gateway,
    GatewayEvent,
    LookUp,
    MethodDeclined,
    MethodInvalid,
    MethodRequest,
    NotDone,
    Refund,
    RefundLookUp,
    RefundRequest,
    Refused,
    SavedMethod,
    SignatureInvalid,
    Unknown,
)
from gateways.paypal import amounts, events, signature
from gateways.paypal.certificates import Certificates
from gateways.paypal.client import Client, NotFound, Rejected
from gateways.paypal.states import (
    DECLINES,
    Authorization,
    Object,
    Order,
    charge_of_order,
    decline,
    plain_id,
    read_capture,
    read_order,
    read_refund,
)

R = TypeVar("R")
T = TypeVar("T")

ORDERS: Final = "/v2/checkout/orders"
AUTHORIZATIONS: Final = "/v2/payments/authorizations"
CAPTURES: Final = "/v2/payments/captures"
REFUNDS: Final = "/v2/payments/refunds"
TOKENS: Final = "/v3/vault/payment-tokens"
# Nothing is left to give back; a repeat that hears so may have given it back the first time.
SPENT: Final = frozenset({"CAPTURE_FULLY_REFUNDED", "REFUND_AMOUNT_EXCEEDED"})
SETUP_TOKEN: Final = re.compile(r"[0-9A-Z_-]{1,36}")  # as PayPal's specification has it

LIVE_API: Final = "https://api-m.paypal.com"
SANDBOX_API: Final = "https://api-m.sandbox.paypal.com"
LIVE_CERT_HOSTS: Final = ("api.paypal.com", "api-m.paypal.com")
SANDBOX_CERT_HOSTS: Final = ("api.sandbox.paypal.com", "api-m.sandbox.paypal.com")

# The token of a method without a vault: the payer approves each payment on PayPal's page.
REDIRECT: Final = "redirect"

# How long PayPal remembers a PayPal-Request-Id, less what clocks and queues may take. Later than
# that a repeat would be a second request. https://developer.paypal.com/api/rest/requests/
ORDER_KEYS: Final = timedelta(hours=6) - timedelta(minutes=15)
PAYMENT_KEYS: Final = timedelta(days=45) - timedelta(hours=6)

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


WAITING: Final = frozenset({"requires_action", "approved"})  # for the payer, or for `complete`
UNPAID: Final = WAITING | {"authorized"}


class PayPalGateway(Gateway):
    """PayPal wallets: approved by the payer each time, or kept in PayPal's vault."""

    name = "paypal"
    needs = ("paypal_client_id", "paypal_client_secret")
    capabilities = Capabilities(payment_types=frozenset({"paypal"}))

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

    def refuse_amount(self, amount: int, currency: str) -> str | None:
        return amounts.refuse(amount, currency)

    # Methods ------------------------------------------------------------------------------------

    def save_method(self, request: MethodRequest) -> SavedMethod:
        """By email nothing is kept at PayPal; a token is one of its vault, or a setup token."""
        if request.token is None:
            if request.email is None:
                raise MethodInvalid(
                    "details", "token_unknown", "Send an email address or a PayPal vault token."
                )
            return SavedMethod(REDIRECT, dict(request.details))
        if plain_id(request.token) is None:
            raise _token_unknown()
        try:
            answer = self.client.get(f"{TOKENS}/{request.token}")
        except (NotFound, Rejected):
            if not SETUP_TOKEN.fullmatch(request.token):
                raise _token_unknown() from None
            answer = self._exchange_setup_token(request.token)
        return _saved_method(answer)

    def _exchange_setup_token(self, token: str) -> Object:
        """A setup token that the payer has approved becomes a payment token, once."""
        source = {"token": {"id": token, "type": "SETUP_TOKEN"}}
        try:
            # The same token twice is the same request: the second answer repeats the first.
            return self.client.post(TOKENS, {"payment_source": source}, key=f"vault-{token}")
        except Rejected as refusal:
            if refusal.issue in DECLINES:
                raise MethodDeclined(normalized(PAYPAL, refusal.issue)) from None
            raise _token_unknown() from None
        except NotFound:
            raise _token_unknown() from None

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
        state = self._state(read_order(answer))
        if request.off_session and state.status == "requires_action":
            # Nobody is there to be asked, and nobody will complete it.
            why = decline("PAYER_ACTION_REQUIRED")
            return replace(state, status="declined", redirect_url=None, decline=why)
        return state

    def complete(self, request: ChangeRequest) -> Charge:
        """Capture or authorize an order that its payer has approved."""
        action = "capture" if request.capture else "authorize"
        path = f"{ORDERS}/{_path_id(request.reference)}/{action}"
        try:
            answer = self.client.post(path, {}, key=f"{request.key}-complete")
        except Rejected as refusal:
            if refusal.issue in COMPLETED_BEFORE:
                return self._current_state(request.reference)
            if refusal.issue not in DECLINES:
                raise
            return _declined(request, refusal.issue)
        return self._state(read_order(answer))

    def capture(self, request: ChangeRequest) -> Charge:
        """Capture an authorization and release the rest, renewing it first when it is old."""
        money = amounts.write(request.amount, request.currency)
        order = self._read_before_request(request.reference)
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
                return self._state_instead_of(refusal, request.reference)
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
        except Unknown as error:
            raise NotDone(f"reauthorize: {error}") from None  # surely nothing was captured
        new = plain_id(answer.get("id"))
        return replace(authorization, id=new) if new is not None else authorization

    def void(self, request: ChangeRequest) -> Charge:
        """Void an authorization, or give up an order that is not paid.

        An order cannot be canceled at PayPal. It is voided by our never completing it.
        """
        order = self._read_before_request(request.reference)
        state = self._state(order)
        if state.status in WAITING:
            return replace(state, status="voided", redirect_url=None)
        authorization = order.authorization
        if authorization is None or authorization.over or state.status == "captured":
            return state
        try:
            answer = self.client.post(f"{AUTHORIZATIONS}/{authorization.id}/void", {})
        except Rejected as refusal:
            if refusal.issue == "PREVIOUSLY_CAPTURED":
                return self._state_instead_of(refusal, request.reference)
            if refusal.issue != "PREVIOUSLY_VOIDED":
                raise
            answer = {"status": "VOIDED"}
        if answer.get("status") == "VOIDED":
            return replace(state, status="voided", capture_before=None)
        after = self._current_state(request.reference)  # 204 has no body, and {} is no answer
        if after.status == "authorized":
            raise Unknown("a void that the books do not show")
        return after

    # Refunds ------------------------------------------------------------------------------------

    def refund(self, request: RefundRequest) -> Refund:
        money = amounts.write(request.amount, request.currency)
        order = self._read_before_request(request.reference)
        capture = order.capture("captured")
        if capture is None:
            raise Refused("nothing is captured")
        body: dict[str, Any] = {
            "amount": money,
            "custom_id": events.refund_custom_id(request.payment_id, request.refund_id),
            "invoice_id": request.key,
        }
        reason = request.reason
        if reason and len(reason) <= MAX_NOTE and reason.isprintable():
            body["note_to_payer"] = reason
        return read_refund(
            self.client.post(f"{CAPTURES}/{capture.id}/refund", body, key=request.key)
        )

    # Questions ----------------------------------------------------------------------------------

    def look_up(self, query: LookUp) -> Charge | None:
        request, reference = query.request, query.reference
        if isinstance(request, ChangeRequest):
            return self._look_up_change(request, query.asked_at)
        if reference is None:
            # PayPal cannot be searched for what is ours, but it can be asked the same again.
            return self._repeat(self.charge, request, query.asked_at, ORDER_KEYS)
        try:
            return self._state(self._read_order(reference))
        except NotFound as gone:
            unpaid = request.token == REDIRECT  # else it was paid at once, or not at all
            if unpaid and self._now() - query.asked_at > UNPAID_ORDER_LIFE:
                return Charge(reference, "voided", request.amount, request.currency)
            raise CannotTell(str(gone)) from None
        except NotDone as error:
            raise _untold(error) from None

    def _look_up_change(self, request: ChangeRequest, asked_at: datetime) -> Charge | None:
        state = self._current_state(request.reference)
        if request.operation == "capture" and state.status == "authorized":
            return self._repeat(self.capture, request, asked_at, PAYMENT_KEYS)
        if request.operation == "complete" and state.status == "approved":
            return self._repeat(self.complete, request, asked_at, ORDER_KEYS)
        if request.operation == "void" and state.status in UNPAID:
            # To give up twice is to give up: a void needs no key.
            return self._repeat(self.void, request, asked_at, timedelta.max)
        return state

    def look_up_refund(self, query: RefundLookUp) -> Refund | None:
        if query.reference is None:
            return self._repeat(self.refund, query.request, query.asked_at, PAYMENT_KEYS)
        try:
            return read_refund(self.client.get(f"{REFUNDS}/{_path_id(query.reference)}"))
        except NotDone as error:
            raise _untold(error) from None

    def _repeat(
        self, ask: Callable[[R], T], request: R, asked_at: datetime, lifetime: timedelta
    ) -> T | None:
        """The same request under the same key has no second effect while PayPal remembers it.

        None if PayPal's own checks refuse it: then the first had no effect either.
        """
        if self._now() - asked_at > lifetime:
            raise CannotTell("asked too long ago to be asked again")
        try:
            return ask(request)
        except Rejected as refusal:
            if refusal.issue in SPENT:  # by the first request, if its key was forgotten
                raise CannotTell(str(refusal)) from None
            return None
        except Refused:
            return None
        except NotDone as error:  # that says nothing about the first request
            raise _untold(error) from None

    # Webhooks -----------------------------------------------------------------------------------

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> GatewayEvent:
        if not self._webhook_id:
            raise SignatureInvalid
        now = self._now()
        signature.verify(self._webhook_id, self._certificates, headers, body, now)
        return events.parse(body, self._find_capture, now)

    def _find_capture(self, capture_id: str) -> Object | None:
        try:
            return self.guard.run(lambda: self.client.get(f"{CAPTURES}/{capture_id}"))
        except NotFound:
            return None
        except NotDone as error:
            raise Unknown(str(error)) from None

    # Inside -------------------------------------------------------------------------------------

    def _state(self, order: Order) -> Charge:
        return charge_of_order(order, self._now())

    def _read_order(self, reference: str) -> Order:
        return read_order(self.client.get(f"{ORDERS}/{_path_id(reference)}"))

    def _read_before_request(self, reference: str) -> Order:
        """Before money is asked for: whatever fails here, surely nothing was done."""
        try:
            return self._read_order(reference)
        except Unknown as error:
            raise NotDone(f"reading the order: {error}") from None

    def _current_state(self, reference: str) -> Charge:
        """After money was asked for: whatever fails here leaves that unknown."""
        try:
            return self._state(self._read_order(reference))
        except NotDone as error:
            raise Unknown(f"reading the order: {error}") from None

    def _state_instead_of(self, refusal: Rejected, reference: str) -> Charge:
        """What the books show where a refusal says that they show something else by now."""
        state = self._current_state(reference)
        if state.status == "authorized":
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


def _declined_charge(request: ChargeRequest, issue: str) -> Charge:
    """Declined without an order at PayPal; our key is all there is to name the charge by."""
    return Charge(request.key, "declined", request.amount, request.currency, decline=decline(issue))


def _declined(request: ChangeRequest, issue: str) -> Charge:
    return Charge(
        request.reference, "declined", request.charged, request.currency, decline=decline(issue)
    )


def _saved_method(answer: Object) -> SavedMethod:
    """Raises MethodInvalid for a card in the vault, Unknown for an answer that is no token."""
    token, source = plain_id(answer.get("id")), answer.get("payment_source")
    if token is None or not isinstance(source, Mapping):
        raise Unknown("an answer without a payment token")
    wallet = source.get("paypal")
    if not isinstance(wallet, Mapping):
        raise MethodInvalid(
            "details.token",
            "token_unknown",
            "The token is not of a PayPal account.",
        )
    email, customer = wallet.get("email_address"), answer.get("customer")
    return SavedMethod(
        token,
        details={"email": mask_email(email)} if isinstance(email, str) else {},
        identity=plain_id(wallet.get("account_id")) or plain_id(wallet.get("payer_id")) or token,
        customer=plain_id(customer.get("id")) if isinstance(customer, Mapping) else None,
    )


def _untold(error: NotDone) -> Unknown:
    """A question that PayPal refuses says nothing about the request, and nothing against PayPal."""
    return Unknown(str(error)) if isinstance(error, Busy) else CannotTell(str(error))


def _token_unknown() -> MethodInvalid:
    return MethodInvalid(
        "details.token",
        "token_unknown",
        "Send a PayPal vault token, or a setup token that its payer has approved.",
    )


def _path_id(reference: str) -> str:
    """Raises NotDone for what is no id of PayPal's: it must not choose the path."""
    found = plain_id(reference)
    if found is None:
        raise NotDone("the reference is no id of PayPal's")
    return found


def _cert_hosts(settings: Settings) -> Collection[str]:
    if settings.paypal_cert_hosts:
        return settings.paypal_cert_hosts
    return LIVE_CERT_HOSTS if settings.production else LIVE_CERT_HOSTS + SANDBOX_CERT_HOSTS


def _ca_file(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise ConfigurationError("PAYPAL_CA_FILE names no file")
    return path
