"""ListenerService over the wire: hide and undo, changes at once, wrong fields, being forgotten."""

import asyncio
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from features.embedded_redis import attached
from features.forgetting import forgotten
from features.keys import hash64, item_keys
from features.listeners import decode
from features.offline.publish import connect
from features.preferences import Preferences, decode_preferences, encode_preferences
from features.recent_state import Did, encode_entry
from features.snapshot import Limit, Snapshot
from protos.home.v1 import home_pb2
from protos.listeners.v1 import listeners_pb2, listeners_pb2_grpc
from tests.conftest import Served, Store
from tests.operation import eventually
from tests.wire import Status, call
from tests.wishes import Names

if TYPE_CHECKING:
    from protos.listeners.v1.listeners_pb2_grpc import ListenerServiceAsyncStub

SERVICE = "/mantel.listeners.v1.ListenerService/"
Update = listeners_pb2.UpdatePreferencesRequest
USER = "u0000001"


def stub(served: Served) -> "ListenerServiceAsyncStub":
    """The service, on the served channel."""
    return listeners_pb2_grpc.ListenerServiceStub(served.channel)


async def wish(served: Served, user_id: str = USER, **fields: Any) -> listeners_pb2.Preferences:
    """Preferences after a change."""
    request = Update(user_id=user_id, **fields)
    return (await stub(served).UpdatePreferences(request, metadata=served.metadata)).preferences


async def wishes(served: Served, user_id: str = USER) -> listeners_pb2.Preferences:
    """Preferences as they are."""
    request = listeners_pb2.GetPreferencesRequest(user_id=user_id)
    return (await stub(served).GetPreferences(request, metadata=served.metadata)).preferences


async def forget(served: Served, user_id: str = USER) -> int:
    """How many keys Forget erased."""
    request = listeners_pb2.ForgetRequest(user_id=user_id)
    return (await stub(served).Forget(request, metadata=served.metadata)).erased_keys


async def refused(served: Served, method: str, request: Message) -> Status:
    """How a call ends that is refused."""
    return await call(served.channel, f"{SERVICE}{method}", request, metadata=served.metadata)


def ids(page: home_pb2.GetHomeResponse) -> set[str]:
    """Every item on a page."""
    return {item.item_id for shelf in page.shelves for item in shelf.items}


def artists_of(world: Path, item_ids: Iterable[str]) -> set[str]:
    """The artists of items."""
    names = Names.of(world)
    of = dict(zip(names.items, names.artists, strict=True))
    return {of[one] for one in item_ids} - {""}


async def test_what_is_hidden_leaves_the_next_page_and_comes_back(served: Served, world: Path) -> None:
    """Items and artists: gone from the very next page and from every later one, back after the undo."""
    before = await served.get_home(USER, session_id="one")
    items = sorted(ids(before))[:5]
    artists = sorted(artists_of(world, ids(before)))[:5]
    after = await wish(served, hide_item_ids=items, hide_artist_ids=artists)
    assert after == await wishes(served)
    assert (set(after.hidden_item_ids), set(after.hidden_artist_ids)) == (set(items), set(artists))
    for session in range(40):
        page = await served.get_home(USER, session_id=f"s{session}")
        assert page.shelves
        assert not ids(page) & set(items)
        assert not artists_of(world, ids(page)) & set(artists)
        assert not page.degraded
    await wish(served, unhide_item_ids=items, unhide_artist_ids=artists)
    assert await wishes(served) == listeners_pb2.Preferences()
    again = await served.get_home(USER, session_id="one")
    assert [ids(again), [shelf.id for shelf in again.shelves]] == [ids(before), [shelf.id for shelf in before.shelves]]


async def test_wishes_add_up_and_stay(served: Served) -> None:
    """What a change does not name stays; hiding twice hides once; false and 0 are words, and are not silence."""
    assert await wishes(served, "nobody") == listeners_pb2.Preferences()
    await wish(served, "nobody", hide_item_ids=["a", "b", "a"], allow_explicit=False)
    await wish(served, "nobody", hide_item_ids=["b", "ü" * 64], promotions_off=True, discovery=0.0)
    found = await wish(served, "nobody", unhide_item_ids=["a", "never hidden"])
    assert set(found.hidden_item_ids) == {"b", "ü" * 64}
    assert (found.HasField("allow_explicit"), found.allow_explicit, found.promotions_off) == (True, False, True)
    assert (found.HasField("discovery"), found.discovery) == (True, 0.0)
    found = await wish(served, "nobody", promotions_off=False, discovery=1.0, allow_explicit=True)
    assert (found.promotions_off, found.discovery, found.allow_explicit) == (False, 1.0, True)


