"""Exploration: a shelf's named place is given to chance in some sessions, and the odds of what stands there are exact.

In a share of the sessions, as the seed of (listener, session, surface, shelf) decides, the item in the place is drawn
evenly from a pool: the organic one, and what of the reserve may stand there. The pool follows from the organic page
alone. So the organic item is there with probability (1 - share) + share / m, each other of the m with share / m, and
what is drawn for one place depends on no other: what any earlier place might show counts as if it stood on the page.
"""

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.snapshot import Snapshot
from ranking.chance import keys_of, mixed, uniform
from ranking.history import DAY_S
from ranking.layout import NEW_DAYS
from ranking.params import INDEX, Params
from ranking.score import relevance
from ranking.types import Candidates, Fate, HomeQuery, Lines, Pages

_SHARE, _FLOOR = INDEX["exploration_share"], INDEX["exploration_floor"]
_ARTIST_CAP, _ALBUM_CAP, _GAP, _PAGE_CAP = (
    INDEX[name] for name in ("artist_cap", "album_cap", "artist_gap", "page_artist_cap")
)
_SHOWN: Final = int(Fate.SHOWN)  # numba compares arrays with numbers only
_DRAWS: Final = 1 << 40  # where a key's numbers for a place begin: those before turn the query's direction
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]


class Batch(NamedTuple):
    """What exploration looks at."""

    first: Ints  # [query + 1], the lines of each
    place: Ints  # [line], from 0; -1: none is named
    pool: Ints  # [line]
    key: Keys  # [line]
    params: Params  # [line, param]
    page_params: Params  # [query, param]
    artist: Keys  # [item], as the columns below
    album: Keys
    recording: Keys


class Found(NamedTuple):
    """What lines may show."""

    rows: Ints  # [line, candidate]
    scores: NDArray[np.float64]  # [line, candidate]
    picks: Ints  # [line, pick]


class Drawn(NamedTuple):
    """What chance decided."""

    place: Ints  # [line], that is left to chance; -1: none
    organic: Ints  # [line], the pick that would stand there
    pick: Ints  # [line], the one that does
    propensity: NDArray[np.float64]  # [line, item]


class Standing(NamedTuple):
    """What stands on a page, or might."""

    recording: Keys
    artist: Keys
    counts: Ints  # [2], recordings and artists


def explore(
    queries: tuple[HomeQuery, ...], lines: Lines, snapshot: Snapshot, candidates: Candidates, pages: Pages
) -> tuple[Candidates, Pages]:
    """The candidates and pages with what chance put into the places that shelves name for it.

    What is drawn takes the pick of what it displaces, so that picks stay in the order of the shelf.
    """
    slots = [spec.explore for spec in lines.specs]
    if not any(slots):
        return candidates, pages
    columns = snapshot.columns
    batch = Batch(
        first=lines.first,
        place=np.array([-1 if slot is None else slot.place - 1 for slot in slots], np.int64),
        pool=np.array([0 if slot is None else slot.pool for slot in slots], np.int64),
        key=keys_of(queries, lines, np.arange(len(lines))),
        params=lines.params,
        page_params=lines.page_params,
        artist=columns["artist_key"],
        album=columns["album_key"],
        recording=columns["recording_key"],
    )
    none = np.full(len(lines), -1, np.int64)
    drawn = Drawn(none, none.copy(), none.copy(), pages.propensity.copy())
    _draw(batch, Found(candidates.rows, candidates.scores, candidates.picks), pages, drawn)
    pages = pages._replace(open=drawn.place, propensity=drawn.propensity)
    changed = np.flatnonzero(drawn.pick != drawn.organic)
    return _put(queries, lines, snapshot, candidates, pages, drawn, changed) if len(changed) else (candidates, pages)


def _put(  # noqa: PLR0913, PLR0917  # the page changes with all that tells of it
    queries: tuple[HomeQuery, ...],
    lines: Lines,
    snapshot: Snapshot,
    candidates: Candidates,
    pages: Pages,
    drawn: Drawn,
    changed: Ints,
) -> tuple[Candidates, Pages]:
    """Puts what was drawn in its place, and what stood there among the reserve."""
    names = ("rows", "scores", "new", "fate", "fates")
    pages = pages._replace(**{name: getattr(pages, name).copy() for name in names})
    picks = candidates.picks.copy()
    for line in changed.tolist():
        query, place = int(lines.query[line]), int(drawn.place[line])
        gone, come = (candidates.picks[line, pick[line]] for pick in (drawn.organic, drawn.pick))
        row = int(candidates.rows[line, come])
        picks[line, drawn.organic[line]], picks[line, drawn.pick[line]] = come, gone
        pages.rows[line, place], pages.scores[line, place] = row, candidates.scores[line, come]
        age = queries[query].now // DAY_S - int(snapshot.columns["released"][row])
        pages.new[line, place] = 0 <= age < NEW_DAYS
        pages.fate[line, come], pages.fate[line, gone] = Fate.SHOWN, Fate.OUTDRAWN
        pages.fates[query, Fate.KEPT] -= 1
        pages.fates[query, Fate.OUTDRAWN] += 1
    return replace(candidates, picks=picks), pages


