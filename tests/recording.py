"""What tests of events share: events, and calls that record them."""

import time
from collections.abc import Sequence
from typing import Any

import redis

from features.keys import PARTITIONS, Keys, partition
from protos.events.v1 import events_pb2
from tests.conftest import Served
from tests.wire import Status, call

RECORD = "/mantel.events.v1.EventService/RecordEvents"
RECORDED, DUPLICATE, INVALID = (
    events_pb2.EVENT_RESULT_RECORDED,
    events_pb2.EVENT_RESULT_DUPLICATE,
    events_pb2.EVENT_RESULT_INVALID,
)


def event(event_id: str, *, ago_s: float = 60.0, **fields: Any) -> events_pb2.Event:
    """A good event, a play by default; `fields` change it."""
    defaults = {"user_id": "u0000001", "item_id": "i0000001", "kind": events_pb2.EVENT_KIND_PLAY}
    made = events_pb2.Event(event_id=event_id, **{**defaults, **fields})
    made.occurred_at.FromMilliseconds(int((time.time() - ago_s) * 1000))
    return made


def listener_in(number: int) -> str:
    """A listener of one partition."""
    return next(user for user in (f"p{n}" for n in range(10_000)) if partition(user) == number)


async def record(served: Served, events: Sequence[events_pb2.Event], **how: float) -> Status:
    """Records events as the developer."""
    request = events_pb2.RecordEventsRequest(events=events)
    return await call(served.channel, RECORD, request, metadata=served.metadata, **how)  # type: ignore[arg-type]  # a timeout


def outcomes(status: Status) -> list[events_pb2.EventOutcome]:
    """The outcomes of a call that ended well."""
    assert status.code.name == "OK", status
    return list(events_pb2.RecordEventsResponse.FromString(status.answer).outcomes)


def results(status: Status) -> list[int]:
    """What became of each event of a call that ended well."""
    return [outcome.result for outcome in outcomes(status)]


def in_streams(client: redis.Redis, keys: Keys) -> int:
    """How many events wait to be drained."""
    return sum(client.xlen(keys.stream(number)) for number in range(PARTITIONS))
