"""Adyen (Checkout API v72, no SDK): it reports the outcome of a request by notification."""

from gateways.adyen.gateway import AdyenGateway

__all__ = ["AdyenGateway"]
