"""EventService: each event is checked by itself; good ones are recorded together, bad ones told what is wrong.

Hides are kept in preferences first: what is acknowledged holds from the next page on.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from features.errors import Exhausted, InvalidInput, MantelError
from features.event_store import Recorded
from features.events import Event, Seen
from features.keys import hash64
from features.recent_state import Did
from features.snapshot import Snapshot
from protos.events.v1 import events_pb2
from server.batching import Batcher
from server.codec import item_id_of
from server.guard import Call
from server.hides import Hides
from server.metrics import Metrics
from server.signing import SigningKeys
from server.tracking import read_token

MAX_EVENTS: Final = 500
OLDEST_MS: Final = 48 * 3_600_000  # the drain counts once within 48 hours
AHEAD_MS: Final = 5 * 60_000  # by which a client's clock may be fast
MAX_TOKEN: Final = 1024  # characters, of 180 arms
LONGEST_MS: Final = 24 * 3_600_000
_EVENT_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # of users and sessions
_DID: Final = {
    events_pb2.EVENT_KIND_IMPRESSION: Did.IMPRESSION,
    events_pb2.EVENT_KIND_PLAY: Did.PLAY,
    events_pb2.EVENT_KIND_COMPLETE: Did.COMPLETE,
    events_pb2.EVENT_KIND_SKIP: Did.SKIP,
    events_pb2.EVENT_KIND_LIKE: Did.LIKE,
    events_pb2.EVENT_KIND_HIDE: Did.HIDE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EventService:
    """Takes events in."""

    batcher: Batcher[Sequence[Event], Recorded]
    hides: Hides
    snapshot: Callable[[], Snapshot | None]
    keys: Callable[[], SigningKeys]
    metrics: Metrics
    now: Callable[[], float]

    async def record_events(
        self, request: events_pb2.RecordEventsRequest, call: Call
    ) -> events_pb2.RecordEventsResponse:
        """Records a batch; what is acknowledged is on disk.

        Raises:
            InvalidInput: no batch of 1-500.
            Exhausted: a stream is full; nothing was recorded.
            Unavailable: the store did not take them, or did not say that they are on disk.
        """
        if not 1 <= len(request.events) <= MAX_EVENTS:
            raise InvalidInput(("events", f"must be 1-{MAX_EVENTS}"))
        now_ms = int(self.now() * 1000)
        keys = self.keys()
        seen = [_seen(event, keys) for event in request.events]
        both = list(zip(request.events, seen, strict=True))
        wrong = ["; ".join(_wrong_fields(event, where, now_ms)) for event, where in both]
        events = self._named([None if what else _event(*one) for one, what in zip(both, wrong, strict=True)])
        messages = await self._hide(events, wrong)
        good = [event for event, what in zip(events, wrong, strict=True) if event is not None and not what]
        recorded = await self.batcher.submit(good, deadline=call.deadline) if good else []
        if isinstance(recorded, MantelError):
            result = "refused" if isinstance(recorded, Exhausted) else "unavailable"
            self.metrics.recorded((event.did.name.lower(), result) for event in good)
            raise recorded
        new = iter(recorded)
        response = events_pb2.RecordEventsResponse(
            outcomes=[
                events_pb2.EventOutcome(event_id=event.event_id, result=_result(what, new), message=what or message)
                for event, what, message in zip(request.events, wrong, messages, strict=True)
            ]
        )
        for event, where in both:
            if event.tracking_token and where is None:
                self.metrics.token_refused("tracking")
        self.metrics.recorded(map(_counted, request.events, response.outcomes))
        return response

    def _named(self, events: Sequence[Event | None]) -> Sequence[Event | None]:
        """The events with the ids of the items that only tokens name; "" where the catalogue has an item no more."""
        unnamed = [(place, event) for place, event in enumerate(events) if event is not None and not event.item_id]
        snapshot = self.snapshot()
        if not unnamed or snapshot is None:
            return events
        named = list(events)
        rows = snapshot.rows_of(np.array([event.item_key for _, event in unnamed], np.uint64)).tolist()
        for (place, event), row in zip(unnamed, rows, strict=True):
            named[place] = replace(event, item_id=item_id_of(snapshot, row)) if row >= 0 else event
        return named

    async def _hide(self, events: Sequence[Event | None], wrong: list[str]) -> list[str]:
        """Keeps hides, adds to what is wrong those that cannot be kept, and answers what is to be said of each."""
        messages = [""] * len(wrong)
        hides = [(place, event) for place, event in enumerate(events) if event is not None and event.did is Did.HIDE]
        if hides:
            kept = await self.hides.keep([event for _, event in hides])
            for (place, _), one in zip(hides, kept, strict=True):
                messages[place], wrong[place] = one.message, one.message if one.refused else ""
        return messages


def _seen(event: events_pb2.Event, keys: SigningKeys) -> Seen | None:
    """Where the item was seen; None where no token says so, or one that is not good for this event."""
    if not 1 <= len(event.tracking_token) <= MAX_TOKEN:
        return None
    seen = read_token(event.tracking_token, event.user_id, keys)
    other = seen is not None and event.item_id and hash64(event.item_id) != seen.item_key
    return None if other else seen


def _wrong_fields(event: events_pb2.Event, seen: Seen | None, now_ms: int) -> Iterator[str]:
    """Which fields are wrong, and what is wrong with them."""
    if not _EVENT_ID.fullmatch(event.event_id):
        yield "event_id: must be 1-64 of [A-Za-z0-9_.-]"
    if not _ID.fullmatch(event.user_id):
        yield "user_id: must be 1-128 of [A-Za-z0-9_.-]"
    if event.kind not in _DID:
        yield "kind: must be one of those that the contract lists"
    if event.tracking_token and seen is None:
        yield "tracking_token: is no token of this service for this listener and item"
    if (event.item_id or not event.tracking_token) and not 1 <= len(event.item_id.encode()) <= 128:
        yield "item_id: must be 1-128 bytes"
    if not event.HasField("occurred_at") or not 0 <= event.occurred_at.nanos < 10**9:
        yield "occurred_at: must be a time"
    elif not now_ms - OLDEST_MS <= _milliseconds(event) <= now_ms + AHEAD_MS:
        yield "occurred_at: must lie within the last 48 hours, and at most 5 minutes ahead"
    if not 0 <= event.played_ms <= LONGEST_MS:
        yield "played_ms: must be 0 to 24 hours"
    if event.session_id and not _ID.fullmatch(event.session_id):
        yield "session_id: must be at most 128 of [A-Za-z0-9_.-]"


def _event(said: events_pb2.Event, seen: Seen | None) -> Event:
    return Event(
        event_id=said.event_id,
        user_id=said.user_id,
        did=_DID[said.kind],
        item_id=said.item_id,
        occurred_ms=_milliseconds(said),
        played_ms=said.played_ms,
        session_id=said.session_id,
        whole_artist=said.whole_artist,
        seen=seen,
    )


def _milliseconds(said: events_pb2.Event) -> int:
    return said.occurred_at.seconds * 1000 + said.occurred_at.nanos // 1_000_000


def _result(wrong: str, new: Iterator[bool]) -> events_pb2.EventResult.ValueType:
    if wrong:
        return events_pb2.EVENT_RESULT_INVALID
    return events_pb2.EVENT_RESULT_RECORDED if next(new) else events_pb2.EVENT_RESULT_DUPLICATE


def _counted(said: events_pb2.Event, outcome: events_pb2.EventOutcome) -> tuple[str, str]:
    """The kind and the result of an event, as the metrics name them."""
    result = events_pb2.EventResult.Name(outcome.result).removeprefix("EVENT_RESULT_").lower()
    return (_DID[said.kind].name.lower() if said.kind in _DID else "unknown"), result
