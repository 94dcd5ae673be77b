"""Releases that follow each other: the old one lives on the schema of the new one, and back again.

tests/support/releases/<revision>.json holds what the previous release says to the database,
recorded by tests/support/releases/capture.py. A migration that it does not survive has to wait
(docs/runbook.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

import auth
import database
from config import load_settings
from invariants import find_violations
from tests.support.factories import card, order
from tests.support.paths import ROOT
from tests.support.postgres_proxy import PostgresProxy
from tests.support.processes import Service, copy_sources, run, wait_for
from tests.support.releases.capture import PARAMETER, capture

NEXT = "9999"
# What the next release may do at once.
EXPANDS = f'''
import sqlalchemy as sa
from alembic import op

revision, down_revision = "{NEXT}", "{{head}}"
branch_labels = depends_on = None


def upgrade() -> None:
    op.create_table("extras", sa.Column("id", sa.BigInteger(), primary_key=True))
    op.add_column("orders", sa.Column("note", sa.Text(), nullable=True))
    op.add_column("payments", sa.Column("tip", sa.BigInteger(), server_default="0", nullable=False))
'''
CONTRACTS = [
    "ALTER TABLE orders DROP COLUMN metadata",
    "ALTER TABLE payments RENAME COLUMN gateway_reference TO reference",
    "ALTER TABLE payments ADD COLUMN tip bigint NOT NULL",
    "ALTER TABLE events ADD CHECK (request_id IS NOT NULL)",
    "ALTER TABLE idempotency_keys ALTER COLUMN key TYPE varchar(3)",
    "DELETE FROM status_moves WHERE entity = 'payments' AND to_status = 'voided'",
]


# What the previous release says ------------------------------------------------------------------


class Recording:
    """A file of tests/support/releases."""

    def __init__(self, revision: str, text: str) -> None:
        self.revision = revision
        recorded = json.loads(text)
        self.statements: list[str] = recorded["statements"]
        self.transactions: list[Any] = recorded["transactions"]

    def replay(self, url: str, first: int = 0, last: int | None = None) -> None:
        """Say it again. Raises what the database does not take, and when a write finds other rows
        than it did."""
        connection = psycopg2.connect(url.replace("+psycopg2", ""))
        try:
            for end, calls in self.transactions[first:last]:
                with connection.cursor() as cursor:
                    for number, rows, values in calls:
                        statement = PARAMETER.sub("%s", self.statements[number]) % tuple(values)
                        cursor.execute(statement)
                        if rows is not None and not statement.startswith("SELECT"):
                            assert cursor.rowcount == rows, statement
                    cursor.execute(end)
        finally:
            connection.close()


@pytest.fixture(scope="module")
def recording() -> Recording:
    (path,) = (ROOT / "tests" / "support" / "releases").glob("*.json")
    return Recording(path.stem, path.read_text())


def says_all_that_a_store_says(recording: Recording) -> None:
    said = {number for _, calls in recording.transactions for number, *_ in calls}
    assert said == set(range(len(recording.statements)))
    writes = re.compile(r"(?:INSERT INTO|UPDATE|DELETE FROM) ([a-z_.]+)")
    tables = {table for text in recording.statements for table in writes.findall(text)}
    assert tables >= {
        *("payment_methods", "orders", "payments", "refunds", "disputes", "events"),
        *("gateway_events", "idempotency_keys"),
        *(f"sandbox.{name}" for name in ("requests", "charges", "refunds", "disputes", "webhooks")),
    }


def test_the_recording_is_of_a_release_before_and_says_all_that_a_store_says(
    recording: Recording,
) -> None:
    scripts = ScriptDirectory.from_config(database.alembic_config(""))
    assert recording.revision in {script.revision for script in scripts.walk_revisions()}
    says_all_that_a_store_says(recording)


def test_this_release_can_be_recorded_and_replayed(
    make_database: Callable[[], str], tmp_path: Path
) -> None:
    here, elsewhere = make_database(), make_database()
    settings = load_settings(
        _env_file=None, database_url=here, data_dir=tmp_path, run_workers=False
    )
    recording = Recording(str(database.newest_revision()), capture(settings).text())
    says_all_that_a_store_says(recording)
    database.migrate(elsewhere)
    recording.replay(elsewhere)


def test_the_previous_release_lives_on_the_newest_schema(
    recording: Recording, make_database: Callable[[], str]
) -> None:
    url = make_database()
    database.migrate(url)
    recording.replay(url)


def test_what_the_previous_release_has_written_is_migrated_while_it_goes_on(
    recording: Recording, make_database: Callable[[], str]
) -> None:
    url = make_database()
    command.upgrade(database.alembic_config(url), recording.revision)
    half = len(recording.transactions) // 2
    recording.replay(url, last=half)
    database.migrate(url)
    recording.replay(url, first=half)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with database.new_session(engine) as session:
        assert [step.violations for step in find_violations(session)] == [{}] * 4


@pytest.mark.parametrize("statement", CONTRACTS)
def test_a_migration_that_takes_something_away_from_the_previous_release_is_noticed(
    recording: Recording, make_database: Callable[[], str], statement: str
) -> None:
    url = make_database()
    command.upgrade(database.alembic_config(url), recording.revision)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text(statement))
    with pytest.raises((psycopg2.Error, AssertionError)):
        recording.replay(url)


# Which schema is whose ---------------------------------------------------------------------------


@pytest.fixture
def migrated(make_database: Callable[[], str]) -> Iterator[sa.Engine]:
    """An engine on a migrated database of its own."""
    url = make_database()
    database.migrate(url)
    engine = database.create_engine(url)
    yield engine
    engine.dispose()


def stamp(engine: sa.Engine, revision: str) -> str:
    """Say that the schema is at this revision. Returns the URL of the database."""
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE alembic_version SET version_num = :to"), {"to": revision}
        )
    return engine.url.render_as_string(hide_password=False)


def test_a_newer_schema_is_one_to_serve_on_and_is_left_alone(migrated: sa.Engine) -> None:
    url = stamp(migrated, NEXT)
    assert database.is_migrated(migrated)
    assert database.migrate(url) == (NEXT, NEXT)


def test_an_older_schema_is_not(migrated: sa.Engine) -> None:
    stamp(migrated, "0001")
    assert not database.is_migrated(migrated)


def test_who_migrates_waits_for_other_starters_but_not_long_for_a_table(
    migrated: sa.Engine,
) -> None:
    url = migrated.url.render_as_string(hide_password=False)
    with database.migrating(url) as connection:
        limits = [
            connection.scalar(sa.text(f"SHOW {name}_timeout")) for name in ("lock", "statement")
        ]
        assert limits == ["15s", "0"]
        with migrated.connect() as other:
            taken = sa.text("SELECT pg_try_advisory_xact_lock(:number)")
            assert other.scalar(taken, {"number": database.MIGRATION_LOCK}) is False


def test_to_ask_which_schema_there_is_costs_one_statement(migrated: sa.Engine) -> None:
    with PostgresProxy(migrated.url.render_as_string(hide_password=False)) as proxy:
        engine = database.create_engine(proxy.url)
        assert database.is_migrated(engine)  # the first connection says more
        before = len(proxy.statements)
        assert database.is_migrated(engine)
        assert proxy.statements[before:] == ["SELECT version_num FROM alembic_version"]
        engine.dispose()


# Two releases ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of this release."""
    return copy_sources(tmp_path_factory.mktemp("release") / "service")


