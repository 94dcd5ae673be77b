"""Adyen (Checkout API v72, no SDK): it reports the outcome of a request by notification."""

from __future__ import annotations

from gateways.adyen.gateway import AdyenGateway

__all__ = ["AdyenGateway"]
