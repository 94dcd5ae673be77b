"""Plain functions that wait in the event loop: each in a greenlet, which stands still meanwhile.

It is SQLAlchemy's bridge between the two worlds, but greenlets are used again: making one costs
more than all its switches (docs/adr/0007).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import local
from typing import Any, Final, Protocol, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")

# What a greenlet hands to the loop: something to wait for, or how its function has ended.
_Step = tuple["Awaitable[Any] | None", Any, "BaseException | None"]

MAX_IDLE: Final = 32  # more than one loop runs at once (see loop_connections.py)
# Threads that may wait for a gateway. One gateway's guard takes 120 at most (see
# gateways/guard.py), so two gateways may stall at once.
GATEWAY_THREADS: Final = 256


class Lender(Protocol):
    """Lends database connections to functions in greenlets, which stand in line for their turn.

    See loop_connections.py.
    """

    engine: Any

    async def enter(self) -> None: ...
    def leave(self) -> None: ...
    def acquire(self) -> Any: ...
    def release(self, connection: Any, *, broken: bool = False) -> None: ...


class _Greenlet(greenlet):
    """A greenlet that runs one function after another."""

    lender: Lender  # to its function
    has_turn: bool  # at the lender

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


async def in_greenlet(function: Callable[..., T], arguments: dict[str, Any], lender: Lender) -> T:
    """Run the function, which may call `wait_for` and `in_thread`, once it is its turn."""
    await lender.enter()
    loop = getcurrent()
    idle = _idle.runners
    runner = idle.pop() if idle else _Greenlet()
    runner.lender, runner.has_turn = lender, True
    runner.parent = loop
    runner.gr_context = loop.gr_context
    awaited, result, error = runner.switch(function, arguments)
    while awaited is not None:
        try:
            value = await awaited
        except BaseException as raised:  # the wait failed, or the task was canceled
            awaited, result, error = runner.throw(raised)
        else:
            awaited, result, error = runner.switch(value)
    _leave(runner)
    if len(idle) < MAX_IDLE:
        idle.append(runner)
    if error is not None:
        raise error
    done: T = result
    return done


def wait_for(awaited: Awaitable[T]) -> T:
    """Let the loop go on until this is done, and return its result or raise its exception."""
    done: T = _loop_of(getcurrent()).switch((awaited, None, None))
    return done


def _loop_of(runner: greenlet) -> greenlet:
    """The greenlet that runs the event loop."""
    assert runner.parent is not None
    return runner.parent


def lender_here(engine: Any) -> Lender | None:
    """Who lends this greenlet connections of the engine, once it is its turn. None anywhere else:
    there they come from the engine's pool, and who waits for an answer blocks its thread.

    Raises TimeoutError, as the pool does, when its turn does not come in time.
    """
    current = getcurrent()
    if not isinstance(current, _Greenlet) or current.lender.engine is not engine:
        return None
    if not current.has_turn:
        wait_for(current.lender.enter())
        current.has_turn = True
    return current.lender


def _leave(runner: _Greenlet) -> None:
    if runner.has_turn:
        runner.has_turn = False
        runner.lender.leave()


_threads = ThreadPoolExecutor(GATEWAY_THREADS, thread_name_prefix="gateways")


def in_thread(call: Callable[[], T]) -> T:
    """Make a call that may block, without holding up the loop.

    In a greenlet it is made in a thread, and another function has its turn meanwhile, until this
    one wants a connection again. Anywhere else it blocks right here.
    """
    current = getcurrent()
    if not isinstance(current, _Greenlet):
        return call()
    _leave(current)
    work = partial(contextvars.copy_context().run, call)
    return wait_for(asyncio.get_running_loop().run_in_executor(_threads, work))
