"""What a process has loaded: only what it uses, because loading takes time and memory."""

import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

import database
from tests.support.paths import ROOT
from tests.support.processes import run

UNUSED = ["alembic", "cryptography", "httpx", "jose", "mako", "stdnum", "stripe"]


LOAD = "import main\nmain.app\n"


def run_code(code: str, data_dir: Path) -> str:
    """What a new interpreter prints that runs this."""
    done = run(ROOT, "-c", code, GATEWAYS="sandbox", DATA_DIR=data_dir)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules that a service has loaded when it is about to serve."""
    code = f"{LOAD}import sys\nprint(*sys.modules)"
    return set(run_code(code, tmp_path_factory.mktemp("data")).split())


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


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_loading_the_service_starts_no_thread_so_it_can_be_forked(tmp_path: Path) -> None:
    code = f"{LOAD}import os\nprint(len(os.listdir('/proc/self/task')))"
    assert run_code(code, tmp_path) == "1\n"


def test_no_garbage_is_looked_for_while_the_service_is_loaded(tmp_path: Path) -> None:
    runs = "sum(generation['collections'] for generation in gc.get_stats())"
    code = f"import gc\nbefore = {runs}\nimport main\nprint({runs} - before, gc.isenabled())"
    assert run_code(code, tmp_path) == "0 True\n"


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_a_forked_worker_ends_by_a_signal_that_comes_before_it_serves(tmp_path: Path) -> None:
    code = """
import os, signal
import main
signal.signal(signal.SIGTERM, lambda *_: print("asked the parent to end"))
main._fork_workers()
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert run_code(code, tmp_path) == "-15\nasked the parent to end\n"
