"""The service as it is started by `uvicorn main:app`, with what a connection may do to it."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.processes import Service, copy_sources
from tests.support.raw import problem_of, read_all, send_until_cut_off

# As macOS does it by default: so many files for one process.
START = """
import resource, uvicorn
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
uvicorn.main(["main:app", "--port", "{port}"])
"""
BEGUN = b"GET /healthz HTTP/1.1\r\nHost: shop\r\n"


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, make_database: Callable[[], str]
) -> Iterator[Service]:
    sources = copy_sources(tmp_path_factory.mktemp("sources") / "service")
    data_dir: Path = tmp_path_factory.mktemp("service") / "data"
    command = ("-c", START)
    with Service(sources, data_dir, command, DATABASE_URL=make_database()) as service:
        yield service.wait_until_ready()


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=60)


def memory_of(service: Service) -> int:
    """Kilobytes."""
    for line in Path(f"/proc/{service.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_it_is_guarded_however_uvicorn_is_started(service: Service) -> None:
    with connect(service) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert problem_of(read_all(connection))["code"] == "invalid_request"
    metrics = httpx.get(f"{service.url}/metrics").text
    assert 'estore_requests_rejected_total{reason="invalid_request"}' in metrics
    assert "http.rejected" in service.text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_24_mb_of_headers_and_500_silent_connections_shut_nobody_out(service: Service) -> None:
    with httpx.Client(base_url=service.url, timeout=60) as others, contextlib.ExitStack() as stack:

        def others_are_answered() -> None:
            for _ in range(5):
                assert others.get("/healthz").status_code == 200

        others_are_answered()
        before = memory_of(service)
        for header in (b"X-A: ", b""):
            with connect(service) as connection:
                connection.sendall(BEGUN + header)
                assert send_until_cut_off(connection, 24_000_000) < 24_000_000
            others_are_answered()
        for number in range(500):
            connection = stack.enter_context(connect(service))
            with contextlib.suppress(ConnectionError):  # it made way already
                connection.sendall(BEGUN if number % 2 else b"")
            if number % 50 == 0:
                others_are_answered()
        assert memory_of(service) - before < 20_000
        others_are_answered()
