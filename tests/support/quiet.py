"""A service without workers, so that only what a test asks for happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

import database
import main
from config import Settings, load_settings
from gateways import base
from gateways.base import NoGuard
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from greenlets import in_thread
from services import audit, lookups, reconciliation
from services.lookups import LookupRules
from tests.support.database import sql
from tests.support.paths import ROOT
from tests.support.shop import MANAGES, Bearer, Shop, serve
from workers.roles import Resources

T = TypeVar("T")

LOST = {"Sandbox-Fault": "timeout_before_charge"}
REPORT = {"checked", "settled", "still_open", "needs_review", "mismatches", "not_compared"}
UNHEARD = {"Sandbox-Fault": "timeout_after_charge"}


@pytest.fixture(scope="module")
def quiet_settings(
    make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory, settings: Settings
) -> Settings:
    assert settings.secret_key is not None
    return load_settings(
        _env_file=None,
        database_url=make_database(),
        data_dir=tmp_path_factory.mktemp("quiet"),
        secret_key=settings.secret_key,
        fingerprint_key=settings.fingerprint_key,
        reconcile_after=1,
        gateway_timeout=2,
        run_workers=False,
    )


@pytest.fixture(scope="module")
def quiet_app(quiet_settings: Settings) -> FastAPI:
    return main.create_app(quiet_settings)


@pytest.fixture(scope="module")
def quiet_url(quiet_app: FastAPI) -> Iterator[str]:
    with serve(quiet_app) as url:
        yield url


@pytest.fixture
def quiet(
    quiet_url: str, quiet_app: FastAPI, bearer: Bearer, user: str, gateways: Gateways
) -> Iterator[Shop]:
    """A shop whose service has no workers. Both books agree at the end, once all is settled."""
    clerk = bearer(f"clerk-{user}", MANAGES)
    with (
        httpx.Client(base_url=quiet_url, headers=bearer(user), timeout=60) as shopper,
        httpx.Client(base_url=quiet_url, headers=clerk, timeout=60) as manager,
    ):
        shop = Shop(shopper, manager, quiet_app.state.engine)
        yield shop
    report = reconciliation.reconcile(shop.engine, rules(gateways))
    assert (report["still_open"], report["mismatches"]) == (0, [])
    with database.new_session(shop.engine) as session:
        assert audit.check(session, gateways) == []


@pytest.fixture
def gateways(quiet_url: str, quiet_app: FastAPI) -> Gateways:
    found: Gateways = quiet_app.state.gateways
    return found


@pytest.fixture
def gateway(gateways: Gateways) -> SandboxGateway:
    sandbox = gateways.get("sandbox")
    assert isinstance(sandbox, SandboxGateway)
    sandbox.guard = InThreads()
    return sandbox


class InThreads(NoGuard):
    """For tests that replace what the gateway does by something that may wait."""

    def run(self, call: Callable[[], T], seconds: float | None = None) -> T:
        return in_thread(call)


def pay(shop: Shop, headers: dict[str, str], **body: Any) -> dict[str, Any]:
    """A payment whose outcome we did not hear."""
    answer = shop.try_pay(shop.place(), headers=headers, **body)
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    pending: dict[str, Any] = answer.json()
    return pending


def make_due(shop: Shop) -> None:
    for table in ("payments", "refunds"):
        sql(shop.engine, f"UPDATE {table} SET check_at = now() WHERE check_at IS NOT NULL")


def rules(gateways: Gateways) -> LookupRules:
    return LookupRules.from_settings(_settings(), gateways)


def resources(engine: sa.Engine, gateways: Gateways) -> Resources:
    """What roles work with."""
    return Resources(engine, gateways, rules(gateways), _settings())


def _settings() -> Settings:
    return load_settings(_env_file=None, reconcile_after=1, gateway_timeout=2)


def run_once(shop: Shop, gateways: Gateways) -> int:
    """Look up what is due, whatever gateway it is at."""
    return sum(
        lookups.run_once(shop.engine, rules(gateways), lane, name)
        for lane in lookups.LOOKUP_CONCURRENCY
        for name in (*gateways.by_name, None)
    )


def unknown(query: base.ChargeLookup) -> Any:
    raise base.OutcomeUnknown("no answer")


def environment(settings: Settings) -> dict[str, str]:
    assert settings.secret_key is not None
    assert settings.fingerprint_key is not None
    assert settings.database_url is not None
    return os.environ | {
        "ENVIRONMENT": "development",
        "DATABASE_URL": settings.database_url,
        "DATA_DIR": str(settings.data_dir),
        "SECRET_KEY": settings.secret_key.get_secret_value(),
        "FINGERPRINT_KEY": settings.fingerprint_key.get_secret_value(),
        "RECONCILE_AFTER": "1",
        "GATEWAY_TIMEOUT": "2",
    }


def command(settings: Settings, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run an operator command: its exit code and its JSON report."""
    done = subprocess.run(
        [sys.executable, "cli.py", *arguments],
        cwd=ROOT,
        env=environment(settings),
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    report: dict[str, Any] = json.loads(done.stdout or "{}")
    return done.returncode, report
