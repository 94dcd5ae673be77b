"""The contract, against Stripe and its double."""

from conformance.targets import StripeTarget
from tests.gateways.pytest_contract import contract_of

harness, test_contract = contract_of(lambda folder: StripeTarget())
