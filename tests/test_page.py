"""Pages: in which order shelves stand, where an item stands that several could show, and what is told of the others."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any, Final, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from features.listeners import Known
from features.snapshot import Limit, Snapshot
from ranking.filters import drop
from ranking.history import recall
from ranking.home import assemble, feed
from ranking.lines import draw_lines
from ranking.page import Page, by_attention, by_order_of_file, settle, utility
from ranking.params import INDEX, resolve
from ranking.retrieve import retrieve
from ranking.surfaces import DEFAULT_SURFACES, Source, Surface, load_surfaces
from ranking.types import Fate, Home, HomeQuery
from tests.test_home import NOW, draw_query, draw_shelf, read, serve, shown, spec

Ints = NDArray[np.int64]
HOME: Final = load_surfaces(DEFAULT_SURFACES)["home"]


def page_of(
    rng: np.random.Generator, item: Ints, vectors: NDArray[np.float64], liked: NDArray[np.float64], **fields: Any
) -> Page:
    """A page of lines that hold items, `[line, pick]`; what is not said is as on Home, or drawn."""
    lines, held = len(item), item >= 0
    plain: dict[str, Any] = {"size": np.full(lines, 3), "minimum": np.full(lines, 3), "weight": np.ones(lines)}
    plain |= {"row_decay": 0.85, "column_decay": 0.9, "likeness": float(rng.uniform(0, 0.5)), "artist_cap": 8}
    plain |= {"pinned": rng.random(lines) < 0.15, **fields}
    artist = np.where(held, rng.integers(-1, len(liked) // 3, len(liked))[item], -1)
    alone = held & (np.arange(item.shape[1]) < plain["size"][:, None])
    direction = np.where(alone[:, :, None], vectors[item], 0).sum(axis=1)
    alike = direction @ direction.T
    return Page(item=item, artist=artist, worth=np.where(held, liked[item], 0.0), alike=alike, **plain)


def draw_listeners_page(seed: int) -> Page:
    """2 to 6 shelves as one listener has them: each holds what is near to a query that leans to the listener."""
    rng = np.random.default_rng(seed)
    lines, vectors, own = int(rng.integers(2, 7)), rng.standard_normal((400, 16)) / 4, rng.standard_normal(16)
    own /= np.linalg.norm(own)
    size, item = rng.choice([8, 10, 12], lines), np.full((lines, 36), -1)
    for line in range(lines):
        some = rng.permutation(400)[: int(rng.integers(60, 400))]
        near = vectors[some] @ (own + rng.uniform(0.2, 1.5) * rng.standard_normal(16) / 4)
        length = 3 * size[line] if rng.random() < 0.85 else int(rng.integers(2, 3 * size[line]))
        item[line, :length] = some[np.argsort(-near)][:length]
    return page_of(rng, item, vectors, np.clip(vectors @ own + 0.25, 0, 1), size=size, minimum=np.full(lines, 4))


def draw_any_page(seed: int) -> Page:
    """2 to 6 shelves of anything: few items or many, short shelves, high minimums, decays from .1 to 1, tight caps."""
    rng = np.random.default_rng(seed)
    lines, picks = int(rng.integers(2, 7)), int(rng.integers(4, 13))
    items = int(rng.integers(picks, picks * lines + 1))
    item = rng.permuted(np.tile(np.arange(items), (lines, 1)), axis=1)[:, :picks].copy()
    item[np.arange(picks) >= rng.integers(1, picks + 1, (lines, 1))] = -1
    size = rng.integers(1, picks // 2 + 1, lines)
    fields: dict[str, Any] = {name: float(rng.uniform(0.1, 1)) for name in ("row_decay", "column_decay")}
    fields |= {"minimum": np.minimum(rng.integers(1, 5, lines), size), "weight": rng.uniform(0.2, 2, lines)}
    vectors, liked = rng.standard_normal((items, 4)), rng.random(items) ** 2
    return page_of(rng, item, vectors, liked, size=size, artist_cap=int(rng.integers(5)), **fields)


def share_of_the_best(page: Page) -> float:
    """What a page is worth of what it could be in the best of all orders; nan where that is worth nothing."""

    def worth(order: Ints) -> float:
        return utility(page, *settle(page, order))

    pinned, others = np.flatnonzero(page.pinned), np.flatnonzero(~page.pinned)
    best = max(worth(np.array([*pinned, *order], np.int64)) for order in permutations(others))
    return worth(by_attention(page)) / best if best > 0 else np.nan


@pytest.mark.parametrize(("draw", "below"), [(draw_listeners_page, 0), (draw_any_page, 0.01)])
def test_the_order_of_shelves_comes_near_the_best_of_all(draw: Callable[[int], Page], below: float) -> None:
    """Of 1,000 pages the mean is .998 of the best of all orders; none that a listener could have is below .95."""
    shares = np.array([share_of_the_best(draw(seed)) for seed in range(1000)])
    assert np.isfinite(shares).mean() >= 0.98
    assert np.nanmean(shares) >= 0.998
    assert (shares < 0.95).mean() <= below


@pytest.mark.parametrize(("row_decay", "upper", "lower"), [(0.9, [1, 2, 5], [4, 7, 8]), (0.7, [1, 2, 4], [7, 8, 9])])
def test_two_shelves_share_an_item_by_attention(row_decay: float, upper: list[int], lower: list[int]) -> None:
    """Item 4 is third above, attention .81, and first below: at .9 it stands below, at .7 above; both refill."""
    item = np.array([[1, 2, 4, 5, 6], [4, 7, 1, 8, 9]])
    page = page_of(np.random.default_rng(1), item, np.ones((10, 2)), np.ones(10), row_decay=row_decay)
    stay, marks = settle(page, np.array([0, 1]))
    assert [item[line][marks[line] == Fate.SHOWN].tolist() for line in stay] == [upper, lower]


def test_every_item_stands_where_attention_to_it_is_largest() -> None:
    """On 500 pages: of the shelves that would show an item alone; and what a shelf lacks its reserve gives."""
    shared = 0
    for seed in range(500):
        page = draw_any_page(seed)._replace(artist_cap=0)
        stay, marks = settle(page, by_attention(page))
        seats: dict[int, dict[int, float]] = {}
        for row, line in enumerate(stay.tolist()):
            for column, item in enumerate(page.item[line, : page.size[line]].tolist()):
                seats.setdefault(item, {})[line] = page.row_decay**row * page.column_decay**column
        for line in stay.tolist():
            items = page.item[line][marks[line] == Fate.SHOWN].tolist()
            for seat in (seats[item] for item in items if item in seats):
                shared += len(seat) > 1
                assert seat[line] == pytest.approx(max(seat.values())), f"seed {seed}"
            assert len(items) == page.size[line] or not (marks[line, page.item[line] >= 0] == Fate.KEPT).any()
    assert shared > 400


def test_a_thin_shelf_leaves_the_page_as_if_it_had_not_been_there() -> None:
    """On 500 pages: what does not stay has THIN picks only, what stays is not thin, and shows the same without it."""
    thin = 0
    for seed in range(500):
        page = draw_any_page(seed)
        stay, marks = settle(page, by_order_of_file(page))
        gone = np.setdiff1d(np.arange(len(page.size)), stay)
        thin += len(gone)
        assert (marks[gone] == Fate.THIN).all()
        assert ((marks[stay] == Fate.SHOWN).sum(axis=1) >= page.minimum[stay]).all()
        assert np.array_equal(settle(page, stay)[1][stay], marks[stay])
    assert thin > 200


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("order", ["attention", "file"])
def test_a_shelf_that_cannot_stand_takes_no_other_down(snapshot: Snapshot, order: str, *, pinned: bool) -> None:
    """Three items for a minimum of four are THIN, and the shelf that has them too shows them."""
    best = snapshot.columns["item_key"][snapshot.columns["popular"][0][:5]]
    few = spec("few", "editorial", minimum=4, pinned=pinned, item_keys={"": best[:3]})
    enough = spec("enough", "editorial", minimum=4, item_keys={"": best})
    surface = Surface(name="two", shelves=(few, enough), params=resolve({"page_order": order}))
    (home,) = serve(snapshot, (HomeQuery(user_id="nobody", surface=surface, now=NOW, traced=True),), [None])
    assert [line.fate.tolist() for line in home.lines] == [[Fate.THIN] * 3, [Fate.SHOWN] * 5]


def test_pinned_shelves_stand_first_as_the_file_has_them() -> None:
    """On 500 pages, in both orders, whatever the shelves are worth; every shelf stands once."""
    for page in map(draw_any_page, range(500)):
        pinned, others = np.flatnonzero(page.pinned).tolist(), np.flatnonzero(~page.pinned).tolist()
        order = by_attention(page).tolist()
        assert order[: len(pinned)] == pinned
        assert sorted(order[len(pinned) :]) == others
        assert by_order_of_file(page).tolist() == pinned + others


def homes(snapshot: Snapshot, records: dict[str, bytes], surface: Surface, shelves: int = 0) -> tuple[Home, ...]:
    """The traced pages of 48 listeners."""
    query = HomeQuery(user_id="", now=NOW, surface=surface, traced=True, market="GB", shelves=shelves)
    return serve(snapshot, (query,) * 48, [records[user] for user in sorted(records)[:48]])


def test_no_artist_fills_a_page_and_what_falls_is_told(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """With a cap of 3: PAGE_CAPPED is of an artist who stands three times, DUPLICATE of a recording that stands."""
    artist, recording = (snapshot.columns[name] for name in ("artist_key", "recording_key"))
    told: Counter[Fate] = Counter()
    for home in homes(snapshot, records, replace(HOME, params=resolve({"page_artist_cap": 3}))):
        rows = np.concatenate([shelf.rows for shelf in home.shelves])
        count = Counter(artist[rows][artist[rows] > 0].tolist())
        assert max(count.values()) <= 3
        for line in home.lines:
            assert all(count[one] == 3 for one in artist[line.rows[line.fate == Fate.PAGE_CAPPED]].tolist())
            assert np.isin(recording[line.rows[line.fate == Fate.DUPLICATE]], recording[rows]).all()
        told.update(home.fates)
    assert min(told[Fate.PAGE_CAPPED], told[Fate.DUPLICATE]) > 100


@pytest.mark.parametrize("dedupe", [False, True])
def test_one_release_of_a_recording_stands(snapshot: Snapshot, records: dict[str, bytes], *, dedupe: bool) -> None:
    """Of two releases a line keeps the better; a page shows either one, or one per shelf where it may repeat itself."""
    columns, recording = snapshot.columns, np.arange(1, snapshot.manifest.items + 1, dtype=np.uint64) // 2 + 1
    changed = {"recording_key": recording, "limits": columns["limits"] | np.uint8(Limit.SHARED)}
    for column in changed.values():
        column.setflags(write=False)  # as loaded: else numba compiles anew
    twice = replace(snapshot, columns={**columns, **changed})
    repeated = worse = 0
    for home in homes(twice, records, replace(HOME, dedupe=dedupe)):
        shelves = [recording[shelf.rows].tolist() for shelf in home.shelves]
        repeated += sum(map(len, shelves)) - len(set().union(*shelves))
        assert all(len(set(shelf)) == len(shelf) for shelf in shelves)
        for line in home.lines:
            ranked = np.lexsort((line.rows, -line.scores))
            ranked = ranked[(line.fate[ranked] < Fate.MARKET) | (line.fate[ranked] > Fate.OFF_GENRE)]
            better = np.unique(recording[line.rows[ranked]], return_index=True)[1]
            fell = np.flatnonzero(line.fate[ranked] == Fate.SAME_RECORDING)
            assert fell.tolist() == np.setdiff1d(np.arange(len(ranked)), better).tolist()
            worse += len(fell)
    assert worse > 100
    assert repeated == 0 if dedupe else repeated > 100


def test_the_first_shelves_are_those_of_the_whole_page(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Asking for n shelves answers the first n of the page without n; what stands on the others is LATER."""
    whole = homes(snapshot, records, HOME)
    for count in range(1, len(HOME.shelves) + 2):
        for home, full in zip(homes(snapshot, records, HOME, shelves=count), whole, strict=True):
            later = sum(len(shelf.rows) for shelf in full.shelves[count:])
            assert shown(home) == shown(full)[:count]
            told = Counter(home.fates)
            told.update({Fate.SHOWN: later, Fate.LATER: -later})
            assert told == Counter(full.fates)


