"""The background roles: look-ups, comparisons, the sandbox's clock and webhooks, the reapers.

Any number of processes may run them: each row is leased (SKIP LOCKED) and applied once.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import sqlalchemy

import idempotency_keys
import leases
from config import Settings
from database import Old, autocommit, delete_old, new_session, phase
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway, delete_leftovers, has_work
from leases import Lane
from observability.logs import get_logger
from services import lookups, reconciliation, webhooks
from services.lookups import LookupRules
from sessions import Session

log = get_logger()

DELETE_BATCH_SIZE = 500  # rows at a time; then the next


@dataclass(frozen=True, slots=True)
class Resources:
    """What the roles need."""

    engine: sqlalchemy.Engine
    gateways: Gateways
    rules: LookupRules
    settings: Settings
    stopping: threading.Event = field(default_factory=threading.Event)

    def session(self) -> Session:
        return new_session(self.engine)


@dataclass(frozen=True, slots=True)
class Role:
    """A role. `run_once` returns how much it did.

    With nothing to do the role sleeps until it is woken (see `due_roles`), or for `pause` seconds.
    """

    run_once: Callable[[Resources], int]
    pause: float | None = None


def look_up(resources: Resources, lane: Lane, gateway: str | None) -> int:
    """Look up what is due at a gateway in one lane; None: at all gateways that are off.

    One role for each gateway and lane, so that a gateway that stalls delays only its own look-ups.
    """
    return lookups.run_once(
        resources.engine, resources.rules, lane, gateway, stopping=resources.stopping.is_set
    )


def compare_books(resources: Resources, gateway: str) -> int:
    """Compare a gateway's list of changes with our rows."""
    with resources.session() as session:
        reconciliation.run_once(session, resources.rules, gateway)
    return 0  # one run is enough until it is due again


def run_sandbox(resources: Resources) -> int:
    """Let time pass in the sandbox gateway, and receive its webhooks."""
    sandbox = resources.gateways.get("sandbox")
    if not isinstance(sandbox, SandboxGateway):
        return 0
    done = sandbox.tick()
    while not resources.stopping.is_set() and (due := sandbox.due_webhooks()):
        delivered = []
        with resources.session() as session:
            for webhook_id, headers, body in due:
                try:
                    webhooks.receive(session, resources.gateways, sandbox.name, headers, body)
                except Exception as error:
                    session.rollback()
                    log.error("sandbox.webhook_failed", error=type(error).__name__)
                    sandbox.postpone(webhook_id)
                else:
                    delivered.append(webhook_id)
        if delivered:
            sandbox.delivered(*delivered)
        done += len(due)
    return done


def reap_keys(resources: Resources) -> int:
    """Delete Idempotency-Keys that have expired."""
    with resources.session() as session, phase(session):
        expired = idempotency_keys.find_expired(session, limit=DELETE_BATCH_SIZE)
    return _delete(resources, expired)


def reap_gateway_events(resources: Resources) -> int:
    """Delete gateway events that no gateway sends again."""
    with resources.session() as session, phase(session):
        days = resources.settings.retention_gateway_events_days
        old = leases.find_old_gateway_events(session, days, limit=DELETE_BATCH_SIZE)
    return _delete(resources, old)


def _delete(resources: Resources, found: Sequence[Old]) -> int:
    """Delete what was found, each user's in a transaction of its own; return how many rows."""
    deleted = 0
    with resources.session() as session:
        for old in found:
            with phase(session):
                deleted += delete_old(session, old)
    return deleted


def reap_sandbox(resources: Resources) -> int:
    """Delete what the sandbox gateway does not need any more."""
    if "sandbox" not in resources.gateways.by_name:
        return 0
    return delete_leftovers(
        resources.engine, resources.settings.retention_sandbox_days, limit=DELETE_BATCH_SIZE
    )


def roles(resources: Resources) -> Mapping[str, Role]:
    """Every role, by name."""
    names = list(resources.gateways.by_name)
    lanes: tuple[Lane, ...] = ("open", "waiting")
    looking_up = {
        _lookup_role(lane, name): Role(partial(look_up, lane=lane, gateway=name))
        for lane in lanes
        for name in (*names, None)
    }
    comparing = {f"compare-{name}": Role(partial(compare_books, gateway=name)) for name in names}
    return {
        **looking_up,
        **comparing,
        "sandbox": Role(run_sandbox),
        # One for each table, so that one that fails delays no other.
        "reap_keys": Role(reap_keys, pause=300.0),
        "reap_gateway_events": Role(reap_gateway_events, pause=300.0),
        "reap_sandbox": Role(reap_sandbox, pause=300.0),
    }


def due_roles(resources: Resources) -> set[str]:
    """The roles that have work now, found with one statement for all of them."""
    names = resources.gateways.by_name
    with autocommit(resources.engine) as session:
        due = leases.find_due_work(session, has_work() if "sandbox" in names else None)
    looking_up = {
        _lookup_role(lane, name if name in names else None)
        for lane, gateways in due.lookups.items()
        for name in gateways
    }
    comparing = {f"compare-{name}" for name in due.comparisons if name in names}
    return looking_up | comparing | ({"sandbox"} if due.sandbox else set())


def _lookup_role(lane: Lane, gateway: str | None) -> str:
    return f"lookup-{lane}-{gateway or 'off'}"
