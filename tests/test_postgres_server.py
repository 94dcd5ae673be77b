"""The embedded server under real processes and real `kill -9`; nothing of the service."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType

import psycopg2
import pytest

import postgres_server
from postgres_server import PostgresStartError
from tests.support.paths import ROOT

LINUX = sys.platform == "linux"

# Uses the server, and then does what its standard input says until that ends.
USER = """
import os, pathlib, subprocess, sys, time
import postgres_server
def start():
    print(postgres_server.ensure_running(pathlib.Path(sys.argv[1])), flush=True)
start()
for line in sys.stdin:
    exec(line)
"""


class User:
    """Another process with a share in the server. It ends when its standard input does."""

    def __init__(self, data_dir: Path, preexec_fn: Callable[[], None] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(data_dir)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=preexec_fn,
        )

    def __enter__(self) -> User:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.process.communicate()

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def run(self, statement: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def sql(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.005)  # polls; the loop ends with the condition


def pids(data_dir: Path) -> list[int]:
    """Every process that names this directory: users, the supervisor, programs of PostgreSQL."""
    ps = ["ps", "-A", "-ww", "-o", "pid=,args="]
    if LINUX:
        lines = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.append(entry.parent.name + " " + entry.read_bytes().decode(errors="replace"))
            except OSError:  # it ended meanwhile
                continue
    else:
        lines = subprocess.run(ps, capture_output=True, text=True, check=True).stdout.splitlines()
    # The path ends where an argument or the path continues; "…/1" is not "…/10".
    marks = [f"{data_dir}{end}" for end in ("/", " ", "\0")]
    return [int(line.split()[0]) for line in lines if any(mark in line for mark in marks)]


def is_free(lock: Path) -> bool:
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def wait_until_gone(data_dir: Path) -> None:
    """Neither the supervisor nor any process of the server is left."""
    for name in ("supervisor.lock", "server.lock"):
        wait_for(partial(is_free, data_dir / "postgres" / name), f"{name} free")
    wait_for(lambda: not pids(data_dir), "no process")


def supervisor_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "supervisor.lock").read_text())


def postmaster_pid(data_dir: Path) -> int:
    pid_file = data_dir / "postgres" / "cluster" / "postmaster.pid"
    return int(pid_file.read_text().split()[0])


def server_log(data_dir: Path) -> str:
    return (data_dir / "postgres" / "server.log").read_text()


def pay(url: str) -> str:
    """Commit a payment; returns its id."""
    ((payment,),) = sql(url, "INSERT INTO payment VALUES (gen_random_uuid(), 1) RETURNING id")
    return str(payment)


def has(url: str, *payments: str) -> bool:
    known = {payment for (payment,) in sql(url, "SELECT id::text FROM payment")}
    return known.issuperset(payments)


def end_all(data_dir: Path) -> None:
    """Kill every process that names this directory, which only the tests know."""
    for pid in pids(data_dir):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def directory() -> Iterator[Path]:
    # Short, as people have it: pytest's own paths come near to the limit of a socket's name.
    path = Path(tempfile.mkdtemp(prefix="pg-")).resolve()
    yield path
    end_all(path)
    shutil.rmtree(path)


empty_dir = pytest.fixture(directory, name="empty_dir")


@pytest.fixture(scope="module")
def used_dir() -> Iterator[Path]:
    """One data directory for many tests, as a first start takes a second."""
    for path in directory():
        with User(path) as user:
            sql(user.read(), "CREATE TABLE payment (id uuid PRIMARY KEY, amount numeric NOT NULL)")
        yield path


@pytest.fixture
def data_dir(used_dir: Path) -> Path:
    """A data directory with a table `payment`, which nobody uses and whose server is stopped."""
    if not is_free(used_dir / "postgres" / "supervisor.lock"):
        with contextlib.suppress(ProcessLookupError, ValueError):  # it is ending anyway
            os.kill(supervisor_pid(used_dir), signal.SIGTERM)
    wait_until_gone(used_dir)
    return used_dir


def test_a_cold_start_is_durable_private_and_keeps_its_data(
    empty_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")  # of another server; ours is in the URL alone
    with User(empty_dir) as user:
        url = user.read()
        settings = (
            "SELECT current_database(), current_setting('server_version_num')::int / 10000,"
            " current_setting('server_encoding'), current_setting('timezone'),"
            " current_setting('fsync'), current_setting('synchronous_commit'),"
            " current_setting('listen_addresses'), current_setting('data_checksums')"
        )
        assert sql(url, settings) == [("estore", 18, "UTF8", "UTC", "on", "on", "", "on")]
        sql(url, "CREATE TABLE t AS SELECT 42 AS n")
        for path in (empty_dir / "postgres", empty_dir / "postgres" / ".s.PGSQL.5432"):
            assert path.stat().st_mode & 0o077 == 0, path
        assert os.getsid(postmaster_pid(empty_dir)) != os.getsid(user.process.pid), "Ctrl-C"
        assert user.process.communicate()[0] == "", "standard output is not the server's"
    wait_until_gone(empty_dir)
    assert "database system is shut down" in server_log(empty_dir)

    with User(empty_dir) as user:
        assert user.read() == url
        assert sql(url, "SELECT n FROM t") == [(42,)]


def test_two_directories_have_two_servers(data_dir: Path, empty_dir: Path) -> None:
    shutil.copytree(data_dir, empty_dir, dirs_exist_ok=True)
    with User(data_dir) as user:
        url = user.read()
        with User(empty_dir) as other:
            assert other.read() != url
            os.kill(supervisor_pid(empty_dir), signal.SIGTERM)
            wait_for(partial(is_free, empty_dir / "postgres" / "server.lock"), "its end")
        pay(url)


def test_concurrent_starters_make_one_server(empty_dir: Path) -> None:
    users = [User(empty_dir) for _ in range(8)]
    try:
        identity = "SELECT system_identifier FROM pg_control_system()"
        assert len({str(sql(user.read(), identity)) for user in users}) == 1
        assert server_log(empty_dir).count("starting PostgreSQL") == 1
        others = set(pids(empty_dir)) - {user.process.pid for user in users}
        assert others == {supervisor_pid(empty_dir), postmaster_pid(empty_dir)}
    finally:
        for user in users:
            user.process.communicate()


def test_a_killed_user_leaves_nothing_running(data_dir: Path) -> None:
    with User(data_dir) as user:
        payment = pay(user.read())
        user.kill()
    wait_until_gone(data_dir)
    with User(data_dir) as user:
        assert has(user.read(), payment)


def test_the_server_stays_for_the_other_user(data_dir: Path) -> None:
    with User(data_dir) as other:
        url = other.read()
        with User(data_dir) as user:
            assert user.read() == url
            user.kill()
        server = postmaster_pid(data_dir)
        until = time.monotonic() + postgres_server.GRACE_SECONDS + 0.5
        while time.monotonic() < until:  # not for luck: in all this time nothing may happen
            pay(url)
        assert postmaster_pid(data_dir) == server


def test_children_of_a_user_do_not_keep_the_server(data_dir: Path) -> None:
    children = []
    with User(data_dir) as user:
        user.read()
        user.run("print(subprocess.Popen(['sleep', '60']).pid, flush=True)")
        children.append(int(user.read()))
        user.run("pid = os.fork() or time.sleep(60) or os._exit(0); print(pid, flush=True)")
        children.append(int(user.read()))
        user.kill()
        try:
            for name in ("supervisor.lock", "server.lock"):
                wait_for(partial(is_free, data_dir / "postgres" / name), name)
        finally:
            for child in children:  # fails if it is not there any more
                os.kill(child, signal.SIGKILL)


def test_a_killed_postmaster_comes_back_by_itself(data_dir: Path) -> None:
    with User(data_dir) as user:
        url = user.read()
        idle = psycopg2.connect(url.replace("+psycopg2", ""))
        payment = pay(url)
        killed = postmaster_pid(data_dir)
        os.kill(killed, signal.SIGKILL)

        def is_back() -> bool:
            try:
                return has(url, payment)
            except psycopg2.OperationalError:
                return False

        wait_for(is_back, "the server, at the same address")
        assert postmaster_pid(data_dir) != killed
        idle.close()
        user.run("start()")
        assert user.read() == url


def test_a_killed_supervisor_takes_the_server_along(data_dir: Path) -> None:
    with User(data_dir) as user:
        url = user.read()
        payment = pay(url)
        os.kill(supervisor_pid(data_dir), signal.SIGKILL)
        if LINUX:  # elsewhere the next start ends it
            wait_for(partial(is_free, data_dir / "postgres" / "server.lock"), "no process of it")
        user.run("start()")  # the same process again
        assert user.read() == url
        assert has(url, payment)

        os.kill(supervisor_pid(data_dir), signal.SIGKILL)
        with User(data_dir) as other:  # another one at once, while the server is still ending
            assert has(other.read(), payment)


def test_sigterm_to_the_supervisor_is_a_clean_stop(data_dir: Path) -> None:
    with User(data_dir) as user:
        user.read()
        os.kill(supervisor_pid(data_dir), signal.SIGTERM)
        wait_for(partial(is_free, data_dir / "postgres" / "supervisor.lock"), "its end")
        assert server_log(data_dir).rstrip().endswith("database system is shut down")


def test_a_power_cut_during_the_first_start_is_made_good(empty_dir: Path) -> None:
    folder = empty_dir / "postgres"
    with User(empty_dir):
        # Not the first file that initdb writes, and far from the last.
        wait_for(lambda: any(folder.glob("new-*/PG_VERSION")), "initdb at work")
        end_all(empty_dir)
    assert not (folder / "cluster").exists()
    with User(empty_dir) as user:
        assert sql(user.read(), "SELECT 1") == [(1,)]
        assert not list(folder.glob("new-*"))


@pytest.mark.parametrize("name", ["long-" * 25, "spaces, commas, ümläuts"])
def test_a_path_that_is_no_socket_address(data_dir: Path, name: str) -> None:
    moved = data_dir / name
    moved.mkdir()
    (data_dir / "postgres").rename(moved / "postgres")
    try:
        with User(moved) as user:
            url = user.read()
            pay(url)
            sockets = Path(url.partition("host=")[2].partition("&")[0])
            assert data_dir not in sockets.parents
            assert sockets.stat().st_mode & 0o777 == 0o700
            os.kill(supervisor_pid(moved), signal.SIGTERM)
        wait_until_gone(moved)
        assert not sockets.exists()
    finally:
        (moved / "postgres").rename(data_dir / "postgres")


def test_a_socket_folder_of_somebody_else_is_refused(empty_dir: Path) -> None:
    data_dir = empty_dir / ("long-" * 25)
    sockets = postgres_server._Place(data_dir).socket.parent
    sockets.symlink_to(empty_dir)
    try:
        with pytest.raises(PostgresStartError, match="must be this user's and private"):
            postgres_server.ensure_running(data_dir)
    finally:
        sockets.unlink()


def test_joining_a_server_that_is_stopping(data_dir: Path) -> None:
    mark = data_dir / "postgres" / "supervisor.lock"
    payments: list[str] = []
    try:
        for _ in range(3):
            with User(data_dir) as user:
                url = user.read()
                postgres_server.stop(data_dir)
                payments.append(pay(url))
                user.kill()
            # The supervisor empties it when it begins to stop the server.
            wait_for(lambda: not mark.read_text(), "the shutdown")
            assert postgres_server.ensure_running(data_dir) == url
            assert has(url, *payments)
    finally:
        postgres_server.stop(data_dir)


def test_stop_waits_only_when_nobody_else_uses_the_server(data_dir: Path) -> None:
    url = postgres_server.ensure_running(data_dir)
    with User(data_dir) as user:
        user.read()
        postgres_server.stop(data_dir)
        pay(url)
        postgres_server.ensure_running(data_dir)
    postgres_server.stop(data_dir)
    assert is_free(data_dir / "postgres" / "server.lock")


def test_the_log_has_no_statement_and_no_value(data_dir: Path) -> None:
    payment = "01234567-89ab-cdef-0123-456789abcdef"
    statements = [
        f"INSERT INTO payment VALUES ('{payment}', 1), ('{payment}', 1)",  # in the detail
        f"INSERT INTO payment VALUES ('{payment}', NULL)",  # the whole row, in the detail
        "INSERT INTO payment VALUES ('secret-1', 1)",  # in the message itself
        "INSERT INTO payment VALUES ('x' secret-2)",  # a syntax error quotes what it is near
        "DO $$ BEGIN RAISE WARNING 'secret-3'; RAISE EXCEPTION 'secret-4'; END $$",
    ]
    with User(data_dir) as user:
        url = user.read()
        for statement in statements:
            with pytest.raises(psycopg2.Error, match=f"secret|{payment}"):
                sql(url, statement)
        sql(url, "DO $$ BEGIN RAISE LOG 'planted'; END $$")
        wait_for(lambda: "planted" in server_log(data_dir), "else nothing is logged at all")
        if sys.platform == "linux":
            # With a full disk, so to say, for a single process. PostgreSQL ends all, and reports
            # the statement twice.
            connection = psycopg2.connect(url.replace("+psycopg2", ""))
            connection.autocommit = True
            limit = (4096, 4096)
            resource.prlimit(connection.info.backend_pid, resource.RLIMIT_FSIZE, limit)
            with pytest.raises(psycopg2.OperationalError), connection.cursor() as cursor:
                cursor.execute("INSERT INTO payment\nSELECT gen_random_uuid(), 1 -- 'secret-5'")
            connection.close()
            wait_for(lambda: "PANIC:  could not write" in server_log(data_dir), "its report")
            wait_for(lambda: "restarting it" in server_log(data_dir), "the next server")
    log = server_log(data_dir)
    assert "secret" not in log
    assert "payment" not in log
    assert payment not in log


def test_the_pid_of_another_process_does_not_prevent_the_start(data_dir: Path) -> None:
    folder = data_dir / "postgres"
    cluster = folder / "cluster"
    owner = [os.getpid(), cluster, 1, 5432, folder, "", "1 1", "ready   ", ""]
    names = (cluster / "postmaster.pid", folder / ".s.PGSQL.5432.lock", folder / "supervisor.lock")
    for stale in names:
        stale.write_text("\n".join(map(str, owner)))
    with User(data_dir) as user:
        pay(user.read())


@pytest.mark.parametrize(
    ("version", "complaint"),
    [
        ("15", "made by PostgreSQL 15, and this is 18: dump it"),
        ("18", r"postgresql\.conf[\s\S]*server\.log[\s\S]*set DATABASE_URL"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_left_alone(
    empty_dir: Path, version: str, complaint: str
) -> None:
    cluster = empty_dir / "postgres" / "cluster"
    cluster.mkdir(parents=True, mode=0o700)
    (empty_dir / "postgres").chmod(0o700)
    (cluster / "PG_VERSION").write_text(version)
    (cluster / "precious").write_text("data")
    with pytest.raises(PostgresStartError, match=complaint):
        postgres_server.ensure_running(empty_dir)
    assert {path.name for path in cluster.iterdir()} == {"PG_VERSION", "precious"}


def forbid_user_namespaces() -> None:
    """Before exec: enter a namespace with everybody in it, where root may not make another one."""
    pid, (told, tell) = os.getpid(), os.pipe()
    if os.fork() == 0:  # outside, where root may say who is in it
        os.read(told, 1)
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{kind}").write_text("0 0 65536")
        os._exit(0)
    assert ctypes.CDLL(None).unshare(postgres_server.CLONE_NEWUSER) == 0
    os.write(tell, b"!")
    os.wait()
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="takes root on Linux")
def test_root_where_user_namespaces_are_forbidden(empty_dir: Path) -> None:
    empty_dir.chmod(0o700)  # no other user can pass, as in /root
    with User(empty_dir, preexec_fn=forbid_user_namespaces) as user:
        assert sql(user.read(), "SELECT 1") == [(1,)]
        assert (empty_dir / "postgres").stat().st_uid != 0
        assert empty_dir.stat().st_uid == 0
    wait_until_gone(empty_dir)
    with User(empty_dir) as user:  # root with namespaces, then, respects the owner
        assert sql(user.read(), "SELECT 1") == [(1,)]
