"""The Adyen adapter: which requests it sends, and how it looks up lost ones.

`responses.py` reads the answers, `notifications.py` the outcomes that Adyen reports later.
"""

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

from sqlalchemy import Engine
from typing_extensions import Self

from config import ConfigurationError, Settings, split_keys
from domain.money import format_money
from gateways import base
from gateways.adyen import references
from gateways.adyen.amounts import amount_object, read_amount
from gateways.adyen.notifications import event_of, verify
from gateways.adyen.responses import Expected, accepted, charge_of, received, text
from gateways.replay import looking_up, replay, require_remembered
from gateways.transport import Transport

T = TypeVar("T")

TEST_API: Final = "https://checkout-test.adyen.com/v72"  # live accounts have hosts of their own
# Adyen remembers keys for at least 7 days, by its own clock.
KEY_LIFETIME: Final = timedelta(days=6, hours=12)
BRANDS: Final[Mapping[str, str]] = {"mc": "mastercard", "cup": "unionpay"}  # others have our names

ON_SESSION: Final[Mapping[str, Any]] = {
    "recurringProcessingModel": "CardOnFile",
    "channel": "Web",
    # We can only hand on a link: no form to post, no component to render.
    "authenticationData": {"threeDSRequestData": {"nativeThreeDS": "disabled"}},
    "redirectToIssuerMethod": "GET",
    "redirectFromIssuerMethod": "GET",
}
OFF_SESSION: Final[Mapping[str, Any]] = {"recurringProcessingModel": "UnscheduledCardOnFile"}
CAPTURE_AT_ONCE: Final[Mapping[str, Any]] = {"captureDelayHours": 0}
CAPTURE_LATER: Final[Mapping[str, Any]] = {"additionalData": {"manualCapture": "true"}}


