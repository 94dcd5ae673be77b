"""The contract, against Adyen and its double."""

from tests.gateways.benches import AdyenBench
from tests.gateways.suite import contract_of

stand, test_contract = contract_of(lambda folder: AdyenBench())
