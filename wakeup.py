"""How this process tells its own workers that there is work now, right after the COMMIT.

Nothing depends on it: who is not told, or dies before telling, leaves the work to the next look of
any process, within a second.
"""

from __future__ import annotations

import threading

_listeners: set[threading.Event] = set()


def listen(event: threading.Event) -> None:
    """Have this event set at every `wake`."""
    _listeners.add(event)


def unlisten(event: threading.Event) -> None:
    _listeners.discard(event)


def wake() -> None:
    """There is committed work. Cheap, and nothing happens where no workers run."""
    for event in tuple(_listeners):
        event.set()
