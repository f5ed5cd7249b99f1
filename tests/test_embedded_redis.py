"""The Redis of a state directory: who starts it, who stops it, and what it keeps."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from features.embedded_redis import attached
from features.errors import Unavailable
from features.offline.publish import connect
from features.state import State
from tests.operation import PATIENCE_S, alive, eventually, redis_of


@pytest.fixture
def state(tmp_path: Path) -> State:
    """A state directory that nobody has used."""
    return State(tmp_path / "state")


def servers(state: State) -> list[int]:
    """The processes that work in a state directory's Redis folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        pid = int(path.parent.name)
        try:
            if path.readlink() == state.redis.resolve() and alive(pid):
                found.append(pid)
        except OSError:
            continue  # it has just ended
    return found


@contextmanager
def attaching(state: State) -> Iterator[tuple[SpawnProcess, Connection]]:
    """A process that attaches, counts itself in, says so, and stays until it is sent something."""
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_attach, args=(state, its))
    process.start()
    try:
        yield process, mine
    finally:
        process.kill()
        process.join()
        mine.close()
        its.close()


def _attach(state: State, told: Connection) -> None:
    with redis_of(state) as client:
        client.incr("attached")
        told.send("in")
        told.recv()


def told(said: Connection) -> str:
    """What a process says, in good time."""
    assert said.poll(PATIENCE_S)
    return str(said.recv())


def test_the_first_starts_it_and_the_last_stops_it(state: State) -> None:
    """Whoever comes later uses the same server; it runs until nobody is left, and then its socket is gone too."""
    with attached(state) as url:
        (pid,) = servers(state)
        with attached(state) as same:
            assert same == url
            assert servers(state) == [pid]
        with connect(url) as client:
            assert client.ping()
    assert not servers(state)
    assert not (state.redis / "redis.sock").exists()


def test_what_was_written_is_there_at_the_next_start(state: State) -> None:
    """Stopping leaves an append-only file that the next start reads, time after time."""
    for number in range(3):
        with redis_of(state) as client:
            assert client.incr("starts") == number + 1
    assert any((state.redis / "appendonlydir").iterdir())


def test_three_processes_at_once_start_one_server(state: State) -> None:
    """Whoever comes first starts it, the others attach, and the last of them stops it."""
    with ExitStack() as stack:
        all_three = [stack.enter_context(attaching(state)) for _ in range(3)]
        assert [told(said) for _, said in all_three] == ["in"] * 3
        assert len(servers(state)) == 1
        for process, said in all_three:
            said.send("out")
            process.join(PATIENCE_S)
            assert process.exitcode == 0
    assert not servers(state)
    with redis_of(state) as client:
        assert client.get("attached") == b"3"


def test_it_outlives_a_killed_process(state: State) -> None:
    """Kill -9 of whoever started it: it serves on, and stops when the next one leaves."""
    with attaching(state) as (process, said):
        assert told(said) == "in"
        before = servers(state)
    assert not alive(process.pid or 0)
    assert servers(state) == before
    with redis_of(state) as client:
        assert servers(state) == before
        assert client.get("attached") == b"1"
    assert not servers(state)


def test_it_starts_again_when_it_was_killed(state: State) -> None:
    """Kill -9 of the server itself: who attaches next starts another on the same file."""
    with redis_of(state) as first:
        first.set("kept", "1")
        os.kill(servers(state)[0], signal.SIGKILL)
        with redis_of(state) as client:
            assert client.get("kept") == b"1"


def test_a_server_too_busy_to_answer_is_waited_for(state: State) -> None:
    """Nobody starts a second server on the files of one that is loading or stuck, whatever it takes."""
    with attached(state):
        (pid,) = servers(state)
        os.kill(pid, signal.SIGSTOP)
        found: list[list[int]] = []
        waiting = threading.Thread(target=lambda: _note(state, found))
        waiting.start()
        try:
            time.sleep(5.5)  # longer than a ping waits
            assert servers(state) == [pid]
            assert not found
        finally:
            os.kill(pid, signal.SIGCONT)
            waiting.join(PATIENCE_S)
    assert found == [[pid]]


def _note(state: State, found: list[list[int]]) -> None:
    with attached(state):
        found.append(servers(state))


@pytest.mark.parametrize("name", ["deep/" * 40 + "state", "a state #1, 100%41 ?"], ids=["deep", "odd"])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    """A path longer than the system allows for sockets, or with characters that mean something in a URL."""
    state = State(tmp_path / name)
    for number in range(2):
        with redis_of(state) as client:
            assert client.incr("starts") == number + 1
    assert any((state.redis / "appendonlydir").iterdir())


def test_a_server_that_cannot_start_says_why(state: State) -> None:
    """A damaged append-only file: the error names the log and shows its end."""
    with redis_of(state) as client:
        client.set("a", "b")
    for path in (state.redis / "appendonlydir").glob("*.manifest"):
        path.write_text("garbage\n")
    with pytest.raises(Unavailable, match=r"does not start; .*redis\.log ends with: .*\w"), attached(state):
        pass


def test_a_terminated_command_leaves_no_server(state: State, built: Path) -> None:
    """SIGTERM while `mantel publish` waits for another publish: it ends at once, and its Redis with it."""
    with state.lock("publish", wait=False, held=""):
        command = [
            sys.executable,
            "-m",
            "server.cli",
            "publish",
            str(built),
            "--state",
            str(state.path),
            "--keep-records",
        ]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            eventually(lambda: servers(state))
            process.terminate()
            assert process.wait(PATIENCE_S) == 143
    assert not servers(state)
