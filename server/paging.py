"""Turning pages: what stands below the first part of a page is kept as a plan, and answered as it was then.

A later part is made of its plan alone, without a search: item keys become rows of the snapshot that is served by then,
and what the catalogue no longer has, or may not show any more, is left out. Nothing else changes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.errors import Unavailable, WrongState
from features.keys import PLAN_S
from features.page_store import Allowance, Found, Wanted
from features.plans import Plan, decode_plan, encode_plan, owner_of
from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.experiments.assignment import Reason
from ranking.filters import permitted
from ranking.types import Degraded, Home, HomeQuery
from server.batching import Batcher
from server.codec import SHELF_TAG, SHELVES_TAG, Words, home_envelope, join_shelves, say, shelf_envelope
from server.guard import Call
from server.metrics import Metrics
from server.page_tokens import PageToken, Reader, write_page_token
from server.queries import Turn
from server.signing import SigningKeys
from server.tracking import Slot, Stamp, stamp

EXPIRED: Final = "the page has expired; start again without page_token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """A later part of a page."""

    response: bytes  # of a GetHomeResponse, or of a GetShelfResponse
    page: str
    market: str
    snapshot: Snapshot
    words: Words
    rows: NDArray[np.int64]  # [item]; -1: it is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """Keeps plans and turns pages; its tokens are signed."""

    batcher: Batcher[Wanted, Found]
    keys: Callable[[], SigningKeys]
    allowance: Allowance
    metrics: Metrics
    tracking: bool  # whether items carry tracking tokens
    now: Callable[[], float]

    def stamp(self, home: Home, query: HomeQuery, call: Call) -> Stamp | None:
        """What the tracking tokens of a page share; None where items carry none."""
        return self._stamp(call.request_id, query.now, query.user_id, _arms(home))

    async def keep(
        self, home: Home, snapshot: Snapshot, query: HomeQuery, reader: Reader, call: Call
    ) -> tuple[Home, str]:
        """Keeps what stands below the answered part; the page as it is answered, and the token of its next part.

        Where nothing can be kept the page is degraded, and there is no token.
        """
        if not home.later:
            return home, ""
        plan = plan_of(home, snapshot, reader, at=query.now, locale=query.locale)
        frame = encode_plan(plan)
        result = "refused"
        if self.allowance.take(len(frame), query.now):
            wanted = Wanted(user_id=query.user_id, page=call.request_id, at=query.now, frame=frame)
            failed = await self.batcher.submit(wanted, deadline=call.deadline)
            result = "written" if failed is None else "failed"
        self.metrics.planned(result)
        if result != "written":
            return replace(home, degraded=(*home.degraded, Degraded.PAGING_OFF)), ""
        token = PageToken(page=call.request_id, at=query.now, offset=plan.first)
        return home, write_page_token(token, reader, self.keys().signer(self.now()))

    async def turn(self, turn: Turn, snapshot: Snapshot | None, call: Call) -> Turned:
        """The next part of a page.

        Raises:
            WrongState: the page has expired, or its plan is gone.
            Unavailable: the store does not answer, or no snapshot was published yet.
        """
        if snapshot is None:
            raise Unavailable("no snapshot is published yet")
        plan, one_shelf = await self._find(turn, call), bool(turn.reader.shelf_id)
        start, total = turn.token.offset - plan.first, len(plan.keys) if one_shelf else len(plan.heads)
        stop = min(start + turn.size, total) if turn.size else total
        token = ""
        if stop < total:
            further = replace(turn.token, offset=plan.first + stop)
            token = write_page_token(further, turn.reader, self.keys().signer(self.now()))
        words = _part(plan, snapshot, start, stop, one_shelf=one_shelf)
        market, explicit = turn.market or plan.market, plan.allow_explicit and turn.allow_explicit is not False
        shown = permitted(words.rows, snapshot, market=market, allow_explicit=explicit, now=int(self.now()))
        rows = np.where(shown, words.rows, -1)
        shelves = join_shelves(
            replace(words, rows=rows),
            snapshot,
            self._stamp(turn.token.page, plan.at, turn.reader.user_id, plan.arms),
            SHELF_TAG if one_shelf else SHELVES_TAG,
        )
        message = home_pb2.GetShelfResponse if one_shelf else home_pb2.GetHomeResponse
        said = message(request_id=call.request_id, snapshot_version=snapshot.digest, next_page_token=token)
        response = b"".join((shelves, plan.envelope, said.SerializeToString()))
        page = turn.token.page
        return Turned(response=response, page=page, market=plan.market, snapshot=snapshot, words=words, rows=rows)

    async def _find(self, turn: Turn, call: Call) -> Plan:
        token, reader = turn.token, turn.reader
        if self.now() > token.at + PLAN_S:
            self.metrics.planned("expired")
            raise WrongState(EXPIRED)
        wanted = Wanted(user_id=reader.user_id, page=token.page, at=token.at)
        found = await self.batcher.submit(wanted, deadline=call.deadline)
        if isinstance(found, Unavailable):
            self.metrics.planned("unreachable")
            raise found
        plan = None if found is None else decode_plan(found)
        if plan is None or plan.owner != owner_of(reader.user_id, reader.surface, reader.shelf_id):
            self.metrics.planned("missing")
            raise WrongState(EXPIRED)
        self.metrics.planned("found")
        return plan

    def _stamp(self, page: str, at: int, user_id: str, arms: tuple[int, ...]) -> Stamp | None:
        if not self.tracking:
            return None
        return stamp(self.keys().signer(self.now()), page=page, at=at, user_id=user_id, arms=arms)


def plan_of(home: Home, snapshot: Snapshot, reader: Reader, *, at: int, locale: str) -> Plan:
    """What the later parts of a page are made of."""
    words = say(home, home.later, snapshot, locale)
    extra, extras = np.zeros(len(words.rows), np.int64), {b"": 0}
    for item, more in words.extras.items():
        extra[item] = extras.setdefault(more, len(extras))
    return Plan(
        owner=owner_of(reader.user_id, reader.surface, reader.shelf_id),
        at=at,
        first=len(home.shelves[0].rows) if reader.shelf_id else len(home.shelves),
        market=home.market,
        allow_explicit=home.allow_explicit,
        arms=_arms(home),
        envelope=shelf_envelope(home) if reader.shelf_id else home_envelope(home),
        heads=tuple(words.heads),
        lengths=words.lengths,
        keys=snapshot.columns["item_key"][words.rows],
        scores=words.scores.astype(np.float32),
        extra=extra,
        extras=tuple(extras),
    )


def _part(plan: Plan, snapshot: Snapshot, start: int, stop: int, *, one_shelf: bool) -> Words:
    """Some shelves of a plan, or some items of its one shelf, as rows of a snapshot; -1 where it has no such item."""
    if one_shelf:
        items, heads, lengths = slice(start, stop), plan.heads, np.array([stop - start])
        first = Slot(0, plan.first + start)
    else:
        bounds = np.concatenate(([0], np.cumsum(plan.lengths))).tolist()
        items, heads, lengths = slice(bounds[start], bounds[stop]), plan.heads[start:stop], plan.lengths[start:stop]
        first = Slot(plan.first + start, 0)
    extra = plan.extra[items]
    return Words(
        heads=heads,
        lengths=lengths,
        rows=snapshot.rows_of(plan.keys[items]),
        scores=plan.scores[items],
        extras={item: plan.extras[extra[item]] for item in np.flatnonzero(extra).tolist()},
        first=first,
    )


def _arms(home: Home) -> tuple[int, ...]:
    """The codes of the arms that may be analysed: those of buckets."""
    return tuple(one.code for one in home.assignments if one.reason is Reason.BUCKET)
