"""What was seen and not played sinks in the next session, and never in this one."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.index import use_one_thread
from features.keys import hash64
from features.listeners import Listeners, decode
from features.recent_state import Did, encode_entry
from features.snapshot import Snapshot
from ranking.history import DAY_S
from ranking.home import assemble
from ranking.impressions import COUNTED, recall_seen
from ranking.params import Value, resolve
from ranking.session import PAUSE_S
from ranking.surfaces import DEFAULT_SURFACES, Surface, load_surfaces
from ranking.types import Home, HomeQuery, Shelf
from tests.conftest import Served, Store, serving
from tests.promoted import same
from tests.test_home import NOW, draw_batch, draw_state, spec

HOME: Final = load_surfaces(DEFAULT_SURFACES)["home"]
NOON: Final = NOW + DAY_S // 2
Sight = tuple[int, int, int]  # row, seconds before noon, session


def seen(snapshot: Snapshot, sights: Iterable[Sight], did: Did = Did.IMPRESSION) -> bytes:
    """Entries as they stand in a listener's string."""
    keys = snapshot.columns["item_key"]
    return b"".join(encode_entry(did, int(keys[row]), at=NOON - ago, session=session) for row, ago, session in sights)


def listeners(
    snapshot: Snapshot, frames: Sequence[bytes | None], shown: Sequence[bytes], done: Sequence[bytes | None] = ()
) -> Listeners:
    """As the store reads them."""
    return decode(
        frames,
        space_id=snapshot.space_id,
        dimension=snapshot.manifest.dimension,
        genres=len(snapshot.manifest.genres),
        states=done,
        impressions=shown,
    )


def serve(snapshot: Snapshot, query: HomeQuery, frame: bytes, shown: bytes, done: bytes | None = None) -> Home:
    """A page of one listener."""
    use_one_thread()
    who = listeners(snapshot, [frame], [shown], [done])
    return assemble((query,), who, snapshot, clock=time.perf_counter)[0][0]


def long_shelf(snapshot: Snapshot, frame: bytes, shown: bytes, **params: Value) -> Shelf:
    """All that a line may show."""
    free: dict[str, Value] = {"artist_cap": 0, "album_cap": 0, "artist_gap": 0}
    shelf = spec("long", "taste", size=60, depth=60, minimum=1, params=resolve(free, params))
    surface = Surface(name="s", shelves=(shelf,), params=resolve({"page_artist_cap": 0}))
    return serve(snapshot, HomeQuery(user_id="u", surface=surface, now=NOON, market="GB"), frame, shown).shelves[0]


def scores(shelf: Shelf) -> dict[int, float]:
    """By row."""
    return dict(zip(shelf.rows.tolist(), shelf.scores.tolist(), strict=True))


@pytest.fixture
def frame(records: dict[str, bytes]) -> bytes:
    """A listener's record."""
    return records[sorted(records)[7]]


def test_a_score_falls_with_every_sight_to_a_floor(snapshot: Snapshot, frame: bytes) -> None:
    """To exp(-.25 n) of itself, .3 at the least; the others keep theirs."""
    plain = long_shelf(snapshot, frame, b"")
    row, whole = int(plain.rows[3]), float(plain.scores[3])
    for times in range(9):
        found = scores(long_shelf(snapshot, frame, seen(snapshot, [(row, DAY_S + n, 5) for n in range(times)])))
        assert found.pop(row) == pytest.approx(whole * max(0.3, np.exp(-0.25 * times)))
        assert found == {one: score for one, score in scores(plain).items() if one != row}


def test_a_score_below_zero_falls_too(snapshot: Snapshot, frame: bytes) -> None:
    """By the same share of its size."""
    params: dict[str, Value] = {"affinity_weight": 0.0, "popularity_weight": -1.0}
    plain = long_shelf(snapshot, frame, b"", **params)
    row = int(plain.rows[3])
    whole = scores(plain)[row]
    found = scores(long_shelf(snapshot, frame, seen(snapshot, [(row, DAY_S, 5)]), **params))[row]
    assert whole < 0
    assert found == pytest.approx(whole * (2 - np.exp(-0.25)))


@pytest.mark.parametrize("source", ["history", "editorial"])
def test_what_was_played_or_chosen_does_not_sink(snapshot: Snapshot, frame: bytes, source: str) -> None:
    """Shelves of history and of editors keep every score."""
    rows = np.arange(20)
    shelf = spec("s", source, minimum=1, item_keys={"": snapshot.columns["item_key"][rows]})
    query = HomeQuery(user_id="u", surface=Surface(name="s", shelves=(shelf,)), now=NOON, market="GB")
    plain = serve(snapshot, query, frame, b"")
    sights = [(row, DAY_S, 5) for row in plain.shelves[0].rows.tolist()]
    assert same(serve(snapshot, query, frame, seen(snapshot, sights)), plain)


