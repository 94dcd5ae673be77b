"""The sandbox gateway: a real gateway inside this service, with tables of its own."""

from gateways.sandbox.clock import has_work
from gateways.sandbox.faults import FAULTS, SLOW_PATTERN, parse_fault
from gateways.sandbox.gateway import SandboxGateway
from gateways.sandbox.retention import delete_leftovers
from gateways.sandbox.signature import sign
from gateways.sandbox.tables import metadata

__all__ = [
    "FAULTS",
    "SLOW_PATTERN",
    "SandboxGateway",
    "delete_leftovers",
    "has_work",
    "metadata",
    "parse_fault",
    "sign",
]
