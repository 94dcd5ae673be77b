"""A double of PayPal: orders, payments, the vault and disputes, as far as we use them.

It is strict where PayPal is lenient: what a client must not do is written to `violations`.
"""

from conformance.doubles.paypal.double import PaypalDouble
from conformance.doubles.paypal.signer import Signer

__all__ = ["PaypalDouble", "Signer"]
