"""The contract, against Adyen and its double."""

from conformance.targets import AdyenTarget
from tests.support.contract import contract_of

harness, test_contract = contract_of(lambda folder: AdyenTarget())
