"""Runs the proof: starts services on an empty database, kills them, and reads both books."""

import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from dotenv import dotenv_values

import auth
import database
from config import ROOT, ConfigurationError, Settings, load_settings
from proof.books import Books
from proof.clock import Clock
from proof.guards import GUARDS
from proof.outside_changes import Stranger
from proof.processes import Roles, Service, kill_postgres
from proof.report import Report
from proof.shoppers import Ledger, Shopper, World

# Every step of claim, call, settle, for each kind of write, and the steps of the look-ups after it.
POINTS: Final = [
    f"{step}.{moment}"
    for step in (
        "payments._claim",
        "payments._operate",
        "payments.pay",
        "payments._settle_operation",
        "refunds.refund",
        "refunds._settle",
        "orders.create",
        "idempotency._claim_new",
        "idempotency.run",
        "lookups._take",
        "lookups.look_up",
        "lookups.look_up_payment",
        "lookups.look_up_refund",
        "webhooks.receive",
    )
    for moment in ("before_commit", "after_commit")
] + [
    f"gateway.{call}.{moment}"
    for call in ("charge", "capture", "void", "refund", "look_up")
    for moment in ("before", "after")
]
# Steps that only run when time has passed.
LATE_POINTS: Final = [
    f"{step}.{moment}"
    for step in (
        "payments.void_waiting_payment",
        "reconciliation.run_once",
        "reconciliation.schedule_lookup_now",
    )
    for moment in ("before_commit", "after_commit")
]
AT_RANDOM, DATABASE = "at a random moment", "PostgreSQL"
SERVICES: Final = 2  # one goes on while the other is dead; without kills one is enough
SHOPPERS: Final = 6
REACH_SECONDS = 12.0  # how long a process may take to reach its point
# What is done without kills, at the beginning and at the end: so many requests, or for so long.
QUIET_OPERATIONS, QUIET_SECONDS = 50, 10.0
# How long an answer may take before it counts as stuck. Without a guard it may well never come,
# and there is no need to wait for longer than the processes take to start again.
PATIENCE, PATIENCE_WHEN_BROKEN, PATIENCE_WITHOUT_KILLS = 60.0, 20.0, 10.0
RECONCILE_AFTER, GATEWAY_TIMEOUT = 1, 2

# Time. While the services are dead, three spans of it pass, with so many passes of the background
# roles between them. After the first all who waited for an answer have left, and after the last
# there is something to do for those who are to die while they do what time has made due.
PASSES: Final = 30
SHORTEST, LONGEST = timedelta(minutes=1), timedelta(weeks=4)
FIRST_SHORTEST, LATE_SHORTEST = timedelta(hours=1), timedelta(days=2)
# In the end everything that waits has to end, or at least what is open.
LAST_SPAN, LAST_SPAN_WITHOUT_AGE = timedelta(days=31), timedelta(minutes=15)
# Then the proof settles step by step: what is open after all steps is stuck.
STEPS, STEPS_WHEN_BROKEN, STEP, PASSES_OF_STEP = 30, 3, timedelta(minutes=5), 5


def prove(
    crashes: int,
    seed: int,
    broken: str | None = None,
    kill_at: Sequence[str] = (),
    *,
    age: bool = True,
    outside: bool = True,
) -> Report:
    """Run the whole proof on a database of its own, and report.

    `crashes` points follow those of `kill_at`, by the seed's plan. With `age` months pass between
    the kills, with `outside` somebody moves money in the gateway's dashboard.
    """
    workplace = Path(tempfile.mkdtemp(prefix="estore-proof-"))
    started = time.monotonic()
    report = Report(seed=seed, broken=broken)
    chance = random.Random(seed)  # noqa: S311 - a repeatable plan
    plan = [*kill_at, *_plan(crashes, [*POINTS, *(LATE_POINTS if age else [])], chance)]
    patience = PATIENCE
    if broken is not None:
        patience = PATIENCE_WHEN_BROKEN if plan else PATIENCE_WITHOUT_KILLS
    services = SERVICES if plan else 1
    run = _Run(workplace, seed, report, services, patience, age=age, outside=outside)
    try:
        run.go(plan, chance)
    finally:
        run.stop()
        report.seconds = time.monotonic() - started
        if report.holds:
            shutil.rmtree(workplace, ignore_errors=True)
        else:
            sys.stderr.write(f"  logs and database are kept in {workplace}\n")
    return report


