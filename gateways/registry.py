"""The gateways that are enabled, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import sqlalchemy

from config import ConfigurationError, Settings
from gateways.base import Gateway, PaymentType
from gateways.guard import GatewayGuard
from gateways.routing import Route, read_routes

# Imported when they are enabled: nobody loads the SDK of a gateway that is not used.
AVAILABLE: Final[Mapping[str, str]] = {
    "sandbox": "gateways.sandbox:SandboxGateway",
    "stripe": "gateways.stripe:StripeGateway",
    "paypal": "gateways.paypal:PayPalGateway",
    "adyen": "gateways.adyen:AdyenGateway",
}


class Gateways:
    """Every gateway that GATEWAYS names, in its order."""

    def __init__(self, gateways: Sequence[Gateway], routes: Sequence[Route] = ()) -> None:
        self.by_name = {gateway.name: gateway for gateway in gateways}
        self.routes = routes

    @staticmethod
    def check(settings: Settings) -> Sequence[Route]:
        """The routes. Raises ConfigurationError for settings that are missing or invalid."""
        adapters = [_load(name) for name in settings.gateway_names]
        for adapter in adapters:
            adapter.check(settings)
        if settings.routes is None:
            return ()
        return read_routes(settings.routes, [adapter.name for adapter in adapters])

    @classmethod
    def from_settings(cls, settings: Settings, engine: sqlalchemy.Engine) -> Gateways:
        """Raises ConfigurationError for settings that are missing or invalid."""
        routes = cls.check(settings)
        gateways = []
        for name in settings.gateway_names:
            gateway: Gateway = _load(name).build(settings, engine)
            if gateway.remote:
                gateway.guard = GatewayGuard(
                    gateway.name,
                    timeout=settings.gateway_timeout,
                    concurrency=settings.gateway_concurrency,
                )
            gateways.append(gateway)
        return cls(gateways, routes)

    def get(self, name: str) -> Gateway | None:
        return self.by_name.get(name)

    def choose(
        self, payment_type: PaymentType, currency: str, country: str | None
    ) -> Gateway | None:
        """The gateway of the first route that fits, else the first that takes this payment type."""
        routed = (
            self.by_name[route.gateway]
            for route in self.routes
            if route.fits(payment_type, currency, country)
        )
        for gateway in (*routed, *self.by_name.values()):
            if payment_type in gateway.capabilities.payment_types:
                return gateway
        return None

    def close(self) -> None:
        """Take no more calls."""
        for gateway in self.by_name.values():
            gateway.guard.close()
            gateway.close()


def _load(name: str) -> Any:
    """The class of an adapter: of this service by its name, any other as "module:Class"."""
    module, _, attribute = AVAILABLE.get(name, name).partition(":")
    try:
        return getattr(import_module(module), attribute) if attribute else _unknown(name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"GATEWAYS names {name}, which cannot be loaded: {error}"
        ) from None


def _unknown(name: str) -> Any:
    raise ConfigurationError(
        f"GATEWAYS names {name}; there is {', '.join(AVAILABLE)}, or the module:Class of your own"
    )
