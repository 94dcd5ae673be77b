"""The contract, against Paypal and its double."""

from tests.gateways.benches import PaypalBench
from tests.gateways.suite import contract_of

stand, test_contract = contract_of(lambda folder: PaypalBench(folder))
