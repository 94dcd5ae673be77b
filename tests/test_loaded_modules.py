"""What a process has loaded: only what it uses, as it stays in memory and is loaded at each start."""

import os
import subprocess
import sys

import pytest
from alembic.script import ScriptDirectory

import database
from tests.support.paths import ROOT

UNUSED = ["alembic", "mako", "stripe"]


def modules_after(code: str, **environment: str) -> set[str]:
    """The modules and packages that a new interpreter has loaded when it has run this."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return modules_after(
        "import main\nmain.app",
        GATEWAYS="sandbox",
        DATA_DIR=str(tmp_path_factory.mktemp("data")),
    )


@pytest.mark.parametrize("name", UNUSED)
def test_a_service_with_the_sandbox_alone_does_not_load(name: str, serving: set[str]) -> None:
    assert "fastapi" in serving
    assert name not in serving


def test_the_revisions_are_those_of_alembic() -> None:
    scripts = ScriptDirectory.from_config(database.alembic_config(""))
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert database.newest_revision() == scripts.get_current_head() == revisions[0]
    assert not database._is_older(revisions[0])
    assert all(database._is_older(revision) for revision in revisions[1:])
