"""RecordEvents: each event checked by itself, taken once, and found where the page and the drain look for it."""

import asyncio
import random
import time
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from features.event_store import IMPRESSION_ENTRIES, STATE_ENTRIES
from features.events import Event
from features.keys import PARTITIONS, hash64
from features.recent_state import ENTRY, Did, decode_states
from protos.events.v1 import events_pb2
from tests.conftest import Served, Store, serving
from tests.recording import (
    DUPLICATE,
    INVALID,
    RECORDED,
    event,
    in_streams,
    listener_in,
    outcomes,
    record,
    results,
)
from tests.wire import eventually

KINDS = [kind for kind in events_pb2.EventKind.values() if kind]
Code = grpc.StatusCode

NOW_S = int(time.time())
WRONG: dict[str, list[Any]] = {
    "event_id": ["", "a" * 65, "a b"],
    "user_id": ["", "a b", "{1}", "ü", "u" * 129],
    "kind": [0, 99],
    "item_id": ["", "ü" * 65],
    "occurred_at": [
        Timestamp(seconds=NOW_S - 48 * 3600 - 5),
        Timestamp(seconds=NOW_S + 3600),
        Timestamp(seconds=NOW_S - 60, nanos=10**9),
        Timestamp(seconds=-(2**62)),
        Timestamp(),
    ],
    "played_ms": [-1, 86_400_001],
    "session_id": ["a:b", "s" * 129],
    "tracking_token": ["t"],
}
CASES = [(field, value) for field, values in WRONG.items() for value in values]


def read(store: Store, name: str) -> bytes | None:
    """What Redis holds under a key."""
    found: Any = store.client.get(name)
    return found if found is None else bytes(found)


def states(store: Store, user_id: str) -> list[tuple[int, int, int, int, int]]:
    """A listener's recent state as a page reads it: (did, item key, at, session, seconds)."""
    state = decode_states([read(store, store.keys.state(user_id))])
    columns = (state.did, state.item_key, state.at, state.session, state.seconds)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize(("field", "value"), CASES)
async def test_a_bad_event_is_told_and_the_good_ones_are_recorded(standing: Served, field: str, value: Any) -> None:
    """Every rule, each broken way: the field is named, the value is not repeated, and its neighbours stand."""
    bad = event("bad")
    bad.ClearField(field)  # type: ignore[arg-type]  # a name of the table's
    bad.MergeFrom(events_pb2.Event(**{field: value}))
    unique = f"{field}-{random.random()}"
    first, told, last = outcomes(await record(standing, [event(f"{unique}-1"), bad, event(f"{unique}-2")]))
    assert (first.result, told.result, last.result) == (RECORDED, INVALID, RECORDED)
    assert told.message.startswith(f"{field}: ")
    assert (told.event_id, first.message) == (bad.event_id, "")


async def test_every_wrong_field_is_named(standing: Served) -> None:
    """All at once; an event that fails is no batch that fails."""
    (told,) = outcomes(await record(standing, [events_pb2.Event()]))
    fields = [part.partition(":")[0] for part in told.message.split("; ")]
    assert fields == ["event_id", "user_id", "kind", "item_id", "occurred_at"]


async def test_a_batch_holds_1_to_500(standing: Served) -> None:
    """Else INVALID_ARGUMENT, naming the field; 500 of the longest pass."""
    for number in (0, 501):
        status = await record(standing, [event(f"n{n}") for n in range(number)])
        assert (status.code, status.fields) == (Code.INVALID_ARGUMENT, ("events",))
    longest: dict[str, Any] = {"user_id": "u" * 128, "item_id": "i" * 128, "session_id": "s" * 128}
    status = await record(standing, [event(f"{n:064}", **longest) for n in range(500)])
    assert results(status) == [RECORDED] * 500


