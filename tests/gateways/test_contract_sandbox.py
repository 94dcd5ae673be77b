"""The contract, against the sandbox gateway."""

from conformance.targets import SandboxTarget
from tests.gateways.pytest_contract import contract_of

harness, test_contract = contract_of(lambda _: SandboxTarget())
