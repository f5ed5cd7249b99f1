"""Hides by event: they hold from the next page on, for good, in whatever order and however often they come."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.event_store import STATE_ENTRIES
from features.hiding import Hide, hide, hide_by_events, show
from features.keys import hash64
from features.preferences import MAX_HIDDEN, Preferences, encode_preferences
from protos.events.v1 import events_pb2
from server.hides import ALONE, FULL, UNREADABLE
from tests.conftest import Served, Store
from tests.recording import DUPLICATE, INVALID, RECORDED, event, outcomes, record, results
from tests.test_listener_service import artists_of, ids, wish, wishes

USER = "u0000001"


def hiding(name: str, item_id: str, **fields: Any) -> events_pb2.Event:
    """The event of a hide."""
    return event(name, kind=events_pb2.EVENT_KIND_HIDE, item_id=item_id, **fields)


async def shown(served: Served, sessions: int = 12) -> set[str]:
    """Every item of the pages of some sessions."""
    pages = [await served.get_home(USER, session_id=f"s{number}") for number in range(sessions)]
    assert all(page.shelves and not page.degraded for page in pages)
    return set().union(*map(ids, pages))


async def test_what_an_event_hides_never_returns(served: Served, published: Store, world: Path) -> None:
    """Items and whole artists, from the next page on: also once recent state is trimmed, and when it has expired."""
    before = sorted(await shown(served))
    items, through = before[::7], [one for one in before[3::7] if artists_of(world, [one])]
    artists = artists_of(world, through)
    sent = [hiding(f"i{n}", one) for n, one in enumerate(items)]
    sent += [hiding(f"a{n}", one, whole_artist=True) for n, one in enumerate(through)]
    assert set(results(await record(served, sent))) == {RECORDED}
    plays = [event(f"p{n}", item_id=f"foreign{n}") for n in range(2 * STATE_ENTRIES + 1)]
    for step in ("at once", "trimmed", "expired"):
        if step == "trimmed":
            for n in range(0, len(plays), 400):
                await record(served, plays[n : n + 400])
        elif step == "expired":
            published.client.delete(published.keys.state(USER))
        after = await shown(served)
        assert not after & set(items), step
        assert not artists_of(world, after) & artists, step
    frame = published.client.get(published.keys.preferences(USER))
    for _ in range(3):
        random.Random(1).shuffle(sent)
        assert set(results(await record(served, sent))) == {DUPLICATE}
    assert published.client.get(published.keys.preferences(USER)) == frame


async def test_showing_again_undoes_hides_by_event(served: Served, world: Path) -> None:
    """Items by id, artists by id or by an item of theirs; the hides that went before may come late, again and anew."""
    before = await shown(served)
    item, *through = [one for one in sorted(before) if artists_of(world, [one])][::5]
    (artist,) = artists_of(world, through[:1])
    sent = [hiding("i", item), *(hiding(f"a{n}", one, whole_artist=True) for n, one in enumerate(through))]
    await record(served, sent)
    said = await wishes(served)
    assert list(said.hidden_item_ids) == [item]
    assert set(said.hidden_artists_of_item_ids) <= set(through)
    assert artists_of(world, said.hidden_artists_of_item_ids) == artists_of(world, through)
    await wish(served, unhide_item_ids=[item], unhide_artist_ids=[artist], unhide_artists_of_item_ids=through[1:])
    assert await shown(served) == before
    late = [hiding("late-i", item, ago_s=90), hiding("late-a", through[0], ago_s=90, whole_artist=True)]
    assert set(results(await record(served, sent))) == {DUPLICATE}
    assert set(results(await record(served, late))) == {RECORDED}
    assert await shown(served) == before
    await record(served, [hiding("anew", item, ago_s=0), hiding("anew-a", through[0], ago_s=0, whole_artist=True)])
    after = await shown(served)
    assert item not in after
    assert artist not in artists_of(world, after)


async def test_a_tracking_token_names_what_is_hidden(served: Served, world: Path) -> None:
    """Without an item id: the token's item, or its artist, never returns."""
    page = await served.get_home(USER)
    first, second = [one for one in page.shelves[0].items if artists_of(world, [one.item_id])][:2]
    sent = [
        hiding("1", "", tracking_token=first.tracking_token),
        hiding("2", "", tracking_token=second.tracking_token, whole_artist=True),
    ]
    assert results(await record(served, sent)) == [RECORDED] * 2
    after = await shown(served)
    assert first.item_id not in after
    assert not artists_of(world, after) & artists_of(world, [second.item_id])


async def test_an_undo_may_overtake_its_hide(served: Served) -> None:
    """The undo of a hide that waits in a client comes first: the hide changes nothing when it comes."""
    (item,) = sorted(await shown(served))[:1]
    await wish(served, unhide_item_ids=[item])
    assert results(await record(served, [hiding("h", item, ago_s=3)])) == [RECORDED]
    assert item in await shown(served)
    await wish(served, hide_item_ids=[item])
    assert item not in await shown(served)


