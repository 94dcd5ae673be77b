"""Requests that Schemathesis makes from the OpenAPI document, judged by all of its checks.

One seed here; `make fuzz` takes many.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import auth
from config import Settings
from tests.support.paths import ROOT

SEEDS = range(1, 1 + int(os.environ.get("FUZZ_SEEDS", "1")))
FUZZ = ROOT / "tests" / "support" / "fuzz"


@pytest.mark.parametrize("seed", SEEDS)
def test_the_openapi_document_tells_the_truth(
    base_url: str, settings: Settings, tmp_path: Path, seed: int
) -> None:
    token = auth.mint(settings, "fuzz", "orders:manage payments:manage webhooks:manage")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--no-color"),
            *("--config-file", str(FUZZ / "schemathesis.toml")),
            *("run", f"{base_url}/openapi.json", "--header", f"Authorization: Bearer {token}"),
            *("--checks", "all", "--continue-on-failure", "--warnings", "off"),
            *("--max-examples", "10", "--seed", str(seed), "--suppress-health-check", "all"),
        ],
        cwd=tmp_path,  # it keeps a database of examples
        env=os.environ | {"PYTHONPATH": str(FUZZ), "SCHEMATHESIS_HOOKS": "hooks"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
