"""Admission: the limit in simulated time, and over the wire that every call that enters also leaves."""

import asyncio
import heapq
import random
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.admin.v1 import admin_pb2
from protos.home.v1 import home_pb2
from server.admission import PRIORITY, Admission, Bounds, Priority, Shed, priority_of
from server.identity import development_token
from tests.conftest import Served, Store, serving
from tests.wire import GET_HOME, bearer, call, controlling, eventually

Code = grpc.StatusCode
VISIBLE, PREFETCH = Priority.VISIBLE, Priority.PREFETCH
STEPS = st.lists(st.tuples(st.sampled_from(["visible", "prefetch", "leave"]), st.floats(0, 0.2)), max_size=200)


@given(steps=STEPS, least=st.integers(1, 8), more=st.integers(0, 40))
@settings(deadline=None)
def test_no_more_are_under_way_than_may_be(steps: list[tuple[str, float]], least: int, more: int) -> None:
    """Whatever enters and leaves: the limit keeps its bounds, prefetch its share, and nobody is lost from the count."""
    admission, inside, now = Admission(Bounds(least=least, most=least + more)), list[float](), 0.0
    for what, passed in steps:
        now += passed
        if what == "leave":
            if inside:
                admission.leave(entered_at=inside.pop(0), now=now, answered=passed < 0.1)
        else:
            room = admission.limit if what == "visible" else -(-admission.limit * 2 // 5)
            fits = len(inside) < room
            if fits:
                admission.enter(Priority(what))
                inside.append(now)
            else:
                with pytest.raises(Shed) as shed:
                    admission.enter(Priority(what))
                assert shed.value.pushback_ms >= (50 if what == "visible" else 1000)
        assert admission.in_flight == len(inside)
        assert least <= admission.limit <= least + more


def simulated(
    admission: Admission,
    *,
    rate: float,
    work_s: float,
    prefetch: float = 0.0,
    length_s: float = 30.0,
    start_s: float = 0.0,
) -> dict[Priority, list[float | None]]:
    """Poisson arrivals at a server that answers one after the other; how long each took, None where it was shed."""
    rng, now, free_at = random.Random(1), start_s, start_s
    under_way: list[tuple[float, float]] = []
    took: dict[Priority, list[float | None]] = {VISIBLE: [], PREFETCH: []}
    while (now := now + rng.expovariate(rate)) < start_s + length_s:
        while under_way and under_way[0][0] <= now:
            ended, entered = heapq.heappop(under_way)
            admission.leave(entered_at=entered, now=ended, answered=True)
        priority = PREFETCH if rng.random() < prefetch else VISIBLE
        try:
            admission.enter(priority)
        except Shed:
            took[priority].append(None)
            continue
        free_at = max(free_at, now) + work_s
        heapq.heappush(under_way, (free_at, now))
        took[priority].append(free_at - now)
    for ended, entered in under_way:
        admission.leave(entered_at=entered, now=ended, answered=True)
    return took


def percentile(took: list[float | None], share: float) -> float:
    """Of those that were answered."""
    answered = sorted(one for one in took if one is not None)
    return answered[int(share * (len(answered) - 1))]


@pytest.mark.parametrize("overload", [1.2, 2.0, 5.0])
def test_beyond_its_capacity_a_server_answers_as_many_as_it_can_and_in_time(overload: float) -> None:
    """1,000 requests/s of capacity: at most of it are answered within 25 ms, and the others are told at once."""
    took = simulated(Admission(Bounds()), rate=1000 * overload, work_s=0.001)[VISIBLE]
    in_time = sum(one is not None and one <= 0.025 for one in took)
    assert in_time >= 0.95 * 30_000
    assert percentile(took, 0.99) <= 0.025


def test_prefetch_is_shed_first() -> None:
    """At twice of what it can do well, half of it prefetch: who waits is answered, and prefetch gets what is left."""
    took = simulated(Admission(Bounds()), rate=1800, work_s=0.001, prefetch=0.5)
    shares = {kind: sum(one is not None for one in took[kind]) / len(took[kind]) for kind in took}
    assert shares[VISIBLE] >= 0.98
    assert shares[PREFETCH] <= 0.2


def test_at_rest_nobody_is_shed() -> None:
    """At two thirds of the capacity, and with no load at all, the limit stands where it bothers nobody."""
    for rate in (20.0, 600.0):
        took = simulated(Admission(Bounds()), rate=rate, work_s=0.001, prefetch=0.3)
        assert all(one is not None for one in (*took[VISIBLE], *took[PREFETCH]))


@pytest.mark.parametrize("work_s", [0.0001, 0.001, 0.01])
def test_what_takes_longer_is_found_out(work_s: float) -> None:
    """Whatever a request takes, before or from one day on: the server stays busy, and the queue bounded."""
    admission = Admission(Bounds())
    simulated(admission, rate=1000, work_s=0.0005)
    took = simulated(admission, rate=2 / work_s, work_s=work_s, length_s=20_000 * work_s, start_s=30)[VISIBLE]
    assert sum(one is not None for one in took) >= 0.9 * 20_000
    assert percentile(took[len(took) // 2 :], 0.99) <= max(0.025, 3 * 8 * work_s)


def test_what_a_call_says_of_itself() -> None:
    """Nothing: a person waits; a word that nobody knows is the lowest priority."""
    assert priority_of(()) is VISIBLE
    assert priority_of((("a", "b"), (PRIORITY, "visible"))) is VISIBLE
    for word in ("prefetch", "critical", "", b"visible"):
        assert priority_of(((PRIORITY, word),)) is PREFETCH


LISTENER = home_pb2.GetHomeRequest(user_id="u0000001")


@pytest_asyncio.fixture(loop_scope="session")
async def narrow(published: Store) -> AsyncIterator[Served]:
    """The small world served to two calls at a time."""
    async with serving(published.state, published.url, admission_limit=2, read_budget_ms=20_000.0) as one:
        yield one


async def test_who_enters_leaves_however_it_ends(narrow: Served) -> None:
    """Answered, wrong, malformed, unknown caller, no deadline left, a programmer's error: room again each time."""
    stranger = bearer("nobody")
    for _ in range(3):
        endings = [
            await call(narrow.channel, GET_HOME, LISTENER, metadata=narrow.metadata),
            await call(narrow.channel, GET_HOME, home_pb2.GetHomeRequest(), metadata=narrow.metadata),
            await call(narrow.channel, GET_HOME, b"\xff", metadata=narrow.metadata),
            await call(narrow.channel, GET_HOME, LISTENER, metadata=stranger),
        ]
        codes = [Code.OK, Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, Code.UNAUTHENTICATED]
        assert [one.code for one in endings] == codes
        assert narrow.plane.admission.in_flight == 0


async def test_who_is_cancelled_or_late_leaves(narrow: Served, published: Store) -> None:
    """Calls that wait for a silent store: cancelled by their caller, or beyond their deadline."""
    published.client.client_pause(2500)
    stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = narrow.channel.unary_unary(GET_HOME)
    waiting = [stub(LISTENER.SerializeToString(), metadata=narrow.metadata) for _ in range(2)]
    await eventually(lambda: narrow.plane.admission.in_flight == 2)
    for one in waiting:
        one.cancel()
    await eventually(lambda: narrow.plane.admission.in_flight == 0)
    late = await call(narrow.channel, GET_HOME, LISTENER, metadata=narrow.metadata, timeout=0.2)
    assert late.code is Code.DEADLINE_EXCEEDED
    await eventually(lambda: narrow.plane.admission.in_flight == 0)


async def test_beyond_the_limit_a_call_is_refused_with_a_time_to_stay_away(narrow: Served, published: Store) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo and pushback, prefetch first, counted; health and the control port answer."""
    published.client.client_pause(4000)
    stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = narrow.channel.unary_unary(GET_HOME)
    raw = LISTENER.SerializeToString()
    prefetch = (*narrow.metadata, (PRIORITY, "prefetch"))
    waiting = [asyncio.ensure_future(stub(raw, metadata=narrow.metadata))]
    await eventually(lambda: narrow.plane.admission.in_flight == 1)
    assert await refused(stub, raw, prefetch) >= 1000
    waiting.append(asyncio.ensure_future(stub(raw, metadata=narrow.metadata)))
    await eventually(lambda: narrow.plane.admission.in_flight == 2)
    assert await refused(stub, raw, narrow.metadata) >= 50
    health = health_pb2_grpc.HealthStub(narrow.channel)
    reply = await health.Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]  # not in the stubs
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    token = bearer(development_token(published.state))
    async with controlling(published.state, published.url) as control:
        listed = "/mantel.admin.v1.AdminService/GetStatus"
        status = await call(control, listed, admin_pb2.GetStatusRequest(), metadata=token)
        assert status.code is Code.OK
    assert all(await asyncio.gather(*waiting))
    assert narrow.plane.admission.in_flight == 0
    (shed,) = narrow.plane.metrics._shed.collect()
    counted = {one.labels["priority"]: one.value for one in shed.samples if one.name.endswith("_total")}
    assert counted == {"prefetch": 1.0, "visible": 1.0}


async def refused(stub: "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]", raw: bytes, metadata: object) -> int:
    """How long a refused call is to stay away, in milliseconds, as both places say."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(raw, metadata=metadata)  # type: ignore[arg-type]  # pairs of text
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    rich = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # it has what is asked for
    assert rich is not None
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in rich.details)
    told = dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]
    assert int(told) == retry.retry_delay.ToMilliseconds()
    return int(told)
