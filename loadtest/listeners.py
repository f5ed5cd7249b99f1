"""Simulated listeners against a running server: they open Home, look, play and skip, and come back to the next page.

Behaviour is in `behaviour.py`; here are time and transport. A listener's time is simulated: a step of a session takes
minutes, sessions lie hours apart, and the last one ends when the run begins, so that the server takes all events for
past ones. Sessions and events are named after the seed: the same run again adds nothing to a server that had it.
"""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc
import numpy as np

from loadtest.behaviour import Deed, Habits, Kind, intent_for, visit
from protos.events.v1 import events_pb2, events_pb2_grpc
from protos.home.v1 import home_pb2, home_pb2_grpc

if TYPE_CHECKING:
    from protos.events.v1.events_pb2_grpc import EventServiceAsyncStub
    from protos.home.v1.home_pb2_grpc import HomeServiceAsyncStub

STEP_S: Final = 300.0  # of the simulated clock, from one page to the next
PAUSE_S: Final = 8 * 3600.0  # from one session to the next
REACH_S: Final = 46 * 3600.0  # how far back all sessions may reach: a server takes events of 48 hours
EVENTS: Final = 500  # that one call may record
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is simulated."""

    began: float  # unix seconds; all that listeners do lies before
    seed: int
    sessions: int = 1
    steps: int = 15  # pages of a session
    habits: Habits = field(default_factory=Habits)
    among: Sequence[str] = ()  # genres that a listener may be after
    low: float = 0.35  # a session is after a genre of which its first page shows a share from low to high
    high: float = 0.55
    surface: str = "home"
    market: str = ""
    send: bool = True  # whether the server is told what listeners do
    concurrency: int = 32  # listeners at a time
    pause_s: float = 0.0  # of real time, after each page
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Visited:
    """One page, and what came of it."""

    user_id: str
    session: int
    step: int
    intent: str
    shown: float  # share of its items that fit the intent; nan: an empty page
    seen: float  # the same of those that were looked at
    items: tuple[str, ...]  # ids, shelf by shelf
    promoted: int  # of those looked at, how many stood by promotion
    arms: tuple[str, ...]  # experiment=arm
    degraded: bool
    seconds: float  # until the page was there


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What came of a run."""

    visits: Sequence[Visited]  # by listener, session and step
    events: Mapping[tuple[str, str], int]  # kind and result -> how many
    errors: Mapping[str, int]  # status -> how many calls


async def simulate(  # a server, who comes, what they know, and who is told
    channel: grpc.aio.Channel,
    metadata: Sequence[tuple[str, str]],
    users: Sequence[str],
    kinds: Mapping[str, Collection[str]],
    plan: Plan,
    progress: Progress,
) -> Simulation:
    """Lets listeners come, some at a time; `kinds` are the genres of items by id. A call that fails is counted."""
    run = _Run(channel, metadata, kinds, plan, progress, len(users))
    room = asyncio.Semaphore(plan.concurrency)

    async def come(number: int, user_id: str) -> None:
        async with room:
            for session in range(plan.sessions):
                await run.session(number, user_id, session)

    async with asyncio.TaskGroup() as group:
        for number, user_id in enumerate(users):
            group.create_task(come(number, user_id))
    order = {user_id: number for number, user_id in enumerate(users)}
    visits = sorted(run.visits, key=lambda one: (order[one.user_id], one.session, one.step))
    return Simulation(visits=visits, events=dict(run.events), errors=dict(run.errors))


