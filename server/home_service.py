"""HomeService: prepare (validate, resolve), submit (the only wait), finish (encode)."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from google.protobuf.message import Message

from features.errors import InvalidInput, NotFound
from features.keys import hash64
from protos.home.v1 import home_pb2
from ranking.surfaces import Surface
from ranking.types import HomeQuery
from server import explain, fates
from server.batching import Batcher
from server.codec import encode_home, encode_ranked, encode_shelf
from server.experiments import Experiments
from server.guard import Call
from server.logs import RequestLog
from server.page_tokens import Reader
from server.paging import Paging
from server.queries import DEFAULT_SURFACE, to_query, to_rank_query, to_shelf_query, to_turn
from server.served import Served
from server.served_log import ServedLog
from server.snapshots import Snapshots


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeService:
    """Answers pages."""

    surfaces: Mapping[str, Surface]
    experiments: Experiments
    batcher: Batcher[HomeQuery, Served]
    paging: Paging
    snapshots: Snapshots
    log: RequestLog
    served_log: ServedLog
    now: Callable[[], float]

    async def get_home(self, request: home_pb2.GetHomeRequest, call: Call) -> bytes:
        """One page, from its top or from a page token on."""
        reader = Reader(user_id=request.user_id, surface=request.surface or DEFAULT_SURFACE)
        if request.page_token:
            return await self._turned(request, call)
        query = to_query(request, self.surfaces, call.principal, self.experiments.assigner, now=int(self.now()))
        return await self._first(request, query, reader, _in_time(call, query), encode_home)

    async def get_shelf(self, request: home_pb2.GetShelfRequest, call: Call) -> bytes:
        """One shelf, from its top or from a page token on."""
        reader = Reader(user_id=request.user_id, surface=request.surface or DEFAULT_SURFACE, shelf_id=request.shelf_id)
        if request.page_token:
            return await self._turned(request, call)
        query = to_shelf_query(request, self.surfaces, call.principal, self.experiments.assigner, now=int(self.now()))
        return await self._first(request, query, reader, _in_time(call, query), encode_shelf)

    async def rank_items(self, request: home_pb2.RankItemsRequest, call: Call) -> bytes:
        """The caller's own candidates, filtered, scored and diversified; what is dropped is told."""
        query = to_rank_query(request, self.surfaces, call.principal, self.experiments.assigner, now=int(self.now()))
        served = await self._submit(query, _in_time(call, query))
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
            stages=explain.stages(home, served.batch.trace),
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

    async def _first(
        self, request: Message, query: HomeQuery, reader: Reader, call: Call, encode: Callable[..., bytes]
    ) -> bytes:
        """The part of a page that is answered first; the rest is kept before it goes out."""
        served = await self.batcher.submit(query, deadline=call.deadline)
        home, token = await self.paging.keep(served.home, served.snapshot, query, reader, call)
        self.log.served(call, query, home, served.snapshot)
        page = encode(
            home,
            served.snapshot,
            locale=query.locale,
            request_id=call.request_id,
            stamp=self.paging.stamp(home, query, call),
            next_page_token=token,
        )
        self.served_log.note(request, call, query, replace(served, home=home))
        return page

    async def _turned(self, request: home_pb2.GetHomeRequest | home_pb2.GetShelfRequest, call: Call) -> bytes:
        """The next part of a page, as it was when its first was answered."""
        keys, assigner = self.paging.keys(), self.experiments.assigner
        try:
            turn = to_turn(request, self.surfaces, call.principal, assigner, keys)
        except InvalidInput as error:
            if any(field == "page_token" for field, _ in error.violations):
                self.paging.metrics.token_refused("page")
            raise
        turned = await self.paging.turn(turn, self.snapshots.current, call)
        self.served_log.note_turn(request, call, turned)
        return turned.response

    async def _submit(self, query: HomeQuery, call: Call) -> Served:
        served = await self.batcher.submit(query, deadline=call.deadline)
        self.log.served(call, query, served.home, served.snapshot)
        return served


def _in_time(call: Call, query: HomeQuery) -> Call:
    """The call with the deadline of its surface, where that is sooner."""
    within_s = query.surface.deadline_s
    return call if math.isinf(within_s) else replace(call, deadline=min(call.deadline, time.monotonic() + within_s))
