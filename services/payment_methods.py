"""Saves, changes and removes payment methods: no duplicate, one default, no number stored."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import PydanticCustomError

import crud
import errors
import fields
import schemas
from database import phase
from domain.masking import mask_email
from gateways import base
from gateways.registry import Gateways
from idempotency_keys import StoredResponse
from models import PaymentMethod
from sessions import Session
from settlement.context import CallContext
from settlement.transitions import ChangedBy, record_payment_method_event
from statements import PooledSender

Create = schemas.CardCreate | schemas.PaypalCreate | schemas.BankAccountCreate


def create(
    session: Session,
    context: CallContext,
    gateways: Gateways,
    fingerprint_keys: Sequence[bytes],
    default_currency: str,
    data: Create,
) -> StoredResponse:
    """Save a method. Raises DuplicatePaymentMethod, PaymentMethodDeclined, InvalidRequest and
    CardNumberNotAccepted."""
    user_id = context.require_owner("create_payment_method", data.user_id)
    gateway = _choose_gateway(gateways, data, default_currency)
    request, identity = _read(data, user_id)
    if request.card_number is not None and not gateway.capabilities.card_numbers:
        raise errors.CardNumberNotAccepted(gateway=gateway.name)
    # Checked before the gateway is asked, so that no token is made for a duplicate.
    known = crud.find_known_methods(
        PooledSender.beside(session),
        user_id,
        gateway.name,
        _fingerprints(fingerprint_keys, identity),
    )
    _require_new(known)
    saved = _ask(gateway, replace(request, customer=known.gateway_customer))
    if identity is None and saved.identity is not None:
        identity = f"{gateway.name}:{saved.identity}"
    fingerprints = _fingerprints(fingerprint_keys, identity)
    with phase(session):
        values = {
            "user_id": user_id,
            "payment_type": data.payment_type,
            "gateway": gateway.name,
            "gateway_token": saved.token,
            "gateway_customer": saved.customer,
            "fingerprint": fingerprints[0] if fingerprints else None,
        }
        method = None
        for _ in range(2):  # two may save a first one at once: then this one is not the first
            crud.lock_user(session, user_id)
            if gateway.remote and request.token is not None:
                _require_own_token(session, user_id, gateway, saved.token)
            known = crud.find_known_methods(session, user_id, gateway.name, fingerprints)
            _require_new(known)
            if known.has_default and data.is_default:
                _take_default(session, context, user_id)
            is_default = not known.has_default or bool(data.is_default)
            method = crud.create_payment_method(
                session, details=saved.details, is_default=is_default, **values
            )
            if method is not None:
                break
        if method is None:
            raise errors.DuplicatePaymentMethod
        shown = record_payment_method_event(
            session, ChangedBy.caller(context), "payment_method.created", method
        )
        created = StoredResponse.resource(201, shown, f"/payment-methods/{method.id}")
        return context.store_response(session, created)


def update(
    session: Session, context: CallContext, method_id: int, data: schemas.PaymentMethodUpdate
) -> StoredResponse:
    """Change a card's expiry or holder, or make a method the default. Raises NotFound."""
    with phase(session):
        owner = context.require_payment_method(session, "update_payment_method", method_id).user_id
        crud.lock_user(session, owner)
        method = crud.lock_payment_method(session, method_id, owner)
        changed = _change_details(method, data.details)
        if data.is_default is False and method.is_default:
            raise errors.InvalidRequest.of(
                "is_default",
                "default_needed",
                "One method is always the default; make another one the default instead",
            )
        if data.is_default and not method.is_default:
            _take_default(session, context, owner)
            method.is_default = changed = True
        if changed:
            session.flush()
            shown = record_payment_method_event(
                session, ChangedBy.caller(context), "payment_method.updated", method
            )
            return StoredResponse.resource(200, shown)
        return StoredResponse.resource(200, schemas.PaymentMethod.model_validate(method))


def delete(session: Session, context: CallContext, method_id: int) -> StoredResponse:
    """Deactivate a method; its orders and payments stay. Raises NotFound."""
    with phase(session):
        owner = context.require_payment_method(session, "delete_payment_method", method_id).user_id
        crud.lock_user(session, owner)
        method = crud.lock_payment_method(session, method_id, owner)
        _remove(session, ChangedBy.caller(context), method)
        return StoredResponse(204, b"")


def apply_gateway_change(
    session: Session, by: ChangedBy, user_id: str, method_id: int, details: Mapping[str, Any] | None
) -> None:
    """Apply what a gateway changed in a saved method; None: it was removed there.

    In the caller's transaction.
    """
    crud.lock_user(session, user_id)
    try:
        method = crud.lock_payment_method(session, method_id, user_id)
    except errors.NotFound:
        return  # its user has removed it meanwhile
    if details is None:
        _remove(session, by, method)
    elif method.details != {**method.details, **details}:
        method.details = {**method.details, **details}
        session.flush()
        record_payment_method_event(session, by, "payment_method.updated", method)


