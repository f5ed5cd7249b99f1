"""A batch of pages, within its time: one read of Redis, one run of the core.

While a batch computes in the event loop nobody is let in or refused, and calls wait in the transport where admission
does not see them. So a server that refuses calls computes beside the loop.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, NamedTuple

from features.errors import DeadlineExceeded, Unavailable
from features.listener_store import ListenerStore
from features.listeners import Frames
from features.snapshot import Snapshot
from ranking.home import assemble
from ranking.offers import offered_to
from ranking.promotions.binding import Bound
from ranking.types import Home, HomeQuery, Trace
from server.batching import Waiting
from server.budget import Budget
from server.drill import Drill
from server.experiments import Experiments
from server.metrics import Metrics
from server.placements import Placements
from server.promotions import PromotionBooks
from server.pulse import Pulse
from server.served import Batch, Served
from server.snapshots import Snapshots

LATE: Final = "the deadline passed while the listener was read"


class _Computed(NamedTuple):
    """What the core made of a batch."""

    snapshot: Snapshot
    by: Bound | None  # the promotions that it was made with
    homes: tuple[Home, ...]
    trace: Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeBatches:
    """Serves batches."""

    store: ListenerStore
    snapshots: Snapshots
    experiments: Experiments
    promotions: PromotionBooks
    placements: Placements
    metrics: Metrics
    pulse: Pulse
    budget: Budget
    drill: Drill
    pressed: Callable[[], bool]  # whether calls are being refused
    aside: Executor  # of one thread

    async def serve(self, batch: Sequence[Waiting[HomeQuery]]) -> list[Served | DeadlineExceeded]:
        """Pages for queries, all from one snapshot; none for who does not wait any more once their listeners are read.

        Raises:
            Unavailable: no snapshot was published yet.
        """
        snapshot = self.snapshots.current
        if snapshot is None:
            raise Unavailable("no snapshot is published yet")
        started, now = time.perf_counter(), time.monotonic()
        queries = [one.query for one in batch]
        latest = max(one.deadline for one in batch)
        budget_s = self.budget.for_read(sum(map(self.budget.work, queries)), latest - now)
        frames = await self.store.read([query.user_id for query in queries], snapshot, budget_s=budget_s)
        read_s, now = time.perf_counter() - started, time.monotonic()
        here = [place for place, one in enumerate(batch) if one.wanted(now)]
        if len(here) < len(batch):
            frames, queries = frames.take(here), [queries[place] for place in here]
        pages: dict[int, Served] = {}
        if here:
            narrowed = self.budget.narrowed(queries, [batch[place].deadline - now for place in here])
            if self.pressed():  # else in the loop itself, which saves 3 to 9 % of a page's processor time
                loop = asyncio.get_running_loop()
                computed = await loop.run_in_executor(self.aside, self._compute, narrowed, frames, snapshot)
            else:
                computed = self._compute(narrowed, frames, snapshot)
            pages = dict(zip(here, self._served(narrowed, frames, computed, read_s), strict=True))
        return [pages.get(place) or DeadlineExceeded(LATE) for place in range(len(batch))]

    def _compute(self, queries: tuple[HomeQuery, ...], frames: Frames, snapshot: Snapshot) -> _Computed:
        began, began_at = time.thread_time(), time.perf_counter()
        with self.pulse.computing():
            self.drill.suffer(len(queries))
            listeners = frames.decoded(snapshot)
            by = self.promotions.bound_to(snapshot)
            promotions = None if by is None else offered_to(by.promotions, listeners)
            homes, trace = assemble(queries, listeners, snapshot, promotions=promotions, clock=time.perf_counter)
        used_s, passed_s = time.thread_time() - began, time.perf_counter() - began_at
        self.budget.learn(sum(map(self.budget.work, queries)), used_s=used_s, passed_s=passed_s)
        return _Computed(snapshot, by, homes, trace)

    def _served(
        self, queries: tuple[HomeQuery, ...], frames: Frames, computed: _Computed, read_s: float
    ) -> Iterable[Served]:
        snapshot, by, homes, trace = computed
        homes = self.promotions.mark(self.experiments.mark_stale(self.snapshots.mark_stale(homes)), by)
        both = zip(queries, homes, strict=True)
        shown = [(query.surface.name, home) for query, home in both if not query.explained]
        self.metrics.served(shown, read_s, trace)
        if by is not None and len(trace.eligible):  # counted after the responses
            asyncio.get_running_loop().call_later(0, self.placements.served, queries, homes, trace.eligible, by)
        batch = Batch(snapshot=snapshot, frames=frames, promoted_by=by, read_s=read_s, trace=trace)
        return (Served(home=home, batch=batch, place=place) for place, home in enumerate(homes))
