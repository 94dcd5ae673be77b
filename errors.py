"""The error tree: every problem the service can answer with, and how it is written down.

Each class is one documented code. `GET /errors`, the OpenAPI document and the handlers all read
these classes, so what is documented is what is raised.

    ServiceError
    ├── InvalidRequest              400  invalid_request
    │   ├── PaymentMethodNotFound   400  payment_method_not_found
    │   ├── CardNumberNotAccepted   400  card_number_not_accepted
    │   ├── CardNumberNotAllowed    400  card_number_not_allowed
    │   └── IdempotencyKeyInvalid   400  idempotency_key_invalid
    ├── InvalidSignature            400  invalid_signature
    ├── Unauthenticated             401  unauthenticated
    ├── PaymentDeclined             402  payment_declined
    ├── PaymentMethodDeclined       402  payment_method_declined
    ├── Forbidden                   403  forbidden
    ├── NotFound                    404  not_found
    ├── MethodNotAllowed            405  method_not_allowed
    ├── RequestTimeout              408  request_timeout
    ├── DuplicatePaymentMethod      409  duplicate_payment_method
    ├── InvalidStatusTransition     409  invalid_status_transition
    ├── PaymentInProgress           409  payment_in_progress
    ├── OrderAlreadyPaid            409  order_already_paid
    ├── AmountExceedsRemaining      409  amount_exceeds_remaining
    ├── PaymentDisputed             409  payment_disputed
    ├── OperationNotSupported       409  operation_not_supported
    ├── IdempotencyInProgress       409  idempotency_in_progress
    ├── BodyTooLarge                413  body_too_large
    ├── UnsupportedMediaType        415  unsupported_media_type
    ├── IdempotencyKeyReused        422  idempotency_key_reused
    ├── RateLimited                 429  rate_limited
    ├── HeadersTooLarge             431  headers_too_large
    ├── InternalError               500  internal_error
    ├── GatewayUnavailable          502  gateway_unavailable
    ├── Overloaded                  503  overloaded
    └── DatabaseUnavailable         503  database_unavailable
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final, TypedDict

RETRY_AFTER: Final = {"Retry-After": "1"}  # seconds


class FieldError(TypedDict):
    """One thing wrong with a request: where, which rule, and what to send instead."""

    field: str
    code: str
    message: str


class ServiceError(Exception):
    """Something the caller has to know about."""

    status: ClassVar[int]
    code: ClassVar[str]
    what_to_do: ClassVar[str]  # what the reader should do next
    retryable: ClassVar[bool] = False  # the very same request may succeed later
    example: ClassVar[Mapping[str, Any]] = {}  # the members that this problem adds
    default_headers: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self, detail: str | None = None, *, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        self.detail = detail or self.explanation()
        self.headers = {**self.default_headers, **(headers or {})}
        self.members = members
        super().__init__(self.detail)

    @classmethod
    def title(cls) -> str:
        """A short sentence, the same for every occurrence: the first line of the docstring."""
        return _paragraphs(cls)[0].rstrip(".")

    @classmethod
    def explanation(cls) -> str:
        """The rest of the docstring: when this happens."""
        paragraphs = _paragraphs(cls)
        return " ".join(paragraphs[1:]) or paragraphs[0]

    def problem(self, request_id: str) -> dict[str, Any]:
        """The problem document (RFC 9457) of this occurrence."""
        return {
            "type": f"/errors/{self.code}",
            "title": self.title(),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "request_id": request_id,
            "retryable": self.retryable,
            **self.members,
        }

    def body(self, request_id: str) -> bytes:
        return json.dumps(self.problem(request_id), separators=(",", ":")).encode()

    @classmethod
    def documentation(cls) -> dict[str, Any]:
        """The entry of this code in `GET /errors`."""
        return {
            "code": cls.code,
            "status": cls.status,
            "title": cls.title(),
            "explanation": cls.explanation(),
            "what_to_do": cls.what_to_do,
            "retryable": cls.retryable,
            "example": cls.example_problem(),
        }

    @classmethod
    def example_problem(cls) -> dict[str, Any]:
        members = dict(cls.example)
        return cls(members.pop("detail", None), **members).problem(
            "8b3f0c5e0f7c4a55a6f6f3b7f0a1c2d3"
        )


class InvalidRequest(ServiceError):
    """The request is not valid.

    Something in the body, the query or a header breaks a rule; `errors` names each place, up to
    the twentieth.
    """

    status = 400
    code = "invalid_request"
    what_to_do = "Correct every field listed in `errors` and send the request again."
    example: ClassVar[Mapping[str, Any]] = {
        "errors": [
            {
                "field": "details.card_number",
                "code": "card_number_luhn",
                "message": "The card number's check digit is wrong: there is a typing error in it.",
            }
        ]
    }

    @classmethod
    def of(cls, field: str, code: str, message: str) -> InvalidRequest:
        """One field, one rule."""
        return cls(message, errors=[FieldError(field=field, code=code, message=message)])


class PaymentMethodNotFound(InvalidRequest):
    """There is no such payment method.

    The payment method named in the body does not exist, was deleted, or belongs to another user.
    """

    code = "payment_method_not_found"
    what_to_do = "List the user's methods with GET /payment-methods, or save one first."
    example: ClassVar[Mapping[str, Any]] = {}


class CardNumberNotAccepted(InvalidRequest):
    """This gateway does not take card numbers.

    Card numbers go only to gateways that tokenize them for us; this one wants its own token.
    """

    code = "card_number_not_accepted"
    what_to_do = "Let the gateway's own form collect the card, and send `details.token` instead."
    example: ClassVar[Mapping[str, Any]] = {"gateway": "stripe"}


class CardNumberNotAllowed(InvalidRequest):
    """There is a card number where none belongs.

    A text that people type, or a header, holds a card number; `errors` names the place. It was not
    kept. Card numbers go into `details.card_number` and nowhere else.
    """

    code = "card_number_not_allowed"
    what_to_do = "Take the number out of every field listed in `errors` and send the request again."
    example: ClassVar[Mapping[str, Any]] = {
        "errors": [
            {
                "field": "metadata.note",
                "code": "card_number_not_allowed",
                "message": "This holds a card number; take it out",
            }
        ]
    }


class IdempotencyKeyInvalid(InvalidRequest):
    """The Idempotency-Key is not valid.

    A key is sent once, with 1 to 255 printable ASCII characters.
    """

    code = "idempotency_key_invalid"
    what_to_do = "Send one Idempotency-Key header, for instance a random UUID."
    example: ClassVar[Mapping[str, Any]] = {}


class InvalidSignature(ServiceError):
    """The signature of this webhook is not valid.

    The body was changed, the secret is another one, or the event is too old. Nothing was stored.
    """

    status = 400
    code = "invalid_signature"
    what_to_do = "Check the webhook secret and the clock; let the gateway send the event again."


class Unauthenticated(ServiceError):
    """A valid token is required.

    The bearer token is missing, malformed, expired, or not signed by the configured key.
    """

    status = 401
    code = "unauthenticated"
    what_to_do = (
        "Send `Authorization: Bearer <JWT>` with a fresh token; in development "
        "`python cli.py token --user alice` prints one."
    )
    default_headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class PaymentDeclined(ServiceError):
    """The payment was declined.

    Nothing was charged and the order is still pending; `decline_code` says why.
    """

    status = 402
    code = "payment_declined"
    what_to_do = "Ask the shopper for another payment method, then pay the order again."
    example: ClassVar[Mapping[str, Any]] = {
        "detail": "The account has insufficient funds.",
        "decline_code": "insufficient_funds",
        "payment_id": 12,
    }


class PaymentMethodDeclined(ServiceError):
    """The gateway refused this payment method.

    It was not saved; `decline_code` says why.
    """

    status = 402
    code = "payment_method_declined"
    what_to_do = "Ask the shopper to check what was typed, or for another payment method."
    example: ClassVar[Mapping[str, Any]] = {"decline_code": "expired_card"}


class Forbidden(ServiceError):
    """This token may not do that.

    The token is valid, but the action belongs to another user or needs a scope it lacks.
    """

    status = 403
    code = "forbidden"
    what_to_do = "Use a token of the owner, or one with the scope that `detail` names."


class NotFound(ServiceError):
    """There is nothing here.

    The resource does not exist, was deleted, or is not yours to see.
    """

    status = 404
    code = "not_found"
    what_to_do = (
        "Check the path and the id; the lists (GET /orders, GET /payment-methods) show yours."
    )


class MethodNotAllowed(ServiceError):
    """This path does not take that method.

    The `Allow` header lists the methods that it takes.
    """

    status = 405
    code = "method_not_allowed"
    what_to_do = "Use one of the methods in the `Allow` header; /docs shows every operation."


class RequestTimeout(ServiceError):
    """The request did not arrive in time.

    A request, with its body, has to arrive within ten seconds; nothing was begun.
    """

    status = 408
    code = "request_timeout"
    what_to_do = "Send the request again on a new connection, and all of it at once."
    retryable = True


class DuplicatePaymentMethod(ServiceError):
    """This card is already saved.

    The same card, account or wallet is saved for this user already, however it was typed.
    """

    status = 409
    code = "duplicate_payment_method"
    what_to_do = (
        "Use the method in `payment_method_id`; PATCH it if its expiry or name has changed."
    )
    example: ClassVar[Mapping[str, Any]] = {"payment_method_id": 7}


class InvalidStatusTransition(ServiceError):
    """The resource cannot move to that status.

    `current_status` says where it is, `allowed_statuses` where this caller may move it.
    """

    status = 409
    code = "invalid_status_transition"
    what_to_do = "Read the resource again and choose one of `allowed_statuses`."
    example: ClassVar[Mapping[str, Any]] = {
        "current_status": "pending",
        "allowed_statuses": ["canceled"],
    }


class PaymentInProgress(ServiceError):
    """A payment of this order is under way.

    Its outcome is still open, so nothing else may happen to the money of this order.
    """

    status = 409
    code = "payment_in_progress"
    what_to_do = "Wait for the payment in `payment_id` to settle: GET /payments/{id}."
    retryable = True
    example: ClassVar[Mapping[str, Any]] = {"payment_id": 12}


class OrderAlreadyPaid(ServiceError):
    """This order is already paid.

    One order is charged once; a second payment was not started.
    """

    status = 409
    code = "order_already_paid"
    what_to_do = "Nothing is left to pay; GET /orders/{id}/payments shows the payment."
    example: ClassVar[Mapping[str, Any]] = {"payment_id": 12}


class AmountExceedsRemaining(ServiceError):
    """The amount is more than what is left.

    `remaining` is what can still be captured or refunded, in minor units; refunds that are
    under way count as spent.
    """

    status = 409
    code = "amount_exceeds_remaining"
    what_to_do = "Send at most `remaining`, or leave the amount out to take all of it."
    example: ClassVar[Mapping[str, Any]] = {"remaining": 1099}


class PaymentDisputed(ServiceError):
    """The shopper's bank has been asked for this money, or has given it back.

    A refund would give it to the shopper a second time.
    """

    status = 409
    code = "payment_disputed"
    what_to_do = (
        "Look at the dispute in `dispute_id`: GET /disputes/{id}. To refund all the same, send"
        " `allow_disputed: true`."
    )
    example: ClassVar[Mapping[str, Any]] = {"dispute_id": 3}


class OperationNotSupported(ServiceError):
    """This cannot be done with this payment.

    Its gateway or its state does not allow the operation; `detail` says which.
    """

    status = 409
    code = "operation_not_supported"
    what_to_do = "Read the payment: its status says which operations are left."


class IdempotencyInProgress(ServiceError):
    """The first request with this key is still running.

    Its answer is not known yet, so it cannot be repeated.
    """

    status = 409
    code = "idempotency_in_progress"
    what_to_do = "Wait as long as Retry-After says and send the same request again."
    retryable = True
    default_headers = RETRY_AFTER


class BodyTooLarge(ServiceError):
    """The body is too large.

    A request body is at most 64 KiB.
    """

    status = 413
    code = "body_too_large"
    what_to_do = "Send a smaller body; `metadata` takes at most 20 pairs."


class UnsupportedMediaType(ServiceError):
    """The body must be JSON.

    A request with a body must say `Content-Type: application/json`, and no `Content-Encoding`.
    """

    status = 415
    code = "unsupported_media_type"
    what_to_do = "Set the header `Content-Type: application/json` and send JSON in UTF-8."


class IdempotencyKeyReused(ServiceError):
    """This Idempotency-Key belongs to another request.

    The key was used before with another method, path or body.
    """

    status = 422
    code = "idempotency_key_reused"
    what_to_do = "Use a new key for a new request; send the same body to repeat the old one."


class RateLimited(ServiceError):
    """Too many requests.

    This caller has sent more than the limit allows; the request was not begun.
    """

    status = 429
    code = "rate_limited"
    what_to_do = "Wait as long as Retry-After says and send the request again."
    retryable = True


class HeadersTooLarge(ServiceError):
    """The headers are too large.

    The request line and the headers are at most 16 KiB together, and so are trailers.
    """

    status = 431
    code = "headers_too_large"
    what_to_do = "Send fewer and shorter headers; cookies are not read at all."


class InternalError(ServiceError):
    """Something went wrong on our side.

    The failure is recorded under the request id.
    """

    status = 500
    code = "internal_error"
    what_to_do = "Repeat the request with the same Idempotency-Key; tell support the request id."
    retryable = True


class GatewayUnavailable(ServiceError):
    """The payment gateway did nothing.

    It was surely not reached, or refused the request: no money has moved.
    """

    status = 502
    code = "gateway_unavailable"
    what_to_do = (
        "Nothing was charged; if it is `retryable` try again, else offer the shopper another"
        " payment method."
    )
    retryable = True
    example: ClassVar[Mapping[str, Any]] = {"payment_id": 12}


class Overloaded(ServiceError):
    """The service is busy.

    More requests are waiting than can be served in time; this one was not begun.
    """

    status = 503
    code = "overloaded"
    what_to_do = "Wait as long as Retry-After says and send the request again."
    retryable = True
    default_headers = RETRY_AFTER


class DatabaseUnavailable(ServiceError):
    """The database cannot be reached.

    The request was not carried out, or its outcome could not be written down.
    """

    status = 503
    code = "database_unavailable"
    what_to_do = "Wait as long as Retry-After says and repeat it with the same Idempotency-Key."
    retryable = True
    default_headers = RETRY_AFTER


def catalog() -> dict[str, type[ServiceError]]:
    """Every documented error by its code, in the order of the tree."""
    return {error.code: error for error in _leaves(ServiceError)}


def _leaves(base: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for error in base.__subclasses__():
        yield error
        yield from _leaves(error)


def _paragraphs(cls: type[ServiceError]) -> list[str]:
    return [" ".join(part.split()) for part in (cls.__doc__ or "").split("\n\n")]
