"""The one loop that runs every role, in a thread each, and the poll that wakes them."""

import random
import threading

from sqlalchemy.exc import SQLAlchemyError

import wakeup
from database import is_migrated
from observability.logs import get_logger
from workers.roles import Resources, Role, due_roles, roles

log = get_logger()

MIGRATION_PAUSE = 1.0  # seconds between two checks of the schema
# Seconds between two polls; with MIN_IDLE_SECONDS after each, what others commit is found
# within a second.
POLL_SECONDS = 0.8
MIN_IDLE_SECONDS = 0.1  # seconds that a role sleeps at least, however often it is woken
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two attempts of a role that fails


class Workers:
    """Runs the roles. Each works until it finds nothing, then sleeps until the poll wakes it.

    The poll is a role too. It runs about once a second, and at once when this process has committed
    work. A role that fails is tried again, less and less often.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._stopping = resources.stopping
        self._roles = {**roles(resources), "poll": Role(self._wake_due, pause=POLL_SECONDS)}
        self._wakes = {name: threading.Event() for name in self._roles}
        self._threads = [
            threading.Thread(target=self._run, args=(name, role), name=f"worker-{name}")
            for name, role in self._roles.items()
        ]

    def start(self) -> None:
        wakeup.listen(self._wakes["poll"])
        if "sandbox" in self._wakes:
            wakeup.listen(self._wakes["sandbox"], "sandbox")
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each role finish what it is doing, and return when all have."""
        self._stopping.set()
        for wake in self._wakes.values():
            wake.set()
        for thread in self._threads:
            thread.join()
        for wake in self._wakes.values():
            wakeup.unlisten(wake)

    def _wake_due(self, resources: Resources) -> int:
        for name in due_roles(resources):
            self._wakes[name].set()
        return 0

    def _run(self, name: str, role: Role) -> None:
        while not self._stopping.is_set() and not self._is_migrated():
            self._stopping.wait(MIGRATION_PAUSE)
        wake = self._wakes[name]
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            try:
                done = role.run_once(self._resources)
            except Exception as error:
                log.error("worker.failed", role=name, error=type(error).__name__, pause=pause)
                self._stopping.wait(_spread(pause))  # not `wake.wait`: its work stays due
                pause = min(LONGEST_PAUSE, 2 * pause)
                continue
            pause = FIRST_PAUSE
            if done:
                continue
            self._stopping.wait(MIN_IDLE_SECONDS)
            wake.wait(None if role.pause is None else _spread(role.pause))
            wake.clear()  # before it works, so that what is due from now on wakes it again

    def _is_migrated(self) -> bool:
        try:
            return is_migrated(self._resources.engine)
        except SQLAlchemyError:
            return False


def _spread(seconds: float) -> float:
    """A little less, so that processes that started together do not act together."""
    return seconds * random.uniform(0.9, 1.0)  # noqa: S311 - not a secret
