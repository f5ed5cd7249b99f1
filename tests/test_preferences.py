"""Preferences: their bytes, and that pages keep to them."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.keys import hash64, item_keys
from features.listeners import Known
from features.preferences import Preferences, decode_preferences, decode_wishes, encode_preferences
from features.recent_state import Did, decode_states, encode_entry
from features.snapshot import Limit, Snapshot
from ranking.dial import ENDS, dialled
from ranking.home import assemble
from ranking.params import INDEX, PARAMS, resolve
from ranking.surfaces import CODES, DEFAULT_SURFACES, Surface, load_surfaces
from ranking.types import Degraded, Fate, Home, HomeQuery
from tests.test_home import NOW, draw_query, read, serve, shown, spec
from tests.wishes import Names, draw_preferences

IDS = st.lists(st.text(min_size=1, max_size=32), max_size=20, unique=True).map(tuple)
MARKS = st.dictionaries(st.integers(0, 2**64 - 1), st.integers(0, 2**63), max_size=5).map(
    lambda marks: tuple(sorted(marks.items()))
)
PREFERENCES = st.builds(
    Preferences,
    hidden_items=IDS,
    hidden_artists=IDS,
    hidden_through=IDS.map(lambda ids: tuple(sorted((hash64(f"artist of {one}"), one) for one in ids))),
    shown_items=MARKS,
    shown_artists=MARKS,
    allow_explicit=st.none() | st.booleans(),
    promotions_off=st.booleans(),
    discovery=st.none() | st.floats(0, 1, width=32),
)
HOME = load_surfaces(DEFAULT_SURFACES)["home"]


def ordered(preferences: Preferences) -> Preferences:
    """With its ids in the order of their keys."""
    items, artists = (sorted(ids, key=hash64) for ids in (preferences.hidden_items, preferences.hidden_artists))
    return replace(preferences, hidden_items=tuple(items), hidden_artists=tuple(artists))


@given(batch=st.lists(PREFERENCES | st.none(), max_size=5))
@settings(deadline=None)
def test_what_is_written_is_what_is_read(batch: list[Preferences | None]) -> None:
    """Every field comes back, as ids and as columns; keys ascend; who never said anything hides nothing."""
    frames = [None if one is None else encode_preferences(one) for one in batch]
    wishes = decode_wishes(frames)
    assert not wishes.unreadable.any()
    for row, (one, frame) in enumerate(zip(batch, frames, strict=True)):
        wanted = Preferences() if one is None else ordered(one)
        assert frame is None or decode_preferences(frame) == wanted
        items = wishes.hidden_items[wishes.item_start[row] : wishes.item_start[row + 1]]
        artists = wishes.hidden_artists[wishes.artist_start[row] : wishes.artist_start[row + 1]]
        assert items.tolist() == item_keys(wanted.hidden_items).tolist()
        keys = [*item_keys(wanted.hidden_artists).tolist(), *(key for key, _ in wanted.hidden_through)]
        assert artists.tolist() == sorted(keys)
        said = bool(wishes.allow_explicit[row]) if wishes.said_explicit[row] else None
        assert (said, wishes.promotions_off[row]) == (wanted.allow_explicit, wanted.promotions_off)
        dial = float(wishes.discovery[row])
        assert (None if np.isnan(dial) else dial) == wanted.discovery
        assert wishes.read[row] == (frame is not None)


@given(preferences=PREFERENCES, data=st.data())
@settings(deadline=None)
def test_damage_says_nothing(preferences: Preferences, data: st.DataObject) -> None:
    """A byte changed anywhere, an end cut off or grown, or no frame at all: unreadable, never "nothing hidden"."""
    frame = encode_preferences(preferences)
    at, flip = data.draw(st.integers(0, len(frame) - 1)), data.draw(st.integers(1, 255))
    changed = bytes((*frame[:at], frame[at] ^ flip, *frame[at + 1 :]))
    for broken in (changed, frame[:at], frame + b"\0", b""):
        assert decode_preferences(broken) is None
    wishes = decode_wishes([frame, changed, frame])
    assert wishes.unreadable.tolist() == [False, True, False]
    assert np.diff(wishes.item_start).tolist()[1] == 0


def page(
    snapshot: Snapshot, frame: bytes | None, wishes: Preferences | bytes, surface: Surface = HOME, **asked: object
) -> Home:
    """A page for a listener with such preferences."""
    wish = wishes if isinstance(wishes, bytes) else encode_preferences(wishes)
    query = HomeQuery(user_id="u", surface=surface, now=NOW, **{"market": "GB", **asked})  # type: ignore[arg-type]
    return serve(snapshot, (query,), [frame], wishes=[wish])[0]


def rows_of(home: Home) -> list[int]:
    """Every row on a page."""
    return [int(row) for shelf in home.shelves for row in shelf.rows]


def test_what_is_hidden_is_on_none_of_thousands_of_pages(
    world: Path, snapshot: Snapshot, records: dict[str, bytes]
) -> None:
    """Random listeners, hides, surfaces and states of knowledge: no hidden item, none by a hidden artist, no anchor."""
    rng, names, columns = np.random.default_rng(5), Names.of(world), snapshot.columns
    users, pages, fallen = sorted(records), 0, 0
    while pages < 4000:
        batch = rng.choice(users, 16).tolist()
        frames = [[records[user], records[user], records[user], None][rng.integers(4)] for user in batch]
        wished = [draw_preferences(rng, names) for _ in batch]
        drawn = [draw_query(rng, snapshot, user) for user in batch]
        queries = tuple(replace(one, surface=HOME) if rng.integers(2) else one for one in drawn)
        for query, wish, home in zip(
            queries, wished, serve(snapshot, queries, frames, wishes=[*map(encode_preferences, wished)]), strict=True
        ):
            rows = np.array(rows_of(home), np.int64)
            items, artists = item_keys(wish.hidden_items), item_keys(wish.hidden_artists)
            about = [shelf.subject for shelf in home.shelves if shelf.why == "neighbours"]
            for seen in (rows, np.array(about, np.int64)):
                assert not np.isin(columns["item_key"][seen], items).any()
                assert not np.isin(columns["artist_key"][seen], artists).any()
                assert query.hidden is None or not np.isin(columns["item_key"][seen], query.hidden).any()
            fallen += home.fates.get(Fate.HIDDEN, 0)
            pages += 1
    assert fallen > 10_000


def test_a_hidden_artist_leaves_every_shelf_and_comes_back(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """The artist of the anchor: gone from every shelf and as an anchor; without the hide all is as it was."""
    artist_of = snapshot.columns["artist_key"]
    anchors = 0
    for frame in list(records.values())[:60]:
        before = page(snapshot, frame, Preferences())
        about = next((shelf.subject for shelf in before.shelves if shelf.spec.id == "because-you-play"), -1)
        if about < 0 or not artist_of[about]:
            continue
        anchors += 1
        listeners = read(snapshot, [frame])
        wishes = replace(listeners.wishes, artist_start=np.array([0, 1]), hidden_artists=artist_of[[about]])
        query = HomeQuery(user_id="u", surface=HOME, now=NOW, market="GB")
        ((after,), _) = assemble((query,), replace(listeners, wishes=wishes), snapshot, clock=time.perf_counter)
        assert not (artist_of[rows_of(after)] == artist_of[about]).any()
        assert all(artist_of[shelf.subject] != artist_of[about] for shelf in after.shelves if shelf.why == "neighbours")
        assert shown(page(snapshot, frame, Preferences())) == shown(before)
    assert anchors > 30


def test_what_was_played_of_late_by_a_hidden_artist_does_not_stand_in_history(
    snapshot: Snapshot, records: dict[str, bytes]
) -> None:
    """Plays of recent state are filtered as those of the record."""
    frame, rows = next(iter(records.values())), np.flatnonzero(snapshot.columns["artist_key"])[:8]
    keys, artists = snapshot.columns["item_key"][rows], np.unique(snapshot.columns["artist_key"][rows])
    state = decode_states([b"".join(encode_entry(Did.PLAY, int(key), at=NOW) for key in keys)])
    listeners = replace(read(snapshot, [frame]), state=state)
    hidden = replace(listeners.wishes, artist_start=np.array([0, len(artists)]), hidden_artists=artists)
    surface = Surface(name="one", shelves=(spec("back", "history", minimum=1, size=50),))
    query = HomeQuery(user_id="u", surface=surface, now=NOW, allow_explicit=True)
    for one, wanted in ((listeners, True), (replace(listeners, wishes=hidden), False)):
        ((home,), _) = assemble((query,), one, snapshot, clock=time.perf_counter)
        assert np.isin(rows_of(home), rows).any() == wanted


EXPLICIT = [
    (None, None, "record"),
    (None, True, True),
    (None, False, False),
    (True, False, True),
    (False, True, False),
    (True, None, True),
    (False, None, False),
]


@pytest.mark.parametrize(("asked", "said", "wanted"), EXPLICIT)
def test_explicit_items_go_by_the_nearest_word(
    snapshot: Snapshot, records: dict[str, bytes], asked: bool | None, said: bool | None, wanted: bool | str
) -> None:
    """The request's word beats the preference, which beats the record."""
    surface = Surface(name="one", shelves=(spec("all", "popular", size=200, depth=400, minimum=1),))
    explicit = snapshot.columns["limits"] & Limit.EXPLICIT
    seen = set()
    for frame in list(records.values())[:40]:
        recorded = bool(read(snapshot, [frame]).allow_explicit[0])
        home = page(snapshot, frame, Preferences(allow_explicit=said), surface, allow_explicit=asked)
        allowed = recorded if wanted == "record" else wanted
        assert explicit[rows_of(home)].any() == allowed
        seen.add(recorded)
    assert seen == {True, False}


