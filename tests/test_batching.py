"""Natural batching: what a batch holds, in which order, and who learns of a failure."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DeadlineExceeded
from server.batching import Batcher, Budget, Waiting, by_query

HOUR_S = 3600
FAR = time.monotonic() + 2 * HOUR_S


class Doubling:
    """Doubles numbers, keeps each batch it was given, and waits at a gate; -1 fails and -2 is a stray cancellation."""

    def __init__(self, *, gate: bool = False, short: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.entered, self.gate = asyncio.Event(), asyncio.Event()
        self._short = short
        if not gate:
            self.gate.set()

    async def __call__(self, queries: Sequence[int]) -> list[int]:
        """Two times each query."""
        self.batches.append(list(queries))
        self.entered.set()
        await self.gate.wait()
        if -1 in queries:
            raise ValueError("minus one")
        if -2 in queries:
            raise asyncio.CancelledError
        return [2 * query for query in queries][self._short :]


@asynccontextmanager
async def running(
    serve: Doubling, *, cap: int = 16, budget: Budget[int] | None = None
) -> AsyncIterator[Batcher[int, int]]:
    """A batcher at work."""
    batcher: Batcher[int, int] = Batcher(by_query(serve), cap=cap, budget=budget)
    work = asyncio.create_task(batcher.run())
    yield batcher
    work.cancel()
    with suppress(asyncio.CancelledError):
        await work


class Rooms:
    """A budget by which a query costs what it is, and a batch may cost what is left of its first hour in seconds."""

    def __init__(self, most: float) -> None:
        self._most = most

    def work(self, query: int) -> float:
        """The query itself."""
        return query

    def room(self, left_s: float) -> float:
        """The most, and less where the deadline is nearer than an hour."""
        return self._most if left_s > HOUR_S else 2


async def ask(batcher: Batcher[int, int], *queries: int, deadline: float = FAR) -> list[asyncio.Task[int]]:
    """Tasks that have each submitted a query, in order."""
    tasks = [asyncio.create_task(batcher.submit(query, deadline=deadline)) for query in queries]
    await asyncio.sleep(0)  # each task runs up to its wait
    return tasks


async def held(serve: Doubling, batcher: Batcher[int, int]) -> asyncio.Task[int]:
    """A first query, which is being served and held at the gate."""
    (first,) = await ask(batcher, 0)
    await serve.entered.wait()
    return first


async def results(*tasks: asyncio.Task[int]) -> list[int | BaseException]:
    """What each task came to."""
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_lone_query_waits_for_nobody() -> None:
    """At rest a query is a batch of one."""
    serve = Doubling()
    async with running(serve) as batcher:
        assert await batcher.submit(21, deadline=FAR) == 42
        assert await batcher.submit(4, deadline=FAR) == 8
    assert serve.batches == [[21], [4]]


async def test_what_queues_while_a_batch_is_served_is_the_next() -> None:
    """All of it, in order of arrival."""
    serve = Doubling(gate=True)
    async with running(serve) as batcher:
        first = await held(serve, batcher)
        early, late = await ask(batcher, 3, 1), await ask(batcher, 2)
        serve.gate.set()
        assert await results(first, *early, *late) == [0, 6, 2, 4]
    assert serve.batches == [[0], [3, 1, 2]]


@settings(max_examples=50, deadline=None)
@given(queries=st.lists(st.integers(-1, 50), max_size=60), cap=st.integers(1, 20))
async def test_order_is_kept_and_the_cap_holds(queries: list[int], cap: int) -> None:
    """Each query gets its own result; no batch is larger than the cap; none but the failing fails."""
    serve = Doubling(gate=True)
    async with running(serve, cap=cap) as batcher:
        first = await held(serve, batcher)
        tasks = await ask(batcher, *queries)
        serve.gate.set()
        _, *found = await results(first, *tasks)
    assert [None if isinstance(one, ValueError) else one for one in found] == [
        None if query == -1 else 2 * query for query in queries
    ]
    chunks = [queries[start : start + cap] for start in range(0, len(queries), cap)]
    assert [batch for batch in serve.batches[1:] if len(batch) > 1] == [chunk for chunk in chunks if len(chunk) > 1]


@settings(max_examples=50, deadline=None)
@given(queries=st.lists(st.integers(0, 9), max_size=40), most=st.integers(-5, 30))
async def test_a_batch_holds_what_its_budget_has_room_for(queries: list[int], most: int) -> None:
    """As much as fits and no less, in order; one query always goes."""
    serve = Doubling(gate=True)
    async with running(serve, budget=Rooms(most)) as batcher:
        first = await held(serve, batcher)
        tasks = await ask(batcher, *queries)
        serve.gate.set()
        assert await results(first, *tasks) == [0, *(2 * query for query in queries)]
    batches = serve.batches[1:]
    assert [query for batch in batches for query in batch] == queries
    assert all(sum(batch) <= most for batch in batches if len(batch) > 1)
    assert all(sum(batch) + after[0] > most or len(batch) == 16 for batch, after in pairwise(batches))


async def test_the_earliest_deadline_bounds_the_batch_behind_it() -> None:
    """Who is in a hurry is served with those before them, and little is let in behind: others need no such haste."""
    serve = Doubling(gate=True)
    async with running(serve, budget=Rooms(100)) as batcher:
        first = await held(serve, batcher)
        before = await ask(batcher, 8, 9)
        hurried = await ask(batcher, 1, deadline=time.monotonic() + HOUR_S / 2)
        after = await ask(batcher, 3, 4)
        serve.gate.set()
        await results(first, *before, *hurried, *after)
    assert serve.batches == [[0], [8, 9, 1], [3, 4]]


async def test_an_answer_after_the_deadline_is_none() -> None:
    """What is served while its deadline passes, and what serving itself gives up, end alike; others are answered."""

    async def giving_up(batch: Sequence[Waiting[int]]) -> list[int | DeadlineExceeded]:
        await asyncio.sleep(max(0, min(one.deadline for one in batch) - time.monotonic() + 0.01))
        return [one.query or DeadlineExceeded("no time for it") for one in batch]

    batcher: Batcher[int, int] = Batcher(giving_up, cap=16)
    work = asyncio.create_task(batcher.run())
    soon = time.monotonic() + 0.5
    tasks = [asyncio.create_task(batcher.submit(one, deadline=at)) for one, at in ((1, soon), (0, FAR), (2, FAR))]
    late, given_up, served = await results(*tasks)
    work.cancel()
    assert isinstance(late, DeadlineExceeded)
    assert str(given_up) == "no time for it"
    assert served == 2


async def test_cancelled_queries_are_skipped() -> None:
    """Who left before work began costs none."""
    serve = Doubling(gate=True)
    async with running(serve) as batcher:
        first = await held(serve, batcher)
        left, stayed = await ask(batcher, 1, 2)
        left.cancel()
        serve.gate.set()
        assert await results(first, stayed) == [0, 4]
        assert left.cancelled()
    assert serve.batches == [[0], [2]]


async def test_who_leaves_a_failing_batch_is_not_served_again() -> None:
    """A batch that fails is served one by one, for those who still wait."""
    serve = Doubling(gate=True)
    async with running(serve) as batcher:
        await held(serve, batcher)
        serve.entered.clear()
        tasks = await ask(batcher, 1, -1, 2)
        serve.gate.set()
        serve.gate.clear()  # lets the first batch pass, and holds the next
        await serve.entered.wait()
        tasks[0].cancel()
        serve.gate.set()
        cancelled, failed, served = await results(*tasks)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert isinstance(failed, ValueError)
    assert served == 4
    assert serve.batches == [[0], [1, -1, 2], [-1], [2]]


async def test_expired_queries_are_answered_before_work() -> None:
    """DeadlineExceeded, and no work for them."""
    serve = Doubling(gate=True)
    async with running(serve) as batcher:
        first = await held(serve, batcher)
        (late,) = await ask(batcher, 1, deadline=time.monotonic())
        (good,) = await ask(batcher, 2)
        serve.gate.set()
        _, expired, served = await results(first, late, good)
    assert isinstance(expired, DeadlineExceeded)
    assert served == 4
    assert serve.batches == [[0], [2]]


async def test_a_wrong_number_of_results_is_an_error_for_all() -> None:
    """Nobody gets another's result."""
    serve = Doubling(gate=True, short=True)
    async with running(serve) as batcher:
        first = await held(serve, batcher)
        tasks = await ask(batcher, 1, 2, 3)
        serve.gate.set()
        found = await results(first, *tasks)
    assert {str(error) for error in found} == {"0 results for 1 queries"}


@pytest.mark.parametrize(("bad", "kind"), [(-1, ValueError), (-2, RuntimeError)])
async def test_a_failing_query_fails_alone(bad: int, kind: type[Exception]) -> None:
    """Its batch is served again one by one; a stray cancellation is a failure too, and the batcher lives on."""
    serve = Doubling(gate=True)
    async with running(serve) as batcher:
        first = await held(serve, batcher)
        tasks = await ask(batcher, 1, bad, 2)
        serve.gate.set()
        _, before, failed, after = await results(first, *tasks)
        assert (before, after) == (2, 4)
        assert isinstance(failed, kind)
        assert await batcher.submit(5, deadline=FAR) == 10


async def test_drain_serves_what_was_admitted() -> None:
    """It ends when nothing is queued or under way, and at once where nothing ever was."""
    serve = Doubling(gate=True)
    async with running(serve, cap=2) as batcher:
        await batcher.drain()
        first = await held(serve, batcher)
        tasks = await ask(batcher, 1, 2, 3)
        drained = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0)
        assert not drained.done()
        serve.gate.set()
        await drained
        assert await results(first, *tasks) == [0, 2, 4, 6]
    assert serve.batches == [[0], [1, 2], [3]]
