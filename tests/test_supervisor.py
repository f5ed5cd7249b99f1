"""`mantel serve` as it runs: workers on one port, deaths, and the end."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from prometheus_client.multiprocess import MultiProcessCollector

from features.state import Endpoints, State
from protos.home.v1 import home_pb2
from tests.operation import (
    FREE_PORTS,
    alive,
    children,
    client_of,
    eventually,
    log_of,
    logged,
    published,
    redis_of,
    server,
)
from tests.wire import untracked

USERS = [f"u{number:07}" for number in range(1, 41)]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers under test wait long for a busy machine, and look often."""
    told = {"REDIS_TIMEOUT_MS": "10000", "DEFAULT_DEADLINE_MS": "20000", "POLL_S": "0.1", "DRAIN_S": "0.1"}
    for name, value in told.items():
        monkeypatch.setenv(f"MANTEL_{name}", value)


@pytest.fixture
def state(tmp_path: Path, built: Path) -> State:
    """A state directory in which the small world is published."""
    return published(tmp_path / "state", built)


def page_of(state: State, endpoints: Endpoints, user: str) -> home_pb2.GetHomeResponse:
    """A page over a connection of its own, without what differs from call to call."""
    with client_of(state, endpoints) as client:
        return untracked(client.get_home(user, timeout_s=20))


def pages_served(state: State, pid: int) -> float:
    """How many pages one worker has served, by its own file."""
    files = [str(path) for path in state.metrics.glob(f"counter_{pid}.db")]
    found = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
    return float(sum(one.value for metric in found for one in metric.samples if one.name == "mantel_pages_total"))


def workers(state: State) -> set[int]:
    """The workers that serve a snapshot."""
    return {beat.pid for beat in state.heartbeats() if beat.digest}


def test_two_workers_answer_as_one_does(state: State) -> None:
    """The same listener gets the same page from one worker, and from either of two that share a port."""
    with server(state, workers="1") as endpoints:
        alone = {user: page_of(state, endpoints, user) for user in USERS}
    with server(state, workers="2") as endpoints:
        two = eventually(lambda: len(workers(state)) == 2 and workers(state))
        for user in USERS * 2:
            assert page_of(state, endpoints, user) == alone[user]
        assert all(pages_served(state, pid) for pid in two)


def test_a_killed_worker_comes_back_and_calls_go_on(state: State) -> None:
    """Kill -9 of one of two workers loses no call of the shipped client, on old connections or on new ones."""
    with server(state, workers="2") as endpoints:
        before = eventually(lambda: len(workers(state)) == 2 and workers(state))
        with _callers(state, endpoints) as (answered, failed):
            for killed in sorted(before):
                os.kill(killed, signal.SIGKILL)
                eventually(lambda dead=killed: len(workers(state)) == 2 and dead not in workers(state))  # type: ignore[misc]
            served = len(answered)
            eventually(lambda: len(answered) > served + 100)
        assert not workers(state) & before
        assert not failed, failed[:3]


CALLERS = 4


@contextmanager
def _callers(state: State, endpoints: Endpoints) -> Iterator[tuple[list[str], list[str]]]:
    """Threads that call without pause, half of them over a new connection each time; what was answered and failed."""
    over, answered, failed = threading.Event(), list[str](), list[str]()

    def call(*, anew: bool) -> None:
        client = client_of(state, endpoints)
        while not over.is_set():
            try:
                client.get_home("u0000001", timeout_s=20)
                answered.append("")
            except grpc.RpcError as error:
                failed.append(str(error))
            if anew:
                client.channel.close()
                client = client_of(state, endpoints)
        client.channel.close()

    with ThreadPoolExecutor(CALLERS) as pool:
        calling = [pool.submit(call, anew=bool(number % 2)) for number in range(CALLERS)]
        try:
            yield answered, failed
        finally:
            over.set()
    for one in calling:
        one.result()


def test_a_crash_loop_backs_off(state: State, tmp_path: Path) -> None:
    """A worker that cannot start is tried ever later; the control plane stays, and repair brings the worker back."""
    surfaces = tmp_path / "surfaces.toml"
    good = Path("ranking/surfaces.toml").read_text()
    surfaces.write_text(good)
    with server(state, surfaces=str(surfaces)) as endpoints:
        surfaces.write_text("[nonsense")
        os.kill(eventually(lambda: workers(state)).pop(), signal.SIGKILL)
        deaths = eventually(lambda: len(found := logged(state, "mantel.supervisor")) >= 4 and found)
        waits = [float(death.split()[-2]) for death in deaths]
        assert all(later > earlier for earlier, later in pairwise(waits)), deaths
        assert len(children(endpoints.pid)) >= 1
        surfaces.write_text(good)
        eventually(lambda: workers(state))
        assert page_of(state, endpoints, "u0000001").shelves


