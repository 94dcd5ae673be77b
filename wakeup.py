"""Wakes this process's own workers right after a COMMIT.

Nothing depends on it: without it any process finds the work with its next poll, within a second.
"""

import threading
from typing import Literal

Topic = Literal["poll", "sandbox"]  # whatever is due, or webhooks of the sandbox

_listeners: dict[threading.Event, Topic] = {}


def listen(event: threading.Event, topic: Topic = "poll") -> None:
    """Set this event at every `wake` for this topic."""
    _listeners[event] = topic


def unlisten(event: threading.Event) -> None:
    _listeners.pop(event, None)


def wake(topic: Topic = "poll") -> None:
    """Wake the workers: there is committed work. Cheap where no workers run."""
    for event, wanted in tuple(_listeners.items()):
        if wanted == topic:
            event.set()
