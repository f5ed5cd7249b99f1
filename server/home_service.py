"""HomeService: prepare (validate, resolve), submit (the only wait), finish (encode)."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from features.errors import NotFound, Unavailable
from features.keys import hash64
from features.listener_store import ListenerStore
from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.home import assemble
from ranking.surfaces import Surface
from ranking.types import Home, HomeQuery, Trace
from server import explain, fates
from server.batching import Batcher
from server.codec import encode_home, encode_ranked, encode_shelf
from server.experiments import Experiments
from server.guard import Call
from server.logs import RequestLog
from server.metrics import Metrics
from server.queries import to_query, to_rank_query, to_shelf_query
from server.snapshots import Snapshots


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A page, the snapshot that it was made from, and how long its batch took."""

    home: Home
    snapshot: Snapshot
    trace: Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeService:
    """Answers pages."""

    surfaces: Mapping[str, Surface]
    experiments: Experiments
    batcher: Batcher[HomeQuery, Served]
    log: RequestLog
    now: Callable[[], float]

    async def get_home(self, request: home_pb2.GetHomeRequest, call: Call) -> bytes:
        """One page."""
        query = to_query(request, self.surfaces, call.principal, self.experiments.assigner, now=int(self.now()))
        served = await self._submit(query, call)
        return encode_home(served.home, served.snapshot, locale=request.context.locale, request_id=call.request_id)

    async def get_shelf(self, request: home_pb2.GetShelfRequest, call: Call) -> bytes:
        """One shelf, as long as asked."""
        query = to_shelf_query(request, self.surfaces, call.principal, self.experiments.assigner, now=int(self.now()))
        served = await self._submit(query, call)
        return encode_shelf(served.home, served.snapshot, locale=request.context.locale, request_id=call.request_id)

    async def rank_items(self, request: home_pb2.RankItemsRequest, call: Call) -> bytes:
        """The caller's own candidates, filtered, scored and diversified; what is dropped is told."""
        query = to_rank_query(request, self.surfaces, call.principal, self.experiments.assigner, now=int(self.now()))
        served = await self._submit(query, call)
        if query.near and served.snapshot.rows_of(np.array([query.near], np.uint64))[0] < 0:
            raise NotFound("query_item_id: the catalogue has no such item")
        dropped = fates.dropped(served.home, served.snapshot, request.item_ids)
        locale = request.context.locale
        return encode_ranked(served.home, served.snapshot, dropped, locale=locale, request_id=call.request_id)

    async def explain_home(self, request: home_pb2.ExplainHomeRequest, call: Call) -> home_pb2.ExplainHomeResponse:
        """How a page came to be; with params set, beside the page that they would make."""
        asked, locale = request.request, request.request.context.locale
        query = to_query(asked, self.surfaces, call.principal, self.experiments.assigner, now=int(self.now()))
        query = replace(query, traced=True, explained=True, about=hash64(request.item_id) if request.item_id else 0)
        other = explain.what_if(query, request.set_params) if request.set_params else None
        served = await self.batcher.submit(query, deadline=call.deadline)  # not logged as served
        home, snapshot = served.home, served.snapshot
        response = home_pb2.ExplainHomeResponse(
            stages=explain.stages(home, served.trace),
            params=explain.params(query.surface, home.assignments),
            scores=explain.scores(home, snapshot),
            fates=fates.told(home, snapshot, query.surface, request.item_id) if request.item_id else (),
        )
        response.response.MergeFromString(encode_home(home, snapshot, locale=locale, request_id=call.request_id))
        if other is not None:
            then = await self.batcher.submit(other, deadline=call.deadline)
            page = encode_home(then.home, then.snapshot, locale=locale, request_id=call.request_id)
            response.what_if.MergeFromString(page)
            response.what_if_params.extend(explain.params(other.surface, then.home.assignments, other.fixed))
            if request.item_id:
                response.what_if_fates.extend(fates.told(then.home, then.snapshot, other.surface, request.item_id))
        return response

    async def _submit(self, query: HomeQuery, call: Call) -> Served:
        served = await self.batcher.submit(query, deadline=call.deadline)
        self.log.served(call, query, served.home, served.snapshot)
        return served


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeBatches:
    """Serves a batch: one read of Redis, one run of the core."""

    store: ListenerStore
    snapshots: Snapshots
    experiments: Experiments
    metrics: Metrics

    async def serve(self, queries: Sequence[HomeQuery]) -> list[Served]:
        """Pages for queries, all from one snapshot.

        Raises:
            Unavailable: no snapshot was published yet.
        """
        snapshot = self.snapshots.current
        if snapshot is None:
            raise Unavailable("no snapshot is published yet")
        started = time.perf_counter()
        frames = await self.store.read([query.user_id for query in queries], snapshot)
        read_s = time.perf_counter() - started
        listeners = frames.decoded(snapshot)
        homes, trace = assemble(tuple(queries), listeners, snapshot, clock=time.perf_counter)
        homes = self.experiments.mark_stale(self.snapshots.mark_stale(homes))
        both = zip(queries, homes, strict=True)
        shown = [(query.surface.name, home) for query, home in both if not query.explained]
        asyncio.get_running_loop().call_later(0, self.metrics.served, shown, read_s, trace)  # after the responses
        return [Served(home=home, snapshot=snapshot, trace=trace) for home in homes]
