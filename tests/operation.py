"""What tests of operation share: waiting for a fact, processes, and a server as `mantel serve` starts it."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeVar

import redis

from features.embedded_redis import attached
from features.keys import Keys
from features.offline.publish import connect, publish
from features.snapshot import read_manifest
from features.state import Endpoints, State
from protos.client import HomeClient
from server.identity import development_token
from server.launch import running
from tests.conftest import quiet

PATIENCE_S: Final = 240.0
FREE_PORTS: Final = {"port": "0", "control-port": "0", "metrics-port": "0"}
Fact = TypeVar("Fact")


def eventually(fact: Callable[[], Fact | Literal[False] | None]) -> Fact:
    """Waits until something is true, and answers it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := fact()):
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.02)
    return found


async def soon(fact: Callable[[], Fact | Literal[False] | None]) -> Fact:
    """Waits as `eventually` does, while this process' event loop runs on."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := fact()):
        assert time.monotonic() < deadline, "it does not come true"
        await asyncio.sleep(0.01)
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def children(pid: int) -> set[int]:
    """The living child processes of a process."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has just ended
        if int(parent) == pid and state != "Z":
            found.add(int(path.parent.name))
    return found


def digest_of(folder: Path) -> str:
    """A snapshot's digest."""
    return read_manifest(folder)[1]


def space_of(folder: Path) -> str:
    """A snapshot's embedding space."""
    return read_manifest(folder)[0].space_id


def published(path: Path, *folders: Path) -> State:
    """A state directory in which snapshots were published one after the other, its Redis stopped again."""
    state = State(path)
    with attached(state) as url, connect(url) as client:
        for folder in folders:
            publish(folder, state, client, Keys(), progress=quiet, keep_records=True)
    return state


@contextmanager
def server(state: State, **flags: str) -> Iterator[Endpoints]:
    """`mantel serve` on free ports; its log is `serve.log` beside the state directory."""
    with running(state, FREE_PORTS | flags, log=log_of(state)) as endpoints:
        yield endpoints


def log_of(state: State) -> Path:
    """Where the logs of a state directory's servers go."""
    return state.path.with_name(f"{state.path.name}.serve.log")


def logged(state: State, name: str) -> list[str]:
    """What one logger of a state directory's servers has said."""
    found = []
    for line in log_of(state).read_text().splitlines():
        said = json.loads(line) if line.startswith("{") else {}
        if said.get("logger") == name:
            found.append(said["event"])
    return found


def client_of(state: State, endpoints: Endpoints) -> HomeClient:
    """The shipped client on a connection of its own, with the development token."""
    return HomeClient(endpoints.target, token=development_token(state))


@contextmanager
def redis_of(state: State) -> Iterator[redis.Redis]:
    """A client of a state directory's Redis, attached while it is used."""
    with attached(state) as url, connect(url) as client:
        yield client


def mantel(*words: str, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """A `mantel` command as a person types it, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
    )
