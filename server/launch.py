"""Starts `mantel serve` as a child and waits until it answers: for the demo, for evaluation and for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from features.errors import Unavailable
from features.state import Endpoints, State
from protos.client import HomeClient

START_S: Final = 240.0  # the first start of a machine compiles, 20-70 s on two cores
STOP_S: Final = 20.0
_PORTS: Final = {"port": 50051, "control-port": 50052, "metrics-port": 9464}


@contextmanager
def running(
    state: State, flags: Mapping[str, str], *, log: Path, settings: Mapping[str, str] | None = None
) -> Iterator[Endpoints]:
    """A server on a state directory, from ready to stopped; its logs are appended to a file.

    `flags` are those of `mantel serve`, without dashes in front; `settings` goes by names, for those without a flag.

    Raises:
        Unavailable: it does not become ready, with the end of its log.
    """
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    named = {f"MANTEL_{name.upper()}": value for name, value in (settings or {}).items()}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "serve", "--state", str(state.path), *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, **named},
        )
    try:
        yield _ready(server, state, log)
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _ready(server: subprocess.Popen[bytes], state: State, log: Path) -> Endpoints:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        endpoints = state.endpoints()
        if endpoints is not None and endpoints.pid == server.pid:
            with HomeClient(endpoints.target) as data, HomeClient(endpoints.control) as control:
                while time.monotonic() < deadline and server.poll() is None:
                    if data.serving() and control.serving():
                        return endpoints
                    time.sleep(0.02)
        time.sleep(0.02)
    tail = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise Unavailable(f"the server does not become ready; {log} ends with:\n" + "\n".join(tail))


def answers(endpoints: Endpoints) -> bool:
    """Whether a server can answer pages there now."""
    with HomeClient(endpoints.target) as client:
        return client.serving()


def free_ports(*, any_port: bool) -> dict[str, str]:
    """Flags that give `mantel serve` its usual ports, or any in place of one that is taken, or any for all."""
    return {flag: "0" if any_port or _taken(port) else str(port) for flag, port in _PORTS.items()}


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def until_interrupted() -> None:
    """Waits for Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    with suppress(KeyboardInterrupt):
        signal.pause()
