"""Chooses the gateway of a payment method by a table in a file.

    # routes.toml: the first route that fits decides. A field that a route leaves out fits always.
    [[route]]
    payment_type = "card"
    country = ["NL", "BE"]
    gateway = "adyen"

A `gateway` in the request wins over the table. If no route fits, the first gateway of GATEWAYS that
takes the payment type is chosen.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from config import ConfigurationError
from gateways.base import PaymentType

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same library for older Pythons


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Code3 = Annotated[str, Field(pattern="^[A-Z]{3}$")]
Code2 = Annotated[str, Field(pattern="^[A-Z]{2}$")]


class Route(BaseModel):
    """One row of the table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gateway: str
    payment_type: Annotated[frozenset[PaymentType] | None, BeforeValidator(_listed)] = None
    currency: Annotated[frozenset[Code3] | None, BeforeValidator(_listed)] = None
    country: Annotated[frozenset[Code2] | None, BeforeValidator(_listed)] = None

    def fits(self, payment_type: PaymentType, currency: str, country: str | None) -> bool:
        """Whether this route fits a method. An unknown country fits no route with a country."""
        return (
            (self.payment_type is None or payment_type in self.payment_type)
            and (self.currency is None or currency in self.currency)
            and (self.country is None or country in self.country)
        )


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")

    route: list[Route] = []


def read_routes(path: Path, gateways: Sequence[str]) -> list[Route]:
    """The routes of a file, in its order.

    Raises ConfigurationError for a file that is missing or not TOML, an unknown field, or a
    gateway that is not enabled.
    """
    try:
        routes = _Table.model_validate(tomllib.loads(path.read_text())).route
    except OSError as error:
        raise ConfigurationError(f"ROUTES: {path.name}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"ROUTES: {path.name} is not TOML: {error}") from None
    except ValidationError as error:
        problems = "; ".join(_problem(item["loc"], item["msg"]) for item in error.errors())
        raise ConfigurationError(f"ROUTES: {path.name}: {problems}") from None
    for number, route in enumerate(routes, start=1):
        if route.gateway not in gateways:
            raise ConfigurationError(
                f"ROUTES: {path.name}: route {number} leads to {route.gateway}, which GATEWAYS"
                f" does not switch on ({', '.join(gateways)})"
            )
    return routes


def _problem(place: Sequence[int | str], message: str) -> str:
    where = " ".join(str(part + 1) if isinstance(part, int) else part for part in place)
    return f"{where}: {message}"
