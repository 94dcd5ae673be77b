"""The sandbox gateway: a real gateway of our own, with books of its own."""

from gateways.sandbox.gateway import DECLINES, OUTCOMES, TEST_CARDS, SandboxGateway, parse_fault
from gateways.sandbox.signature import sign, verify
from gateways.sandbox.tables import (
    account,
    charges,
    disputes,
    metadata,
    refunds,
    requests,
    webhooks,
)

__all__ = [
    "DECLINES",
    "OUTCOMES",
    "TEST_CARDS",
    "SandboxGateway",
    "account",
    "charges",
    "disputes",
    "metadata",
    "parse_fault",
    "refunds",
    "requests",
    "sign",
    "verify",
    "webhooks",
]
