"""The servers that `mantel bench` loads, as processes on one core: ours, and those that print their port."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from features.embedded_redis import attached
from features.errors import Unavailable
from features.keys import Keys
from features.offline.publish import connect, publish
from features.state import State
from loadtest import machine
from loadtest.contest import SHELVES
from server import cli_contest_books as live
from server.identity import development_token
from server.launch import running
from server.memory import children_of

HOST: Final = "127.0.0.1"
NO_LIMIT: Final = 2048  # more calls at once than the bench sends: what is compared is not refused
START_S: Final = 120.0
STOP_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """How a server of ours is started."""

    name: str  # in figures
    folder: Path  # of the snapshot, with its listener records
    books: live.Books
    requests: tuple[bytes, ...]  # what it is asked, in turn
    preset: str = "full"
    workers: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)  # by name, in place of the bench's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A server of ours that runs."""

    port: int
    token: str
    metrics: str  # HOST:PORT
    workers: frozenset[int]
    helpers: frozenset[int]
    redis_url: str
    ready_s: float  # from the start of the last worker's process until the server answered


@contextmanager
def serving(ours: Ours, cores: tuple[int, int], *, room: Path) -> Iterator[Serving]:
    """`mantel serve` on a new state: workers on the server's core, Redis and the control plane on the load's."""
    shutil.rmtree(room, ignore_errors=True)  # what an earlier run had in force would be met by this one's books
    state = State(room)
    with attached(state) as url, connect(url) as client:
        publish(ours.folder, state, client, Keys(), progress=lambda *_: None, keep_records=True)
        store = int(_told(client.info("server"))["process_id"])
        machine.keep_to(store, cores[1])
        flags = {
            "surfaces": str(SHELVES),
            "preset": ours.preset,
            "workers": str(ours.workers),
            **dict.fromkeys(("port", "control-port", "metrics-port"), "0"),
        }
        settings = {"admission_limit": str(NO_LIMIT), **ours.settings}
        log = room.with_name(f"{room.name}.log")
        with running(state, flags, log=log, settings=settings) as endpoints:
            workers = frozenset(beat.pid for beat in _all_ready(state, ours.workers))
            ready_s = min(map(machine.age, workers))
            family = {endpoints.pid, *children_of(endpoints.pid)}
            for pid in family:
                machine.keep_to(pid, cores[0] if pid in workers else cores[1])
            live.apply(ours.books, state, endpoints)
            yield Serving(
                port=int(endpoints.target.rpartition(":")[2]),
                token=development_token(state),
                metrics=endpoints.metrics,
                workers=workers,
                helpers=frozenset({store, *(family - workers)}),
                redis_url=url,
                ready_s=ready_s,
            )


@contextmanager
def started(cores: tuple[int, int], module: str, *words: str) -> Iterator[tuple[int, frozenset[int]]]:
    """A module that prints its port, as processes on the server's core: port and process ids."""
    own = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", module, *words], stdout=subprocess.PIPE, text=True, env={**os.environ, **own}
    ) as process:
        family = frozenset({process.pid})
        try:
            assert process.stdout is not None
            told = process.stdout.readline()
            if not told:
                raise Unavailable(f"{module} does not start; what it said stands above")
            _until_it_answers(process, int(told))
            family = frozenset(_family(process.pid))
            for pid in family:
                machine.keep_to(pid, cores[0])
            yield int(told), family
        finally:
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)  # one that rests would not hear that it is to end
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            for pid in family:  # a peer's children may outlive it
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def keeping_to(core: int) -> Iterator[None]:
    """Keeps this process on a core meanwhile."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _all_ready(state: State, workers: int) -> list[Any]:
    """The heartbeats of so many workers, once all of them listen.

    Raises:
        Unavailable: one does not.
    """
    deadline = time.monotonic() + START_S
    while len(beats := [beat for beat in state.heartbeats() if beat.ready]) < workers:
        if time.monotonic() > deadline:
            raise Unavailable(f"{len(beats)} of {workers} workers listen after {START_S:.0f} s")
        time.sleep(0.01)
    return beats


def _until_it_answers(process: "subprocess.Popen[str]", port: int) -> None:
    """Waits until a port speaks: HTTP/2 frames, or any answer to a request by HTTP/1.1.

    Raises:
        Unavailable: it does not, or the process ends.
    """
    asked = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1) as probe:
            probe.sendall(asked)
            if probe.recv(1):
                return
        time.sleep(0.05)
    raise Unavailable(f"nobody answers on port {port} after {START_S:.0f} s; what was said stands above")


def _family(pid: int) -> Iterator[int]:
    """A process, its children, and theirs."""
    yield pid
    for child in children_of(pid):
        yield from _family(child)


def _told(info: Any) -> Mapping[str, Any]:
    """What Redis tells of itself; its client's types say that it may be a promise of it."""
    return dict(info)
