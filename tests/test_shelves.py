"""What fills each shelf, and what orders it."""

import time
from dataclasses import replace

import numpy as np
import pytest

from features.listeners import Known
from features.snapshot import Snapshot
from ranking.history import recall
from ranking.home import assemble
from ranking.params import INDEX, PARAMS, Param, Value, resolve
from ranking.surfaces import ShelfSpec, Surface
from ranking.types import Degraded, Fate, Home, HomeQuery
from tests.test_home import FREE, NOW, read, serve, spec


def page(snapshot: Snapshot, frame: bytes | None, *shelves: ShelfSpec, **fields: object) -> Home:
    """One listener's page of some shelves, each as if it stood alparam."""
    surface = Surface(name="drawn", shelves=shelves, dedupe=False, params=FREE)
    query = HomeQuery(user_id="u", surface=surface, now=NOW, allow_explicit=True, **fields)  # type: ignore[arg-type]
    return serve(snapshot, (query,), [frame])[0]


def test_history_shows_what_the_listener_plays_most_now(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Only played items, by log plays halved every half-life."""
    for frame in list(records.values())[:30]:
        home = page(snapshot, frame, spec("history", "history", minimum=1))
        history = recall(read(snapshot, [frame]), snapshot)
        weight = {}
        for row, day, plays in zip(history.row, history.day, history.plays, strict=True):
            weight[int(row)] = np.log1p(plays) * 0.5 ** (max(NOW // 86_400 - day, 0) / 14)
        (shelf,) = home.shelves
        assert set(shelf.rows.tolist()) <= set(weight)
        shown = [weight[row] for row in shelf.rows.tolist()]
        assert shown == sorted(shown, reverse=True)
        dropped = sum(home.fates.get(fate, 0) for fate in (Fate.MARKET, Fate.UNAVAILABLE))
        assert len(shelf.rows) == min(12, len(weight) - dropped)


def test_anchors_are_played_most_and_by_different_artists(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """The first and second "because you play" are of the items that weigh most, of two artists, and by cosine."""
    columns = snapshot.columns
    vectors = np.asarray(columns["vector"], np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    shelves = [spec(f"near-{nth}", "neighbours", nth=nth, depth=64, minimum=1) for nth in (1, 2)]
    for frame in list(records.values())[:30]:
        home = page(snapshot, frame, *shelves)
        anchors = [shelf.subject for shelf in home.shelves]
        history = recall(read(snapshot, [frame]), snapshot)
        assert set(anchors) <= set(history.row.tolist())
        artists = columns["artist_key"][anchors]
        assert len(set(artists.tolist())) == len(anchors) or not artists.all()
        for shelf in home.shelves:
            cosines = unit[shelf.rows] @ unit[shelf.subject]
            assert shelf.subject not in shelf.rows
            assert (np.diff(cosines) <= 1e-3).all()  # kept as float16


def test_a_genre_shelf_is_of_its_genre(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """The nth shelf is of the nth genre by the listener's weights, and every item on it is of that genre."""
    shelves = [spec(f"genre-{nth}", "genre", nth=nth, minimum=1) for nth in (1, 2)]
    for frame in list(records.values())[:30]:
        weights = read(snapshot, [frame]).genre_weights[0]
        for shelf in page(snapshot, frame, *shelves).shelves:
            assert shelf.subject == np.argsort(-weights, kind="stable")[shelf.spec.nth - 1]
            assert (snapshot.columns["genre"][shelf.rows] == shelf.subject).any(axis=1).all()


def test_discover_is_the_sessions_own(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """The same seed gives the same shelf, another seed another one; without noise it is the taste shelf."""
    frame = next(iter(records.values()))
    free: dict[str, Value] = {"artist_cap": 0, "album_cap": 0, "artist_gap": 0}
    shelf = spec("discover", "discover", params=resolve(free, {"discovery_noise": 0.8}))
    rows = [page(snapshot, frame, shelf, seed=seed).shelves[0].rows.tolist() for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]
    still = replace(shelf, params=resolve(free, {"discovery_noise": 0.0}))
    taste = page(snapshot, frame, spec("taste", "taste"))
    assert page(snapshot, frame, still, seed=3).shelves[0].rows.tolist() == taste.shelves[0].rows.tolist()


def test_a_popularity_penalty_brings_what_is_less_popular(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """With a negative weight the shelf's mean popularity falls, for nearly every listener."""
    plain = spec("plain", "taste", depth=400)
    rare = replace(plain, id="rare", params=resolve({"popularity_weight": -1.0}))
    popularity = snapshot.columns["popularity"]
    pages = [page(snapshot, frame, plain, rare) for frame in list(records.values())[:40]]
    fell = [popularity[home.shelves[1].rows].mean() < popularity[home.shelves[0].rows].mean() for home in pages]
    assert np.mean(fell) > 0.95


def test_new_releases_come_from_the_markets_list(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """A known listener's are ordered by affinity, a stranger's by day of release."""
    frame = next(iter(records.values()))
    shelf = spec("new", "newest", depth=200)
    place = snapshot.market_index["GB"] + 1
    listed = snapshot.columns["newest"][place][:200].tolist()
    (known,) = page(snapshot, frame, shelf, market="GB").shelves
    (strange,) = page(snapshot, None, shelf, market="GB").shelves
    assert set(known.rows.tolist()) <= set(listed)
    affinity = snapshot.columns["vector"][known.rows] @ read(snapshot, [frame]).vectors[0]
    assert (np.diff(affinity) <= 0).all()
    order = [listed.index(row) for row in strange.rows.tolist()]
    assert order == sorted(order)


def test_a_score_is_the_sum_of_its_terms(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Affinity over what the line kept, popularity, freshness: each 0 to 1, times its weight."""
    weights = {"affinity_weight": 0.7, "popularity_weight": 0.4, "freshness_weight": 0.3}
    frame = next(iter(records.values()))
    (shelf,) = page(snapshot, frame, spec("taste", "taste", depth=100, size=100, params=resolve(weights))).shelves
    raw = snapshot.columns["vector"][shelf.rows].astype(np.float64) @ read(snapshot, [frame]).vectors[0]
    affinity = (raw - raw.min()) / (raw.max() - raw.min())
    age = NOW // 86_400 - snapshot.columns["released"][shelf.rows].astype(np.int64)
    fresh = np.where(snapshot.columns["released"][shelf.rows] == -(2**31), 0, 0.5 ** (np.maximum(age, 0) / 30))
    wanted = 0.7 * affinity + 0.4 * snapshot.columns["popularity"][shelf.rows] + 0.3 * fresh
    assert shelf.scores == pytest.approx(wanted, abs=2e-3)  # the index holds float16


def test_without_a_hidden_list_only_lists_for_all_are_shown(snapshot: Snapshot) -> None:
    """When nobody can say what the listener hid: popular and editorial rows only; the client's own list opens more."""
    surface = Surface(name="two", params=FREE, shelves=(spec("newest", "newest"), spec("popular", "popular")))
    query = HomeQuery(user_id="u", surface=surface, now=NOW)
    informed = replace(query, hidden=snapshot.columns["item_key"][:1])
    down = read(snapshot, [None, None], Known.DOWN)
    (blind, open_), _ = assemble((query, informed), down, snapshot, clock=time.perf_counter)
    assert [shelf.spec.id for shelf in blind.shelves] == ["popular"]
    assert Degraded.BLOCKLIST_UNKNOWN in blind.degraded
    assert [shelf.spec.id for shelf in open_.shelves] == ["newest", "popular"]
    assert Degraded.BLOCKLIST_UNKNOWN not in open_.degraded


@pytest.mark.parametrize("param", PARAMS, ids=lambda param: param.name)
def test_params_hold_their_range(param: Param) -> None:
    """Every default is within its range; what is outside, or unknown, is refused by name."""
    assert param.low <= param.default <= param.high
    highest = param.choices[-1] if param.choices else param.high
    assert resolve({param.name: highest})[INDEX[param.name]] == param.high
    with pytest.raises(ValueError, match=param.name):
        resolve({param.name: param.high + 1})
    if param.whole:
        with pytest.raises(ValueError, match=f"{param.name} must be a whole number"):
            resolve({param.name: param.low + 0.5})
    with pytest.raises(ValueError, match="is no param"):
        resolve({"no_such_param": 1.0})


def test_later_presets_win() -> None:
    """A shelf's preset overrides its surface's, which overrides the defaults."""
    values = resolve({"genre_lean": 0.1, "freshness_weight": 1.0}, {"genre_lean": 0.9})
    assert (values[INDEX["genre_lean"]], values[INDEX["freshness_weight"]]) == (0.9, 1.0)
