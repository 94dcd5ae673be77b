"""Faults in the processes of the proof: points at which they die, and a gateway that fails.

`PROOF_KILL_AT=<point>:<n>` kills the process the n-th time that it passes a point; the points are
the moments before and after each commit, and before and after each call of the gateway. The sandbox
gateway sometimes does not answer, and resends half of what it may resend, as gateways do that
cannot fence a lost request.
"""

import functools
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final

import database
from sessions import Session

UNANSWERED: Final = 0.05  # of the questions that the gateway is asked

# Between a use case and its statement.
PASSED: Final = {
    "contextlib",
    "settlement.transitions",
    "crud",
    "locks",
    "idempotency_keys",
    __name__,
}
WRITES: Final = ("INSERT", "UPDATE", "WITH")

_kill_point, _, _kill_count = os.environ.get("PROOF_KILL_AT", "").partition(":")
_lock = threading.Lock()
_seen = 0
_real_phase = database.phase


def reached(point: str) -> None:
    """Kill this process if this is the point."""
    global _seen
    if point != _kill_point:
        return
    with _lock:
        _seen += 1
        if _seen >= int(_kill_count or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def phase(session: Session) -> AbstractContextManager[Session]:
    """`database.phase`, with a point before and after its commit, named by who called it."""
    return _phase(session, _caller())


def _caller() -> str:
    """Who works here: `module.function`, above those that every transaction passes."""
    frame = sys._getframe(2)
    while frame.f_globals["__name__"] in PASSED and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_globals['__name__'].rpartition('.')[2]}.{frame.f_code.co_name}"


@contextmanager
def _phase(session: Session, name: str) -> Iterator[Session]:
    with _real_phase(session):
        yield session
        session.flush()
        reached(f"{name}.before_commit")
    reached(f"{name}.after_commit")


def _with_points(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def called(*arguments: Any, **named: Any) -> Any:
        reached(f"gateway.{name}.before")
        result = method(*arguments, **named)
        reached(f"gateway.{name}.after")
        return result

    return called


def _with_points_of_writes(rows: Callable[..., Any]) -> Callable[..., Any]:
    """A statement that is sent alone is committed with it."""

    @functools.wraps(rows)
    def send(sender: Any, statement: Any, **parameters: Any) -> Any:
        if not statement.sql.lstrip().startswith(WRITES):
            return rows(sender, statement, **parameters)
        name = _caller()
        reached(f"{name}.before_commit")
        written = rows(sender, statement, **parameters)
        reached(f"{name}.after_commit")
        return written

    return send


def _with_bad_days(gateway: Any) -> None:
    """Make the sandbox behave like gateways over a network."""
    from gateways.base import ChargeRequest, NotExecuted, OutcomeNotShown

    look_up, look_up_refund = gateway.look_up, gateway.look_up_refund

    def look_up_badly(self: Any, query: Any) -> Any:
        if random.random() < UNANSWERED:  # noqa: S311 - no secret
            raise OutcomeNotShown("no answer")
        if query.resend and is_sent_again(query.request.key):
            request = query.request
            with suppress(NotExecuted):  # it was fenced, or cannot be done any more
                if isinstance(request, ChargeRequest):
                    return self.charge(request)
                return (self.capture if request.operation == "capture" else self.void)(request)
        return look_up(self, query)

    def look_up_refund_badly(self: Any, query: Any) -> Any:
        if query.resend and is_sent_again(query.request.key):
            with suppress(NotExecuted):
                return self.refund(query.request)
        return look_up_refund(self, query)

    gateway.look_up, gateway.look_up_refund = look_up_badly, look_up_refund_badly


def is_sent_again(key: str) -> bool:
    """Whether this request is one of the half."""
    return sum(key.encode()) % 2 == 0


def prepare() -> None:
    """Install the points, before any module imports these functions by name."""
    database.phase = phase  # type: ignore[assignment]

    from statements import PooledSender

    PooledSender.rows = _with_points_of_writes(PooledSender.rows)  # type: ignore[method-assign]

    from gateways.sandbox import SandboxGateway

    for name in ("charge", "capture", "void", "refund", "look_up", "look_up_refund"):
        setattr(SandboxGateway, name, _with_points(name, getattr(SandboxGateway, name)))
    _with_bad_days(SandboxGateway)
