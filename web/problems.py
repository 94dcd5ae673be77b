"""Which problems an operation can answer with, for the OpenAPI document."""

from typing import Any

import errors

PROBLEM_SCHEMA = {"$ref": "#/components/schemas/Problem"}
# By operation: the rules behind an `invalid_request` that no schema can tell, such as check digits
# and what is stored. `errors` names them, and so does the OpenAPI document.
VALIDATION_RULES = {
    "createPaymentMethod": [
        *("card_number_digits", "card_number_luhn", "card_expired", "iban", "email"),
        *("gateway_missing", "gateway_unknown", "payment_type_unsupported", "no_gateway"),
        "token_unknown",
    ],
    "listPaymentMethods": ["missing"],  # of a manager who names no user
    "updatePaymentMethod": ["not_a_card", "missing", "card_expired", "default_needed"],
    "payOrder": ["missing", "url", "not_the_sandbox"],
    "confirmPayment": ["not_the_sandbox"],
    "capturePayment": ["not_the_sandbox"],
    "voidPayment": ["not_the_sandbox"],
    "refundPayment": ["not_the_sandbox"],
    "setOrderStatus": ["not_the_sandbox"],
    "reviewPayment": ["refund_id", "missing", "taken"],
    "listSandboxCharges": ["cursor"],  # of a charge that is not in its books
}
_ALWAYS = (errors.InternalError, errors.Overloaded, errors.DatabaseUnavailable)
_BODY = (
    errors.InvalidRequest,
    errors.CardNumberNotAllowed,
    errors.IdempotencyKeyInvalid,
    errors.IdempotencyInProgress,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.IdempotencyKeyReused,
)


def problems(
    *kinds: type[errors.ServiceError], body: bool = False, public: bool = False
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an operation: those named, and those that any such operation has."""
    possible = [
        *kinds,
        *(_BODY if body else ()),
        *(() if public else (errors.Unauthenticated,)),
        *_ALWAYS,
    ]
    by_status: dict[int | str, dict[str, Any]] = {}
    for error in sorted(dict.fromkeys(possible), key=lambda error: error.status):
        response = by_status.setdefault(
            error.status,
            {
                "description": "",
                "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA, "examples": {}}},
            },
        )
        response["description"] = ", ".join(filter(None, [response["description"], error.code]))
        response["content"]["application/problem+json"]["examples"][error.code] = {
            "summary": error.title(),
            "value": error.example_problem(),
        }
    return by_status


def resource_problems(
    *kinds: type[errors.ServiceError], body: bool = False
) -> dict[int | str, dict[str, Any]]:
    """The problems of an operation on one resource."""
    return problems(errors.NotFound, errors.Forbidden, *kinds, body=body)