async def test_explicit_items_go_by_preference_and_by_request(served: Served, snapshot: Snapshot) -> None:
    """Not allowed by preference: none; the request's own word beats it."""
    explicit = set(snapshot.columns["item_key"][(snapshot.columns["limits"] & Limit.EXPLICIT) > 0].tolist())

    async def shown(**context: bool) -> int:
        asked = home_pb2.Context(**context)  # type: ignore[arg-type]
        pages = [await served.get_home(f"u000000{n}", context=asked) for n in range(1, 6)]
        return sum(hash64(one) in explicit for page in pages for one in ids(page))

    for number in range(1, 6):
        await wish(served, f"u000000{number}", allow_explicit=False)
    assert await shown() == 0
    assert await shown(allow_explicit=True) > 0
    for number in range(1, 6):
        await wish(served, f"u000000{number}", allow_explicit=True)
    assert await shown() > 0
    assert await shown(allow_explicit=False) == 0


async def test_changes_at_once_lose_nothing(served: Served) -> None:
    """Forty tasks hide and undo for one listener: what each did stands in the end."""
    await wish(served, hide_artist_ids=[f"undone-{number}" for number in range(20)])
    changes = [wish(served, hide_item_ids=[f"one-{number}", f"two-{number}"]) for number in range(20)]
    changes += [wish(served, unhide_artist_ids=[f"undone-{number}"], promotions_off=True) for number in range(20)]
    await asyncio.gather(*changes)
    found = await wishes(served)
    assert set(found.hidden_item_ids) == {f"{name}-{number}" for name in ("one", "two") for number in range(20)}
    assert (list(found.hidden_artist_ids), found.promotions_off) == ([], True)


async def test_a_broken_frame_is_never_taken_for_nothing_hidden(served: Served, published: Store) -> None:
    """BLOCKLIST_UNKNOWN on pages; FAILED_PRECONDITION to who reads or changes it, and it stays; Forget ends it."""
    key = published.keys.preferences(USER)
    broken = encode_preferences(Preferences(hidden_items=("t0000001",)))[:-1]
    published.client.set(key, broken)
    page = await served.get_home(USER)
    assert page.degraded_reasons == [home_pb2.DEGRADED_REASON_BLOCKLIST_UNKNOWN]
    assert [shelf.id for shelf in page.shelves] == ["popular-near-you"]
    own = await served.get_home(USER, hidden_ids=["t0000001"])
    assert len(own.shelves) > 4
    assert not own.degraded
    for method, request in (
        ("GetPreferences", listeners_pb2.GetPreferencesRequest(user_id=USER)),
        ("UpdatePreferences", Update(user_id=USER, hide_item_ids=["t0000002"])),
    ):
        assert (await refused(served, method, request)).code is grpc.StatusCode.FAILED_PRECONDITION
    assert published.client.get(key) == broken
    await forget(served)
    assert await wishes(served) == listeners_pb2.Preferences()


BAD_IDS = ["", "i" * 129, "ü" * 65]
LISTS = ("hide_item_ids", "hide_artist_ids", "unhide_item_ids", "unhide_artist_ids")
WRONG: list[tuple[str, str, Message]] = [
    *(("GetPreferences", "user_id", listeners_pb2.GetPreferencesRequest(user_id=bad)) for bad in ("", "u:1", "ü")),
    *(("Forget", "user_id", listeners_pb2.ForgetRequest(user_id=bad)) for bad in ("", "u" * 129, "u\n")),
    *(("UpdatePreferences", "user_id", Update(user_id=bad)) for bad in ("", "{u}", "*")),
    *(
        ("UpdatePreferences", f"{field}[1]", Update(user_id=USER, **{field: ["good", bad]}))  # type: ignore[arg-type]
        for field in LISTS
        for bad in BAD_IDS
    ),
    *(
        ("UpdatePreferences", field, Update(user_id=USER, **{field: [f"i{n}" for n in range(1001)]}))  # type: ignore[arg-type]
        for field in LISTS
    ),
    *(("UpdatePreferences", "discovery", Update(user_id=USER, discovery=bad)) for bad in (-0.01, 1.01, np.nan, np.inf)),
    ("UpdatePreferences", "hide_item_ids[1]", Update(user_id=USER, hide_item_ids="ab", unhide_item_ids="bc")),
    ("UpdatePreferences", "hide_artist_ids[0]", Update(user_id=USER, hide_artist_ids="a", unhide_artist_ids="a")),
]


@pytest.mark.parametrize(("method", "field", "request_"), WRONG)
async def test_wrong_fields_are_named(standing: Served, method: str, field: str, request_: Message) -> None:
    """INVALID_ARGUMENT with the path of the field, and nothing is changed."""
    status = await refused(standing, method, request_)
    assert (status.code, status.fields) == (grpc.StatusCode.INVALID_ARGUMENT, (field,))
    assert await wishes(standing) == listeners_pb2.Preferences()


