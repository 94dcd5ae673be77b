"""The contract, against Stripe and its double."""

from tests.gateways.benches import StripeBench
from tests.gateways.suite import contract_of

stand, test_contract = contract_of(lambda folder: StripeBench())
