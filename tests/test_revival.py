"""What the supervisor does beyond restarting workers: reviving the embedded Redis, and giving up on a start in vain."""

import os
import re
import signal
from functools import partial
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from features.embedded_redis import attached, revive
from features.errors import WrongState
from features.state import State
from protos.client import HomeClient
from server.settings import Settings
from server.supervisor import supervise
from tests.operation import PATIENCE_S, client_of, eventually, published, redis_of


@pytest.fixture
def state(tmp_path: Path, built: Path) -> State:
    """A state directory in which the small world is published."""
    return published(tmp_path / "state", built)


def _serve(state: State) -> None:
    settings = Settings(
        state=state.path,
        port=0,
        control_port=0,
        metrics_port=0,
        read_budget_ms=10_000,
        default_deadline_ms=20_000,
    )
    with attached(state) as url:
        supervise(settings, redis_url=url, announced=lambda _: None, tend=partial(revive, state))


def test_a_killed_redis_comes_back_while_serving(state: State) -> None:
    """Kill -9 of the embedded Redis: the server starts it again, and pages are whole as before."""
    process = get_context("spawn").Process(target=_serve, args=(state,))
    process.start()
    try:
        endpoints = eventually(
            lambda: (found := state.endpoints()) and any(b.ready for b in state.heartbeats()) and found
        )
        with redis_of(state) as client:
            dead = int(client.info("server")["process_id"])
        os.kill(dead, signal.SIGKILL)
        with client_of(state, endpoints) as client_:
            eventually(lambda: (state.redis / "redis.sock").exists() and not _degraded(client_))
    finally:
        process.terminate()
        process.join(30)
    assert process.exitcode == 0
    assert not (state.redis / "redis.sock").exists()


def _degraded(client: HomeClient) -> bool:
    return client.get_home("u0000001", timeout_s=20).degraded


def test_reviving_what_lives_does_nothing(state: State) -> None:
    """It starts no second server, and waits for nobody who holds the gate."""
    with redis_of(state) as client:
        before = client.info("server")["process_id"]
        revive(state)
        with state.lock("redis/gate", wait=False, held=""):
            revive(state)
        assert client.info("server")["process_id"] == before


def _serve_in_vain(state: State, surfaces: Path, told: Connection) -> None:
    settings = Settings(state=state.path, port=0, control_port=0, metrics_port=0, surfaces=surfaces)
    try:
        supervise(settings, redis_url="redis://127.0.0.1:1", announced=lambda _: None)
    except WrongState as error:
        told.send(str(error))


def test_a_start_in_vain_ends(state: State, tmp_path: Path) -> None:
    """A worker that dies before it is ready, five times: the server ends, and names the process and the reason."""
    surfaces = tmp_path / "surfaces.toml"
    surfaces.write_text("[nonsense")
    mine, its = Pipe()
    process = get_context("spawn").Process(target=_serve_in_vain, args=(state, surfaces, its))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert re.fullmatch(r"the worker process cannot start: \w+: .*surfaces\.toml.*", mine.recv())
    assert state.endpoints() is None
    assert state.heartbeats() == []
