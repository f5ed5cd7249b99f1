"""Promotion on pages: no rule broken on 10,000 of them, and organic to the last field where nothing may be promoted."""

import time
from dataclasses import replace

import numpy as np
import pytest

from features.index import use_one_thread
from features.listeners import Known
from features.snapshot import Snapshot
from ranking.history import DAY_S
from ranking.home import assemble
from ranking.offers import FADED_S, FULL_S, Promotions, bonus, faded
from ranking.params import INDEX, PARAMS, resolve
from ranking.surfaces import EXPLORABLE, Slot, Surface
from ranking.types import Fate, Home, HomeQuery
from tests.promoted import Asked, check_page, draw_promotions, offered, same
from tests.test_home import NOW, draw_query, read, spec
from tests.test_page import HOME, draw_surface


def serve(
    snapshot: Snapshot, queries: tuple[HomeQuery, ...], frames: list[bytes | None], promotions: Promotions | None
) -> tuple[Home, ...]:
    """Pages."""
    use_one_thread()
    return assemble(queries, read(snapshot, frames), snapshot, promotions=promotions, clock=time.perf_counter)[0]


def draw_promotable_surface(rng: np.random.Generator, snapshot: Snapshot) -> Surface:
    """A random surface, half of its shelves and every other page with other rules of promotion than the defaults.

    Two shelves in five may explore.
    """
    surface, shelves = draw_surface(rng, snapshot), []
    own = [INDEX[param.name] for param in PARAMS if param.name.startswith("promotion_")]
    for shelf in surface.shelves:
        params = shelf.params.copy()
        params[own] = params[own] if rng.random() < 0.5 else resolve()[own]
        params[INDEX["exploration_share"]] = rng.choice([0, 0.3, 1])
        slot = Slot(place=int(rng.integers(1, shelf.size + 1)), pool=int(rng.integers(2, 40)))
        explore = slot if shelf.source in EXPLORABLE and rng.random() < 0.4 else None
        shelves.append(replace(shelf, params=params, promotable=bool(rng.random() < 0.9), explore=explore))
    drawn = [float(rng.uniform(PARAMS[place].low, min(PARAMS[place].high, 4))) for place in own]
    values = surface.params.copy()
    values[own] = drawn if rng.random() < 0.5 else values[own]
    return replace(surface, shelves=tuple(shelves), params=values)


