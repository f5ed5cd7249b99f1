"""Exploration: what chance shows has the probability that is stated, and the page keeps its rules."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pytest
from scipy import stats

from features.snapshot import Snapshot
from ranking.params import INDEX, resolve
from ranking.surfaces import DEFAULT_SURFACES, EXPLORABLE, ShelfSpec, Slot, Surface, load_surfaces
from ranking.types import Fate, Home, HomeQuery, Shelf
from tests.promoted import Asked, check_organic_rules, offered, relevance, same
from tests.test_home import NOW, draw_query, serve, spec
from tests.test_page import draw_surface

SHARE: Final = INDEX["exploration_share"]


def slotted(
    place: int = 8, pool: int = 24, shelf_id: str = "taste", source: str = "taste", **params: float
) -> ShelfSpec:
    """A shelf with a place for exploration."""
    return spec(shelf_id, source, explore=Slot(place=place, pool=pool), params=resolve(params), skip_played=True)


def pages(snapshot: Snapshot, frame: bytes, shelves: Sequence[ShelfSpec], count: int) -> list[Home]:
    """One listener's page in as many sessions."""
    surface = Surface(name="s", shelves=tuple(shelves), params=resolve({"page_order": "file", "page_artist_cap": 3}))
    query = HomeQuery(user_id="u", surface=surface, now=NOW, market="GB", traced=True)
    seeds = np.random.default_rng(5).integers(2**63, size=count).tolist()
    return [
        home
        for begin in range(0, count, 64)
        for home in serve(
            snapshot,
            tuple(replace(query, seed=seed) for seed in seeds[begin : begin + 64]),
            [frame] * len(seeds[begin : begin + 64]),
        )
    ]


def odds(homes: Sequence[Home], shelf: int, place: int) -> dict[int, float]:
    """The stated probability of each row that stood in a place; it is the same in every session."""
    stated: dict[int, float] = {}
    for home in homes:
        one = home.shelves[shelf]
        row, propensity = int(one.rows[place]), float(one.propensity[place])
        assert stated.setdefault(row, propensity) == propensity
        assert (np.delete(one.propensity, place) == 1).all()
    return stated


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_what_is_shown_has_the_stated_probability(snapshot: Snapshot, records: dict[str, bytes], share: float) -> None:
    """Over 2,000 sessions: frequencies by chi-square, odds that add up to 1, a constant reward weighed to itself."""
    frame = records[sorted(records)[3]]
    homes = pages(snapshot, frame, [slotted(exploration_share=share, exploration_floor=0.0)], 2000)
    stated = odds(homes, 0, 7)
    assert len(stated) > 10
    assert sum(stated.values()) == pytest.approx(1)
    met = Counter(int(home.shelves[0].rows[7]) for home in homes)
    expected = [2000 * one for one in stated.values()]
    assert stats.chisquare([met[row] for row in stated], expected).pvalue > 1e-4
    weights = np.array([1 / len(stated) / home.shelves[0].propensity[7] for home in homes])
    assert weights.mean() == pytest.approx(1, abs=4 * weights.std() / np.sqrt(len(weights)) + 1e-9)


