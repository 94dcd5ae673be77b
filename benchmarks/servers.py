"""What is measured: a throwaway PostgreSQL, and servers that are processes of their own."""

from __future__ import annotations

import os
import platform
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg2
import sqlalchemy as sa

import postgres_server
from config import ROOT

START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Postgres:
    """A server to make databases on. Its `pid` is None when it is not ours to look at."""

    url: str
    pid: int | None

    def create(self, template: str | None = None) -> str:
        """Make a database, empty or as the one at another URL, and return its URL."""
        name = f"estore_bench_{secrets.token_hex(6)}"
        like = "template1" if template is None else sa.make_url(template).database
        with connect(self.url) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} TEMPLATE {like}")
        return sa.make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        with connect(self.url) as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")


@contextmanager
def throwaway_postgres() -> Iterator[Postgres]:
    """The embedded server, as the service starts it, in a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="estore-bench-") as name:
        folder = Path(name)
        url = postgres_server.ensure_running(folder)
        try:
            lines = (folder / "postgres/cluster/postmaster.pid").read_text().splitlines()
            yield Postgres(url, int(lines[0]))
        finally:
            postgres_server.stop(folder)


def dsn(url: str) -> str:
    """The URL as PostgreSQL's own programs read it."""
    return re.sub(r"^postgresql\+psycopg2://", "postgresql://", url)


@contextmanager
def connect(url: str) -> Iterator[Any]:
    """A connection on which each statement is a transaction of its own."""
    connection = psycopg2.connect(dsn(url))
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()


class Server:
    """A server in a process of its own, and all processes that it starts."""

    def __init__(self, command: list[str], port: int, environment: dict[str, str]) -> None:
        self.port = port
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it is stopped
        self._process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env={**kept, **environment},
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.pid = self._process.pid

    def wait_ready(self, path: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10).status_code == 200:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{self.log()}")
            time.sleep(0.02)

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()


@dataclass(frozen=True, slots=True)
class Secrets:
    """What both servers verify tokens with, and where the service may write."""

    folder: Path
    secret_key: str
    fingerprint_key: str

    @classmethod
    def make(cls, folder: Path) -> Secrets:
        return cls(folder, secrets.token_urlsafe(48), secrets.token_urlsafe(48))


@contextmanager
def service(url: str, secret: Secrets, workers: int, **others: str) -> Iterator[Server]:
    """The service as `python main.py` runs it, with default settings, but for the others."""
    port = free_port()
    settings: dict[str, object] = {
        "DATABASE_URL": url,
        "DATA_DIR": secret.folder,
        "SECRET_KEY": secret.secret_key,
        "FINGERPRINT_KEY": secret.fingerprint_key,
        "PORT": port,
        "WORKERS": workers,
        "GATEWAYS": "sandbox",  # the default, whatever a developer's .env says
        **others,
    }
    yield from _running(Server(["main.py"], port, _texts(settings)), "/readyz")


@contextmanager
def naive(url: str, secret: Secrets, workers: int) -> Iterator[Server]:
    port = free_port()
    settings: dict[str, object] = {"DATABASE_URL": url, "SECRET_KEY": secret.secret_key}
    command = ["-m", "benchmarks.naive", str(port), str(workers)]
    yield from _running(Server(command, port, _texts(settings)), "/readyz")


def _texts(settings: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items()}


def _running(server: Server, path: str) -> Iterator[Server]:
    try:
        server.wait_ready(path)
        yield server
    finally:
        server.stop()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# What processes take ----------------------------------------------------------------------------


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_seconds(pid: int | None) -> float | None:
    """User and system time of a process, of those that it started, and of those that ended."""
    if pid is None:
        return None
    used = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            used += sum(process.cpu_times()[:4])
    return used


def memory_mib(pid: int) -> list[float]:
    """Of each process in the tree, the largest first: PSS where the kernel counts it, else RSS."""
    found = []
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            memory = process.memory_full_info()
            found.append(getattr(memory, "pss", memory.rss) / 2**20)
    return sorted((round(mib, 1) for mib in found), reverse=True)


def machine(postgres: Postgres) -> dict[str, Any]:
    """What the numbers were measured on."""
    with connect(postgres.url) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        version = cursor.fetchone()[0]
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgresql": version,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
