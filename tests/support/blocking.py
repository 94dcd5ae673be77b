"""Notes what blocks the event loop: calls that wait, made in a greenlet instead of a thread."""

from __future__ import annotations

import concurrent.futures
import functools
import time
import traceback
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent
from psycopg2 import extensions

import database
from greenlets import _Greenlet


class BlockingWatch:
    """Notes each call by its name and the line of the product that made it."""

    def __init__(self) -> None:
        self._faults: list[str] = []

    def listen(self) -> None:
        """To this process."""
        time.sleep = self._watched("time.sleep", time.sleep)
        futures = concurrent.futures.Future
        futures.result = self._watched("Future.result", futures.result)  # type: ignore[method-assign]
        wait = database._wait

        def watched_wait(connection: Any) -> None:
            if getattr(connection, "suspend", None) is None:
                self._note("a statement on a connection of the pool")
            wait(connection)

        database._wait = watched_wait
        extensions.set_wait_callback(watched_wait)

    def take(self) -> list[str]:
        """What was noted since it was last called."""
        faults, self._faults = self._faults, []
        return faults

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def watched(*arguments: Any, **options: Any) -> Any:
            self._note(name)
            return call(*arguments, **options)

        return watched

    def _note(self, what: str) -> None:
        if isinstance(getcurrent(), _Greenlet):
            self._faults.append(
                f"{what} blocks the loop:\n{''.join(traceback.format_stack()[-8:-2])}"
            )
