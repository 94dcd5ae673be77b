"""Reads JSON bodies strictly: one meaning each, and nothing that PostgreSQL cannot hold."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn

from starlette.requests import Request

from errors import InvalidRequest, UnsupportedMediaType

# Far more than any body of ours needs. What is larger is refused before models are built, because
# they would report an error for every single part of it.
MAX_DEPTH = 16
MAX_MEMBERS = 64  # of an object or an array
MAX_NAME = 255  # characters

# A name that a field of ours could have. Any other name that a client sends may be a secret.
_FIELD_NAME = re.compile(r"[a-z][a-z_]{0,39}", re.ASCII)


class StrictRequest(Request):
    """A request whose JSON is refused when two readers could understand it differently."""

    value: Any = None
    has_value = False

    async def read_json(self) -> None:
        """Read the body, if there is one.

        Raises UnsupportedMediaType for one that is not declared to be JSON, InvalidRequest for
        one that is not JSON.
        """
        body = await self.body()
        if not body:
            return
        declared = self.headers.getlist("content-type")
        media_type = declared[0].split(";")[0].strip().lower() if len(declared) == 1 else ""
        if media_type != "application/json":
            raise UnsupportedMediaType
        self.value, self.has_value = parse_json(body), True


def parse_json(body: bytes) -> Any:
    """The JSON value of a body (RFC 8259, I-JSON RFC 7493). Raises InvalidRequest."""
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
        )
    except UnicodeDecodeError:
        raise _invalid("encoding", "The body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _invalid(
            "json", f"The body is not JSON: line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise _too_deep("body") from None
    except ValueError:  # Python reads integers of up to 4300 digits
        raise _invalid("number", "The body holds a number that is too long") from None
    _check_size(value)
    return value


def _check_size(value: Any) -> None:
    """Raises InvalidRequest, naming the field, for more levels, members or characters of a name
    than any body of ours has."""
    level = [("body", value)] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        for field, container in level:
            if len(container) > MAX_MEMBERS:
                raise InvalidRequest.of(
                    field, "too_many", f"Send at most {MAX_MEMBERS} fields or items in one place"
                )
            if isinstance(container, dict) and any(len(name) > MAX_NAME for name in container):
                raise InvalidRequest.of(
                    field, "name_length", f"A name has at most {MAX_NAME} characters"
                )
        level = [
            (field_name(name) if container is value and isinstance(name, str) else field, member)
            for field, container in level
            for name, member in _members(container)
            if isinstance(member, (dict, list))
        ]
        if not level:
            return
    raise _too_deep(level[0][0])


def _members(container: dict[str, Any] | list[Any]) -> Iterable[tuple[object, Any]]:
    return container.items() if isinstance(container, dict) else enumerate(container)


def field_name(name: str) -> str:
    """A name that may be shown in an error."""
    return name if _FIELD_NAME.fullmatch(name) else "…"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise InvalidRequest.of(
            field_name(repeated), "duplicate_key", "The body names this field twice"
        )
    return result


def _constant(_name: str) -> NoReturn:
    raise _invalid("number", "NaN and Infinity are not JSON")


def _too_deep(field: str) -> InvalidRequest:
    return InvalidRequest.of(field, "nesting", f"JSON is read down to {MAX_DEPTH} levels")


def _invalid(code: str, message: str) -> InvalidRequest:
    return InvalidRequest.of("body", code, message)
