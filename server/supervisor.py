"""The parent of `mantel serve`: starts the control plane and the workers, restarts the dead, stops all in order.

It imports neither gRPC nor FAISS, holds the data port's number by a bound socket that never listens, and lets the
kernel share the port's connections out among the workers.
"""

import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from features.errors import WrongState
from features.state import Endpoints, State
from server.settings import Settings

BACKOFF_S: Final = (0.05, 5.0)
STEADY_S: Final = 30.0  # a child that lived this long starts its backoff anew
KILL_AFTER_S: Final = 5.0  # beyond drain and grace
TEND_S: Final = 1.0
STILLBORN: Final = 5  # deaths of a child in a row, before any worker was ready, that end the server
_log = logging.getLogger("mantel.supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a child is told, as JSON on its standard input: never in its arguments, which others can read."""

    settings: Settings
    redis_url: str
    port: int
    shared_port: bool = False
    supervisor: int = field(default_factory=os.getpid)

    def to_bytes(self) -> bytes:
        """The task as JSON."""
        told = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(told | {"settings": self.settings.model_dump(mode="json")}).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Task":
        """Reads what `to_bytes` wrote."""
        told = json.loads(raw)
        return cls(**{**told, "settings": Settings(**told["settings"])})


@dataclass(slots=True, kw_only=True)
class _Child:
    """One child process and its history; the only mutable thing here."""

    kind: str
    task: Task
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    restart_at: float = field(default=0.0)


def supervise(
    settings: Settings,
    *,
    redis_url: str,
    announced: Callable[[Endpoints], None],
    tend: Callable[[], None] = lambda: None,
) -> None:
    """Serves until SIGTERM or SIGINT; answers when every child has ended. `tend` is called about once a second.

    Raises:
        WrongState: another server runs on the same state directory, a port is taken, or a child cannot start.
    """
    state = State(settings.state)
    with ExitStack() as stack:
        stack.enter_context(state.lock("serve", wait=False, held=f"a server is running on {settings.state} already"))
        ports = [
            stack.enter_context(_reserved(settings.host, port, name))
            for port, name in ((settings.port, "--port"), (settings.control_port, "--control-port"))
        ]
        metrics_port = stack.enter_context(_held(settings.metrics_host, settings.metrics_port, "--metrics-port"))
        settings = settings.model_copy(update={"metrics_port": metrics_port})
        shutil.rmtree(state.metrics, ignore_errors=True)
        state.metrics.mkdir(parents=True)
        worker = Task(settings=settings, redis_url=redis_url, port=ports[0], shared_port=True)
        control = Task(settings=settings, redis_url=redis_url, port=ports[1], shared_port=True)
        children = [_Child(kind="control", task=control)]
        children += [_Child(kind="worker", task=worker) for _ in range(settings.workers)]
        endpoints = Endpoints(
            pid=os.getpid(),
            target=_address(settings.host, ports[0]),
            control=_address(settings.host, ports[1]),
            metrics=_address(settings.metrics_host, metrics_port),
        )
        state.announce(endpoints)
        stack.callback(state.withdraw)
        with _signals() as stopping:
            announced(endpoints)
            try:
                _keep_alive(children, stopping, tend)
            finally:
                _stop(children, settings.drain_s + settings.grace_s + KILL_AFTER_S)


def _keep_alive(children: list[_Child], stopping: Callable[[float], bool], tend: Callable[[], None]) -> None:
    """Starts every child, and again when it dies, until told to stop.

    Raises:
        WrongState: one dies young time after time, and no worker was ready yet.
    """
    ready, tend_at = False, 0.0
    while True:
        now = time.monotonic()
        if now >= tend_at:
            tend_at = now + TEND_S
            _tend(tend)
        for child in children:
            if child.process is not None and child.process.poll() is not None:
                ready = ready or _any_ready(children)
                why = _bury(child, now)
                if not ready and child.failures >= STILLBORN:
                    raise WrongState(f"the {child.kind} process cannot start: {why}")
            if child.process is None and now >= child.restart_at:
                _start(child, now)
        if stopping(0.05):
            return


def _start(child: _Child, now: float) -> None:
    folder = State(child.task.settings.state).metrics
    child.process = subprocess.Popen(
        [sys.executable, "-m", "server.process", child.kind],
        stdin=subprocess.PIPE,
        env={
            **os.environ,
            "PROMETHEUS_MULTIPROC_DIR": str(folder.resolve()),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
    )
    assert child.process.stdin is not None
    with suppress(BrokenPipeError), child.process.stdin as told:  # it died already: seen at the next look
        told.write(child.task.to_bytes())
    child.started_at = now


def _tend(tend: Callable[[], None]) -> None:
    try:
        tend()
    except Exception:  # noqa: BLE001  # the children live on, whatever it meets
        _log.exception("tending failed")


def _any_ready(children: list[_Child]) -> bool:
    """Whether a worker of this server listens, or did until it died."""
    mine = {child.process.pid for child in children if child.process is not None}
    return any(beat.ready and beat.pid in mine for beat in State(children[0].task.settings.state).heartbeats())


def _bury(child: _Child, now: float) -> str:
    """Notes a death, and when to start again: at once the first time, ever later while it keeps dying young.

    Answers why it died.
    """
    assert child.process is not None
    state = State(child.task.settings.state)
    why = state.take_end(child.process.pid) or f"exit code {child.process.returncode}"
    child.failures = 1 if now - child.started_at > STEADY_S else child.failures + 1
    wait = min(BACKOFF_S[1], BACKOFF_S[0] * 2 ** (child.failures - 1)) * random.uniform(0.8, 1.2)  # noqa: S311
    _log.warning("%s %d ended: %s; next start in %.2f s", child.kind, child.process.pid, why, wait)
    state.stop_beating(child.process.pid)
    child.process, child.restart_at = None, now + wait
    return why


def _stop(children: list[_Child], patience_s: float) -> None:
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + patience_s
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.error("%d did not stop in time and is killed", process.pid)  # no traceback to show
            process.kill()
            process.wait()


@contextmanager
def _signals() -> Iterator[Callable[[float], bool]]:
    """A function that waits up to some seconds and tells whether SIGTERM or SIGINT came."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    came: list[int] = []
    old = {
        number: signal.signal(number, lambda received, _: came.append(received))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    }
    old_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def stopping(wait_s: float) -> bool:
        reader.settimeout(wait_s)
        with suppress(TimeoutError):
            reader.recv(64)
        return any(number != signal.SIGCHLD for number in came)

    try:
        yield stopping
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in old.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


@contextmanager
def _reserved(host: str, port: int, flag: str) -> Iterator[int]:
    """A port that is free now, kept by a bound socket that never listens, for processes that share it."""
    with _held(host, port, flag) as number:
        pass  # nobody listens on it: sharing would succeed silently
    with socket.socket(_family(host)) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, number))
        yield number


@contextmanager
def _held(host: str, port: int, flag: str) -> Iterator[int]:
    """A port that is free now, kept by a bound socket that never listens, for one process at a time."""
    with socket.socket(_family(host)) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((host, port))
        except OSError as error:
            raise WrongState(f"port {port} of {host} is taken; choose another with {flag}") from error
        yield int(holder.getsockname()[1])


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