def counted(
    snapshot: Snapshot, frame: bytes | None, shown: bytes, done: bytes = b"", session: int = 0, now: int = NOON
) -> dict[int, int]:
    """How often which rows count as seen."""
    query = HomeQuery(user_id="u", surface=HOME, now=now, session=session)
    found = recall_seen((query,), listeners(snapshot, [frame], [shown], [done]), snapshot)
    assert (np.diff(found.row) > 0).all()
    return dict(zip(found.row.tolist(), found.times.tolist(), strict=True))


def test_a_play_resets(snapshot: Snapshot) -> None:
    """What was seen before a play, a complete or a like is forgotten, even one of this session; a skip is no play."""
    shown = seen(snapshot, [(1, 3 * DAY_S, 5), (1, 2 * DAY_S, 6), (2, DAY_S, 6)])
    assert counted(snapshot, None, shown) == {1: 2, 2: 1}
    for did in (Did.PLAY, Did.COMPLETE, Did.LIKE):
        assert counted(snapshot, None, shown, seen(snapshot, [(1, 2 * DAY_S + 9, 0)], did)) == {1: 1, 2: 1}
        assert counted(snapshot, None, shown, seen(snapshot, [(1, 60, 0)], did)) == {2: 1}
    assert counted(snapshot, None, shown, seen(snapshot, [(1, 60, 0)], Did.SKIP)) == {1: 2, 2: 1}