@pytest.fixture(scope="module")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with one more migration."""
    sources = copy_sources(tmp_path_factory.mktemp("next") / "service")
    migration = EXPANDS.format(head=database.newest_revision())
    (sources / "migrations" / "versions" / f"{NEXT}_next.py").write_text(migration)
    return sources


def migrate(sources: Path, url: str, data_dir: Path) -> str:
    """What `cli.py migrate` says."""
    done = run(sources, "cli.py", "migrate", DATABASE_URL=url, DATA_DIR=data_dir)
    assert done.returncode == 0, done.stderr
    return done.stdout


def readiness(service: Service) -> httpx.Response | None:
    try:
        return httpx.get(f"{service.url}/readyz", timeout=30)
    except httpx.TransportError:
        assert service.process.poll() is None, service.text
        return None


def wait_until_up(service: Service) -> httpx.Response:
    wait_for(lambda: readiness(service) is not None, "the service to answer")
    answer = readiness(service)
    assert answer is not None
    return answer


def client_of(service: Service) -> httpx.Client:
    settings = load_settings(_env_file=None, database_url="unused", data_dir=service.data_dir)
    headers = {"Authorization": f"Bearer {auth.mint(settings, 'alice')}"}
    return httpx.Client(base_url=service.url, headers=headers, timeout=60)


def test_both_releases_serve_while_one_takes_the_place_of_the_other(
    release: Path, next_release: Path, make_database: Callable[[], str], tmp_path: Path
) -> None:
    url, head = make_database(), database.newest_revision()
    data = tmp_path / "data"
    apart: dict[str, Any] = {"DATABASE_URL": url, "MIGRATE_ON_START": "false"}
    with Service(release, data, DATABASE_URL=url).wait_until_ready() as old:
        with Service(next_release, data, **apart) as new:
            waiting = wait_until_up(new)
            assert waiting.status_code == 503
            assert waiting.json()["code"] == "database_unavailable"
            assert "older than this release" in waiting.json()["detail"]
            assert httpx.get(f"{new.url}/healthz").status_code == 200

            assert migrate(next_release, url, data) == (
                f"The schema is at {NEXT} now; it was at {head}.\n"
            )
            new.wait_until_ready()  # without a restart
            with client_of(old) as one, client_of(new) as other:
                assert one.get("/readyz").status_code == 200
                for client in (one, other):
                    assert client.post("/orders", json=order()).status_code == 201
        old.stop()
    # Rolled back: the old release starts on the newer schema, and leaves it alone.
    assert migrate(release, url, data) == (
        f"The schema is at {NEXT}, newer than this release, which ends at {head}.\n"
    )
    with Service(release, data, DATABASE_URL=url).wait_until_ready() as old, client_of(old) as one:
        assert one.post("/orders", json=order()).status_code == 201


def test_who_migrates_apart_finds_the_service_waiting_for_it(
    release: Path, make_database: Callable[[], str], tmp_path: Path
) -> None:
    url, head, data = make_database(), database.newest_revision(), tmp_path / "data"
    apart: dict[str, Any] = {"DATABASE_URL": url, "MIGRATE_ON_START": "false"}
    with Service(release, data, **apart) as service:
        assert wait_until_up(service).status_code == 503
        with client_of(service) as client:
            early = client.post("/orders", json=order())
            assert (early.status_code, early.json()["code"]) == (503, "database_unavailable")
            assert early.headers["retry-after"]
            report = run(release, "cli.py", "reconcile", DATA_DIR=data, **apart)
            assert report.returncode == 2
            assert "cli.py migrate" in report.stderr
            assert "Traceback" not in report.stderr

            assert migrate(release, url, data) == f"The schema is at {head} now; it was empty.\n"
            assert migrate(release, url, data) == f"The schema is up to date, at {head}.\n"
            service.wait_until_ready()
            # The gateway's answer is lost: it takes the background roles to settle this one.
            method = client.post("/payment-methods", json=card()).json()["id"]
            placed = client.post("/orders", json=order(payment_method_id=method)).json()["id"]
            lost = {"Sandbox-Fault": "timeout_after_charge"}
            paid = client.post(f"/orders/{placed}/payments", json={}, headers=lost)
            assert paid.status_code == 202, paid.text
            address = f"/payments/{paid.json()['id']}"
            wait_for(lambda: client.get(address).json()["status"] == "captured", "the roles", 30)
        assert "worker.failed" not in service.text
