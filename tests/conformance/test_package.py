"""The installed package holds every module, and its conformance kit runs from anywhere."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.support.paths import ROOT
from tests.support.processes import copy_sources, environment

NOT_INSTALLED = {"tests", "benchmarks", "docs"}
ADAPTER = """
from conformance.targets import StripeTarget
from gateways.stripe import StripeGateway


class MyGateway(StripeGateway):
    pass


class MyTarget(StripeTarget):
    name = "mine"
    gateway = "my_adapter:MyGateway"
"""


def run(*command: str | Path, folder: Path) -> str:
    """Run a command without the repository on its path, return what it prints."""
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, by the setuptools of requirements-dev.txt."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    sources = copy_sources(folder / "sources")
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, sources, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the package and its dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)
    python = folder / "bin" / "python"
    packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "dependencies.pth").write_text(str(Path(httpx.__file__).parents[1]))
    pip = (sys.executable, "-m", "pip", "--python", python, "install")
    run(*pip, "--no-deps", "--no-index", "--disable-pip-version-check", wheel, folder=folder)
    return python


def test_every_product_file_is_in_the_package(wheel: Path) -> None:
    product = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.html", "*.mako", "*.ini")
        for path in ROOT.rglob(pattern)
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        and path.relative_to(ROOT).parts[0] not in NOT_INSTALLED
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == product


def test_an_adapter_outside_the_repository_is_checked(python: Path, tmp_path: Path) -> None:
    (tmp_path / "my_adapter.py").write_text(ADAPTER)
    check = (python, "-m", "conformance", "my_adapter:MyTarget", "-k", "payment is captured once")
    told = run(*check, folder=tmp_path)
    assert "on mine" in told
    assert "1 holds" in told
    assert {path.name for path in tmp_path.iterdir()} <= {"my_adapter.py", "__pycache__"}