def test_a_play_of_the_record_resets_through_its_day(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Of plays in a record only the day is known: what was seen on it, or before, is forgotten."""
    for frame in list(records.values())[:40]:
        who = listeners(snapshot, [frame], [b""])
        row, day = int(snapshot.rows_of(who.recent_keys[:1])[0]), int(who.recent_days[0])
        if row < 0 or not day:
            continue
        now = (day + 3) * DAY_S
        ago = NOON - day * DAY_S
        shown = seen(snapshot, [(row, ago + 5, 1), (row, ago - DAY_S + 1, 1), (row, ago - DAY_S, 1)])
        assert counted(snapshot, frame, shown, now=now) == {row: 1}
        assert counted(snapshot, None, shown, now=now) == {row: 3}


def test_seven_days_count_before_the_day_of_the_session(snapshot: Snapshot) -> None:
    """What is older does not; nor what is of the future, nor what the snapshot lacks."""
    days = [(1, DAY_S // 2 + 7 * DAY_S, 1), (2, DAY_S // 2 + 7 * DAY_S + 1, 1), (3, -60, 1)]
    unknown = encode_entry(Did.IMPRESSION, 1, at=NOON - DAY_S)
    assert counted(snapshot, None, seen(snapshot, days) + unknown) == {1: 1}


SIGHTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9 * DAY_S), st.integers(0, 3)), max_size=40)


@given(sights=SIGHTS, done=SIGHTS, session=st.integers(0, 3), chance=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_order_and_repetition_change_nothing(
    snapshot: Snapshot, sights: list[Sight], done: list[Sight], session: int, chance: np.random.Generator
) -> None:
    """Entries count as they were, not as they arrived."""
    plain = counted(snapshot, None, seen(snapshot, sights), seen(snapshot, done, Did.PLAY), session)
    mixed = [*sights, *sights[:7]]
    chance.shuffle(mixed)
    later = done[::-1]
    assert counted(snapshot, None, seen(snapshot, mixed), seen(snapshot, later, Did.PLAY), session) == plain


@pytest.mark.parametrize(("session", "named"), [(0, 0), (9, 9), (9, 0), (0, 9)])
def test_a_session_changes_no_page_by_impressions(
    snapshot: Snapshot, records: dict[str, bytes], session: int, named: int
) -> None:
    """A listener scrolls for two hours, named by the client or not: each page is the first, to the last bit."""
    for number, frame in enumerate(list(records.values())[:6]):
        rng = np.random.default_rng(number)
        query = HomeQuery(user_id="u", surface=HOME, now=NOON - 7200, session=session, seed=5)
        rows = [row for shelf in serve(snapshot, query, frame, b"").shelves for row in shelf.rows.tolist()]
        before = [(row, DAY_S + number, 4) for number, row in enumerate(rng.choice(rows, 60).tolist())]
        first = serve(snapshot, query, frame, seen(snapshot, before))
        assert not same(first, serve(snapshot, query, frame, b""))
        later = [(int(rng.choice(rows)), 7195 - 60 * minute, named) for minute in range(118)]
        for many in (1, 10, 60, 118):
            now = replace(query, now=NOON - later[many - 1][1] + 5)
            assert same(serve(snapshot, now, frame, seen(snapshot, before + later[:many])), first)
        next_day = replace(query, now=NOON + DAY_S // 3, session=session and session + 1)
        assert not same(serve(snapshot, next_day, frame, seen(snapshot, before + later)).shelves, first.shelves)


def test_what_a_session_pushes_out_of_the_store_was_not_counted(snapshot: Snapshot) -> None:
    """The store keeps the last 512: a session adds as many as it may, and what counted before still does."""
    rng = np.random.default_rng(2)
    before = [(int(row), 7 * DAY_S - 60 * n, 4) for n, row in enumerate(rng.integers(2000, size=1000))]
    own = [(int(row), 1000 - n, 9) for n, row in enumerate(rng.integers(2000, size=512 - COUNTED))]
    kept = [*before, *own][-512:]
    assert counted(snapshot, None, seen(snapshot, kept), session=9) == counted(
        snapshot, None, seen(snapshot, before), session=9
    )


@pytest.mark.parametrize(
    ("ago", "session", "before"),
    [
        ((60,), 0, False),
        ((PAUSE_S + 60,), 0, True),
        ((2 * PAUSE_S - 60, PAUSE_S - 30), 0, False),
        ((60,), 7, True),  # of another session that the client named
        ((PAUSE_S + 60,), 4, False),  # of this one
    ],
)
def test_a_session_is_named_or_ends_with_a_pause(
    snapshot: Snapshot, ago: tuple[int, ...], session: int, *, before: bool
) -> None:
    """Gaps between impressions count as those between what was done; a client's word beats both."""
    shown = seen(snapshot, [(number, one, 4) for number, one in enumerate(ago)])
    assert bool(counted(snapshot, None, shown, session=session)) == before


def test_what_was_done_keeps_a_session_alive(snapshot: Snapshot) -> None:
    """A play between two impressions of a session joins them."""
    shown = seen(snapshot, [(1, 3000, 0)])
    assert counted(snapshot, None, shown) == {1: 1}
    assert counted(snapshot, None, shown, seen(snapshot, [(2, 1500, 0)], Did.SKIP)) == {}


@pytest.mark.parametrize("seed", range(12))
def test_a_batch_equals_its_rows_alone(snapshot: Snapshot, records: dict[str, bytes], seed: int) -> None:
    """In every field, whoever saw what beside whom; the terms of a score add up to it."""
    queries, frames = draw_batch(seed, snapshot, records)
    rng = np.random.default_rng(seed)
    queries = tuple(replace(query, traced=True) for query in queries)
    states = [draw_state(rng, snapshot) for _ in queries]
    sights = [rng.integers(2000, size=300 * int(rng.integers(2))).tolist() for _ in queries]
    shown = [seen(snapshot, ((row, int(rng.integers(9 * DAY_S)), 3) for row in one)) for one in sights]
    use_one_thread()
    clock = time.perf_counter
    together, _ = assemble(queries, listeners(snapshot, frames, shown, states), snapshot, clock=clock)
    sank = 0
    for number, home in enumerate(together):
        own = slice(number, number + 1)
        who = listeners(snapshot, frames[own], shown[own], states[own])
        assert same(assemble(queries[own], who, snapshot, clock=clock)[0][0], home)
        for line in home.lines:
            held = np.isfinite(line.scores)
            assert sum(line.terms.values())[held] == pytest.approx(line.scores[held], abs=1e-9)  # type: ignore[index]
            sank += int((line.terms["impressions"][held] < 0).sum())
            assert (line.terms["impressions"][held] <= 0).all()
    assert sank or not any(shown)


async def test_what_was_seen_last_week_sinks_on_the_served_page(published: Store) -> None:
    """The listener's impressions are read from Redis with all else."""
    async with serving(published.state, published.url) as served:
        before = await picked(served)
        first = next(iter(before))
        key = published.keys.impressions("u0000001")
        at = int(time.time()) - 2 * DAY_S
        published.client.set(key, b"".join(encode_entry(Did.IMPRESSION, hash64(first), at=at + n) for n in range(6)))
        after = await picked(served)
    assert after.get(first, 0.0) < before[first]


async def picked(served: Served) -> dict[str, float]:
    """The shelf of taste: item ids and scores."""
    page = await served.get_home("u0000001", session_id="s")
    (shelf,) = (shelf for shelf in page.shelves if shelf.id == "picked-for-you")
    return {item.item_id: item.score for item in shelf.items}