async def test_no_more_than_a_thousand_are_hidden(served: Served) -> None:
    """A thousand items and a thousand artists of 128 bytes are served; one more of either is refused with the bound."""
    many = [f"{number:0>128}" for number in range(1000)]
    await wish(served, hide_item_ids=many, hide_artist_ids=many)
    assert not (await served.get_home(USER)).degraded
    for field in ("hide_item_ids", "hide_artist_ids"):
        status = await refused(served, "UpdatePreferences", Update(user_id=USER, **{field: ["more"]}))  # type: ignore[arg-type]
        assert (status.code, status.fields) == (grpc.StatusCode.INVALID_ARGUMENT, (field,))
        assert "at most 1000" in status.text
    found = await wish(served, hide_item_ids=["more"], unhide_item_ids=many[:1])
    assert item_keys(found.hidden_item_ids).tolist() == sorted(item_keys([*many[1:], "more"]).tolist())


async def test_a_store_that_is_away_is_told(served: Served, published: Store) -> None:
    """Redis stopped: UNAVAILABLE for each method, in words that hold no address."""
    published.client.shutdown(nosave=True)
    for method, request in (
        ("GetPreferences", listeners_pb2.GetPreferencesRequest(user_id=USER)),
        ("UpdatePreferences", Update(user_id=USER, promotions_off=True)),
        ("Forget", listeners_pb2.ForgetRequest(user_id=USER)),
    ):
        status = await refused(served, method, request)
        assert (status.code, "unix" in status.text) == (grpc.StatusCode.UNAVAILABLE, False)


async def test_a_change_that_is_answered_outlives_a_killed_redis(served: Served, published: Store) -> None:
    """Killed right after the answers, Redis has what was wished when it starts again, and not who was forgotten."""
    await wish(served, "kept", hide_item_ids=["kept"])
    await forget(served)
    os.kill(int(published.client.info("server")["process_id"]), signal.SIGKILL)
    with attached(published.state) as url, connect(url) as client:
        frame = eventually(lambda: client.get(published.keys.preferences("kept")))
        assert decode_preferences(frame) == Preferences(hidden_items=("kept",))
        assert not list(client.scan_iter(f"*:{USER}"))
        assert set(forgotten(client, published.keys, [USER])) == {USER}


async def test_forget_erases_every_key(served: Served, published: Store, second: Path) -> None:
    """Records of every space, recent state, impressions, preferences, caps: a scan finds none; of others all stay."""
    published.publish(second)
    client, keys = published.client, published.keys
    client.set(keys.state(USER), encode_entry(Did.PLAY, 1, at=1))
    for kind in ("i", "c"):
        client.set(keys.listener(kind, USER), b"x")
    await wish(served, hide_item_ids=["a"])
    others = set(client.scan_iter("*")) - set(client.scan_iter(f"*:{USER}"))
    assert len(set(client.scan_iter(f"*:{USER}"))) == 6
    assert await forget(served) == 6
    assert not list(client.scan_iter(f"*{USER}*"))
    left = set(client.scan_iter("*"))
    assert others <= left
    assert len(left - others) == 1  # the tombstones of the partition
    assert not any(USER.encode() in (client.dump(key) or b"") for key in left - others)
    assert set(forgotten(client, keys, [USER, "u0000002"])) == {USER}
    assert await forget(served) == 0


async def test_who_was_forgotten_comes_back_as_a_stranger(served: Served, published: Store) -> None:
    """A cold start, not degraded; what they wish and play from then on counts."""
    await forget(served)
    page = await served.get_home(USER)
    assert (page.cold_start, page.degraded) == (True, False)
    await wish(served, hide_item_ids=["a"])
    snapshot = served.plane.snapshots.current
    assert snapshot is not None
    rows = np.flatnonzero(snapshot.columns["limits"] == 0)[:6]
    played = [encode_entry(Did.COMPLETE, int(key), at=2**31) for key in snapshot.columns["item_key"][rows]]
    published.client.set(published.keys.state(USER), b"".join(played))
    page = await served.get_home(USER)
    assert page.notes == [home_pb2.NOTE_LISTENER_FOLDED_IN]
    assert list((await wishes(served)).hidden_item_ids) == ["a"]


def test_columns_of_a_batch_without_preferences(snapshot: Snapshot) -> None:
    """Where they were not read at all, nothing is hidden and nobody is blind."""
    listeners = decode([None, None], space_id=snapshot.space_id, dimension=16, genres=1)
    assert not listeners.blind.any()
    assert listeners.wishes.artist_start.tolist() == [0, 0, 0]
