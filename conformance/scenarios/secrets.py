"""Secrets of the gateway: they are in no log and in no table."""

from __future__ import annotations

from conformance import records
from conformance.harness import Harness
from conformance.registry import scenario
from conformance.scenarios.faults import charge_with
from conformance.target import NotApplicable


@scenario
def no_secret_is_in_the_logs_or_in_the_database(harness: Harness) -> None:
    harness.paid()
    waiting_kind = charge_with(harness, {"kind": "drop_after"})
    harness.settled(waiting_kind.json()["id"])
    secrets = harness.secrets_seen()
    if not secrets:
        raise NotApplicable("this gateway has no secrets")
    log, dump = harness.log_text, records.dump(harness.engine)
    assert "http.request" in log
    for secret in secrets:
        assert secret not in log, f"a secret that begins with {secret[:6]} is in the logs"
        assert secret not in dump, f"a secret that begins with {secret[:6]} is in the database"