def test_children_end_with_a_killed_supervisor(state: State) -> None:
    """Kill -9 of the supervisor ends workers and control plane too, and the next server starts as if nothing was."""
    with server(state, workers="2") as endpoints:
        mine = eventually(lambda: len(found := children(endpoints.pid)) == 3 and found)
        os.kill(endpoints.pid, signal.SIGKILL)
        eventually(lambda: not any(map(alive, mine)))
    with server(state) as endpoints:
        assert page_of(state, endpoints, "u0000001").shelves


def test_sigterm_lets_calls_finish_and_leaves_nothing_behind(state: State) -> None:
    """A call that waits for Redis at SIGTERM is answered; the exit code is 0; no address, heartbeat or Redis stays."""
    with _started(state, **FREE_PORTS) as process:
        endpoints = eventually(state.endpoints)
        with client_of(state, endpoints) as client, redis_of(state) as store, ThreadPoolExecutor(1) as pool:
            eventually(client.serving)
            store.client_pause(2000)
            page = pool.submit(client.get_home, "u0000001", timeout_s=20)
            time.sleep(0.5)  # the call is on its way
            process.terminate()
            assert page.result().shelves
        assert process.wait(30) == 0
    assert state.endpoints() is None
    assert state.heartbeats() == []
    assert not (state.redis / "redis.sock").exists()


def test_ctrl_c_stops_in_order_though_everybody_gets_it(state: State) -> None:
    """Ctrl-C in a terminal interrupts the whole process group, twice if one is impatient: the end is the same."""
    with _started(state, **FREE_PORTS) as process:
        eventually(lambda: workers(state))
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
    assert state.endpoints() is None
    assert not (state.redis / "redis.sock").exists()


def test_a_second_server_on_a_state_directory_is_refused(state: State) -> None:
    """Two servers on one state directory: the second says so in one line and exits with 1."""
    with server(state), _started(state, **FREE_PORTS) as another:
        assert another.wait(30) == 1
        assert _last_words(state) == f"mantel: a server is running on {state.path} already"


@pytest.mark.parametrize("flag", ["port", "control-port", "metrics-port"])
def test_a_taken_port_is_refused_by_its_flag(tmp_path: Path, flag: str) -> None:
    """A port on which somebody listens is not shared: the refusal names the port and the flag."""
    state = State(tmp_path / "state")
    with _listening() as port, _started(state, **FREE_PORTS | {flag: str(port)}) as process:
        assert process.wait(30) == 1
        assert _last_words(state) == f"mantel: port {port} of 127.0.0.1 is taken; choose another with --{flag}"


def test_a_broken_surfaces_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """What a worker could not load, the server does not start with."""
    state = State(tmp_path / "state")
    surfaces = tmp_path / "surfaces.toml"
    surfaces.write_text("[nonsense")
    with _started(state, **FREE_PORTS, surfaces=str(surfaces)) as process:
        assert process.wait(30) == 2
    assert str(surfaces) in _last_words(state)
    assert not state.redis.exists()


def test_it_runs_as_the_first_process_of_a_container(state: State) -> None:
    """Where the supervisor is process 1, its children have a parent all the same."""
    container = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*container, "true"], check=False).returncode:
        pytest.skip("this machine allows no process namespaces")
    with _started(state, *container, **FREE_PORTS):
        endpoints = eventually(state.endpoints)
        assert endpoints.pid == 1
        eventually(lambda: workers(state))
        assert page_of(state, endpoints, "u0000001").shelves


@contextmanager
def _listening() -> Iterator[int]:
    """A port on which somebody listens, and would share it."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@contextmanager
def _started(state: State, *inside: str, **flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """`mantel serve` as a process of its own, killed at the end if it still runs."""
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    with log_of(state).open("ab") as log:
        command = [*inside, sys.executable, "-m", "server.cli", "serve", "--state", str(state.path), *words]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def _last_words(state: State) -> str:
    return log_of(state).read_text().splitlines()[-1]
