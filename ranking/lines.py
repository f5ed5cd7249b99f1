"""Draws the lines of a batch: one for each shelf that each listener can have."""

import numpy as np
from numpy.typing import NDArray

from features.listeners import Known, Listeners
from features.snapshot import Snapshot
from ranking.history import History
from ranking.params import INDEX
from ranking.surfaces import MOST_SUBJECTS, ShelfSpec, Why
from ranking.types import HomeQuery, Lines


def draw_lines(queries: tuple[HomeQuery, ...], listeners: Listeners, history: History, snapshot: Snapshot) -> Lines:
    """The lines of every query, top shelf first; a shelf that cannot be filled for its listener has none."""
    near = snapshot.rows_of(np.array([query.near for query in queries], np.uint64))
    subjects = {
        "neighbours": _anchors(queries, history, snapshot),
        "genre": _genres(listeners),
        "given": np.where([query.near != 0 for query in queries], near, -1)[:, None],
    }
    has_taste = np.any(listeners.vectors != 0, axis=1)  # a listener whom training could not place has a zero vector
    unhidden = np.isin(listeners.known, (Known.LATE, Known.DOWN))  # nobody can say what they hid
    has_played = np.bincount(history.query, minlength=len(queries)) > 0
    drawn: list[tuple[int, int, ShelfSpec, int]] = []
    for number, query in enumerate(queries):
        blind = bool(unhidden[number]) and query.hidden is None
        for slot, spec in enumerate(asked(query)):
            if blind and spec.source not in {"popular", "editorial", "given"}:
                continue
            subject = int(subjects[spec.source][number, spec.nth - 1]) if spec.source in subjects else -1
            needs = {
                "taste": has_taste[number],
                "discover": has_taste[number],
                "genre": has_taste[number] and subject >= 0,
                "neighbours": subject >= 0,
                "history": has_played[number],
            }
            if needs.get(spec.source, True):
                drawn.append((number, slot, spec, subject))
    return _columns(drawn, queries, listeners, has_taste)


def asked(query: HomeQuery) -> tuple[ShelfSpec, ...]:
    """The shelves that a request asks for."""
    return query.surface.shelves


def _columns(
    drawn: list[tuple[int, int, ShelfSpec, int]],
    queries: tuple[HomeQuery, ...],
    listeners: Listeners,
    has_taste: NDArray[np.bool_],
) -> Lines:
    specs = tuple(spec for _, _, spec, _ in drawn)
    allow = [query.allow_explicit for query in queries]
    query = np.array([number for number, _, _, _ in drawn], np.int64)
    return Lines(
        query=query,
        first=np.searchsorted(query, np.arange(len(queries) + 1)),
        slot=np.array([slot for _, slot, _, _ in drawn], np.int64),
        pinned=np.array([spec.pinned for spec in specs], np.bool_),
        depth=np.array([spec.depth for spec in specs], np.int64),
        size=np.array([spec.size for spec in specs], np.int64),
        minimum=np.array([spec.minimum for spec in specs], np.int64),
        skip_played=np.array([spec.skip_played for spec in specs], np.bool_),
        source=np.array([spec.source for spec in specs], np.str_),
        subject=np.array([subject for _, _, _, subject in drawn], np.int64),
        why=tuple(_why(spec, subject, bool(has_taste[number])) for number, _, spec, subject in drawn),
        params=np.array([spec.params for spec in specs]).reshape(len(specs), len(INDEX)),
        page_params=np.array([query.surface.params for query in queries]),
        specs=specs,
        market=tuple(query.market or market for query, market in zip(queries, listeners.market, strict=True)),
        allow_explicit=np.where([said is None for said in allow], listeners.allow_explicit, np.array(allow, np.bool_)),
    )


def _why(spec: ShelfSpec, subject: int, has_taste: bool) -> Why:
    """What the reason of a shelf speaks of: what fills it; of given items what they are ranked by."""
    if spec.source != "given":
        return spec.source
    if subject >= 0:
        return "similar"
    return "taste" if has_taste else "popular"


def _anchors(queries: tuple[HomeQuery, ...], history: History, snapshot: Snapshot) -> NDArray[np.int64]:
    """The items that each listener plays most now and that have neighbours, by different artists, `[query, nth]`."""
    found = np.full((len(queries), MOST_SUBJECTS), -1, np.int64)
    known = snapshot.columns["neighbour_row"]
    if not len(history.row) or not len(known):
        return found
    now = np.array([query.now for query in queries], np.int64)
    half_life = np.array([query.surface.params[INDEX["recency_half_life_days"]] for query in queries])
    place = np.minimum(np.searchsorted(known, history.row), len(known) - 1)
    usable = np.flatnonzero(known[place] == history.row)
    weight = history.weight(now, half_life)[usable]
    order = usable[np.lexsort((history.row[usable], -weight, history.query[usable]))]
    best = order[_rank(history.query[order]) < 2 * MOST_SUBJECTS]
    artist = snapshot.columns["artist_key"][history.row[best]]
    pairs = np.stack((history.query[best].astype(np.uint64), np.where(artist > 0, artist, history.row[best])), axis=1)
    best = best[np.sort(np.unique(pairs, axis=0, return_index=True)[1])]
    rank = _rank(history.query[best])
    best, rank = best[rank < MOST_SUBJECTS], rank[rank < MOST_SUBJECTS]
    found[history.query[best], rank] = history.row[best]
    return found


def _genres(listeners: Listeners) -> NDArray[np.int64]:
    """The genres that each listener plays most, `[query, nth]`, -1 where there are no more."""
    weights = listeners.genre_weights
    found = np.full((len(weights), MOST_SUBJECTS), -1, np.int64)
    best = np.argsort(-weights, axis=1, kind="stable")[:, :MOST_SUBJECTS]
    played = np.take_along_axis(weights, best, axis=1) > 0
    found[:, : best.shape[1]] = np.where(played, best, -1)
    return found


def _rank(query: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each entry among those of its query, which stand together, `[entry]`."""
    return np.arange(len(query)) - np.searchsorted(query, query)
