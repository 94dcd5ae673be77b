"""What runs in the background: look-ups, the sandbox's clock and webhooks, old keys.

Any number of processes may run them; rows are taken with SKIP LOCKED, and everything that is
applied is applied once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy
from sqlalchemy.orm import Session

import crud
from database import new_session, phase
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from observability.logs import get_logger
from services import inbox
from services import reconcile as reconciling

log = get_logger()


@dataclass(frozen=True, slots=True)
class Resources:
    """What the roles work with."""

    engine: sqlalchemy.Engine
    gateways: Gateways

    def session(self) -> Session:
        return new_session(self.engine)


@dataclass(frozen=True, slots=True)
class Role:
    """`run_once` returns how much it did; with nothing to do it rests for `pause` seconds."""

    run_once: Callable[[Resources], int]
    pause: float


def reconcile(resources: Resources) -> int:
    """Ask gateways what became of what nobody answered, and what has expired."""
    with resources.session() as session:
        return reconciling.run_once(session, resources.gateways)


def run_sandbox(resources: Resources) -> int:
    """Let time pass in the sandbox gateway, and deliver its webhooks like anybody's."""
    sandbox = resources.gateways.get("sandbox")
    if not isinstance(sandbox, SandboxGateway):
        return 0
    done = sandbox.tick()
    for webhook_id, headers, body in sandbox.due_webhooks():
        try:
            with resources.session() as session:
                inbox.receive(session, resources.gateways, sandbox.name, headers, body)
        except Exception as error:
            log.error("sandbox.webhook_failed", error=type(error).__name__)
            sandbox.postpone(webhook_id)
        else:
            sandbox.delivered(webhook_id)
        done += 1
    return done


def reap_keys(resources: Resources) -> int:
    """Forget Idempotency-Keys past their time."""
    with resources.session() as session, phase(session):
        return crud.delete_expired_keys(session, limit=500)


ROLES: Final[Mapping[str, Role]] = {
    "reconcile": Role(reconcile, pause=0.5),
    "sandbox": Role(run_sandbox, pause=0.2),
    "reap_keys": Role(reap_keys, pause=300.0),
}
