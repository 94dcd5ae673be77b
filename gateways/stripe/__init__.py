"""The Stripe adapter. `PaymentIntent` and the other terms of Stripe stay in this package."""

from gateways.stripe.gateway import StripeGateway

__all__ = ["StripeGateway"]