def draw_surface(rng: np.random.Generator, snapshot: Snapshot) -> Surface:
    """A random surface: up to 12 shelves, some of the same source, pinned, tightly capped; an id is the place."""
    shelves = []
    for number in range(int(rng.integers(1, 13))):
        shelf = draw_shelf(rng, str(rng.choice(get_args(Source))), snapshot.columns["item_key"])
        shelf.params[[INDEX["artist_cap"], INDEX["album_cap"]]] = rng.integers(0, 4, 2)
        shelf.params[INDEX["shelf_weight"]] = rng.uniform(0, 10)
        minimum, pinned = int(rng.integers(1, shelf.size + 1)), bool(rng.random() < 0.3)
        shelves.append(replace(shelf, id=str(number), minimum=minimum, pinned=pinned))
    preset = {name: float(rng.uniform(0.1, 1)) for name in ("row_decay", "column_decay", "shelf_likeness")}
    order = ["attention", "file"][rng.integers(2)]
    params = resolve(preset, {"page_artist_cap": int(rng.integers(10)), "page_order": order})
    return Surface(name="drawn", shelves=tuple(shelves), dedupe=bool(rng.random() < 0.7), params=params)


def within(cap: Ints, group: Ints, rows: Ints, column: NDArray[np.uint64]) -> bool:
    """Whether no group holds more of one key than its cap; 0 is no cap, and no key."""
    number = np.unique(column, return_inverse=True)[1][rows] + len(column) * group
    held = (cap > 0) & (column[rows] > 0)
    _, first, count = np.unique(number[held], return_index=True, return_counts=True)
    return bool((count <= cap[held][first]).all())


