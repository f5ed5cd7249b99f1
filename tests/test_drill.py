"""Drills: a server that is slow on purpose says so everywhere, and the load test finds it out."""

import json
import time
import urllib.request
from pathlib import Path

import pytest

from features.state import State
from server.drill import Drill
from tests.operation import log_of, logged, mantel, published, server

PATIENT = "[generator]\nlag_p50_ms = 600000\nlag_p99_ms = 600000\nbusy = 1.0\nsent = 0.0\n"  # a busy machine
TIMES = ("--warm-up", "0.5", "--duration", "2", "--timeout", "30", "--connections", "2", "--quiet")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, built: Path) -> State:
    """A state directory in which the small world is published."""
    return published(tmp_path_factory.mktemp("drill") / "state", built)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers wait for a busy machine, and refuse nobody because of it."""
    monkeypatch.setenv("MANTEL_REDIS_TIMEOUT_MS", "10000")
    monkeypatch.setenv("MANTEL_ADMISSION_LIMIT", "2048")


def judged(state: State, promise: Path) -> tuple[int, dict[str, object]]:
    """The exit code of a load test of the state's server, and what it printed."""
    done = mantel("loadtest", "--state", str(state.path), "--slo", str(promise), "--json", *TIMES)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_sleep_of_30_ms_breaks_the_promise(state: State, tmp_path: Path) -> None:
    """Exit code 1 with the reason where a median of 6 ms was promised; the log and the metrics tell of the drill."""
    promise = tmp_path / "slo.toml"
    promise.write_text(f"rate = 30\np50_ms = 6.0\nerrors = 0.0\n{PATIENT}")
    with server(state, **{"drill-sleep-ms": "30"}) as endpoints:
        code, told = judged(state, promise)
        with urllib.request.urlopen(f"http://{endpoints.metrics}/metrics", timeout=30) as page:
            metrics = page.read().decode()
    assert (code, told["outcome"]) == (1, "fail")
    assert any(str(reason).startswith("p50_ms is ") for reason in told["reasons"])  # type: ignore[attr-defined]
    assert 'mantel_drill_seconds{kind="sleep"} 0.03' in metrics
    assert "drill_sleep_ms = 30; pages are slow on purpose" in log_of(state).read_text()
    assert any("a drill is on: sleep of 30 ms" in line for line in logged(state, "mantel.drill"))


def test_without_a_drill_a_loose_promise_is_kept(state: State, tmp_path: Path) -> None:
    """Exit code 0 from the same world, and no sample by which to raise an alarm."""
    promise = tmp_path / "slo.toml"
    promise.write_text(f"rate = 30\np50_ms = 20000\nerrors = 0.0\n{PATIENT}")
    with server(state) as endpoints:
        code, told = judged(state, promise)
        with urllib.request.urlopen(f"http://{endpoints.metrics}/metrics", timeout=30) as page:
            assert b"mantel_drill_seconds" not in page.read()
    assert (code, told["outcome"]) == (0, "pass")


def test_work_is_processor_time_of_each_page() -> None:
    """A batch of four costs four times the work; a sleep costs none, and no drill nothing."""
    began = time.thread_time()
    Drill(work_s=0.01).suffer(4)
    worked = time.thread_time() - began
    assert worked >= 0.04
    Drill(sleep_s=0.05).suffer(4)
    Drill().suffer(4)
    assert time.thread_time() - began - worked < 0.04
