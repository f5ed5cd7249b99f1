"""Tracking tokens: every item of a page says where it stood, and nobody can say it otherwise."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from features.events import Event, Seen
from features.keys import arm_code, hash64
from features.offline.event_table import decode
from protos.home.v1 import home_pb2, home_pb2_grpc
from server.signing import SigningKey, SigningKeys, rotate
from server.tracking import TOP, Slot, read_token, sip_tag, stamp, token_length, write_tokens
from tests.books import BY_FILE, UNCAPPED, applied
from tests.conftest import Served, Store, serving
from tests.recording import DUPLICATE, INVALID, RECORDED, event, in_streams, outcomes, record, results
from tests.wire import eventually

if TYPE_CHECKING:
    from protos.home.v1.home_pb2_grpc import HomeServiceAsyncStub

KEY = SigningKey(id=7, secret=b"s" * 32, signs_from=0)
KEYS = SigningKeys(newest=KEY)
PAGE = "00ff10a0b0c0d0e0"


def tokens(keys: list[int], lengths: list[int], *, first: Slot = TOP, user: str = "u1", arms: list[int]) -> list[str]:
    """The tokens of a page."""
    shared = stamp(KEY, page=PAGE, at=1_800_000_000, user_id=user, arms=arms)
    out = np.zeros((len(keys), token_length(shared) + 3), np.uint8)
    write_tokens(shared, np.array(keys, np.uint64), np.array(lengths, np.int64), first, out)
    assert not out[:, :3].any()
    return [bytes(row[3:]).decode() for row in out]


def test_the_tag_is_siphash_2_4() -> None:
    """The published value for ten bytes 0 to 9 and the key 0 to 15."""
    low, high = (np.uint64(int.from_bytes(bytes(range(start, start + 8)), "little")) for start in (0, 8))
    tag = int(sip_tag(low, high, low, 8, 9))
    assert tag.to_bytes(8, "little").hex() == "f3b9dd94c5bb5d7a"


@pytest.mark.parametrize("arms", [[], [1], [2**32 - 1, 0], [5, 6, 7], list(range(100))])
def test_a_token_says_what_was_put_into_it(arms: list[int]) -> None:
    """Page, time, slot, key and arms, for any number of arms; a token is short."""
    keys = [0, 1, 2**64 - 1, 12345, 99]
    found = tokens(keys, [2, 0, 3], first=Slot(3, 100), arms=arms)
    slots = [(3, 100), (3, 101), (5, 100), (5, 101), (5, 102)]
    expected = [
        Seen(page=PAGE, at=1_800_000_000, shelf=shelf, place=place, item_key=key, arms=tuple(arms))
        for (shelf, place), key in zip(slots, keys, strict=True)
    ]
    assert [read_token(one, "u1", KEYS) for one in found] == expected
    assert len(found[0]) <= 44 + 16 * -(-len(arms) // 3)


@pytest.mark.parametrize("arms", [[], [77], [5, 6]])
def test_every_bit_counts(arms: list[int]) -> None:
    """A token with one bit, or one character, changed is none; nor is it anybody else's, nor by another key."""
    (token, other) = tokens([42, 43], [2], arms=arms)
    for place in range(len(token)):
        for bit in range(8):
            changed = token[:place] + chr(ord(token[place]) ^ 1 << bit) + token[place + 1 :]
            assert read_token(changed, "u1", KEYS) is None
    for text in ("", token[:-4], token + "AAAA", token + "=", token[:-1], "ü" * 48, f"{token[:20]}{other[20:]}"):
        assert text == other or read_token(text, "u1", KEYS) is None
    assert read_token(token, "u2", KEYS) is None
    assert read_token(token, "u1", SigningKeys(newest=SigningKey(id=7, secret=b"t" * 32, signs_from=0))) is None
    assert read_token(token, "u1", SigningKeys(newest=SigningKey(id=8, secret=b"s" * 32, signs_from=0))) is None
    later = SigningKeys(newest=SigningKey(id=8, secret=b"t" * 32, signs_from=0), previous=KEY)
    assert read_token(token, "u1", later) is not None


async def test_every_item_tells_its_slot(published: Store) -> None:
    """On the whole page and on each part of it: the page's id, place by place, and its arms."""
    applied(published, BY_FILE, UNCAPPED)
    async with serving(published.state, published.url) as served:
        await eventually(lambda: bool(served.plane.experiments.version))
        keys = served.plane.signing()
        whole = await served.get_home("u0000001", session_id="s")
        part = await served.get_home("u0000001", session_id="s", page_size=2)
        parts, page = [part], part.request_id
        while part.next_page_token:
            part = await served.get_home("u0000001", page_token=part.next_page_token, page_size=3)
            parts.append(part)
        for responses, page_id in (([whole], whole.request_id), (parts, page)):
            shelves = [shelf for one in responses for shelf in one.shelves]
            for shelf, said in enumerate(shelves):
                for place, item in enumerate(said.items):
                    seen = read_token(item.tracking_token, "u0000001", keys)
                    assert seen is not None
                    assert (seen.page, seen.shelf, seen.place) == (page_id, shelf, place)
                    assert seen.item_key == hash64(item.item_id)
                    assert seen.arms == tuple(arm_code(one.experiment, 1, one.arm) for one in whole.assignments)
                    assert abs(seen.at - time.time()) < 60
        assert len(whole.assignments) == 2


