"""The Stripe adapter. `PaymentIntent` and all other words of Stripe stay in this package."""

from gateways.stripe.gateway import StripeGateway

__all__ = ["StripeGateway"]
