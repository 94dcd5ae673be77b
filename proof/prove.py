"""Runs the proof: starts services on an empty database, kills them, and reads both books."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import httpx
import sqlalchemy as sa

import auth
import database
from config import ROOT, Settings, load_settings
from gateways.registry import Gateways
from proof.guards import GUARDS
from proof.shoppers import Ledger, Shopper, World
from services import invariants

# Every step of claim, call, settle, for each kind of write, and the steps of who comes after.
POINTS: Final = [
    f"{step}.{moment}"
    for step in (
        "payments.pay",
        "calling.settling",
        "payments._operate",
        "refunds.refund",
        "orders.create",
        "idempotency.run",
        "reconcile.run_once",
        "reconcile.look_up_payment",
        "inbox.receive",
    )
    for moment in ("before_commit", "after_commit")
] + [
    f"gateway.{call}.{moment}"
    for call in ("charge", "capture", "void", "refund", "look_up")
    for moment in ("before", "after")
]
AT_RANDOM, DATABASE = "at a random moment", "PostgreSQL"
SERVICES: Final = 2  # one goes on while the other is dead
SHOPPERS: Final = 6
REACH_SECONDS = 12.0  # how long a process may take to come by its point
QUIET_SECONDS = 3.0  # load without kills, at the beginning and at the end
# How long an answer, and the last settlement, may take before they count as stuck. Without a
# guard they may well never come, and there is no need to wait for long.
PATIENCE, PATIENCE_WHEN_BROKEN = 60.0, 10.0
RECONCILE_AFTER, GATEWAY_TIMEOUT = 1, 2


@dataclass(slots=True)
class Service:
    """One process of the service, started again whenever it is killed."""

    port: int
    environment: dict[str, str]
    log: Path
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
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.address}/readyz", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                if not self.alive():
                    return  # killed on its way up: that counts too
            time.sleep(0.05)
        raise RuntimeError(f"the service did not start; see {self.log}")

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.alive():
            self.process.send_signal(number)
            self.process.wait(30)


@dataclass(slots=True)
class Report:
    """What was done, and what both sets of books say."""

    seed: int
    broken: str | None
    seconds: float = 0.0
    operations: int = 0
    retries: int = 0
    dropped_connections: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    not_reached: Counter[str] = field(default_factory=Counter)
    charges: int = 0
    double_charges: int = 0
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    server_errors: list[str] = field(default_factory=list)
    violations: list[dict[str, Any]] = field(default_factory=list)
    looked_up: int = 0
    settle_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        wrong = (self.lost, self.stuck, self.contradictions, self.violations)
        return not self.double_charges and not any(wrong) and self.charges > 0

    def text(self) -> str:
        kills = [f"    {count:4d}  {point}" for point, count in sorted(self.kills.items())]
        missed = [f"    {count:4d}  {point}" for point, count in sorted(self.not_reached.items())]
        settle = ", ".join(f"{name} {value:.2f}" for name, value in self.settle_seconds.items())
        lines = [
            "",
            f"  seed {self.seed}" + (f", without the guard {self.broken}" if self.broken else ""),
            f"  {self.operations} operations, {self.retries} retries, "
            f"{self.dropped_connections} dropped connections in {self.seconds:.0f} s",
            f"  {sum(self.kills.values())} kills:",
            *kills,
            *(["  not reached in time, so killed there at random:", *missed] if missed else []),
            f"  charges in the gateway's books   {self.charges}",
            f"  double charges                   {self.double_charges}",
            f"  lost                             {len(self.lost)}",
            f"  stuck                            {len(self.stuck)}",
            f"  contradicting answers            {len(self.contradictions)}",
            f"  violated invariants              {len(self.violations)}",
            f"  settled by looking it up         {self.looked_up}"
            + (f" (seconds: {settle})" if settle else ""),
            *(f"  lost: {item}" for item in self.lost[:10]),
            *(f"  stuck: {item}" for item in self.stuck[:10]),
            *(f"  contradicting: {item}" for item in self.contradictions[:10]),
            *(f"  answered with 500: {item}" for item in sorted(set(self.server_errors))[:10]),
            *(f"  violated: {json.dumps(item)}" for item in self.violations[:10]),
            "",
            "  It holds." if self.holds else "  IT DOES NOT HOLD.",
        ]
        return "\n".join(lines)


def prove(
    crashes: int, seed: int, broken: str | None = None, kill_at: Sequence[str] = ()
) -> Report:
    """Run the whole proof on a database of its own, and report.

    `crashes` points follow those of `kill_at`, by the seed's plan.
    """
    workplace = Path(tempfile.mkdtemp(prefix="estore-proof-"))
    started = time.monotonic()
    report = Report(seed=seed, broken=broken)
    try:
        _run(workplace, [*kill_at, *_plan(crashes, random.Random(seed))], seed, report)  # noqa: S311
    finally:
        report.seconds = time.monotonic() - started
        if report.holds:
            shutil.rmtree(workplace, ignore_errors=True)
        else:
            sys.stderr.write(f"  logs and database are kept in {workplace}\n")
    return report


def _run(workplace: Path, plan: list[str], seed: int, report: Report) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
        "DATA_DIR": str(workplace),
        "ENVIRONMENT": "development",
        "SECRET_KEY": secrets.token_urlsafe(48),
        "FINGERPRINT_KEY": secrets.token_urlsafe(48),
        "RECONCILE_AFTER": str(RECONCILE_AFTER),
        "GATEWAY_TIMEOUT": str(GATEWAY_TIMEOUT),
        "LOG_LEVEL": "WARNING",
    }
    settings = load_settings(
        _env_file=None,
        data_dir=workplace,
        secret_key=environment["SECRET_KEY"],
        fingerprint_key=environment["FINGERPRINT_KEY"],
    )
    url = database.database_url(settings)
    database.migrate(url)
    engine = database.create_engine(url, pool_size=2)
    if report.broken is not None:
        environment["PROOF_BREAK"] = report.broken
        with engine.begin() as connection:
            for statement in GUARDS[report.broken].sql:
                connection.execute(sa.text(statement))
    services = [
        Service(_free_port(), environment, workplace / f"service-{number}.log")
        for number in range(SERVICES)
    ]
    ledger, stop = Ledger(), threading.Event()
    world = World(
        addresses=[service.address for service in services],
        token=lambda user, scope: auth.mint(settings, user, scope, timedelta(hours=6)),
        ledger=ledger,
        stop=stop,
        patience=PATIENCE_WHEN_BROKEN if report.broken else PATIENCE,
    )
    shoppers = [Shopper(world, number, seed) for number in range(SHOPPERS)]
    try:
        for service in services:
            service.start()
        for service in services:
            service.wait_ready()
        for shopper in shoppers:
            shopper.start()
        time.sleep(QUIET_SECONDS)
        _kill_them(services, workplace, plan, random.Random(seed), report)  # noqa: S311
        time.sleep(QUIET_SECONDS)
        stop.set()
        for shopper in shoppers:
            shopper.join()
        _wait_settled(engine, world.patience)
    finally:
        stop.set()
        for service in services:
            service.kill(signal.SIGTERM)
    _read_books(engine, settings, ledger, report)
    engine.dispose()


def _kill_them(
    services: list[Service], workplace: Path, plan: list[str], chance: random.Random, report: Report
) -> None:
    for done, point in enumerate(plan):
        _show_progress(done, len(plan), point)
        service = services[done % len(services)]
        if point == DATABASE:
            _kill_postgres(workplace)
        elif point == AT_RANDOM:
            time.sleep(chance.uniform(0.1, 1.0))
            service.kill()
        else:
            service.kill(signal.SIGTERM)
            service.start(f"{point}:{chance.randint(1, 3)}")
            service.wait_ready()
            deadline = time.monotonic() + REACH_SECONDS
            while service.alive() and time.monotonic() < deadline:
                time.sleep(0.02)
            if service.alive():
                report.not_reached[point] += 1
                point = AT_RANDOM
                service.kill()
        report.kills[point] += 1
        if not service.alive():
            service.start()
        service.wait_ready()
    _show_progress(len(plan), len(plan), "")


def _plan(crashes: int, chance: random.Random) -> list[str]:
    """Every point once, in an order by chance, with random moments and the database between."""
    plan: list[str] = []
    while len(plan) < crashes:
        points = chance.sample(POINTS, len(POINTS))
        for index in range(0, len(points), 4):
            plan += [*points[index : index + 4], AT_RANDOM]
            plan += [DATABASE] * (index % 12 == 0)
    return plan[:crashes]


def _kill_postgres(workplace: Path) -> None:
    """SIGKILL to the server's first process; its supervisor brings it back."""
    for pid_file in workplace.rglob("postmaster.pid"):
        os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGKILL)