def _remove(session: Session, by: ChangedBy, method: PaymentMethod) -> None:
    was_default = method.is_default
    method.is_active = method.is_default = False
    session.flush()
    record_payment_method_event(session, by, "payment_method.deleted", method)
    if was_default:
        promoted = crud.promote_newest_payment_method(session, method.user_id)
        if promoted is not None:
            record_payment_method_event(session, by, "payment_method.updated", promoted)


def _choose_gateway(gateways: Gateways, data: Create, default_currency: str) -> base.Gateway:
    if data.gateway is None:
        country = data.country
        if country is None and isinstance(data.details, schemas.BankAccountDetails):
            country = data.details.iban[:2]
        gateway = gateways.choose(data.payment_type, data.currency or default_currency, country)
        if gateway is None:
            raise errors.InvalidRequest.of(
                "payment_type", "no_gateway", "No gateway of this service takes this type"
            )
        return gateway
    gateway = gateways.get(data.gateway)
    if gateway is None:
        raise errors.InvalidRequest.of(
            "gateway", "gateway_unknown", f"Use one of: {', '.join(gateways.by_name)}"
        )
    if data.payment_type not in gateway.capabilities.payment_types:
        raise errors.InvalidRequest.of(
            "gateway", "payment_type_unsupported", "This gateway does not take this type"
        )
    return gateway


def _read(data: Create, user_id: str) -> tuple[base.MethodRequest, str | None]:
    """The request to the gateway, and the identity by which a duplicate is recognized."""
    details = data.details
    if isinstance(details, schemas.ByToken):
        return base.MethodRequest(data.payment_type, user_id, {}, token=details.token), None
    if isinstance(details, schemas.CardByNumber):
        shown: dict[str, Any] = {
            "brand": fields.card_brand(details.card_number),
            "last4": details.card_number[-4:],
            "exp_month": details.exp_month,
            "exp_year": details.exp_year,
            "cardholder_name": details.cardholder_name,
        }
        request = base.MethodRequest(
            "card", user_id, shown, card_number=details.card_number, cvc=details.cvc
        )
        return request, f"card:{details.card_number}"
    if isinstance(details, schemas.PaypalByEmail):
        shown = {"email": mask_email(details.email)}
        request = base.MethodRequest("paypal", user_id, shown, email=details.email)
        return request, f"paypal:{details.email.casefold()}"
    shown = {
        "country": details.iban[:2],
        "last4": details.iban[-4:],
        "account_holder": details.account_holder,
    }
    request = base.MethodRequest("bank_account", user_id, shown, iban=details.iban)
    return request, f"iban:{details.iban}"


def _ask(gateway: base.Gateway, request: base.MethodRequest) -> base.SavedMethod:
    try:
        return gateway.guard.run(lambda: gateway.save_method(request))
    except base.MethodDeclined as error:
        raise errors.PaymentMethodDeclined(decline_code=error.decline_code) from None
    except base.MethodInvalid as error:
        raise errors.InvalidRequest.of(error.field, error.code, error.message) from None
    except base.GatewayError:
        # A token that nobody uses is harmless, so after an unknown outcome the caller may retry.
        raise errors.GatewayUnavailable("The gateway could not save the payment method") from None


def _fingerprints(keys: Sequence[bytes], identity: str | None) -> list[str]:
    """The fingerprint of an identity under each key, the one to store first.

    While FINGERPRINT_KEY is rotated, a card may have been saved under an older key. A method
    without an identity has none.
    """
    if identity is None:
        return []
    return [hmac.new(key, identity.encode(), hashlib.sha256).hexdigest() for key in keys]


def _require_new(known: crud.KnownMethods) -> None:
    if known.duplicate is not None:
        raise errors.DuplicatePaymentMethod(payment_method_id=known.duplicate)


def _require_own_token(session: Session, user_id: str, gateway: base.Gateway, token: str) -> None:
    """Raises InvalidRequest for a token that another user saved first: it may have leaked."""
    if crud.is_token_of_another(session, gateway.name, token, user_id):
        raise errors.InvalidRequest.of(
            "details.token", "token_unknown", "Send a token that was made for this user"
        )


def _take_default(session: Session, context: CallContext, user_id: str) -> None:
    former = crud.clear_default_payment_method(session, user_id)
    if former is not None:
        record_payment_method_event(
            session, ChangedBy.caller(context), "payment_method.updated", former
        )


def _change_details(method: PaymentMethod, update: schemas.CardUpdate | None) -> bool:
    changes = update.model_dump(exclude_unset=True) if update is not None else {}
    if not changes:
        return False
    if method.payment_type != "card":
        raise errors.InvalidRequest.of(
            "details", "not_a_card", "Only a card's details can be changed"
        )
    for name in ("exp_month", "exp_year"):
        if name in changes and changes[name] is None:
            raise errors.InvalidRequest.of(f"details.{name}", "missing", "A card has an expiry")
    details = method.details | changes
    if not changes.keys().isdisjoint({"exp_month", "exp_year"}):
        try:
            fields.check_expiry(details["exp_month"], details["exp_year"])
        except PydanticCustomError as error:
            raise errors.InvalidRequest.of(
                "details.exp_year", error.type, error.message()
            ) from None
    if details == method.details:
        return False
    method.details = details
    return True