async def test_an_event_is_where_the_page_and_the_drain_look(served: Served, published: Store) -> None:
    """Every kind but impressions is an entry of recent state with every field; all are in the partition's stream."""
    sent = [
        event(f"e{kind}", kind=kind, item_id=f"i{kind}", played_ms=61_500, session_id="s1", whole_artist=kind == 6)
        for kind in KINDS
    ]
    assert results(await record(served, sent)) == [RECORDED] * len(KINDS)
    at = {one.item_id: one.occurred_at.seconds for one in sent}
    dids = (Did.PLAY, Did.COMPLETE, Did.SKIP, Did.LIKE, Did.HIDE)
    expected = [(did, hash64(f"i{did + 1}"), at[f"i{did + 1}"], hash64("s1") & 0xFFFFFFFF, 61) for did in dids]
    assert sorted(states(published, "u0000001")) == sorted(expected)
    shown = decode_states([read(published, published.keys.impressions("u0000001"))])
    assert (shown.did.tolist(), shown.item_key.tolist()) == ([Did.IMPRESSION], [hash64("i1")])
    streams: list[Any] = [published.client.xrange(published.keys.stream(number)) for number in range(PARTITIONS)]
    waiting = [Event.from_bytes(fields[b"e"]) for stream in streams for _, fields in stream]
    assert [(one.event_id, one.did.name.lower(), one.whole_artist) for one in waiting] == [
        (one.event_id, events_pb2.EventKind.Name(one.kind).removeprefix("EVENT_KIND_").lower(), one.whole_artist)
        for one in sent
    ]


async def test_replayed_and_reordered_batches_change_nothing(served: Served, published: Store) -> None:
    """Batches of 40 listeners, cut and ordered anew four times over: the streams and the states stay as they were."""
    rng = random.Random(5)
    users = [f"r{n}" for n in range(40)]
    sent = [
        event(
            f"e{n}", user_id=rng.choice(users), kind=rng.choice(KINDS), item_id=f"i{n % 90}", ago_s=rng.random() * 1e5
        )
        for n in range(1200)
    ]
    names = [published.keys.state(user) for user in users] + [published.keys.impressions(user) for user in users]
    first = [results(await record(served, sent[n : n + 300])) for n in range(0, 1200, 300)]
    assert {result for call in first for result in call} == {RECORDED}
    before = published.client.mget(names)
    for _ in range(4):
        rng.shuffle(sent)
        for n in range(0, 1200, 400):
            assert set(results(await record(served, sent[n : n + 400]))) == {DUPLICATE}
    assert published.client.mget(names) == before
    assert in_streams(published.client, published.keys) == 1200


async def test_an_id_counts_once_within_a_batch_and_once_for_each_listener(served: Served, published: Store) -> None:
    """The first of two stands; another listener's event of the same id is another event."""
    sent = [event("same"), event("same", item_id="other"), event("same", user_id="u0000002")]
    assert results(await record(served, sent)) == [RECORDED, DUPLICATE, RECORDED]
    assert [key for _, key, *_ in states(published, "u0000001")] == [hash64("i0000001")]


async def test_workers_count_an_event_once(published: Store) -> None:
    """Two servers on one Redis, the same 200 events sent to both at once, in small calls: each is recorded once."""
    async with serving(published.state, published.url) as one, serving(published.state, published.url) as two:
        batches = [[event(f"e{n}-{m}", user_id=f"w{n}") for m in range(10)] for n in range(20)]
        calls = [record(worker, batch) for batch in batches for worker in (one, two)]
        told = [result for status in await asyncio.gather(*calls) for result in results(status)]
    assert (told.count(RECORDED), told.count(DUPLICATE)) == (200, 200)
    assert in_streams(published.client, published.keys) == 200


async def test_an_id_is_remembered_over_the_hour(served: Served, published: Store) -> None:
    """What the hour before took is known; what was taken before that is left to the drain; the sets expire."""
    keys, client = published.keys, published.client
    assert results(await record(served, [event("kept")])) == [RECORDED]
    (name,) = list(client.scan_iter(f"{keys.prefix}:*:seen:*"))
    stem, _, hour = name.decode().rpartition(":")
    assert 7200 < client.ttl(name) <= 10_800
    client.rename(name, f"{stem}:{int(hour) - 1}")
    assert results(await record(served, [event("kept")])) == [DUPLICATE]
    client.rename(f"{stem}:{int(hour) - 1}", f"{stem}:{int(hour) - 2}")
    assert results(await record(served, [event("kept")])) == [RECORDED]


