"""The one loop that runs every role, in a thread each."""

from __future__ import annotations

import random
import threading

from sqlalchemy.exc import SQLAlchemyError

from database import is_migrated
from observability.logs import get_logger
from workers.roles import Resources, Role, roles

log = get_logger()

LONGEST_PAUSE = 30.0  # seconds between two tries of a role that fails
MIGRATION_PAUSE = 1.0  # seconds between two looks whether somebody has migrated


class Workers:
    """Running roles. A role that fails is tried again, less and less often."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._stopping = resources.stopping
        self._threads = [
            threading.Thread(target=self._run, args=(name, role), name=f"worker-{name}")
            for name, role in roles(resources).items()
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each role finish what it is doing, and return when all have."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, name: str, role: Role) -> None:
        while not self._stopping.is_set() and not self._is_migrated():
            self._stopping.wait(MIGRATION_PAUSE)
        failures = 0
        while not self._stopping.is_set():
            pause = role.pause
            try:
                if role.run_once(self._resources):
                    pause = 0.0
                failures = 0
            except Exception as error:
                failures += 1
                pause = min(LONGEST_PAUSE, role.pause * 2**failures)
                log.error("worker.failed", role=name, error=type(error).__name__, pause=pause)
            # A little apart from each other, so that processes that started together spread out.
            self._stopping.wait(pause * random.uniform(0.9, 1.1))  # noqa: S311 - not a secret

    def _is_migrated(self) -> bool:
        try:
            return is_migrated(self._resources.engine)
        except SQLAlchemyError:
            return False
