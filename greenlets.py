"""Plain functions that wait in the event loop: each in a greenlet, which stands still meanwhile.

It is SQLAlchemy's bridge between the two worlds, but greenlets are used again: making one costs
more than all its switches (docs/adr/0007).
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from threading import local
from typing import Any, Final, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")

# What a greenlet hands to the loop: a future to wait for, or how its function has ended.
_Step = tuple["Future[Any] | None", Any, "BaseException | None"]

MAX_IDLE: Final = 16  # more than one loop runs at once (see loop_connections.py)


class _Greenlet(greenlet):
    """A greenlet that runs one function after another."""

    def run(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        while True:
            result, error = None, None
            try:
                result = function(**arguments)
            except BaseException as raised:
                error = raised
            step: _Step = (None, result, error)
            function = result = error = arguments = None  # type: ignore[assignment]
            function, arguments = _loop_of(self).switch(step)


class _Idle(local):
    """The greenlets of this thread that have nothing to run. None can move to another thread."""

    def __init__(self) -> None:
        self.runners: list[_Greenlet] = []


_idle = _Idle()


async def in_greenlet(function: Callable[..., T], arguments: dict[str, Any]) -> T:
    """Run the function, which may call `wait_for`."""
    loop = getcurrent()
    idle = _idle.runners
    runner = idle.pop() if idle else _Greenlet()
    runner.parent = loop
    runner.gr_context = loop.gr_context
    future, result, error = runner.switch(function, arguments)
    while future is not None:
        try:
            value = await future
        except BaseException as raised:  # the wait failed, or the task was canceled
            future, result, error = runner.throw(raised)
        else:
            future, result, error = runner.switch(value)
    if len(idle) < MAX_IDLE:
        idle.append(runner)
    if error is not None:
        raise error
    done: T = result
    return done


def wait_for(future: Future[T]) -> T:
    """Let the loop go on until the future is done, and return its result or raise its exception."""
    done: T = _loop_of(getcurrent()).switch((future, None, None))
    return done


def _loop_of(runner: greenlet) -> greenlet:
    """The greenlet that runs the event loop."""
    assert runner.parent is not None
    return runner.parent


def is_in_greenlet() -> bool:
    """Whether `wait_for` can be called here."""
    return isinstance(getcurrent(), _Greenlet)