async def test_states_are_trimmed_to_the_newest(served: Served, published: Store) -> None:
    """At twice the bound they are cut to it; impressions never push plays out; both expire after 30 days."""
    plays = [event(f"p{n}", item_id=f"p{n}") for n in range(2 * STATE_ENTRIES + 3)]
    shown = [
        event(f"s{n}", item_id=f"s{n}", kind=events_pb2.EVENT_KIND_IMPRESSION)
        for n in range(2 * IMPRESSION_ENTRIES + 3)
    ]
    both = plays + shown
    for n in range(0, len(both), 400):
        assert set(results(await record(served, both[n : n + 400]))) == {RECORDED}
    keys = [key for _, key, *_ in states(published, "u0000001")]
    assert sorted(keys) == sorted(hash64(f"p{n}") for n in range(len(plays) - STATE_ENTRIES - 3, len(plays)))
    for name, bound in (
        (published.keys.state("u0000001"), STATE_ENTRIES),
        (published.keys.impressions("u0000001"), IMPRESSION_ENTRIES),
    ):
        assert published.client.strlen(name) == (bound + 3) * ENTRY.itemsize
        assert 29 * 86_400 < published.client.ttl(name) <= 30 * 86_400


async def test_a_full_stream_refuses_the_whole_call(published: Store) -> None:
    """RESOURCE_EXHAUSTED, and nothing of it is recorded, not even for other streams; these take others as before."""
    full, other = listener_in(3), listener_in(4)
    async with serving(published.state, published.url, event_stream_max=500) as served:
        assert set(results(await record(served, [event(f"a{n}", user_id=full) for n in range(499)]))) == {RECORDED}
        refused = await record(served, [event("b1", user_id=other), *(event(f"c{n}", user_id=full) for n in range(2))])
        assert (refused.code, refused.reason) == (Code.RESOURCE_EXHAUSTED, "EXHAUSTED")
        assert refused.text == "a stream holds its 500 events until it is drained; retry with the same event ids"
        assert in_streams(published.client, published.keys) == 499
        assert results(await record(served, [event("b1", user_id=other)])) == [RECORDED]
        assert results(await record(served, [event("c0", user_id=full)])) == [RECORDED]
        assert (await record(served, [event("c1", user_id=full)])).code is Code.RESOURCE_EXHAUSTED
        await eventually(lambda: gauge(served, "mantel_event_stream_share") == 1)


async def test_calls_that_share_a_batch_are_refused_alone(published: Store) -> None:
    """Of calls at once some find room and some do not: each is answered by itself, and the stream ends exactly full."""
    user = listener_in(5)
    async with serving(published.state, published.url, event_stream_max=500) as served:
        calls = [record(served, [event(f"{n}-{m}", user_id=user) for m in range(40)]) for n in range(20)]
        codes = [status.code for status in await asyncio.gather(*calls)]
    assert (codes.count(Code.OK), codes.count(Code.RESOURCE_EXHAUSTED)) == (12, 8)
    assert in_streams(published.client, published.keys) == 480


async def test_events_are_counted_by_kind_and_result(served: Served) -> None:
    """Recorded, known and invalid ones; what is of no kind counts as unknown."""
    like = event("like", kind=events_pb2.EVENT_KIND_LIKE)
    await record(served, [event("play"), like, like, event("bad id", kind=events_pb2.EVENT_KIND_SKIP)])
    await record(served, [events_pb2.Event()])
    counted = {
        (kind, result): gauge(served, "mantel_events_total", kind=kind, result=result)
        for kind in ("play", "like", "skip", "unknown")
        for result in ("recorded", "duplicate", "invalid")
    }
    assert {labels for labels, value in counted.items() if value} == {
        ("play", "recorded"),
        ("like", "recorded"),
        ("like", "duplicate"),
        ("skip", "invalid"),
        ("unknown", "invalid"),
    }


def gauge(served: Served, name: str, **labels: str) -> float:
    """A sample of the server's own instruments."""
    found = served.plane.metrics._registry.get_sample_value(name, labels)
    return 0.0 if found is None else found
