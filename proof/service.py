"""The service as the proof runs it: it dies where it is told to, and may lack a guard.

    python -m proof.service <port>

`PROOF_KILL_AT=<point>:<n>` kills the process the n-th time that it comes by a point; the points
are the moments before and after each commit, and before and after each call of the gateway.
`PROOF_BREAK=<guard>` takes a guard away (see proof/guards.py).
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy.orm import Session

import database

_kill_point, _, _kill_count = os.environ.get("PROOF_KILL_AT", "").partition(":")
_lock = threading.Lock()
_seen = 0
_real_phase = database.phase


def reached(point: str) -> None:
    """Die here, without a word, if this is the place."""
    global _seen
    if point != _kill_point:
        return
    with _lock:
        _seen += 1
        if _seen >= int(_kill_count or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def phase(session: Session) -> AbstractContextManager[Session]:
    """`database.phase`, with a point before and after its commit, named by who called it."""
    caller = sys._getframe(1)
    module = caller.f_globals["__name__"].rpartition(".")[2]
    return _phase(session, f"{module}.{caller.f_code.co_name}")


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


def main(port: int) -> None:
    """Put the points in, take the guard out, and serve."""
    # Before anybody imports it by name.
    database.phase = phase  # type: ignore[assignment]

    from gateways.sandbox import SandboxGateway

    for name in ("charge", "capture", "void", "refund", "look_up", "look_up_refund"):
        setattr(SandboxGateway, name, _with_points(name, getattr(SandboxGateway, name)))
    broken = os.environ.get("PROOF_BREAK")
    if broken:
        from proof.guards import GUARDS

        GUARDS[broken].take_away()

    import uvicorn

    from main import create_app

    uvicorn.run(
        create_app(),
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_config=None,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
