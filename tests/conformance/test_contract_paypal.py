"""The contract, against Paypal and its double."""

from conformance.targets import PaypalTarget
from tests.support.contract import contract_of

harness, test_contract = contract_of(lambda folder: PaypalTarget(folder))