async def test_a_shelfs_items_are_tracked_too(standing: Served) -> None:
    """Further parts count on: a place is that on the shelf."""
    home: HomeServiceAsyncStub = home_pb2_grpc.HomeServiceStub(standing.channel)
    asked = home_pb2.GetShelfRequest(user_id="u0000001", shelf_id="picked-for-you", page_size=5)
    first = await home.GetShelf(asked, metadata=standing.metadata)
    asked.page_token = first.next_page_token
    rest = await home.GetShelf(asked, metadata=standing.metadata)
    seen = [read_token(one.tracking_token, "u0000001", standing.plane.signing()) for one in rest.shelf.items]
    slots = [(first.request_id, 0, place) for place in range(5, 10)]
    assert [one and (one.page, one.shelf, one.place) for one in seen] == slots


async def test_an_explained_page_and_forced_arms_are_no_exposure(published: Store) -> None:
    """Items of a page that was only explained carry no token; an arm that was forced is in none."""
    applied(published, BY_FILE)
    async with serving(published.state, published.url) as served:
        await eventually(lambda: bool(served.plane.experiments.version))
        home: HomeServiceAsyncStub = home_pb2_grpc.HomeServiceStub(served.channel)
        request = home_pb2.GetHomeRequest(user_id="u0000001", page_size=1)
        told = await home.ExplainHome(home_pb2.ExplainHomeRequest(request=request), metadata=served.metadata)
        assert not any(item.tracking_token for item in told.response.shelves[0].items)
        assert not told.response.next_page_token
        forced = [home_pb2.ExperimentOverride(experiment="by-file", arm="treatment")]
        page = await served.get_home("u0000001", experiment_overrides=forced)
        seen = read_token(page.shelves[0].items[0].tracking_token, "u0000001", served.plane.signing())
        assert seen is not None
        assert (len(page.assignments), seen.arms) == (1, ())


async def test_tracking_can_be_off(published: Store) -> None:
    """Then pages are those bytes shorter, and pages can be turned all the same."""
    async with serving(published.state, published.url, tracking=False) as served:
        page = await served.get_home("u0000001", page_size=1)
        rest = await served.get_home("u0000001", page_token=page.next_page_token)
        items = [item for one in (page, rest) for shelf in one.shelves for item in shelf.items]
        assert items
        assert not any(item.tracking_token for item in items)


async def test_an_event_brings_its_slot_back(published: Store) -> None:
    """With the item's id or without: the stream has page, slot, arms, key and id, also long after the plan has gone."""
    async with serving(published.state, published.url) as served:
        page = await served.get_home("u0000001")
        item = page.shelves[1].items[2]
        with_id = event("e1", item_id=item.item_id, tracking_token=item.tracking_token)
        without = event("e2", item_id="", tracking_token=item.tracking_token)
        assert results(await record(served, [with_id, without, without])) == [RECORDED, RECORDED, DUPLICATE]
        streams = [published.client.xrange(published.keys.stream(number)) for number in range(64)]
        entries: list[Any] = [entry for stream in streams for entry in stream]  # type: ignore[union-attr]  # a list
        found = sorted((Event.from_bytes(fields[b"e"]) for _, fields in entries), key=lambda one: one.event_id)
        assert [one.item_id for one in found] == [item.item_id] * 2
        for one in found:
            assert one.seen is not None
            assert (one.seen.page, one.seen.shelf, one.seen.place) == (page.request_id, 1, 2)
            assert one.item_key == hash64(item.item_id)
        assert in_streams(published.client, published.keys) == 2


async def test_an_event_with_a_strange_token_is_invalid(published: Store) -> None:
    """Of another listener, another item, altered, endless, by a key two rotations old; its neighbours are recorded."""
    async with serving(published.state, published.url) as served:
        items = (await served.get_home("u0000001")).shelves[0].items
        token, other = items[0].tracking_token, items[1]
        sent = [
            event("e1", user_id="u0000002", item_id=items[0].item_id, tracking_token=token),
            event("e2", item_id=other.item_id, tracking_token=token),
            event("e3", item_id=items[0].item_id, tracking_token=token[:-1] + ("A" if token[-1] != "A" else "B")),
            event("e4", tracking_token="A" * 2000),
            event("e5", item_id=other.item_id, tracking_token=other.tracking_token),
        ]
        told = outcomes(await record(served, sent))
        assert [one.result for one in told] == [INVALID] * 4 + [RECORDED]
        assert all(one.message.startswith("tracking_token: ") for one in told[:4])
        for _ in range(2):
            before = served.plane.signing().newest.id
            rotate(published.state, None, after_s=0, force=True)
            await eventually(lambda before=before: served.plane.signing().newest.id != before)
            last = results(await record(served, [event(f"r{before}", item_id="", tracking_token=token)]))
        assert last == [INVALID]
        assert in_streams(published.client, published.keys) == 2


def test_entries_of_before_are_read_and_tracked_ones_are_columns() -> None:
    """An entry without a slot stays as it always was; the table has null where nothing is known."""
    old = b'[1,"e1","u1","play","i1",1700000000000,5,"s",0]'
    plain = Event.from_bytes(old)
    assert (plain.to_bytes(), plain.seen, plain.item_key) == (old, None, hash64("i1"))
    seen = Seen(page=PAGE, at=1_700_000_000, shelf=2, place=11, item_key=2**64 - 1, arms=(1, 2**32 - 1))
    tracked = Event(event_id="e2", user_id="u1", did=plain.did, item_id="", occurred_ms=1_700_000_000_000, seen=seen)
    assert Event.from_bytes(tracked.to_bytes()) == tracked
    table, strange = decode(
        [(1, "1700000000001-0", old), (1, "1700000000002-0", tracked.to_bytes()), (1, "3-0", b"[2]")]
    )
    columns = ("item_key", "page_id", "shelf", "place", "arms")
    assert [table[name].to_list() for name in columns] == [
        [hash64("i1"), 2**64 - 1],
        [None, PAGE],
        [None, 2],
        [None, 11],
        [None, [1, 2**32 - 1]],
    ]
    assert len(strange) == 1
