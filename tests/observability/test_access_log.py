"""One line in the log for each answer, whatever happens right after it."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.paths import ROOT
from tests.support.processes import Service

REQUESTS, AT_ONCE = 400, 8


@pytest.mark.parametrize("environment", ["development", "production"])
def test_no_line_is_lost_when_the_service_is_stopped_right_after_its_answers(
    make_database: Callable[[], str], tmp_path: Path, environment: str
) -> None:
    url = make_database()
    names = ("SECRET_KEY", "FINGERPRINT_KEY")
    keys: dict[str, Any] = {name: secrets.token_urlsafe(48) for name in names}
    with Service(
        ROOT, tmp_path / "data", DATABASE_URL=url, ENVIRONMENT=environment, **keys
    ) as service:
        service.wait_until_ready()

        def ask(share: int) -> list[str]:
            with httpx.Client(base_url=service.url, trust_env=False) as client:
                return [
                    client.get(f"/orders/{number}").headers["X-Request-Id"]
                    for number in range(share, REQUESTS, AT_ONCE)
                ]

        with ThreadPoolExecutor(AT_ONCE) as threads:
            answered = [
                request_id for ids in threads.map(ask, range(AT_ONCE)) for request_id in ids
            ]
        service.stop()
        lines = [
            line
            for line in service.text.splitlines()
            if "http.request" in line and "/orders/" in line
        ]
    if environment == "production":
        logged = [json.loads(line)["request_id"] for line in lines]
    else:
        logged = [line.rpartition("request_id=")[2].split()[0] for line in lines]
    assert Counter(logged) == Counter(answered)
