"""The contract, against the sandbox gateway."""

from tests.gateways.benches import SandboxBench
from tests.gateways.suite import contract_of

stand, test_contract = contract_of(lambda _: SandboxBench())
