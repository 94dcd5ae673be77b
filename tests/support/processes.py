"""The service as a real process: from a copy of the sources that has no `.env` and no data."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import httpx

from tests.support.paths import ROOT

HANG = 120.0  # seconds after which something has gone wrong, however slow the machine is
SOURCES = ["*.py", "Makefile", "pyproject.toml", "requirements*.txt", ".env.example"]
LEFT_OUT = shutil.ignore_patterns(".*", "tests", "docs", "benchmarks", "deploy", "build")


def copy_sources(target: Path) -> Path:
    """What a clone holds to run the service. A developer's `.env` and data stay out of tests."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in SOURCES:
        for file in ROOT.glob(pattern):
            shutil.copy2(file, target)
    for folder in ROOT.iterdir():
        left_out = LEFT_OUT(str(ROOT), [folder.name])
        if folder.is_dir() and not left_out and any(folder.rglob("*.py")):
            shutil.copytree(folder, target / folder.name)
    return target


def environment(**settings: object) -> dict[str, str]:
    """The settings, and none of those that this process may have been started with."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | {name: str(value) for name, value in settings.items()}


def run(
    sources: Path, *arguments: str | Path, timeout: float = HANG, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, and wait for its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=sources,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], what: str, seconds: float = HANG) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.02)  # between two looks


def processes_of(data_dir: Path) -> dict[int, str]:
    """Every process that names this folder, as the embedded server's do (Linux only)."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            command = entry.read_bytes().decode(errors="replace").replace("\0", " ")
            if f"{data_dir}/" in command or f"{data_dir} " in command:
                found[int(entry.parent.name)] = command
    return found


def wait_until_gone(data_dir: Path) -> None:
    """Wait until the embedded server has noticed that nobody uses it any more (Linux only)."""
    if sys.platform == "linux":
        wait_for(lambda: not processes_of(data_dir), f"the end of {processes_of(data_dir)}", 30)


class Service:
    """One started service. Everything that it writes is in `output`."""

    def __init__(
        self,
        sources: Path,
        data_dir: Path,
        command: tuple[str | Path, ...] = ("main.py",),
        **settings: object,
    ) -> None:
        self.data_dir, self.port = data_dir, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = data_dir.parent / f"{data_dir.name}-{self.port}.log"
        place = {"HOST": "127.0.0.1", "PORT": self.port, "DATA_DIR": data_dir}
        arguments = [str(part).replace("{port}", str(self.port)) for part in command]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=sources,
                env=environment(**place | settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_until_ready(self) -> Service:
        def is_ready() -> bool:
            assert self.process.poll() is None, f"the service ended:\n{self.text}"
            try:
                return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200
            except httpx.TransportError:
                return False

        wait_for(is_ready, f"the service:\n{self.output}")
        return self

    def stop(self) -> int:
        """SIGTERM, and the exit status: the signal's, once the service has shut down by itself."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(HANG)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
