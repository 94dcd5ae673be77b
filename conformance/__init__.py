"""The conformance kit: proves that a gateway adapter keeps the contract of `gateways/base.py`.

Write a `Target` for the gateway, then run the scenarios from a shell or from Python:

    python -m conformance my_adapter:MyTarget
    assert check("my_adapter:MyTarget").holds

`docs/add-a-gateway.md` is the guide.
"""

from conformance.doubles.server import BookEntry, Double
from conformance.harness import Harness
from conformance.runner import Report, Result, check
from conformance.scenarios import SCENARIOS
from conformance.target import DoubleTarget, Method, NotApplicable, Step, Target

__all__ = [
    "SCENARIOS",
    "BookEntry",
    "Double",
    "DoubleTarget",
    "Harness",
    "Method",
    "NotApplicable",
    "Report",
    "Result",
    "Step",
    "Target",
    "check",
]
