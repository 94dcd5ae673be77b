"""The service as its operators meet it: started, stopped, killed, started again."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import auth
import main
import postgres_server
from config import Settings, load_settings
from tests.support.factories import card, order
from tests.support.processes import (
    HANG,
    Service,
    copy_sources,
    processes_of,
    wait_for,
    wait_until_gone,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
UVICORN = ("-m", "uvicorn", "main:app", "--port", "{port}")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources") / "service")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a service that has run before, unless this is its first start."""
    return tmp_path_factory.mktemp("service") / "data"


@pytest.fixture(autouse=True)
def nothing_is_left_running(data_dir: Path) -> Iterator[None]:
    yield
    wait_until_gone(data_dir)


def client_of(service: Service, user: str = "alice") -> httpx.Client:
    """A client with a token of the secrets that the service has made."""
    settings = load_settings(_env_file=None, database_url="unused", data_dir=service.data_dir)
    headers = {"Authorization": f"Bearer {auth.mint(settings, user)}"}
    return httpx.Client(base_url=service.url, headers=headers, timeout=60)


def place(client: httpx.Client) -> int:
    answer = client.post("/orders", json=order())
    assert answer.status_code == 201, answer.text
    placed: int = answer.json()["id"]
    return placed


def statuses(client: httpx.Client, orders: list[int]) -> list[int]:
    return [client.get(f"/orders/{placed}").status_code for placed in orders]


def assert_ended_by_itself(service: Service, status: int) -> None:
    """uvicorn shuts down, and then ends by the signal that told it to."""
    assert status in (0, -signal.SIGTERM, -signal.SIGINT), service.text
    assert "Application shutdown complete" in service.text
    assert "Traceback" not in service.text


def test_a_first_start_on_an_empty_folder_and_a_clean_end(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = tmp_path / "made" / "data"
    data_dir.parent.mkdir()
    began = time.monotonic()
    with Service(sources, data_dir) as service:
        service.wait_until_ready()
        seconds = time.monotonic() - began
        with capsys.disabled():
            sys.stdout.write(f"\n  from an empty folder to ready in {seconds:.1f} s\n")
        assert httpx.get(f"{service.url}/healthz").json() == {"status": "ok"}
        assert httpx.get(f"{service.url}/readyz").json() == {"status": "ready"}
        assert data_dir.stat().st_uid == os.getuid()
        assert_ended_by_itself(service, service.stop())
    wait_until_gone(data_dir)
    log = (data_dir / "postgres" / "server.log").read_text()
    assert log.rstrip().endswith("database system is shut down")


@linux
def test_what_was_acknowledged_survives_kill_9_of_the_service_and_of_everything(
    sources: Path, data_dir: Path
) -> None:
    with Service(sources, data_dir).wait_until_ready() as service, client_of(service) as client:
        saved = client.post("/payment-methods", json=card())
        assert saved.status_code == 201, saved.text
        placed = [place(client) for _ in range(5)]
        service.kill()  # the database notices within a second, unless the next user comes first

    with Service(sources, data_dir).wait_until_ready() as service, client_of(service) as client:
        assert statuses(client, placed) == [200] * 5
        assert client.post("/payment-methods", json=card()).status_code == 409
        placed.append(place(client))
        database = processes_of(data_dir)
        assert len(database) >= 2, "a supervisor and a server"
        for process in (service.process.pid, *database):  # as a power cut would
            os.kill(process, signal.SIGKILL)
        service.process.wait()

    with Service(sources, data_dir).wait_until_ready() as service, client_of(service) as client:
        assert statuses(client, placed) == [200] * 6
        service.process.send_signal(signal.SIGINT)  # Ctrl-C
        status = service.process.wait(HANG)
        assert_ended_by_itself(service, status)


def test_two_worker_processes_make_the_database_serve_and_end_together(
    sources: Path, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    with Service(sources, data_dir, WORKERS=2).wait_until_ready() as service:
        started = "Application startup complete"
        wait_for(lambda: service.text.count(started) == 2, "both processes")
        with client_of(service) as client:
            placed = [place(client) for _ in range(5)]
            assert statuses(client, placed) == [200] * 5
        assert_ended_by_itself(service, service.stop())
        assert service.text.count("Application shutdown complete") == 2
    wait_until_gone(data_dir)


@linux
def test_workers_are_forked_with_the_service_loaded_and_one_that_is_killed_is_replaced(
    sources: Path, tmp_path: Path
) -> None:
    started = "Application startup complete"
    with Service(sources, tmp_path / "data", WORKERS=2).wait_until_ready() as service:
        wait_for(lambda: service.text.count(started) == 2, "both processes")
        first, second = workers_of(service)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: service.text.count(started) == 3, "a third process")
        with client_of(service) as client:
            assert statuses(client, [place(client) for _ in range(5)]) == [200] * 5
        assert first not in workers_of(service)
        assert second in workers_of(service)
        assert_ended_by_itself(service, service.stop())
    wait_until_gone(tmp_path / "data")


def workers_of(service: Service) -> list[int]:
    """The children of the service; forked ones have its command line, others one of their own."""
    pid = service.process.pid
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    children = [int(child) for child in listed.split()]
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert [Path(f"/proc/{child}/cmdline").read_bytes() for child in children] == [command] * 2
    return children


def test_a_worker_that_starts_slowly_is_given_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing while it imports; killed for that it would start again, for ever."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("uvicorn.run", lambda *_, **options: given.update(options))
    monkeypatch.setattr(main, "get_settings", lambda: Settings(_env_file=None, workers=2))
    monkeypatch.setattr(main, "_fork_workers", lambda: None)
    main.serve()
    assert given["workers"] == 2
    assert given["timeout_worker_healthcheck"] >= 30


def test_uvicorn_starts_the_same_service_and_two_of_them_share_one_folder(
    sources: Path, data_dir: Path
) -> None:
    with Service(sources, data_dir) as one, Service(sources, data_dir, UVICORN) as other:
        one.wait_until_ready()
        other.wait_until_ready()
        with client_of(one) as first, client_of(other) as second:
            placed = place(first)
            assert statuses(second, [placed]) == [200]
            assert_ended_by_itself(one, one.stop())
            # Longer than the database waits for its last user: it knows that one is left.
            until = time.monotonic() + postgres_server.GRACE_SECONDS + 1
            while time.monotonic() < until:
                assert place(second)
        assert_ended_by_itself(other, other.stop())
