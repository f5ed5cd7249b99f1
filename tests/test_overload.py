"""Overload: what its instrument counts is what the server did, and a server that refuses calls still listens."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from loadtest import overload
from loadtest.connections import GrpcConnection
from loadtest.contest import rules
from loadtest.generator import Load, Target, opened
from loadtest.overload import judge, measure, summed
from ranking.home import assemble
from server.admission import PRIORITY, Admission, Bounds, Priority, Shed
from server.cli_overload import rules_of
from tests.conftest import Served, Store, quiet, serving
from tests.test_contest import ASKED
from tests.test_failures import handled
from tests.wire import GET_HOME, eventually

RULES = rules()["overload"]
LIMITS = {"generator": 0.9, "others": 0.05}


def load(*, answered_ms: list[float], refused_ms: list[float] = [], failed: int = 0) -> Load:  # noqa: B006  # read only
    """A second of calls."""
    return Load(
        seconds=1.0,
        failed=failed,
        latencies=np.array(answered_ms) / 1000,
        payload=1.0,
        busy=0.1,
        late_s=0.0001,
        refused=np.array(refused_ms) / 1000,
    )


AT_KNEE = load(answered_ms=[10.0] * 100)
VISIBLE = load(answered_ms=[12.0] * 90, refused_ms=[1.0] * 10)
PREFETCH = load(answered_ms=[14.0] * 20, refused_ms=[2.0] * 80)


def found(*rounds: tuple[Load, Load, Load], others: float = 0.0) -> overload.Overload:
    """What rounds come to."""
    return summed(100.0, rounds, [others] * len(rounds), in_time_s=0.025, seconds=1.0)


def test_pages_in_time_are_counted_against_those_at_the_knee() -> None:
    """Of both kinds together; who is refused is told by kind; the floors stand."""
    one = found((AT_KNEE, VISIBLE, PREFETCH))
    assert (one.at_knee.in_time, one.beyond.in_time, one.beyond.offered) == (100, 110, 200)
    assert (one.visible.refused, one.prefetch.refused) == (0.1, 0.8)
    assert one.beyond.refused_p99_ms == pytest.approx(2.0)
    verdict = judge(one, RULES, LIMITS)
    assert {figure.name: round(figure.value, 3) for figure in verdict.figures} == {
        "goodput": 1.1,
        "refused_p99_ms": 2.0,
        "visible_p99_ms": 12.0,
        "visible_refused": 0.125,
    }
    assert (verdict.exit_code, verdict.doubts) == (0, ())


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("goodput", (AT_KNEE, VISIBLE, load(answered_ms=[26.0] * 20, refused_ms=[2.0] * 80))),
        ("refused_p99_ms", (AT_KNEE, VISIBLE, replace(PREFETCH, refused=np.full(80, 0.006)))),
        ("visible_p99_ms", (AT_KNEE, replace(VISIBLE, latencies=np.append(VISIBLE.latencies, [0.03] * 9)), PREFETCH)),
        ("visible_refused", (AT_KNEE, PREFETCH, replace(VISIBLE, latencies=np.full(100, 0.01)))),
    ],
)
def test_each_floor_can_be_missed(name: str, rounds: tuple[Load, Load, Load]) -> None:
    """Late pages, slow refusals, a late page in a hundred, prefetch before people: exit code 1."""
    if name == "goodput":
        rounds = (AT_KNEE, load(answered_ms=[12.0] * 80, refused_ms=[1.0] * 20), rounds[2])
    verdict = judge(found(rounds), RULES, LIMITS)
    assert [figure.name for figure in verdict.figures if not figure.stands] == [name]
    assert verdict.exit_code == 1


def test_a_busy_machine_or_a_failed_call_leaves_no_verdict() -> None:
    """Others on a core, a generator that is late or at its limit, a call that was neither answered nor refused."""
    doubtful = [
        found((AT_KNEE, VISIBLE, PREFETCH), others=0.5),
        found((AT_KNEE, VISIBLE, replace(PREFETCH, failed=1))),
        found(tuple(replace(one, busy=0.95) for one in (AT_KNEE, VISIBLE, PREFETCH))),  # type: ignore[arg-type]
        found(tuple(replace(one, late_s=0.01) for one in (AT_KNEE, VISIBLE, PREFETCH))),  # type: ignore[arg-type]
    ]
    for one in doubtful:
        verdict = judge(one, RULES, LIMITS)
        assert (verdict.exit_code, len(verdict.doubts)) == (2, 1)


def test_one_round_in_three_does_not_decide() -> None:
    """Figures are medians over rounds."""
    disturbed = (AT_KNEE, replace(VISIBLE, latencies=np.full(90, 0.5)), PREFETCH)
    assert (
        judge(found((AT_KNEE, VISIBLE, PREFETCH), disturbed, (AT_KNEE, VISIBLE, PREFETCH)), RULES, LIMITS).exit_code
        == 0
    )


def test_what_was_asked_for_stands_in_place_of_the_rules() -> None:
    """Rounds and seconds; a quick run has shorter searches too, with the same floors."""
    changed = rules_of(quick=True, rounds=2, seconds=None)
    assert (changed["rounds"], changed["seconds"]) == (2, RULES["quick"]["seconds"])
    assert changed["knee"]["confirm_s"] == RULES["quick"]["confirm_s"] < RULES["knee"]["confirm_s"]
    assert changed["knee"]["p99_ms"] == RULES["knee"]["p99_ms"]
    assert RULES["floors"].keys() == RULES["aims"].keys()


def target(served: Served, *headers: tuple[str, str]) -> Target:
    """A served port, called by frames."""
    port = served.plane.transport.port
    bearer = ("authorization", f"Bearer {served.token}")
    connect = partial(GrpcConnection, f"127.0.0.1:{port}", GET_HOME, [bearer, *headers])
    return Target(host="127.0.0.1", port=port, connect=connect, requests=ASKED, shares_connections=True)


@pytest_asyncio.fixture(loop_scope="session")
async def narrow(published: Store) -> AsyncIterator[Served]:
    """The small world served to three calls at a time, one of them a prefetch, each slow."""
    async with serving(published.state, published.url, admission_limit=3, drill_sleep_ms=50.0) as one:
        yield one


async def test_refusals_are_told_from_failures(narrow: Served) -> None:
    """As many as the server refused, beside those that it answered; a stranger's calls have failed."""
    found = await opened(target(narrow), rate=200, seconds=0.5, seed=1, patience_s=60)
    assert found.failed == 0
    assert len(found.refused) + len(found.latencies) == 100
    assert len(found.refused) == handled(narrow, grpc.StatusCode.RESOURCE_EXHAUSTED) > 0
    assert len(found.latencies) == handled(narrow, grpc.StatusCode.OK) > 0
    strange = await opened(target(narrow, ("authorization", "x")), rate=20, seconds=0.2, seed=1, patience_s=60)
    assert len(strange.latencies) + len(strange.refused) + strange.failed == 4


