"""Workers that freeze, and workers that are replaced: calls go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from features.state import State
from protos.client import CANCELLED_TRIES, HomeClient
from server import pulse as pulse_
from server.pulse import Ear, Pulse
from tests.operation import eventually, logged, mantel, server
from tests.test_supervisor import _callers, _patient, state, workers  # noqa: F401  # fixtures

ROLLOVERS = int(os.environ.get("MANTEL_TEST_ROLLOVERS", "2"))
CHILD = """
import sys, time
from server.pulse import Pulse
pulse = Pulse(int(sys.argv[1]))
for _ in range(5):
    pulse.beat(ready=sys.argv[2] == "ready")
    time.sleep(0.02)
while sys.argv[3] == "spins":
    pass
while True:
    if sys.argv[3] == "beats":
        pulse.beat(ready=True)
    time.sleep(0.05)
"""


@contextmanager
def child(ready: str, then: str) -> Iterator[tuple[Ear, int]]:
    """A process that beats for a moment, and what is heard of it."""
    ear = Ear()
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(ear.far_end), ready, then], pass_fds=(ear.far_end,))
    ear.started()
    try:
        yield ear, process.pid
    finally:
        process.kill()
        process.wait()
        ear.close()


def verdicts(ear: Ear, pid: int, seconds: float) -> Iterator[str]:
    """What the ear says for a while, after the first beat."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield ear.frozen(pid, time.monotonic())
        time.sleep(0.02)


@pytest.mark.parametrize("then", ["sleeps", "spins"])
def test_a_process_that_stops_beating_counts_as_frozen(then: str) -> None:
    """Whether its loop waits for ever or runs in circles; not before it is ready."""
    with child("ready", then) as (ear, pid):
        eventually(lambda: ear.frozen(pid, time.monotonic()).startswith("silent for"))
    with child("loading", then) as (ear, pid):
        assert not any(verdicts(ear, pid, 1.5))


def test_a_stopped_process_counts_as_frozen_and_a_beating_one_does_not() -> None:
    """SIGSTOP is told by its name, also while it loads; after SIGCONT all is well again."""
    with child("ready", "beats") as (ear, pid):
        eventually(lambda: ear.frozen(pid, time.monotonic()) == "" and ear.ready)
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: ear.frozen(pid, time.monotonic()).startswith("stopped"))
        os.kill(pid, signal.SIGCONT)
        eventually(lambda: not ear.frozen(pid, time.monotonic()))
    with child("loading", "sleeps") as (ear, pid):
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: ear.frozen(pid, time.monotonic()).startswith("stopped"))


def test_a_batch_under_way_for_too_long_withholds_the_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop may live on: without pages it counts for nothing."""
    monkeypatch.setattr(pulse_, "BATCH_S", 0.05)
    end, far_end = os.pipe()
    os.set_blocking(end, False)
    pulse = Pulse(far_end)
    with pulse.computing():
        pulse.beat(ready=True)
        assert os.read(end, 10) == b"r"
        time.sleep(0.1)
        pulse.beat(ready=True)
        with pytest.raises(BlockingIOError):
            os.read(end, 10)
    pulse.beat(ready=False)
    assert os.read(end, 10) == b"l"
    for one in (end, far_end):
        os.close(one)


def test_a_frozen_worker_is_replaced_while_the_other_serves(state: State) -> None:  # noqa: F811
    """Stopped by a signal: killed, replaced, and no call of the shipped client is lost that can wait so long."""
    with server(state, workers="2") as endpoints:
        before = eventually(lambda: len(workers(state)) == 2 and workers(state))
        with _callers(state, endpoints) as (answered, failed):
            (frozen, _) = sorted(before)
            os.kill(frozen, signal.SIGSTOP)
            eventually(lambda: len(workers(state)) == 2 and frozen not in workers(state))
            served = len(answered)
            eventually(lambda: len(answered) > served + 50)
        assert not failed, failed[:3]
        assert any(f"{frozen} is killed: stopped" in line for line in logged(state, "mantel.supervisor"))


def test_rollovers_under_load_lose_no_call(state: State) -> None:  # noqa: F811
    """By the command, one after the other: all workers are new, and the shipped client has noticed nothing."""
    with server(state, workers="2") as endpoints:
        eventually(lambda: len(workers(state)) == 2)
        with _callers(state, endpoints) as (answered, failed):
            for _ in range(ROLLOVERS):
                before, served = workers(state), len(answered)
                done = mantel("workers", "rollover", "--state", str(state.path))
                assert (done.returncode, done.stdout[:13]) == (0, "new workers: "), done.stderr
                after = eventually(lambda: len(workers(state)) == 2 and workers(state))
                assert not before & after
                eventually(lambda served=served: len(answered) > served + 50)  # type: ignore[misc]
        assert not failed, failed[:3]


def test_a_rollover_to_workers_that_cannot_start_changes_nothing(state: State, tmp_path: Path) -> None:  # noqa: F811
    """The command says so, the old worker serves on; once repaired, another rollover goes through."""
    surfaces, good = tmp_path / "surfaces.toml", Path("ranking/surfaces.toml").read_text()
    surfaces.write_text(good)
    with server(state, surfaces=str(surfaces)):
        before = eventually(lambda: workers(state))
        surfaces.write_text("[nonsense")
        done = mantel("workers", "rollover", "--state", str(state.path))
        assert done.returncode == 1
        assert "the old workers serve on" in done.stderr.replace("\n", " ")
        assert workers(state) == before
        surfaces.write_text(good)
        assert mantel("workers", "rollover", "--state", str(state.path)).returncode == 0
        assert not eventually(lambda: workers(state)) & before


class Cancelled(grpc.RpcError):
    """A call that the server cancelled."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("times", range(CANCELLED_TRIES + 1))
def test_a_call_that_nobody_cancelled_is_sent_again(times: int) -> None:
    """As often as the limit says, within the deadline of the first."""
    left, timeouts = [times], []

    def method(_: object, *, timeout: float, metadata: object) -> str:
        del metadata
        timeouts.append(timeout)
        left[0] -= 1
        if left[0] >= 0:
            raise Cancelled
        return "page"

    with HomeClient("127.0.0.1:1") as client:
        if times < CANCELLED_TRIES:
            assert client.ask(method, None, 1.0) == "page"
        else:
            with pytest.raises(Cancelled):
                client.ask(method, None, 1.0)
    assert len(timeouts) == min(times + 1, CANCELLED_TRIES)
    assert timeouts == sorted(timeouts, reverse=True)
