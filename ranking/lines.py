"""Draws the lines of a batch: one for each shelf that each listener can have."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.listeners import Listeners
from features.snapshot import Snapshot
from ranking.assign import overridden, page_params
from ranking.dial import dialled
from ranking.hidden import among, by_hidden, hidden_from
from ranking.history import DAY_S, History, weight
from ranking.params import INDEX, Params
from ranking.surfaces import CODES, MOST_SUBJECTS, ShelfSpec, Why
from ranking.types import Hidden, HomeQuery, Lines

SEARCHED: Final = ("taste", "discover", "genre")
NARROWED: Final = [INDEX["diversity"], INDEX["exploration_share"]]  # what is 0 on a narrowed page
_FOR_ALL: Final = ("popular", "editorial", "given")


def draw_lines(queries: tuple[HomeQuery, ...], listeners: Listeners, history: History, snapshot: Snapshot) -> Lines:
    """The lines of every query, top shelf first; a shelf that cannot be filled for its listener has none.

    Nor has one that needs a search on a narrowed page, as long as that has others: a page is never left empty for it.
    """
    page = page_params(queries)
    hidden = hidden_from(queries, listeners, snapshot)
    near = snapshot.rows_of(np.array([query.near for query in queries], np.uint64))
    subjects = {
        "neighbours": _anchors(queries, page, hidden, history, snapshot).tolist(),
        "genre": _genres(listeners).tolist(),
        "given": [[row if query.near else -1] for query, row in zip(queries, near.tolist(), strict=True)],
    }
    has_taste = np.any(listeners.vectors != 0, axis=1).tolist()  # whom training could not place has a zero vector
    has_played = (history.start[1:] > history.start[:-1]).tolist()
    drawn: list[tuple[int, int, ShelfSpec, int]] = []
    for number, (query, unsaid) in enumerate(zip(queries, listeners.blind.tolist(), strict=True)):
        blind, own = unsaid and query.hidden is None, []
        for slot, spec in enumerate(query.surface.shelves):
            source = spec.source
            if blind and source not in _FOR_ALL:
                continue
            subject = subjects[source][number][spec.nth - 1] if source in subjects else -1
            if (
                (source in SEARCHED and not has_taste[number])
                or (source in {"genre", "neighbours"} and subject < 0)
                or (source == "history" and not has_played[number])
            ):
                continue
            own.append((number, slot, spec, subject))
        drawn += (query.narrow and [line for line in own if line[2].source not in SEARCHED]) or own
    return _columns(drawn, queries, page, listeners, hidden, has_taste)


def _columns(
    drawn: list[tuple[int, int, ShelfSpec, int]],
    queries: tuple[HomeQuery, ...],
    page: Params,
    listeners: Listeners,
    hidden: Hidden,
    has_taste: list[bool],
) -> Lines:
    specs = tuple(spec for _, _, spec, _ in drawn)
    allow = [query.allow_explicit for query in queries]
    query = np.array([number for number, _, _, _ in drawn], np.int64)
    first = np.searchsorted(query, np.arange(len(queries) + 1))
    source = np.array([CODES[spec.source] for spec in specs], np.int64)
    return Lines(
        query=query,
        first=first,
        slot=np.array([slot for _, slot, _, _ in drawn], np.int64),
        pinned=np.array([spec.pinned for spec in specs], np.bool_),
        depth=np.array([spec.depth for spec in specs], np.int64),
        size=np.array([spec.size for spec in specs], np.int64),
        minimum=np.array([spec.minimum for spec in specs], np.int64),
        skip_played=np.array([spec.skip_played for spec in specs], np.bool_),
        source=source,
        subject=np.array([subject for _, _, _, subject in drawn], np.int64),
        why=tuple(_why(spec, subject, has_taste[number]) for number, _, spec, subject in drawn),
        params=dialled(_of_lines(queries, specs, first), source, listeners.wishes.discovery[query]),
        page_params=page,
        specs=specs,
        market=tuple(query.market or market for query, market in zip(queries, listeners.market, strict=True)),
        allow_explicit=np.where([said is None for said in allow], listeners.allow_explicit, np.array(allow, np.bool_)),
        hidden=hidden,
    )


def _of_lines(queries: tuple[HomeQuery, ...], specs: tuple[ShelfSpec, ...], first: NDArray[np.int64]) -> Params:
    """The params of each line, `[line, param]`: its shelf's, and over them those of its page's arms.

    Written into the matrix: surfaces kept for each combination of arms would be nearly as many as listeners.
    """
    params = np.array([spec.params for spec in specs]).reshape(len(specs), len(INDEX))
    for number, query in enumerate(queries):
        for place, value in overridden(query):
            params[first[number] : first[number + 1], place] = value
        for shelf_id, place in query.fixed:
            for line in range(first[number], first[number + 1]):
                if specs[line].id == shelf_id:
                    params[line, place] = specs[line].params[place]
        if query.narrow:
            params[first[number] : first[number + 1], NARROWED] = 0
    return params


def _why(spec: ShelfSpec, subject: int, has_taste: bool) -> Why:
    """What the reason of a shelf speaks of: what fills it; of given items what they are ranked by."""
    if spec.source != "given":
        return spec.source
    if subject >= 0:
        return "similar"
    return "taste" if has_taste else "popular"


def _anchors(
    queries: tuple[HomeQuery, ...], page: Params, hidden: Hidden, history: History, snapshot: Snapshot
) -> NDArray[np.int64]:
    """The items that each listener plays most now and that have neighbours, by different artists, `[query, nth]`.

    None of them is hidden.
    """
    found = np.full((len(queries), MOST_SUBJECTS), -1, np.int64)
    recency = Recency(
        np.array([query.now // DAY_S for query in queries], np.int64),
        page[:, INDEX["recency_half_life_days"]].copy(),  # numba compiles anew for what is not contiguous
    )
    items = Items(snapshot.columns["artist_key"], snapshot.columns["neighbour_row"])
    _find_anchors(history, recency, hidden, items, found)
    return found


class Recency(NamedTuple):
    """How plays are weighed."""

    today: NDArray[np.int64]  # [query], days since 1970
    half_life_days: NDArray[np.float64]  # [query]


class Items(NamedTuple):
    """What anchors are chosen by."""

    artist: NDArray[np.uint64]  # [item]
    with_neighbours: NDArray[np.int32]  # rows, ascending


@compiled
def _find_anchors(history: History, recency: Recency, hidden: Hidden, items: Items, found: NDArray[np.int64]) -> None:
    known, artists = items.with_neighbours, items.artist
    for query in range(len(found)):
        first, last = history.start[query], history.start[query + 1]
        left = np.empty(last - first)
        for one in range(len(left)):
            plays, day = history.plays[first + one], history.day[first + one]
            left[one] = weight(plays, day, recency.today[query], recency.half_life_days[query])
        hid, hid_end = hidden.artist_start[query], hidden.artist_start[query + 1]
        nth = 0
        while nth < found.shape[1]:
            best = -1
            for one in range(len(left)):  # ties go to the lower row
                ahead = best < 0 or left[one] > left[best]
                tied = best >= 0 and left[one] == left[best]
                if left[one] >= 0 and (ahead or (tied and history.row[first + one] < history.row[first + best])):
                    best = one
            if best < 0:
                break
            left[best] = -1
            row = history.row[first + best]
            place = np.searchsorted(known, row)
            if place == len(known) or known[place] != row:
                continue
            fresh = not among(hidden.items, query, row)
            fresh &= not by_hidden(hidden.artists, hid, hid_end, artists[row])
            for before in found[query, :nth]:
                fresh &= artists[row] == 0 or artists[before] != artists[row]
            if fresh:
                found[query, nth] = row
                nth += 1


def _genres(listeners: Listeners) -> NDArray[np.int64]:
    """The genres that each listener plays most, `[query, nth]`, -1 where there are no more."""
    weights = listeners.genre_weights
    found = np.full((len(weights), MOST_SUBJECTS), -1, np.int64)
    best = np.argsort(-weights, axis=1, kind="stable")[:, :MOST_SUBJECTS]
    played = np.take_along_axis(weights, best, axis=1) > 0
    found[:, : best.shape[1]] = np.where(played, best, -1)
    return found
