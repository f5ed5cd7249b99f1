"""HomeService: prepare (validate, resolve), submit (the only wait), finish (encode)."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from features.errors import Unavailable
from features.listener_store import ListenerStore
from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.home import assemble
from ranking.surfaces import Surface
from ranking.types import Home, HomeQuery
from server.batching import Batcher
from server.codec import encode_home, to_query
from server.guard import Call
from server.logs import RequestLog
from server.metrics import Metrics
from server.snapshots import Snapshots

Served = tuple[Home, Snapshot]


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeService:
    """Answers pages."""

    surfaces: Mapping[str, Surface]
    batcher: Batcher[HomeQuery, Served]
    log: RequestLog
    now: Callable[[], float]

    async def get_home(self, request: home_pb2.GetHomeRequest, call: Call) -> bytes:
        """One page."""
        query = to_query(request, self.surfaces, call.principal, now=int(self.now()))
        home, snapshot = await self.batcher.submit(query, deadline=call.deadline)
        self.log.served(call, query, home, snapshot)
        return encode_home(home, snapshot, locale=request.context.locale, request_id=call.request_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeBatches:
    """Serves a batch: one read of Redis, one run of the core."""

    store: ListenerStore
    snapshots: Snapshots
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
        listeners = await self.store.read([query.user_id for query in queries], snapshot)
        read_s = time.perf_counter() - started
        homes, trace = assemble(tuple(queries), listeners, snapshot, clock=time.perf_counter)
        homes = self.snapshots.mark_stale(homes)
        shown = [(query.surface.name, home) for query, home in zip(queries, homes, strict=True)]
        asyncio.get_running_loop().call_later(0, self.metrics.served, shown, read_s, trace)  # after the responses
        return [(home, snapshot) for home in homes]