def test_ten_thousand_pages_keep_the_rules(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Of promotion and of organic pages, with scores of any kind; the organic slates stand beside the promoted."""
    rng, users, pages, promoted, gave_way = np.random.default_rng(21), sorted(records), 0, 0, 0
    surfaces = [draw_promotable_surface(rng, snapshot) for _ in range(400)]
    while pages < 10_000:
        batch = rng.choice(users, int(rng.integers(1, 17))).tolist()
        queries = tuple(
            replace(draw_query(rng, snapshot, user), surface=surfaces[rng.integers(400)], shelves=0, traced=True)
            for user in batch
        )
        frames = [records[user] if rng.random() < 0.9 else None for user in batch]
        promotions = draw_promotions(rng, len(batch), snapshot.manifest.items)
        organic = serve(snapshot, tuple(replace(query, traced=False) for query in queries), frames, None)
        for number, home in enumerate(serve(snapshot, queries, frames, promotions)):
            asked = Asked(query=queries[number], number=number, promotions=promotions, columns=snapshot.columns)
            found = check_page(asked, home, organic[number])
            assert found or same(replace(home, lines=()), organic[number])
            assert sum(home.fates.values()) == sum(organic[number].fates.values())
            assert home.fates.get(Fate.SHOWN) == organic[number].fates.get(Fate.SHOWN)
            promoted, gave_way, pages = promoted + found, gave_way + home.fates.get(Fate.GAVE_WAY, 0), pages + 1
    assert promoted > 4000
    assert gave_way > 300


def everyone(records: dict[str, bytes]) -> tuple[tuple[HomeQuery, ...], list[bytes | None]]:
    """48 listeners who ask for Home."""
    users = sorted(records)[:48]
    return tuple(HomeQuery(user_id=user, surface=HOME, now=NOW, market="GB") for user in users), [
        records[user] for user in users
    ]


def promoted_items(homes: tuple[Home, ...]) -> list[tuple[int, int]]:
    """The number of the page and the row of what stands by promotion."""
    return [
        (number, row)
        for number, home in enumerate(homes)
        for shelf in home.shelves
        if shelf.inserted is not None
        for row in shelf.rows[shelf.inserted.campaign >= 0].tolist()
    ]


@pytest.mark.parametrize(
    "without", ["promotions", "scores", "listeners", "segments", "markets", "windows", "confirmation", "sense", "beta"]
)
def test_with_nothing_to_promote_pages_are_organic(snapshot: Snapshot, records: dict[str, bytes], without: str) -> None:
    """In every field: no book, an empty one, nobody allowed, rules that nobody meets, an old feed, absurd scores."""
    queries, frames = everyone(records)
    items = range(snapshot.manifest.items)
    whole = offered(len(queries), items)
    nothing: dict[str, Promotions | None] = {
        "promotions": None,
        "scores": offered(len(queries), []),
        "listeners": whole._replace(allowed=np.zeros(len(queries), np.bool_)),
        "segments": offered(len(queries), items, segment=7)._replace(segment=np.full(len(queries), 3)),
        "markets": offered(len(queries), items, markets=0),
        "windows": offered(len(queries), items, until=NOW),
        "confirmation": offered(len(queries), items, confirmed=NOW - FADED_S),
        "sense": offered(len(queries), items, score=np.resize([np.nan, np.inf, -np.inf, -1.0, 0.0], len(items))),
        "beta": whole,
    }
    if without == "beta":
        still = tuple(replace(one, params=resolve({"promotion_beta": 0})) for one in HOME.shelves)
        queries = tuple(replace(query, surface=replace(HOME, shelves=still)) for query in queries)
    organic = serve(snapshot, queries, frames, None)
    assert same(serve(snapshot, queries, frames, nothing[without]), organic)
    assert len(promoted_items(serve(snapshot, everyone(records)[0], frames, whole))) > 48


def test_a_silent_feed_fades_within_the_hour() -> None:
    """In full for 15 minutes, then ever less, to nothing at 60; one confirmed in the future is silent."""
    told = [faded(age) for age in range(-FULL_S, 2 * FADED_S)]
    assert set(told[: 2 * FULL_S + 1]) == {1.0}
    assert (np.diff(told[2 * FULL_S : FULL_S + FADED_S + 1]) < 0).all()
    assert set(told[FULL_S + FADED_S :]) == {0.0}
    assert faded(-FULL_S - 1) == 0


def test_a_bonus_is_bounded_and_of_nonsense_none() -> None:
    """At most the beta, at most the most; 0 for what is no number, or not above 0."""
    assert [bonus(np.float32(score), 1.0, 0.1, 0.2) for score in (0.5, 1.0, 1e30)] == [0.05, 0.1, 0.1]
    assert bonus(np.float32(1), 1.0, 0.2, 0.15) == 0.15
    assert {bonus(np.float32(score), 1.0, 0.2, 0.2) for score in (np.nan, np.inf, -np.inf, -1.0, 0.0)} == {0.0}


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_equals_its_rows_alone(snapshot: Snapshot, records: dict[str, bytes], seed: int) -> None:
    """In every field."""
    rng = np.random.default_rng(seed)
    users = rng.choice(sorted(records), int(rng.integers(2, 17))).tolist()
    queries = tuple(
        replace(draw_query(rng, snapshot, user), surface=draw_promotable_surface(rng, snapshot), traced=True)
        for user in users
    )
    frames: list[bytes | None] = [records[user] for user in users]
    promotions = draw_promotions(rng, len(users), snapshot.manifest.items)
    for number, home in enumerate(serve(snapshot, queries, frames, promotions)):
        own = promotions._replace(
            **{name: getattr(promotions, name)[[number]] for name in ("allowed", "segment", "plays")}
        )
        (alone,) = serve(snapshot, queries[number : number + 1], frames[number : number + 1], own)
        assert same(home, alone)


def test_the_first_shelves_are_those_of_the_whole_page(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """With promotion too, however many shelves are asked for."""
    queries, frames = everyone(records)
    promotions = offered(len(queries), range(snapshot.manifest.items))
    whole = serve(snapshot, queries, frames, promotions)
    for count in range(1, len(HOME.shelves)):
        some = tuple(replace(query, shelves=count) for query in queries)
        for home, full in zip(serve(snapshot, some, frames, promotions), whole, strict=True):
            assert same(home.shelves, full.shelves[:count])


def test_what_the_listener_played_of_late_is_not_promoted(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Within the days of rest, or on an unknown day; it may be when they are over."""
    surface = Surface(name="one", shelves=(spec("taste", "taste", params=resolve(), depth=500),))
    queries, frames = everyone(records)
    resting = tuple(replace(query, surface=surface) for query in queries)
    awake = tuple(
        replace(query, surface=replace(surface, params=resolve({"promotion_rest_days": 0}))) for query in queries
    )
    promotions, listeners = offered(48, range(snapshot.manifest.items)), read(snapshot, frames)
    days, keys, start = listeners.recent_days, listeners.recent_keys, listeners.recent_start
    late = set[tuple[int, int]]()
    for number in range(48):
        own = slice(start[number], start[number + 1])
        recent = (days[own] == 0) | (NOW // DAY_S - days[own].astype(np.int64) < 21)
        late |= {(number, row) for row in snapshot.rows_of(keys[own][recent]).tolist()}
    assert not late & set(promoted_items(serve(snapshot, resting, frames, promotions)))
    assert late & set(promoted_items(serve(snapshot, awake, frames, promotions)))


def test_a_listener_who_is_not_known_may_be_promoted_to_only_where_allowed(snapshot: Snapshot) -> None:
    """Whether is the caller's to say; a batch keeps each listener's own answer."""
    query = HomeQuery(user_id="nobody", surface=HOME, now=NOW, market="GB")
    promotions = offered(2, range(snapshot.manifest.items), allowed=np.array([True, False]))
    listeners = read(snapshot, [None, None], Known.STRANGER)
    found = assemble((query, query), listeners, snapshot, promotions=promotions, clock=time.perf_counter)[0]
    assert {number for number, _ in promoted_items(found)} <= {0}
