"""The gateways that are switched on, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sqlalchemy

from config import ConfigurationError, Settings
from gateways.base import Gateway, PaymentType
from gateways.sandbox import SandboxGateway

Build = Callable[[Settings, sqlalchemy.Engine], Gateway]

AVAILABLE: Mapping[str, Build] = {"sandbox": SandboxGateway.build}


class Gateways:
    """Every gateway that GATEWAYS names, in its order."""

    def __init__(self, gateways: list[Gateway]) -> None:
        self.by_name = {gateway.name: gateway for gateway in gateways}

    @staticmethod
    def check(settings: Settings) -> None:
        """Raises ConfigurationError for a name that is no gateway."""
        unknown = [name for name in settings.gateway_names if name not in AVAILABLE]
        if unknown:
            raise ConfigurationError(
                f"GATEWAYS names {', '.join(unknown)}; there is {', '.join(AVAILABLE)}"
            )

    @classmethod
    def from_settings(cls, settings: Settings, engine: sqlalchemy.Engine) -> Gateways:
        """Raises ConfigurationError for a name that is no gateway."""
        cls.check(settings)
        return cls([AVAILABLE[name](settings, engine) for name in settings.gateway_names])

    def get(self, name: str) -> Gateway | None:
        return self.by_name.get(name)

    def for_type(self, payment_type: PaymentType) -> Gateway | None:
        """The first gateway that takes this type of payment method."""
        return next(
            (
                gateway
                for gateway in self.by_name.values()
                if payment_type in gateway.capabilities.payment_types
            ),
            None,
        )
