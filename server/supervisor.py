"""The parent of `mantel serve`: starts the control plane and the workers, restarts the dead, stops all in order.

It imports neither gRPC nor FAISS, holds the data port's number by a bound socket that never listens, and lets the
kernel share the port's connections out among the workers.
"""

import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from features.errors import WrongState
from features.state import Endpoints, State
from server.children import Child, Task, stop_all
from server.rollover import Rollover
from server.settings import Settings

LOOK_S: Final = 0.05
TEND_S: Final = 1.0
STILLBORN: Final = 5  # deaths of a child in a row, before any worker was ready, that end the server
_log = logging.getLogger("mantel.supervisor")


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
        children = [Child("control", control), *(Child("worker", worker) for _ in range(settings.workers))]
        endpoints = Endpoints(
            pid=os.getpid(),
            target=_address(settings.host, ports[0]),
            control=_address(settings.host, ports[1]),
            metrics=_address(settings.metrics_host, metrics_port),
        )
        state.announce(endpoints)
        stack.callback(state.withdraw)
        with _signals() as received:
            announced(endpoints)
            try:
                _keep_alive(children, received, tend)
            finally:
                stop_all(children)


def _keep_alive(children: list[Child], received: Callable[[float], frozenset[int]], tend: Callable[[], None]) -> None:
    """Starts every child, and again when it dies or freezes, until told to stop; SIGUSR1 begins a rollover.

    Raises:
        WrongState: one dies young time after time, and no worker was ready yet.
    """
    ready, tend_at = False, 0.0
    rollover = Rollover(State(children[0].task.settings.state))
    while True:
        now = time.monotonic()
        if now >= tend_at:
            tend_at = now + TEND_S
            _tend(tend)
        for child in tuple(children):
            child.look_after(now)
            ready = ready or (child.kind == "worker" and child.ready)
            if (why := child.bury(now)) and not ready and child.failures >= STILLBORN:
                raise WrongState(f"the {child.kind} process cannot start: {why}")
            if child.retires_by and child.process is None:
                children.remove(child)
            child.start(now)
        rollover.step(children, now)
        signals = received(LOOK_S)
        if signals & {signal.SIGTERM, signal.SIGINT}:
            return
        if signal.SIGUSR1 in signals:
            rollover.begin(children)


def _tend(tend: Callable[[], None]) -> None:
    try:
        tend()
    except Exception:  # noqa: BLE001  # the children live on, whatever it meets
        _log.exception("tending failed")


@contextmanager
def _signals() -> Iterator[Callable[[float], frozenset[int]]]:
    """A function that waits up to some seconds and answers which signals came; a child's death ends the wait too."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    came: set[int] = set()
    old = {
        number: signal.signal(number, lambda received, _: came.add(received))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)
    }
    old_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def received(wait_s: float) -> frozenset[int]:
        reader.settimeout(wait_s)
        with suppress(TimeoutError):
            reader.recv(64)
        found = frozenset(came)
        came.difference_update(found)
        return found

    try:
        yield received
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