def _plan(crashes: int, every: Sequence[str], chance: random.Random) -> list[str]:
    """Every point once, in random order, with random moments and the database between."""
    plan: list[str] = []
    while len(plan) < crashes:
        points = chance.sample(every, len(every))
        for index in range(0, len(points), 4):
            plan += [*points[index : index + 4], AT_RANDOM]
            plan += [DATABASE] * (index % 12 == 0)
    return plan[:crashes]


def own_settings(
    workplace: Path, environment: Mapping[str, str], env_file: Path = ROOT / ".env"
) -> Settings:
    """The settings of the proof: a PostgreSQL of its own, in which time passes and guards are taken
    away, whatever the environment says.

    Raises ConfigurationError if `.env`, which its services read too, names another one.
    """
    if dotenv_values(env_file).get("DATABASE_URL"):
        raise ConfigurationError(
            "The proof has a PostgreSQL of its own: take DATABASE_URL out of .env meanwhile"
        )
    return load_settings(
        _env_file=None,
        database_url=None,
        data_dir=workplace,
        secret_key=environment["SECRET_KEY"],
        fingerprint_key=environment["FINGERPRINT_KEY"],
    )


class _Run:
    """Everything that a run of the proof consists of."""

    def __init__(
        self,
        workplace: Path,
        seed: int,
        report: Report,
        services: int,
        patience: float,
        *,
        age: bool,
        outside: bool,
    ) -> None:
        """An empty database, without the guard that is to be missing, and all who use it."""
        self.workplace, self.report, self.age = workplace, report, age
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
            "DATA_DIR": str(workplace),
            "ENVIRONMENT": "development",
            "SECRET_KEY": secrets.token_urlsafe(48),
            "FINGERPRINT_KEY": secrets.token_urlsafe(48),
            "RECONCILE_AFTER": str(RECONCILE_AFTER),
            "GATEWAY_TIMEOUT": str(GATEWAY_TIMEOUT),
            "LOG_LEVEL": "WARNING",
        }
        settings = own_settings(workplace, self.environment)
        url = database.database_url(settings)
        database.migrate(url)
        self.engine = database.create_engine(url, pool_size=3)
        if report.broken is not None:
            self.environment["PROOF_BREAK"] = report.broken
            with self.engine.begin() as connection:
                for statement in GUARDS[report.broken].sql:
                    connection.execute(sa.text(statement))
        self.services = [
            Service(self.environment, workplace / f"service-{number}.log")
            for number in range(services)
        ]
        self.ledger, self.clock, self.stopping = Ledger(), Clock(self.engine), threading.Event()
        world = World(
            addresses=[service.address for service in self.services],
            token=lambda user, scope: auth.mint(settings, user, scope, timedelta(hours=6)),
            ledger=self.ledger,
            clock=self.clock,
            stop=self.stopping,
            patience=patience,
        )
        self.roles = Roles(self.environment, workplace / "roles.log")
        self.books = Books(self.engine, settings)
        self.shoppers = [Shopper(world, number, seed) for number in range(SHOPPERS)]
        self.stranger = Stranger(self.engine, seed, self.stopping) if outside else None

    def go(self, plan: Sequence[str], chance: random.Random) -> None:
        for service in self.services:
            service.start()
        for service in self.services:
            service.wait_ready()
        for shopper in self.shoppers:
            shopper.start()
        if self.stranger is not None:
            self.stranger.start()
        self._let_them_shop()
        for number, point in enumerate(plan):
            _show_progress(number, len(plan), point)
            for service in self.services:
                service.kill(chance.choice([signal.SIGTERM, signal.SIGKILL]))
            self._let_time_pass(point, chance)
            self._kill_at(point, chance)
        _show_progress(len(plan), len(plan), "")
        for service in self.services:
            if not service.alive():
                service.start()
        for service in self.services:
            service.wait_ready()
        self._let_them_shop()
        self.stopping.set()
        for thread in (*self.shoppers, *([self.stranger] if self.stranger is not None else [])):
            thread.join()
        for service in self.services:
            service.kill(signal.SIGTERM)
        self._finish()

    def _let_them_shop(self) -> None:
        """Wait until enough has been done, however slow the machine is."""
        enough = self.ledger.operations + QUIET_OPERATIONS
        deadline = time.monotonic() + QUIET_SECONDS
        while self.ledger.operations < enough and time.monotonic() < deadline:
            time.sleep(0.05)

    def stop(self) -> None:
        self.stopping.set()
        for service in self.services:
            service.kill()
        self.roles.stop()
        self.engine.dispose()

    # The kills ----------------------------------------------------------------------------------

    def _let_time_pass(self, point: str, chance: random.Random) -> None:
        """Let minutes to weeks pass, with only the roles running; then start services again."""
        self.report.double_charges |= self.books.find_double_charges()
        if not self.age:
            return
        shortest = [FIRST_SHORTEST, SHORTEST, LATE_SHORTEST if point in LATE_POINTS else SHORTEST]
        for number, least in enumerate(shortest, 1):
            self.clock.let_pass(least * (LONGEST / least) ** chance.random())
            if number < len(shortest):
                self.report.passes += self.roles.run(PASSES)

    def _kill_at(self, point: str, chance: random.Random) -> None:
        """Start all services, let one die at the point, and let the others go on for a moment."""
        first, *others = chance.sample(self.services, len(self.services))
        first.start(None if point in (DATABASE, AT_RANDOM) else f"{point}:{_times(point, chance)}")
        first.wait_ready()
        for service in others:
            service.start()
        if point in (DATABASE, AT_RANDOM):
            time.sleep(chance.uniform(0.1, 1.0))
        elif not first.wait_dead(REACH_SECONDS):
            self.report.not_reached[point] += 1
            point = AT_RANDOM
        if point == DATABASE:
            kill_postgres(self.workplace)
        elif point == AT_RANDOM:
            first.kill()
        self.report.kills[point] += 1
        for service in others:
            service.wait_ready()
        time.sleep(chance.uniform(0.1, 1.0))

    # In the end ---------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Let everything end; first without webhooks about what was done outside."""
        if self.stranger is not None:
            self.stranger.act_unheard()
        self.clock.let_pass(LAST_SPAN if self.age else LAST_SPAN_WITHOUT_AGE)
        self._settle()
        if self.stranger is not None and self.report.holds:
            self.stranger.repeat_webhooks()
            self.stranger.deliver_webhooks()
            self._settle()
        if self.report.holds:
            self._reconcile()

    def _settle(self) -> None:
        """Step by step; what time does at the gateway is compared in the step after it."""
        for _ in range(STEPS_WHEN_BROKEN if self.report.broken else STEPS):
            self.report.passes += self.roles.run(PASSES_OF_STEP)
            self.clock.let_pass(STEP)
            self.report.passes += self.roles.run(PASSES_OF_STEP)
            if not self.books.find_open():
                break
        self.report.passed = self.clock.passed
        self._read()

    def _read(self) -> None:
        report, ledger = self.report, self.ledger
        report.operations, report.retries = ledger.operations, ledger.retries
        report.dropped_connections = ledger.dropped
        report.contradictions, report.server_errors = ledger.contradictions, ledger.server_errors
        if self.stranger is not None:
            report.outside = self.stranger.done
        self.books.read(ledger, report)

    def _reconcile(self) -> None:
        """The operator's command finds nothing to do, either."""
        command = [sys.executable, "cli.py", "reconcile"]
        done = subprocess.run(  # noqa: S603 - ourselves
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            why = done.stdout + done.stderr
            self.report.violations.append({"invariant": "reconcile_exits_with_0", "why": why})


def _times(point: str, chance: random.Random) -> int:
    """At which pass of the point the process dies: the first, or one of three."""
    return 1 if point in LATE_POINTS else chance.randint(1, 3)


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
