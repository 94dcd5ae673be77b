"""The processes of the proof: services that are killed and started again, and the roles alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from config import ROOT

START_SECONDS: Final = 60.0


@dataclass(slots=True)
class Service:
    """One process of the service, started again whenever it is killed."""

    environment: Mapping[str, str]
    log: Path
    port: int = field(default_factory=lambda: _free_port())
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, kill_at: str | None = None) -> None:
        environment = {**self.environment, **({"PROOF_KILL_AT": kill_at} if kill_at else {})}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", "proof.service", str(self.port)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.address}/readyz", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                if not self.alive():
                    return  # killed on its way up: that counts too
            time.sleep(0.05)
        raise RuntimeError(f"the service did not start; see {self.log}")

    def wait_dead(self, seconds: float) -> bool:
        """Whether it has died by itself within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.alive()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.alive():
            self.process.send_signal(number)
            self.process.wait(30)


class Roles:
    """The background roles in a process of their own, which runs them on request."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "proof.roles"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def run(self, passes: int) -> int:
        """Run them so often, and on while there is something to do. Returns how often they ran."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{passes}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def kill_postgres(workplace: Path) -> None:
    """SIGKILL to the server's first process; its supervisor brings it back."""
    for pid_file in workplace.rglob("postmaster.pid"):
        os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
