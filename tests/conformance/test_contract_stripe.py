"""The contract, against Stripe and its double."""

from conformance.targets import StripeTarget
from tests.support.contract import contract_of

harness, test_contract = contract_of(lambda folder: StripeTarget())