def test_two_places_are_drawn_apart(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """What one shows says nothing of the other; together they break no cap and show nothing twice."""
    frame = records[sorted(records)[4]]
    shelves = [
        slotted(exploration_share=0.7, exploration_floor=0.0, pool=4),
        slotted(exploration_share=0.7, exploration_floor=0.0, pool=4, shelf_id="second"),
    ]
    homes = pages(snapshot, frame, shelves, 1500)
    stated = [odds(homes, shelf, 7) for shelf in (0, 1)]
    assert not stated[0].keys() & stated[1].keys()
    assert min(map(len, stated)) > 1
    table = np.zeros([len(one) for one in stated])
    for home in homes:
        table[tuple(list(one).index(int(home.shelves[n].rows[7])) for n, one in enumerate(stated))] += 1
        check_rules(snapshot, home)
    assert stats.chi2_contingency(table).pvalue > 1e-4


def check_rules(snapshot: Snapshot, home: Home) -> None:
    """Caps of shelves and page, recordings once, no candidate lost."""
    query = HomeQuery(user_id="u", surface=Surface(name="s", shelves=()), now=NOW)
    asked = Asked(query=query, number=0, promotions=offered(1, []), columns=snapshot.columns)
    check_organic_rules(asked, home, {"page_artist_cap": 3})


def exploring(rng: np.random.Generator, surface: Surface) -> Surface:
    """The surface, half of its shelves with a place for exploration."""
    shelves = []
    for shelf in surface.shelves:
        params = shelf.params.copy()
        params[SHARE] = rng.choice([0.3, 1])
        params[INDEX["exploration_floor"]] = rng.choice([0, 0.3, 0.7])
        slot = Slot(place=int(rng.integers(1, shelf.size + 1)), pool=int(rng.integers(2, 40)))
        explore = slot if shelf.source in EXPLORABLE and rng.random() < 0.5 else None
        shelves.append(replace(shelf, params=params, explore=explore))
    return replace(surface, shelves=tuple(shelves))


def still(surface: Surface) -> Surface:
    """The surface without exploration."""
    return replace(surface, shelves=tuple(replace(shelf, explore=None) for shelf in surface.shelves))


def test_pages_differ_from_organic_ones_in_the_place_only(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """On 1,200 pages: by an item that stands nowhere else, within caps, gap and floor; who gave way is told."""
    rng, users, drawn, page = np.random.default_rng(31), sorted(records), 0, 0
    surfaces = [exploring(rng, draw_surface(rng, snapshot)) for _ in range(200)]
    while page < 1200:
        batch = rng.choice(users, 16).tolist()
        queries = tuple(
            replace(draw_query(rng, snapshot, user), surface=surfaces[rng.integers(200)], traced=True) for user in batch
        )
        frames: list[bytes | None] = [records[user] for user in batch]
        calm = tuple(replace(query, surface=still(query.surface)) for query in queries)
        both = zip(queries, serve(snapshot, queries, frames), serve(snapshot, calm, frames), strict=True)
        for query, home, organic in both:
            asked = Asked(query=query, number=0, promotions=offered(1, []), columns=snapshot.columns)
            params = {name: query.surface.params[place] for name, place in INDEX.items()}
            check_organic_rules(asked, home, params)
            told = Counter(home.fates)
            changed = sum(differs(snapshot, home, *pair) for pair in zip(whole(home), whole(organic), strict=True))
            assert told[Fate.OUTDRAWN] == changed
            told.update({Fate.KEPT: changed, Fate.OUTDRAWN: -changed})
            assert {fate: count for fate, count in told.items() if count} == organic.fates
            drawn, page = drawn + changed, page + 1
    assert drawn > 300


def whole(home: Home) -> tuple[Shelf, ...]:
    """The shelves of a page, those on later parts of it too."""
    return (*home.shelves, *home.later)


def differs(snapshot: Snapshot, home: Home, shelf: Shelf, organic: Shelf) -> int:
    """Whether another item than the organic one stands in the place left to chance; nothing else may differ."""
    at = np.flatnonzero(shelf.rows != organic.rows)
    chance = np.flatnonzero(shelf.propensity < 1)
    assert len(at) <= 1
    assert set(at.tolist()) <= set(chance.tolist())
    assert same(np.delete(shelf.scores, at), np.delete(organic.scores, at))
    assert (organic.propensity == 1).all()
    if not len(at):
        return 0
    (line,) = (line for line in home.lines if line.spec.id == shelf.spec.id)
    row, artist = int(shelf.rows[at[0]]), snapshot.columns["artist_key"]
    assert line.explored == row
    assert relevance(line)[row] >= shelf.spec.params[INDEX["exploration_floor"]]
    assert shelf.spec.explore is not None
    assert at[0] == shelf.spec.explore.place - 1
    gap = int(shelf.spec.params[INDEX["artist_gap"]])
    near = [other for other in shelf.rows[max(at[0] - gap, 0) : at[0] + gap + 1].tolist() if other != row]
    assert artist[row] == 0 or artist[row] not in artist[near]
    return 1


def test_without_a_share_the_page_is_organic_in_every_field(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """As in the preset plain; and where nothing else may stand in the place, nothing is left to chance."""
    surfaces = load_surfaces(DEFAULT_SURFACES, "plain")
    users = sorted(records)[:48]
    queries = tuple(HomeQuery(user_id=user, surface=surfaces["home"], now=NOW, seed=n) for n, user in enumerate(users))
    assert [shelf.explore for shelf in surfaces["home"].shelves if shelf.explore] == [Slot(place=8, pool=24)]
    calm = tuple(replace(query, surface=still(query.surface)) for query in queries)
    frames: list[bytes | None] = [records[user] for user in users]
    for home, organic in zip(serve(snapshot, queries, frames), serve(snapshot, calm, frames), strict=True):
        for shelf, other in zip(home.shelves, organic.shelves, strict=True):
            assert same(shelf.rows, other.rows)
            assert same(shelf.propensity, np.ones(len(other.rows)))


def test_the_preset_full_explores_one_place_in_twenty(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Of discover shelves about 5 % have their eighth item from chance; no other shelf has any."""
    surface = load_surfaces(DEFAULT_SURFACES)["home"]
    users = sorted(records)[:400]
    queries = tuple(
        HomeQuery(user_id=user, surface=surface, now=NOW, seed=n * 977, market="GB") for n, user in enumerate(users)
    )
    told = []
    for begin in range(0, 400, 16):
        for home in serve(snapshot, queries[begin : begin + 16], [records[user] for user in users[begin : begin + 16]]):
            for shelf in home.shelves:
                assert shelf.spec.id == "discover" or (shelf.propensity == 1).all()
                told += [shelf.propensity] if (shelf.propensity < 1).any() else []
    assert len(told) > 100
    assert {int(np.argmin(one)) for one in told} == {7}
    assert 0.0 < np.mean([one.min() < 0.5 for one in told]) < 0.2
