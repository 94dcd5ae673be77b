"""One mechanism for all writes: the same Idempotency-Key is the same request, done once.

The key is claimed in a transaction of its own. The response is stored in the transaction whose
outcome it reports, so a crash leaves both or neither. A request that leads to a gateway is linked
to its claim there; whichever process settles the claim stores the response.
docs/idempotency.md explains it to clients.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

import crud
import errors
import idempotency_keys
import schemas
from database import phase, retry_transaction
from idempotency_keys import StoredResponse
from observability.card_numbers import holds_card_number
from observability.logs import get_logger
from rows import KeyRow
from sessions import Session
from settlement.context import CallContext, ClaimedKey
from statements import PooledSender

log = get_logger()

_KEY = re.compile(r"[\x20-\x7e]{1,255}", re.ASCII)
REPLAYED_HEADER = {"Idempotent-Replayed": "true"}

# The errors that a key keeps, as it keeps every success, and why. A repeat of the request gets the
# very same response. Any other error releases the key: nothing was done, and the corrected or
# repeated request may use it. The table in docs/idempotency.md is made from this one.
STORED_ERRORS: Final[Mapping[type[errors.ServiceError], str]] = {
    errors.PaymentDeclined: "the gateway was asked; another attempt is another request",
    errors.PaymentMethodDeclined: "the gateway was asked; another attempt is another request",
    errors.DuplicatePaymentMethod: "it depends on what was saved when the request came",
    errors.InvalidStatusTransition: "it depends on the status that the request met",
    errors.OrderAlreadyPaid: "it depends on the status that the request met",
    errors.AmountExceedsRemaining: "it depends on what was left when the request came",
    errors.PaymentDisputed: "it depends on the dispute that the request met",
    errors.OperationNotSupported: "the gateway, or the status, does not allow it",
    errors.GatewayUnavailable: "the attempt is over and surely moved no money",
}


def read_key(
    values: Sequence[str], method: str, path: str, body: Any, keys: Sequence[bytes]
) -> ClaimedKey | None:
    """The key of a request, from its header's values. None without the header.

    Raises IdempotencyKeyInvalid, and CardNumberNotAllowed for a key that holds a card number.

    The fingerprint is an HMAC under FINGERPRINT_KEY (`keys`), because a body may hold a card
    number. It leaves out the CVC: somebody with the HMAC key and the rest of the body could guess
    it in a thousand tries.
    """
    if not values:
        return None
    if len(values) > 1 or not _KEY.fullmatch(values[0]) or not values[0].strip():
        raise errors.IdempotencyKeyInvalid
    if holds_card_number(values[0]):
        raise errors.CardNumberNotAllowed(
            errors=[
                errors.FieldError(
                    field="Idempotency-Key",
                    code=errors.CardNumberNotAllowed.code,
                    message="This holds a card number; use a random key",
                )
            ]
        )
    value = json.dumps(_without_cvc(body), sort_keys=True, separators=(",", ":"))
    request = f"idempotency\n{method}\n{path}\n{value}".encode()
    return ClaimedKey(
        values[0], [hmac.new(key, request, hashlib.sha256).hexdigest() for key in keys]
    )


def _without_cvc(body: Any) -> Any:
    details = body.get("details") if isinstance(body, dict) else None
    if not isinstance(details, dict):
        return body
    return body | {"details": {name: details[name] for name in details if name != "cvc"}}


def run(
    session: Session,
    context: CallContext,
    work: Callable[[], StoredResponse],
    check_permission: Callable[[], None],
) -> StoredResponse:
    """Do the work once per key. Raises what the work raises, IdempotencyKeyReused and
    IdempotencyInProgress.

    `check_permission` is called before a stored answer is repeated; the work does so itself.
    """
    key = context.key
    if key is None:
        return retry_transaction(session, work)
    if not _claim_new(session, context, key):
        check_permission()
        known = idempotency_keys.find_key(
            PooledSender.beside(session), context.principal.user_id, key.value
        )
        if known is not None and known.status is not None and not known.has_expired:
            _require_same(key, known)
            return _replay(session, known)
        with phase(session):
            known = _claim(session, context, key)
            if known is not None:
                return _replay(session, known)
    session.info.pop("committed", None)  # by the claim; the work itself may still be retried
    try:
        answer = retry_transaction(session, work)
    except errors.ServiceError as error:
        if type(error) not in STORED_ERRORS:
            _release(session, context, key)
            raise
        with phase(session):
            return context.store_response(
                session, StoredResponse.problem(error, context.request_id)
            )
    except Exception:
        _release(session, context, key)
        raise
    if key.is_answered:
        return answer
    try:
        with phase(session):
            # Another process may have learned the outcome first, and stored its response.
            user_id = context.principal.user_id
            stored = idempotency_keys.get_stored_response(session, user_id, key.value)
            if stored is None:
                idempotency_keys.release_key(session, user_id, key.value, key.owner)
    except SQLAlchemyError as error:
        # The gateway was asked: to say that the request failed, or was not begun, would be false.
        log.error("idempotency.not_released", error=type(error).__name__)
        return answer
    return answer if stored is None else stored


def _claim_new(session: Session, context: CallContext, key: ClaimedKey) -> bool:
    """Claim the key if it is new, with one statement alone."""
    owner = idempotency_keys.claim_key(
        PooledSender.beside(session), context.principal.user_id, key.value, **_request(context, key)
    )
    if owner is not None:
        key.owner = owner
    return owner is not None


def _request(context: CallContext, key: ClaimedKey) -> Any:
    return {
        "fingerprint": key.fingerprints[0],
        "request_id": context.request_id,
        "seconds": context.key_lease,
    }


def _claim(session: Session, context: CallContext, key: ClaimedKey) -> KeyRow | None:
    """Claim a key that is known: None. One that is answered, or whose outcome is open: its row."""
    user_id = context.principal.user_id
    row = idempotency_keys.lock_key(session, user_id, key.value)
    if row is None:  # released between the two statements
        raise errors.IdempotencyInProgress
    if row.has_expired:
        key.owner = idempotency_keys.claim_expired_key(
            session, user_id, key.value, **_request(context, key)
        )
    else:
        _require_same(key, row)
        if row.status is not None:
            return row
        if row.is_owned:
            raise errors.IdempotencyInProgress
        if row.gateway_key is not None:
            return row
        key.owner = idempotency_keys.take_over_key(session, user_id, key.value, context.key_lease)
    return None


def _require_same(key: ClaimedKey, row: KeyRow) -> None:
    """Raises IdempotencyKeyReused if the key is known for another request."""
    if row.fingerprint not in key.fingerprints:
        raise errors.IdempotencyKeyReused


def _replay(session: Session, row: KeyRow) -> StoredResponse:
    if row.status is not None and row.body is not None:
        answer = StoredResponse.from_row(row.status, row.body, row.headers)
    else:
        assert row.gateway_key is not None
        answer = _present(session, row.gateway_key)
    return StoredResponse(answer.status, answer.body, answer.headers | REPLAYED_HEADER)


def _present(session: Session, gateway_key: str) -> StoredResponse:
    """202 with the state as it is now, because the outcome is still open."""
    refund = crud.get_refund_of_key(session, gateway_key)
    if refund is not None:
        return StoredResponse.resource(202, schemas.Refund.model_validate(refund))
    payment = crud.get_payment_of_key(session, gateway_key)
    if payment is None:
        raise errors.IdempotencyInProgress  # settled this very moment; the next repeat is answered
    if payment.operation_key == gateway_key and payment.operation == "cancel":
        order = crud.require_order(session, payment.order_id, payment.user_id)
        return StoredResponse.resource(202, schemas.Order.model_validate(order))
    return StoredResponse.resource(202, schemas.Payment.model_validate(payment))


def _release(session: Session, context: CallContext, key: ClaimedKey) -> None:
    session.rollback()
    try:
        with phase(session):
            idempotency_keys.release_key(session, context.principal.user_id, key.value, key.owner)
    except SQLAlchemyError:
        session.rollback()  # the database is gone; the lease of the key ends by itself
