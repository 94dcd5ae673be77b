"""The arguments of an endpoint, from a request: what FastAPI declares, resolved without its solver.

An endpoint takes ids from the path, one query model, one body model, and dependencies: plain
functions of the request, of headers, and of each other. One that has to wait for a part of the
request is a coroutine function, and takes the request alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import iscoroutinefunction
from typing import Any
from urllib.parse import parse_qsl

from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.security.base import SecurityBase

from web.json_body import StrictRequest


class Arguments:
    """How the arguments of one endpoint are found."""

    def __init__(self, dependant: Dependant) -> None:
        self._request_name = dependant.request_param_name
        self._path = [(field.name, field.alias, field) for field in dependant.path_params]
        self._query = [(field.name, _query_reader(field)) for field in dependant.query_params]
        self._body = [(field.name, field) for field in dependant.body_params]
        self._headers = [
            (field.name, field.alias.replace("_", "-")) for field in dependant.header_params
        ]
        self._dependencies = [
            (each.name, each.call, Arguments(each))
            for each in dependant.dependencies
            # A security scheme is only there to be documented.
            if each.name and each.call and not isinstance(each.call, SecurityBase)
        ]
        self._awaited = {call for _, call, _ in self._dependencies if iscoroutinefunction(call)}
        self._awaited.update(*(arguments._awaited for _, _, arguments in self._dependencies))

    async def of(self, request: StrictRequest) -> dict[str, Any]:
        """Raises RequestValidationError, and what the dependencies raise."""
        return self._values(request, {call: await call(request) for call in self._awaited})

    def _values(self, request: StrictRequest, solved: dict[Any, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        errors: list[Any] = []
        for name, call, arguments in self._dependencies:
            if call not in solved:
                solved[call] = call(**arguments._values(request, solved))
            values[name] = solved[call]
        for name, alias, field in self._path:
            values[name], wrong = field.validate(
                request.path_params[alias], {}, loc=("path", alias)
            )
            errors += wrong
        for name, read in self._query:
            try:
                values[name] = read(request.scope["query_string"])
            except RequestValidationError as invalid:
                errors += invalid.errors()
        for name, header in self._headers:
            values[name] = request.headers.get(header)
        for name, field in self._body:
            if not request.has_value:
                if field.field_info.is_required():
                    errors.append({"type": "missing", "loc": ("body",), "msg": ""})
                values[name] = field.default
            else:
                values[name], wrong = field.validate(request.value, {}, loc=("body",))
                errors += wrong
        if errors:
            raise RequestValidationError(errors)
        if self._request_name is not None:
            values[self._request_name] = request
        return values


def _query_reader(field: ModelField) -> Callable[[bytes], Any]:
    """What reads a query string as this model. Clients ask most lists in few ways, so the last ones
    are kept: nothing changes a query once it is read."""

    @lru_cache(maxsize=256)
    def read(query: bytes) -> Any:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        value, errors = field.validate(dict(pairs), {}, loc=("query",))
        if errors:
            raise RequestValidationError(errors)
        return value

    return read