async def test_a_server_beyond_its_knee_is_measured(narrow: Served) -> None:
    """The knee lies below what a drill allows; of the calls beyond it prefetches are refused first."""

    @contextmanager
    def watched(others: list[float]) -> Iterator[None]:
        yield
        others.append(0.0)

    knee = {"p99_ms": 60_000.0, "refused": 1.0, "search_s": 0.2, "confirm_s": 0.2}
    short = {"work_ms": 5.0, "times": 2.0, "prefetch": 0.5, "warm_up_s": 0.1, "rounds": 1, "seconds": 1.0, "knee": knee}
    visible, prefetch = target(narrow), target(narrow, (PRIORITY, "prefetch"))
    one = await measure(visible, prefetch, short, watched=watched, progress=quiet)
    assert one is not None
    assert 0.9 * 200 <= one.knee < 200
    assert one.visible.offered + one.prefetch.offered == one.beyond.offered == pytest.approx(2 * one.knee, rel=0.02)
    assert 0 < one.visible.refused < one.prefetch.refused < 1
    assert one.failed == 0


def test_who_refuses_is_pressed_until_a_window_passes_without() -> None:
    """Whether the limit is found or fixed."""
    for bounds in (Bounds(), Bounds(least=2, most=2)):
        admission, now = Admission(bounds), 0.0
        for _ in range(admission.limit):
            admission.enter(Priority.VISIBLE)
        assert not admission.pressed
        with pytest.raises(Shed):
            admission.check(Priority.VISIBLE)
        pressed = []
        for _ in range(3):
            for _ in range(10):  # calls make a window
                now += 0.02
                admission.leave(entered_at=now - 0.001, now=now, answered=True)
                admission.enter(Priority.PREFETCH if admission.in_flight == 0 else Priority.VISIBLE)
            pressed.append(admission.pressed)
        assert pressed == [True, False, False]


async def test_a_pressed_server_computes_beside_the_loop(narrow: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the loop's own thread at rest, in another while calls are refused."""
    threads: list[threading.Thread] = []

    def seen(*arguments: Any, **named: Any) -> Any:
        threads.append(threading.current_thread())
        return assemble(*arguments, **named)

    monkeypatch.setattr("server.home_batches.assemble", seen)
    stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = narrow.channel.unary_unary(GET_HOME)
    await stub(ASKED[0], metadata=narrow.metadata)
    assert set(threads) == {threading.current_thread()}
    threads.clear()
    calls = [asyncio.ensure_future(stub(ASKED[0], metadata=narrow.metadata)) for _ in range(20)]
    await asyncio.gather(*calls, return_exceptions=True)
    await eventually(lambda: narrow.plane.admission.pressed)
    threads.clear()
    await stub(ASKED[0], metadata=narrow.metadata)
    assert [one.name.startswith("mantel-core") for one in threads] == [True]