@compiled
def _draw(batch: Batch, found: Found, pages: Pages, drawn: Drawn) -> None:
    for query in range(len(batch.first) - 1):
        own = slice(batch.first[query], batch.first[query + 1])
        if not np.any((batch.place[own] >= 0) & (batch.params[own, _SHARE] > 0)):
            continue
        page = _standing(batch, found.rows[own], pages.fate[own], int(np.sum(batch.pool[own])))
        for line in pages.order[query]:
            if line < 0:
                break
            place, share = batch.place[line], batch.params[line, _SHARE]
            if not 0 <= place < pages.shown[line] or share <= 0:
                continue
            pool = _pool(batch, found, pages, line, batch.page_params[query, _PAGE_CAP], page)
            if len(pool) == 1:
                continue
            key = mixed(batch.key[line], _DRAWS + place)
            number = int(uniform(key, 1) * len(pool)) if uniform(key, 0) < share else 0
            drawn.place[line], drawn.organic[line], drawn.pick[line] = place, pool[0], pool[number]
            drawn.propensity[line, place] = share / len(pool) + (1 - share if number == 0 else 0.0)
            _hold(batch, found.rows[line][found.picks[line][pool]], page)


@compiled
def _standing(batch: Batch, rows: Ints, fate: NDArray[np.uint8], more: int) -> Standing:
    """The organic page, and room for more."""
    stands = fate == _SHOWN
    recording = np.zeros(np.sum(stands) + more, np.uint64)
    artist, count = recording.copy(), 0
    for line in range(rows.shape[0]):
        for place in range(rows.shape[1]):
            if stands[line, place]:
                recording[count], artist[count] = batch.recording[rows[line, place]], batch.artist[rows[line, place]]
                count += 1
    return Standing(recording, artist, np.full(2, count))


@compiled
def _pool(batch: Batch, found: Found, pages: Pages, line: int, page_cap: float, page: Standing) -> Ints:
    """The picks that may stand in a line's place: first the organic one, then of the reserve in its order."""
    picks, place = found.picks[line], batch.place[line]
    pool, count, shown = np.empty(batch.pool[line], np.int64), 1, -1
    scaled = relevance(found.scores[line], pages.fate[line], np.maximum(picks, 0))
    for pick in range(len(picks)):
        if picks[pick] < 0:
            break
        fate, row = pages.fate[line, picks[pick]], found.rows[line, picks[pick]]
        shown += fate == _SHOWN
        if fate == _SHOWN and shown == place:
            pool[0] = pick
        elif (
            fate == Fate.KEPT
            and count < len(pool)
            and scaled[pick] >= batch.params[line, _FLOOR]
            and _fits(batch, pages, line, row)
            and _is_new(batch, pages.rows[line, place], row, page_cap, page)
        ):
            pool[count] = pick
            count += 1
    return pool[:count]


@compiled
def _fits(batch: Batch, pages: Pages, line: int, row: int) -> bool:
    """Whether an item breaks no cap and no gap of the shelf in its place."""
    params, place, artist, album = batch.params[line], batch.place[line], batch.artist[row], batch.album[row]
    artists, albums, gap = 1, 1, int(params[_GAP])
    for near in range(pages.shown[line]):
        other = pages.rows[line, near]
        if near == place:
            continue
        by_same = artist > 0 and batch.artist[other] == artist
        if by_same and abs(near - place) <= gap:
            return False
        artists += by_same
        albums += album > 0 and batch.album[other] == album
    artist_cap, album_cap = int(params[_ARTIST_CAP]), int(params[_ALBUM_CAP])
    return (artist_cap == 0 or artists <= artist_cap) and (album_cap == 0 or albums <= album_cap)


@compiled
def _is_new(batch: Batch, organic: int, row: int, cap: float, page: Standing) -> bool:
    """Whether an item's recording stands nowhere, and its artist may have one more of the page."""
    recording, artist = batch.recording[row], batch.artist[row]
    for number in range(page.counts[0]):
        if page.recording[number] == recording:
            return False
    if artist == 0 or cap == 0:
        return True
    artists = 0 if batch.artist[organic] == artist else 1
    for number in range(page.counts[1]):
        artists += page.artist[number] == artist
    return artists <= cap


@compiled
def _hold(batch: Batch, rows: Ints, page: Standing) -> None:
    """Counts what a place might show as standing: each recording, and each artist once."""
    begun = page.counts[1]
    for row in rows[1:]:
        page.recording[page.counts[0]] = batch.recording[row]
        page.counts[0] += 1
        artist = batch.artist[row]
        if artist > 0 and not np.any(page.artist[begun : page.counts[1]] == artist):
            page.artist[page.counts[1]] = artist
            page.counts[1] += 1
