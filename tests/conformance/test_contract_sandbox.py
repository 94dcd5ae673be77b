"""The contract, against the sandbox gateway."""

from conformance.targets import SandboxTarget
from tests.support.contract import contract_of

harness, test_contract = contract_of(lambda _: SandboxTarget())
