"""PayPal, by its REST APIs: Orders v2, Payments v2 and Payment Method Tokens v3."""

from gateways.paypal.gateway import PayPalGateway

__all__ = ["PayPalGateway"]