def _wait_settled(engine: sa.Engine, patience: float) -> None:
    """Until nothing is open any more, or for so long that it is stuck."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with engine.connect() as connection:
            if not connection.execute(sa.text(f"SELECT count(*) FROM ({OPEN}) open")).scalar():  # noqa: S608
                return
        time.sleep(0.1)


OPEN = """
    SELECT 'payment ' || id AS what FROM payments WHERE status = 'pending' OR operation IS NOT NULL
    UNION ALL SELECT 'refund ' || id FROM refunds WHERE status = 'pending'
    UNION ALL SELECT 'key ' || id FROM idempotency_keys
    WHERE status IS NULL AND gateway_key IS NOT NULL
    UNION ALL SELECT 'review of payment ' || id FROM payments WHERE needs_review
    UNION ALL SELECT 'webhook ' || id FROM sandbox.webhooks WHERE delivered_at IS NULL
        AND payload ->> 'type' NOT LIKE 'dispute%'"""

# An order is charged twice when the gateway holds or took money for it more than once.
DOUBLE = """
    SELECT order_id FROM sandbox.charges WHERE status IN ('authorized', 'captured')
    GROUP BY order_id HAVING count(*) > 1"""

LOOKED_UP = """
    SELECT extract(epoch FROM e.created_at - coalesce(r.created_at, p.created_at))
    FROM events e
    LEFT JOIN refunds r ON e.type LIKE 'refund.%' AND r.id = (e.data ->> 'id')::bigint
    LEFT JOIN payments p ON e.type LIKE 'payment.%' AND p.id = (e.data ->> 'id')::bigint
    WHERE e.actor ->> 'id' = 'reconciler' AND coalesce(r.id, p.id) IS NOT NULL"""


def _read_books(engine: sa.Engine, settings: Settings, ledger: Ledger, report: Report) -> None:
    report.operations, report.retries = ledger.operations, ledger.retries
    report.dropped_connections = ledger.dropped
    report.contradictions = ledger.contradictions
    report.server_errors = ledger.server_errors
    report.stuck = list(ledger.unanswered)
    with engine.connect() as connection:

        def rows(query: str) -> list[Any]:
            return list(connection.execute(sa.text(query)).scalars())

        report.stuck += rows(OPEN)
        report.charges = rows("SELECT count(*) FROM sandbox.charges")[0]
        report.double_charges = len(rows(DOUBLE))
        seconds = sorted(float(value) for value in rows(LOOKED_UP))
        marks = Counter(rows("SELECT metadata ->> 'mark' FROM orders"))
        captured = set(
            rows("SELECT id FROM payments WHERE amount_captured > 0 OR status = 'refunded'")
        )
        refunds = set(rows("SELECT id FROM refunds"))
        report.lost += [f"order {mark}" for mark in ledger.orders if marks[mark] == 0]
        report.lost += [f"payment {id} is not captured" for id in ledger.captured - captured]
        report.lost += [f"refund {id}" for id in ledger.refunds - refunds]
        report.violations += [
            {"invariant": "one_order_per_request", "mark": mark, "orders": count}
            for mark, count in marks.items()
            if count > 1
        ]
    with database.new_session(engine) as session:
        gateways = Gateways.from_settings(settings, engine)
        report.violations += invariants.check(session, gateways)
    report.looked_up = len(seconds)
    if len(seconds) > 1:
        cuts = quantiles(seconds, n=100, method="inclusive")
        report.settle_seconds = {"p50": cuts[49], "p95": cuts[94], "max": seconds[-1]}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _show_progress(done: int, of: int, what: str) -> None:
    width = 30
    bar = "#" * (width * done // max(of, 1))
    line = f"  [{bar:<{width}}] {done}/{of} crashes  {what:<40}"
    if sys.stderr.isatty():
        line = f"\r{line}" + ("\n" if done == of else "")
    else:
        line = f"{line.rstrip()}\n"
    sys.stderr.write(line)
    sys.stderr.flush()