class AdyenGateway(base.Gateway):
    """Adyen answers "received" and reports the outcome by notification. Nothing can be read."""

    name = "adyen"
    capabilities = base.Capabilities(
        payment_types=frozenset({"card"}), needs_redirect_params=True, can_retrieve=False
    )
    required_settings = ("adyen_api_key", "adyen_merchant_account", "adyen_hmac_key")

    def __init__(
        self, transport: Transport, *, api_key: str, merchant_account: str, hmac_keys: list[bytes]
    ) -> None:
        self._transport = transport
        self._api_key = api_key
        self._merchant_account = merchant_account
        self._hmac_keys = hmac_keys

    @classmethod
    def check(cls, settings: Settings) -> None:
        super().check(settings)
        if settings.production and settings.adyen_api_base is None:
            raise ConfigurationError(
                "GATEWAYS names adyen, which needs ADYEN_API_BASE in production: live endpoints"
                " have a prefix of your own; see docs/adyen.md"
            )
        assert settings.adyen_hmac_key is not None
        _hmac_keys(settings.adyen_hmac_key.get_secret_value())

    @classmethod
    def build(cls, settings: Settings, engine: Engine) -> Self:
        assert settings.adyen_api_key is not None
        assert settings.adyen_merchant_account is not None
        assert settings.adyen_hmac_key is not None
        return cls(
            Transport(settings.adyen_api_base or TEST_API, timeout=settings.gateway_timeout),
            api_key=settings.adyen_api_key.get_secret_value(),
            merchant_account=settings.adyen_merchant_account,
            hmac_keys=_hmac_keys(settings.adyen_hmac_key.get_secret_value()),
        )

    def close(self) -> None:
        self._transport.close()

    def unsupported_amount_reason(self, amount: int, currency: str) -> str | None:
        if amount_object(amount, currency) is None:
            return f"Adyen cannot move {format_money(amount, currency)}: it takes no decimals there"
        return None

    # Methods ------------------------------------------------------------------------------------

    def save_method(self, request: base.MethodRequest) -> base.SavedMethod:
        """The token is a storedPaymentMethodId from Adyen's Drop-in in the shopper's browser.

        Adyen must keep it for this shopper. Otherwise a leaked token would charge a stranger's
        card.
        """
        shopper = request.customer or shopper_reference(request.user_id)
        query = {"merchantAccount": self._merchant_account, "shopperReference": shopper}
        path = f"/storedPaymentMethods?{urlencode(query)}"
        try:
            answer = accepted(self._transport.send("GET", path, headers=self._headers()))
        except base.Refused:
            answer = {}  # Adyen does not know the shopper
        known = answer.get("storedPaymentMethods")
        for method in known if isinstance(known, list) else []:
            if isinstance(method, Mapping) and method.get("id") == (request.token or ""):
                return _saved_card(method, shopper)
        raise base.MethodInvalid(
            "details.token",
            "token_unknown",
            "Send the storedPaymentMethodId of a card that Adyen keeps for the"
            f" shopperReference {shopper}",
        )

    # Money --------------------------------------------------------------------------------------

    def charge(self, request: base.ChargeRequest) -> base.Charge:
        reference = references.of_charge(request)
        body = {
            "merchantAccount": self._merchant_account,
            "amount": _amount(request.amount, request.currency),
            "reference": reference,
            "paymentMethod": {"type": "scheme", "storedPaymentMethodId": request.token},
            "shopperReference": request.customer,
            "shopperInteraction": "ContAuth",  # with a card on file, whoever is there
            "returnUrl": request.return_url,
            "metadata": {"payment_id": str(request.payment_id), "order_id": str(request.order_id)},
            **(OFF_SESSION if request.off_session else ON_SESSION),
            **(CAPTURE_AT_ONCE if request.capture else CAPTURE_LATER),
        }
        answer = self._post("/payments", body, request.key)
        expected = Expected(reference, request.amount, request.currency, request.capture)
        return charge_of(answer, expected)

    def complete(self, request: base.ChangeRequest) -> base.Charge:
        """Send the `redirectResult` that Adyen added to the return URL.

        Raises Refused if it belongs to another payment, which only the answer shows; then this
        payment still waits. Raises OutcomeNotShown without one.
        """
        result = request.redirect_params.get("redirectResult")
        if not result:
            raise base.OutcomeNotShown("without the redirectResult only a notification can tell")
        # The key depends on the result, so that the answer to a wrong one does not replay.
        digest = hashlib.sha256(result.encode()).hexdigest()[:16]
        body = {"details": {"redirectResult": result}}
        answer = self._post("/payments/details", body, f"{request.key}-{digest}")
        reference = references.of_completed(request)
        about = text(answer, "merchantReference")
        if about is None:
            raise base.OutcomeUnknown("the answer does not say which payment it is about")
        if about != reference:
            raise base.Refused("the redirectResult is of another payment")
        expected = Expected(reference, request.charge_amount, request.currency, request.capture)
        return charge_of(answer, expected)

    def capture(self, request: base.ChangeRequest) -> base.Charge:
        body = {
            "merchantAccount": self._merchant_account,
            "amount": _amount(request.amount, request.currency),
            "reference": references.of_change(request),
        }
        received(self._modify("captures", request, body), request.reference)
        return _processing(request)

    def void(self, request: base.ChangeRequest) -> base.Charge:
        # By our reference, because Adyen's may become known between this request and its replay.
        payment = references.of_completed(request)
        body = {
            "merchantAccount": self._merchant_account,
            "paymentReference": payment,
            "reference": references.of_change(request),
        }
        received(self._post("/cancels", body, request.key), payment)
        return _processing(request)

    def refund(self, request: base.RefundRequest) -> base.Refund:
        body = {
            "merchantAccount": self._merchant_account,
            "amount": _amount(request.amount, request.currency),
            "reference": references.of_refund(request),
        }
        answer = self._modify("refunds", request, body)
        amount = read_amount(answer.get("amount"))
        if amount is None:
            raise base.OutcomeUnknown("the answer lacks the amount of the refund")
        reference = received(answer, request.reference)
        return base.Refund(reference, "pending", *amount, refund_id=request.refund_id)

    # Look-ups -----------------------------------------------------------------------------------

    @looking_up()
    def look_up(self, query: base.ChargeLookup) -> base.Charge | None:
        """Replay the request, because nothing at Adyen can be read (see `_replay`).

        For a charge that waits for its shopper Adyen answers with the redirect again.
        """
        request = query.request
        if isinstance(request, base.ChargeRequest):
            if query.reference is not None and not references.is_ours(query.reference):
                raise base.OutcomeNotShown("a payment cannot be read; its notification tells")
            state = _replay(lambda: self.charge(request), query)
            waits = query.reference is not None
        else:
            change = {"capture": self.capture, "void": self.void, "complete": self.complete}
            state = _replay(lambda: change[request.operation](request), query)
            waits = request.operation == "complete"
        if state is None and waits:  # None would mean that the charge was never made
            raise base.OutcomeNotShown("the replay was refused; the charge still waits")
        return state

    @looking_up()
    def look_up_refund(self, query: base.RefundLookup) -> base.Refund | None:
        """As in `look_up`. Adyen answers the replay of a refund that it knows with "pending"."""
        state = _replay(lambda: self.refund(query.request), query)
        if state is None and query.reference is not None:
            raise base.OutcomeNotShown("the replay was refused, but Adyen had received the refund")
        return state

    # Webhooks -----------------------------------------------------------------------------------

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> base.GatewayEvent:
        return event_of(verify(body, self._hmac_keys, self._merchant_account))

    # HTTP ---------------------------------------------------------------------------------------

    def _headers(self, key: str | None = None) -> dict[str, str]:
        headers = {"x-API-key": self._api_key}
        return headers if key is None else {**headers, "Idempotency-Key": key}

    def _post(self, path: str, body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        return accepted(self._transport.send("POST", path, headers=self._headers(key), body=body))

    def _modify(
        self, what: str, request: base.ChangeRequest | base.RefundRequest, body: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Change a payment. Raises NotExecuted while Adyen's reference of it is not known."""
        if references.is_ours(request.reference):
            raise base.NotExecuted("Adyen has not sent its reference of the payment yet")
        payment = quote(request.reference, safe="")
        return self._post(f"/payments/{payment}/{what}", body, request.key)


def shopper_reference(user_id: str) -> str:
    """The shopperReference of a user: it identifies nobody to Adyen, and never changes."""
    return f"estore-{hashlib.sha256(user_id.encode()).hexdigest()[:32]}"


def _hmac_keys(value: str) -> list[bytes]:
    """Raises ConfigurationError unless these are keys in hexadecimal, as Adyen shows them."""
    try:
        keys = [bytes.fromhex(key) for key in split_keys(value)]
    except ValueError:
        keys = []
    if not keys or not all(keys):
        raise ConfigurationError("ADYEN_HMAC_KEY is no HMAC key in hexadecimal, nor a list of some")
    return keys


def _amount(amount: int, currency: str) -> dict[str, Any]:
    found = amount_object(amount, currency)
    if found is None:
        raise base.Refused("an amount that Adyen cannot take")
    return found


def _processing(request: base.ChangeRequest) -> base.Charge:
    return base.Charge(request.reference, "processing", request.charge_amount, request.currency)


def _replay(call: Callable[[], T], query: base.ChargeLookup | base.RefundLookup) -> T | None:
    """Replay a request while `query.resend` allows it; afterwards only a notification can tell.

    There is no fence. Adyen does not document how it answers a known key with another request, so
    the key cannot be used up. A technical cancel does not stop a request that arrives after it,
    has no effect on a charge that is captured at once, and would void an authorization whose
    notification is only late.
    """
    if not query.resend:
        raise base.OutcomeNotShown("it is not sent again; its notification tells")
    require_remembered(datetime.now(timezone.utc) - query.requested_at, KEY_LIFETIME)
    return replay(call)


def _saved_card(method: Mapping[str, Any], shopper: str) -> base.SavedMethod:
    """Raises MethodInvalid for a stored method that is no card."""
    token = text(method, "id")
    if token is None or method.get("type") != "scheme":
        raise base.MethodInvalid("details.token", "token_not_card", "Send the token of a card")
    brand = text(method, "brand") or "other"
    details = {
        "brand": BRANDS.get(brand, brand),
        "last4": text(method, "lastFour"),
        "exp_month": _number(method.get("expiryMonth")),
        "exp_year": _number(method.get("expiryYear")),
        "cardholder_name": text(method, "holderName"),
    }
    return base.SavedMethod(token, details, identity=token, customer=shopper)


def _number(value: object) -> int | None:
    fits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 4
    return int(str(value)) if fits else None
