"""Adyen (Checkout API v72, no SDK): it takes requests at once and tells their outcome later."""

from __future__ import annotations

from gateways.adyen.gateway import AdyenGateway

__all__ = ["AdyenGateway"]