def test_ten_thousand_pages_keep_the_rules(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Nothing stands twice, sizes, minimums and caps hold, what is pinned stands first, and no candidate is lost."""
    rng, columns, users = np.random.default_rng(17), snapshot.columns, sorted(records)
    surfaces = [draw_surface(rng, snapshot) for _ in range(400)]
    caps = [INDEX["artist_cap"], INDEX["album_cap"], INDEX["page_artist_cap"], INDEX["page_order"]]
    table: list[tuple[int, ...]] = []
    items: list[Ints] = []
    told: Counter[Fate] = Counter()
    page = 0
    while page < 10_000:
        batch = rng.choice(users, int(rng.integers(1, 17))).tolist()
        frames = [[records[user], records[user], None, records[user][:-1]][rng.integers(4)] for user in batch]
        listeners = read(snapshot, frames, [Known.STRANGER, Known.LATE, Known.DOWN][rng.integers(3)])
        queries = tuple(replace(draw_query(rng, snapshot, one), surface=surfaces[rng.integers(400)]) for one in batch)
        history = recall(listeners, snapshot)
        lines = draw_lines(queries, listeners, history, snapshot)
        found = drop(queries, lines, history, snapshot, retrieve(queries, lines, listeners, history, snapshot)[0])
        found = feed(queries, lines, listeners, history, snapshot, found)
        real = np.bincount(lines.query, (found.rows >= 0).sum(axis=1), len(queries)).tolist()
        answered, _ = assemble(queries, listeners, snapshot, clock=time.perf_counter)
        for query, home, candidates in zip(queries, answered, real, strict=True):
            told.update(home.fates)
            assert sum(home.fates.values()) == candidates
            assert home.fates.get(Fate.SHOWN, 0) == sum(len(shelf.rows) for shelf in home.shelves)
            assert len(home.shelves) <= (query.shelves or 99)
            for shelf in home.shelves:
                one, params = shelf.spec, [*shelf.spec.params[caps[:2]], *query.surface.params[caps[2:]]]
                place = (page, int(one.id), one.pinned, len(shelf.rows), one.size, one.minimum, query.surface.dedupe)
                table.append((*place, *map(int, params)))
                items.append(shelf.rows)
            page += 1
    of_page, slot, pinned, count, size, minimum, dedupe, artist_cap, album_cap, page_cap, by_file = np.array(table).T
    assert ((minimum <= count) & (count <= size)).all()
    follows = np.diff(of_page) == 0
    assert (pinned[:-1] >= pinned[1:])[follows].all()
    in_order = follows & (pinned[:-1] == pinned[1:]) & ((pinned[1:] | by_file[1:]) > 0)
    assert (np.diff(slot) > 0)[in_order].all()
    rows, at = np.concatenate(items), np.repeat(np.arange(len(items)), count)
    assert within(np.ones_like(at), at, rows, columns["recording_key"])
    assert within(dedupe[at], of_page[at], rows, columns["recording_key"])
    assert within(artist_cap[at], at, rows, columns["artist_key"])
    assert within(album_cap[at], at, rows, columns["album_key"])
    assert within(page_cap[at], of_page[at], rows, columns["artist_key"])
    assert set(told) == set(Fate) - {Fate.PADDING, Fate.PICKED, Fate.GAVE_WAY, Fate.OUTDRAWN}