class _Run:
    """A run under way."""

    def __init__(  # as above
        self,
        channel: grpc.aio.Channel,
        metadata: Sequence[tuple[str, str]],
        kinds: Mapping[str, Collection[str]],
        plan: Plan,
        progress: Progress,
        listeners: int,
    ) -> None:
        self._home: HomeServiceAsyncStub = home_pb2_grpc.HomeServiceStub(channel)
        self._events: EventServiceAsyncStub = events_pb2_grpc.EventServiceStub(channel)
        self._metadata, self._kinds, self._plan = tuple(metadata), kinds, plan
        self._progress, self._pages, self._asked = progress, listeners * plan.sessions * plan.steps, 0
        self.visits: list[Visited] = []
        self.events: Counter[tuple[str, str]] = Counter()
        self.errors: Counter[str] = Counter()

    async def session(self, number: int, user_id: str, session: int) -> None:
        """One session of a listener, page by page."""
        plan, intent = self._plan, ""
        session_id = session_name(plan.seed, user_id, session)
        for step in range(plan.steps):
            started = time.perf_counter()
            home = await self._page(user_id, session_id)
            seconds = time.perf_counter() - started
            self._asked += 1
            self._progress("pages", self._asked, self._pages)
            if home is None:
                continue
            page = [[item.item_id for item in shelf.items] for shelf in home.shelves]
            if not intent:
                rng = np.random.default_rng([plan.seed, number, session])
                intent = intent_for(page, self._kinds, plan.among, rng, low=plan.low, high=plan.high)
            rng = np.random.default_rng([plan.seed, number, session, step])
            done = visit(page, intent, self._kinds, plan.habits, rng)
            seen = [home.shelves[deed.place[0]].items[deed.place[1]] for deed in done.deeds if _looks(deed)]
            self.visits.append(
                Visited(
                    user_id=user_id,
                    session=session,
                    step=step,
                    intent=intent,
                    shown=done.shown,
                    seen=done.seen,
                    items=tuple(item for shelf in page for item in shelf),
                    promoted=sum(item.HasField("promotion") for item in seen),
                    arms=tuple(sorted(f"{one.experiment}={one.arm}" for one in home.assignments if one.arm)),
                    degraded=home.degraded,
                    seconds=seconds,
                )
            )
            if plan.send:
                await self._tell(events_of(done.deeds, home, user_id, session_id, plan, session=session, step=step))
            if plan.pause_s:
                await asyncio.sleep(plan.pause_s)

    async def _page(self, user_id: str, session_id: str) -> home_pb2.GetHomeResponse | None:
        request = home_pb2.GetHomeRequest(
            user_id=user_id,
            surface=self._plan.surface,
            session_id=session_id,
            context=home_pb2.Context(market=self._plan.market),
        )
        try:
            return await self._home.GetHome(request, timeout=self._plan.timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            self.errors[f"GetHome {error.code().name}"] += 1
            return None

    async def _tell(self, events: Sequence[events_pb2.Event]) -> None:
        for first in range(0, len(events), EVENTS):
            some = events[first : first + EVENTS]
            request = events_pb2.RecordEventsRequest(events=some)
            try:
                told = await self._events.RecordEvents(request, timeout=self._plan.timeout_s, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                self.errors[f"RecordEvents {error.code().name}"] += 1
                continue
            for event, outcome in zip(some, told.outcomes, strict=True):
                result = events_pb2.EventResult.Name(outcome.result).removeprefix("EVENT_RESULT_")
                kind = events_pb2.EventKind.Name(event.kind).removeprefix("EVENT_KIND_")
                self.events[kind.lower(), result.lower()] += 1


def session_name(seed: int, user_id: str, session: int) -> str:
    """The id of a session: of one seed it is always the same."""
    return hashlib.blake2b(f"{seed}|{user_id}|{session}".encode(), digest_size=10).hexdigest()


def step_begins(plan: Plan, session: int, step: int) -> tuple[float, float]:
    """When a step of a session begins, unix seconds of the simulated clock, and how long it takes."""
    step_s = min(STEP_S, REACH_S / 2 / plan.sessions / plan.steps)
    pause_s = min(PAUSE_S, REACH_S / 2 / plan.sessions)
    left = plan.sessions - session
    begins = plan.began - left * plan.steps * step_s - (left - 1) * pause_s
    return begins + step * step_s, step_s


def events_of(  # noqa: PLR0913  # what was done, on which page, by whom and when
    deeds: Sequence[Deed],
    home: home_pb2.GetHomeResponse,
    user_id: str,
    session_id: str,
    plan: Plan,
    *,
    session: int,
    step: int,
) -> list[events_pb2.Event]:
    """What was done with a page as events, spread over the step."""
    begins, lasts = step_begins(plan, session, step)
    events = []
    for number, deed in enumerate(deeds):
        row, column = deed.place
        event = events_pb2.Event(
            event_id=f"{session_id}.{step}.{number}",
            user_id=user_id,
            kind=events_pb2.EventKind.Value(f"EVENT_KIND_{deed.kind}"),
            item_id=deed.item_id,
            tracking_token=home.shelves[row].items[column].tracking_token,
            played_ms=deed.heard_s * 1000,
            session_id=session_id,
        )
        event.occurred_at.FromMilliseconds(int(1000 * (begins + lasts * number / len(deeds))))
        events.append(event)
    return events


def _looks(deed: Deed) -> bool:
    return deed.kind is Kind.IMPRESSION