def test_a_frame_that_does_not_verify_hides_all_but_lists(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """BLOCKLIST_UNKNOWN and popular rows only, no explicit item; with the client's own list every shelf."""
    frame, broken = next(iter(records.values())), encode_preferences(Preferences(promotions_off=True))[:-1]
    blind = page(snapshot, frame, broken)
    assert {shelf.why for shelf in blind.shelves} == {"popular"}
    assert blind.degraded == (Degraded.BLOCKLIST_UNKNOWN,)
    assert (blind.coverage, blind.cold_start) == (100 // len(HOME.shelves), False)
    assert not (snapshot.columns["limits"][rows_of(blind)] & Limit.EXPLICIT).any()
    told = page(snapshot, frame, broken, hidden=snapshot.columns["item_key"][:1])
    assert (told.degraded, told.coverage) == ((), 100)
    assert len(told.shelves) > len(blind.shelves)


def test_preferences_that_were_read_are_known_beside_a_store_that_is_not_whole(snapshot: Snapshot) -> None:
    """The record may be lost, but the hidden list was read: every shelf that there can be, STORE_DOWN only."""
    listeners = read(snapshot, [None], Known.DOWN, wishes=[encode_preferences(Preferences())])
    query = HomeQuery(user_id="u", surface=HOME, now=NOW, market="GB")
    ((home,), _) = assemble((query,), listeners, snapshot, clock=time.perf_counter)
    assert home.degraded == (Degraded.STORE_DOWN,)
    assert "newest" in {shelf.why for shelf in home.shelves}


def test_the_dial_in_the_middle_is_the_surfaces_own() -> None:
    """At .5, or never said, no param moves; from there each moves one way only, within its range, on its lines only."""
    own = np.stack([resolve(), resolve({"novelty_weight": 0.7, "discovery_noise": 1.5}), resolve()])
    source, dials = np.array([CODES[name] for name in ("taste", "discover", "popular")]), np.linspace(0, 1, 41)
    turned = np.stack([dialled(own, source, np.full(3, dial)) for dial in dials])
    assert (turned[20] == own).all()
    assert (dialled(own, source, np.full(3, np.nan)) == own).all()
    assert (turned[:, 2] == own[2]).all()
    for name, place in INDEX.items():
        moves = np.diff(turned[:, :, place], axis=0)
        assert (moves >= 0).all() if name in ENDS else (moves == 0).all()
        assert (turned[:, :, place] >= PARAMS[place].low).all()
        assert (turned[:, :, place] <= PARAMS[place].high).all()


def known_share(homes: Sequence[Home], snapshot: Snapshot, played: Sequence[set[int]], shelf_id: str) -> float:
    """Of the items on a shelf of some pages, the share by artists that their listeners play."""
    artist_of, known, count = snapshot.columns["artist_key"], 0, 0
    for home, own in zip(homes, played, strict=True):
        rows = next((shelf.rows for shelf in home.shelves if shelf.spec.id == shelf_id), np.empty(0, np.int64))
        known += sum(int(artist_of[row]) in own for row in rows)
        count += len(rows)
    return known / count


@pytest.mark.parametrize("shelf_id", ["picked-for-you", "discover"])
def test_the_share_of_known_artists_falls_with_the_dial(
    snapshot: Snapshot, records: dict[str, bytes], shelf_id: str
) -> None:
    """From nearly all to none over 200 listeners, and never up; in the middle the page of who never said."""
    frames = list(records.values())[:200]
    plays = [snapshot.rows_of(read(snapshot, [frame]).recent_keys) for frame in frames]
    played = [set(snapshot.columns["artist_key"][rows[rows >= 0]].tolist()) - {0} for rows in plays]
    one = replace(HOME, shelves=tuple(shelf for shelf in HOME.shelves if shelf.id == shelf_id))

    def pages(discovery: float | None) -> list[Home]:
        return [page(snapshot, frame, Preferences(discovery=discovery), one) for frame in frames]

    homes = {dial: pages(dial) for dial in (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)}
    shares = [known_share(found, snapshot, played, shelf_id) for found in homes.values()]
    assert (np.diff(shares) <= 0).all(), shares
    assert shares[0] > shares[4] > shares[-1]
    assert shares[-1] < 0.02
    assert [shown(home) for home in homes[0.5]] == [shown(home) for home in pages(None)]
