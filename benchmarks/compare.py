"""CPU time per request of the service, next to a naive FastAPI service over the same tables.

    python -m benchmarks.compare [requests]

Both run one process on the same embedded PostgreSQL. What is measured is the CPU time of the
server's process in microseconds, which a noisy machine changes least; only the ratios count.
Ours does more per request: history, strict input, problem documents, request ids, access log.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

import auth
import database
from config import ROOT, load_settings

CLIENTS = 8
ORDER = {"product_id": "sku-1", "quantity": 1, "total_amount": 1099}


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    with tempfile.TemporaryDirectory(prefix="estore-benchmark-") as folder:
        environment = {
            **os.environ,
            "DATA_DIR": folder,
            "SECRET_KEY": secrets.token_urlsafe(48),
            "FINGERPRINT_KEY": secrets.token_urlsafe(48),
            "RUN_WORKERS": "false",
        }
        settings = load_settings(
            _env_file=None, data_dir=Path(folder), secret_key=environment["SECRET_KEY"],
            fingerprint_key=environment["FINGERPRINT_KEY"],
        )  # fmt: skip
        url = database.database_url(settings)
        database.migrate(url)
        environment["DATABASE_URL"] = url
        token = auth.mint(settings, "alice")
        ours = measure(["main.py"], "8951", {**environment, "PORT": "8951"}, token, requests)
        naive = measure(["-m", "benchmarks.naive", "8952"], "8952", environment, token, requests)
    print(f"\nCPU microseconds per request, {requests} requests each, {CLIENTS} clients\n")
    print(f"{'':14}{'naive':>8}{'ours':>8}{'ratio':>8}")
    for name, microseconds in ours.items():
        ratio = microseconds / naive[name]
        print(f"{name:14}{naive[name]:8.0f}{microseconds:8.0f}{ratio:8.2f}")
    print("\n" + json.dumps({"naive": naive, "ours": ours}))


def measure(
    command: list[str], port: str, environment: dict[str, str], token: str, requests: int
) -> dict[str, float]:
    """Start a server, put it under each load in turn, and stop it."""
    server = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_ready(address)
        clients = [
            httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"})
            for _ in range(CLIENTS)
        ]
        order_id = clients[0].post("/orders", json=ORDER).json()["id"]
        loads: dict[str, Any] = {
            "POST /orders": lambda client: client.post("/orders", json=ORDER),
            "GET /orders/N": lambda client: client.get(f"/orders/{order_id}"),
            "GET /orders": lambda client: client.get("/orders?limit=20"),
        }
        return {name: run(load, clients, requests, server.pid) for name, load in loads.items()}
    finally:
        server.terminate()
        server.wait(30)


def run(load: Any, clients: list[httpx.Client], requests: int, pid: int) -> float:
    """CPU microseconds per request, after a warm-up."""

    def many(client: httpx.Client, count: int) -> None:
        for _ in range(count):
            assert load(client).status_code < 300

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(many, clients, [50] * len(clients)))
        before = cpu_seconds(pid)
        list(pool.map(many, clients, [requests // len(clients)] * len(clients)))
        used = cpu_seconds(pid) - before
    return used * 1e6 / (requests // len(clients) * len(clients))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_ready(address: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            httpx.get(address)
        except httpx.HTTPError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the server did not start")


if __name__ == "__main__":
    main()
