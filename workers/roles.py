"""What runs in the background: look-ups, the sandbox's clock and webhooks, old keys.

Any number of processes may run them; rows are taken with SKIP LOCKED, and everything that is
applied is applied once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

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
    stopping: threading.Event = field(default_factory=threading.Event)

    def session(self) -> Session:
        return new_session(self.engine)


@dataclass(frozen=True, slots=True)
class Role:
    """`run_once` returns how much it did; with nothing to do it rests for `pause` seconds."""

    run_once: Callable[[Resources], int]
    pause: float


def reconcile(resources: Resources, gateway: str | None) -> int:
    """Ask a gateway what became of what nobody answered, and what has expired.

    A loop for each, so that one that stalls keeps only its own waiting; None: all that are off.
    """
    with resources.session() as session:
        return reconciling.run_once(
            session,
            resources.gateways,
            of=gateway,
            but=list(resources.gateways.by_name) if gateway is None else None,
            stopping=resources.stopping.is_set,
        )


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


def roles(resources: Resources) -> Mapping[str, Role]:
    """Every role, by name."""
    looking_up = {
        f"reconcile-{name or 'off'}": Role(partial(reconcile, gateway=name), pause=0.5)
        for name in (*resources.gateways.by_name, None)
    }
    return {
        **looking_up,
        "sandbox": Role(run_sandbox, pause=0.2),
        "reap_keys": Role(reap_keys, pause=300.0),
    }
