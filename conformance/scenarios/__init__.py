"""The contract of gateways as scenarios: the same for every gateway, the same faults for each.

A scenario drives the real service over HTTP, with the gateway behind a proxy that loses, delays
and garbles requests, and then compares the service's books with the gateway's. It is a plain
function: `python -m conformance` runs it, and so does any test framework.
"""

from importlib import import_module
from typing import Final

from conformance.registry import SCENARIOS

# In the order of the report.
TOPICS: Final = (
    *("methods", "payments", "redirects", "webhooks"),
    *("faults", "resend", "outside", "secrets"),
)
for _topic in TOPICS:
    import_module(f"{__name__}.{_topic}")

__all__ = ["SCENARIOS"]
