"""Every exception that leaves an endpoint becomes a problem document with a documented code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from database import sqlstate
from errors import (
    BodyTooLarge,
    CardNumberNotAllowed,
    DatabaseUnavailable,
    FieldError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    ServiceError,
    UnsupportedMediaType,
)
from idempotency_keys import StoredResponse
from observability.logs import get_logger
from web.json_body import field_name

log = get_logger()

BY_STATUS: dict[int, type[ServiceError]] = {
    400: InvalidRequest,
    404: NotFound,
    405: MethodNotAllowed,
    413: BodyTooLarge,
    415: UnsupportedMediaType,
}

# Our messages for the rules that Pydantic checks; none repeats what was sent.
MESSAGES = {
    "missing": "This field is required",
    "extra_forbidden": "There is no such field; remove it",
    "int_type": "Use an integer, without quotes, fraction or exponent",
    "string_type": "Use a string",
    "bool_type": "Use true or false",
    "dict_type": "Use an object",
    "model_type": "Use an object",
    "model_attributes_type": "Use an object",
}

MAX_ERRORS = 20  # more than a person reads; a body can hold thousands

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

# SQLSTATE classes: the server is not there, is stopping, or has no room for one more. And codes:
# a table or column is missing, because nobody has migrated yet.
_UNAVAILABLE = ("08", "57P", "53", "42P01", "42703")
_TOO_SLOW = (
    "57014",
    "55P03",
    "40001",
    "40P01",
)  # statement or lock timeout; a deadlock, three times


def install(app: FastAPI) -> None:
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DBAPIError, _database_error)
    app.add_exception_handler(TimeoutError, _pool_timeout)


def problem_response(error: ServiceError, request_id: str) -> Response:
    answer = StoredResponse.problem(error, request_id)
    return Response(answer.body, answer.status, answer.headers)


def database_problem(error: DBAPIError) -> ServiceError:
    """What a failure of the database means for the caller."""
    code = sqlstate(error) or ""
    if code in _TOO_SLOW:
        return Overloaded()
    lost = error.connection_invalidated or isinstance(error, InterfaceError)
    if lost or code.startswith(_UNAVAILABLE) or (not code and isinstance(error, OperationalError)):
        return DatabaseUnavailable()
    return InternalError()


def _answer(request: Request, error: ServiceError) -> Response:
    return problem_response(error, request.scope["state"]["request_id"])


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return _answer(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if any(problem["loc"][0] == "path" for problem in problems):
        return _answer(request, NotFound())  # an id that no row can have
    errors = [
        FieldError(
            field=_field((*problem["loc"], *_named(problem))),
            code=problem["type"],
            message=MESSAGES.get(problem["type"], problem["msg"]),
        )
        for problem in problems[:MAX_ERRORS]
    ]
    holds_card_number = any(error["code"] == CardNumberNotAllowed.code for error in errors)
    kind = CardNumberNotAllowed if holds_card_number else InvalidRequest
    return _answer(request, kind(errors=errors))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = BY_STATUS.get(error.status_code, InternalError)
    headers = dict(error.headers or {})
    if kind is MethodNotAllowed:
        headers["Allow"] = ", ".join(_allowed(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    return _answer(request, kind(headers=headers))


def _allowed(request: Request) -> list[str]:
    """Every method that the path takes; the framework names those of one route."""
    routes = request.app.router.routes
    methods = [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes
        )
    ] or ["GET"]  # files, which have no route of ours
    return ["HEAD", *methods] if "GET" in methods else methods  # see middleware/strict_http.py


async def _database_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DBAPIError)
    problem = database_problem(error)
    log.error(
        "database.error",
        kind=type(error.orig).__name__,
        sqlstate=sqlstate(error),
        answered=problem.code,
    )
    return _answer(request, problem)


async def _pool_timeout(request: Request, error: Exception) -> Response:
    log.error("database.pool_exhausted")
    return _answer(request, Overloaded())


def _named(problem: dict[str, Any]) -> list[str]:
    """The field that a rule about several fields names (`fields.invalid_value`)."""
    context = problem.get("ctx") or {}
    return [context["field"]] if "field" in context else []


def _field(location: Sequence[Any]) -> str:
    """The place of an error as the client wrote it: details.card_number."""
    if location[-1] == "[key]":  # an error about a key names the object that has the key
        location = location[:-2]
    parts = [
        str(part) if isinstance(part, int) else field_name(part)
        for part in location[1:]  # the first says body or query
        if not (isinstance(part, str) and part.startswith("<"))  # a tag of ours in schemas.py
    ]
    return ".".join(parts) or str(location[0])