async def test_what_cannot_be_kept_is_told_and_spoils_nothing(served: Served, published: Store) -> None:
    """Beyond 1,000, or beside preferences that cannot be read: that event INVALID; an item without an artist: said."""
    full = Preferences(hidden_items=tuple(f"x{n}" for n in range(MAX_HIDDEN)))
    published.client.set(published.keys.preferences("full"), encode_preferences(full))
    published.client.set(published.keys.preferences("broken"), broken := encode_preferences(full)[:-1])
    sent = [
        hiding("1", "one more", user_id="full"),
        hiding("2", "x7", user_id="full"),
        hiding("3", "any", user_id="broken"),
        hiding("4", "unknown", whole_artist=True),
        event("5", user_id="full"),
    ]
    told = outcomes(await record(served, sent))
    assert [one.result for one in told] == [INVALID, RECORDED, INVALID, RECORDED, RECORDED]
    assert [one.message for one in told] == [f"kind: {FULL}", "", f"user_id: {UNREADABLE}", ALONE, ""]
    assert published.client.get(published.keys.preferences("broken")) == broken
    assert list((await wishes(served)).hidden_item_ids) == ["unknown"]
    assert len((await wishes(served, "full")).hidden_item_ids) == MAX_HIDDEN


async def test_a_hide_that_the_store_did_not_take_is_not_acknowledged(served: Served, published: Store) -> None:
    """Redis stopped: UNAVAILABLE, to be sent again as it was."""
    published.client.shutdown(nosave=True)
    assert (await record(served, [hiding("1", "a")])).code.name == "UNAVAILABLE"


KEYS = ["a", "b", "c"]
HIDES = st.lists(
    st.builds(Hide, item_id=st.sampled_from(KEYS), at_ms=st.integers(0, 20), artist=st.sampled_from([0, 0, 1, 2])),
    max_size=12,
)


@given(
    hides=HIDES,
    undone=st.lists(st.sampled_from(KEYS), max_size=2),
    at_ms=st.integers(0, 20),
    cut=st.integers(0, 12),
    data=st.data(),
)
@settings(deadline=None)
def test_order_and_repetition_change_nothing(
    hides: list[Hide], undone: list[str], at_ms: int, cut: int, data: st.DataObject
) -> None:
    """Hidden is what was hidden after it was shown again, or never was: whatever came first, and came twice."""
    early, late = [one for one in hides[:cut] if one.at_ms <= at_ms], hides[cut:]  # none comes before it occurs
    hides, cut = [*early, *late], len(early)

    def after(order: Sequence[Hide], cut: int) -> Preferences:
        wish, _ = hide_by_events(Preferences(), order[:cut])
        wish = show(wish, map(hash64, undone), [1], at_ms=at_ms)
        return hide_by_events(wish, order[cut:])[0]

    wish = after(hides, cut)
    items = {one.item_id for one in hides if not one.artist and (one.item_id not in undone or one.at_ms > at_ms)}
    artists = {one.artist for one in hides if one.artist == 2 or (one.artist == 1 and one.at_ms > at_ms)}
    assert set(wish.hidden_items) == items
    assert {key for key, _ in wish.hidden_through} == artists
    mixed = [*data.draw(st.permutations([*early, *early])), *data.draw(st.permutations([*early, *late, *late]))]
    again = after(mixed, 2 * cut)
    assert again.hidden_items == wish.hidden_items
    assert dict(again.hidden_through).keys() == dict(wish.hidden_through).keys()


def test_marks_of_what_is_shown_again_stay_bounded() -> None:
    """For as long as events are taken, and as many as can be hidden; a word hides whatever was undone."""
    wish = Preferences()
    for hour in range(200):
        wish = show(wish, range(30 * hour, 30 * hour + 30), [hour], at_ms=hour * 3_600_000)
    assert len(wish.shown_items) == MAX_HIDDEN
    assert [key for key, _ in wish.shown_artists] == list(range(151, 200))
    undone = show(hide(wish, ["a"], ["b"]), [hash64("a")], [hash64("b")], at_ms=10**9)
    assert (undone.hidden_items, undone.hidden_artists) == ((), ())
    said = hide(undone, ["a"], ["b"])
    assert (said.hidden_items, said.hidden_artists) == (("a",), ("b",))
    assert hash64("a") not in dict(said.shown_items)


def by_word(wish: Preferences) -> Preferences:
    """With the artist hidden by id."""
    return hide(wish, [], ["artist"])


def by_event(wish: Preferences) -> Preferences:
    """With the artist hidden through an item."""
    return hide_by_events(wish, [Hide(item_id="i", at_ms=1, artist=hash64("artist"))])[0]


@pytest.mark.parametrize("steps", [[by_word], [by_event], [by_word, by_event], [by_event, by_word]])
def test_an_artist_is_hidden_once_by_word_and_by_event(steps: list[Callable[[Preferences], Preferences]]) -> None:
    """Hidden by both or by either, it counts once, and one undo is enough; of both the word stands."""
    wish = Preferences()
    for step in steps:
        wish = step(wish)
    assert (len(wish.hidden_artists), len(wish.hidden_through)) == ((1, 0) if by_word in steps else (0, 1))
    shown_again = show(wish, [], [hash64("artist")], at_ms=5)
    assert (shown_again.hidden_artists, shown_again.hidden_through) == ((), ())
