"""The product on one screen: a batch of requests becomes a batch of pages.

A batch of one is served by the same code, and equals its row in any larger batch.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from features.listeners import Known, Listeners
from features.snapshot import Snapshot
from ranking.filters import drop
from ranking.layout import lay_out
from ranking.retrieve import retrieve
from ranking.surfaces import ShelfSpec
from ranking.types import Candidates, Degraded, Fate, Home, HomeQuery, Lines, Shelf, Trace

_FAULTS = {
    Known.LATE: Degraded.LISTENER_LATE,
    Known.INVALID: Degraded.LISTENER_INVALID,
    Known.DOWN: Degraded.STORE_DOWN,
}


def assemble(
    queries: tuple[HomeQuery, ...], listeners: Listeners, snapshot: Snapshot, *, clock: Callable[[], float]
) -> tuple[tuple[Home, ...], Trace]:
    """Pages for a batch of queries, one per query in order; `clock` only times the stages."""
    times = [clock()]
    lines = draw_lines(queries, listeners)
    candidates, failed = retrieve(lines, listeners, snapshot)
    times.append(clock())
    candidates = drop(queries, lines, listeners, snapshot, candidates)
    times.append(clock())
    candidates = lay_out(lines, candidates)
    homes = tuple(
        _page(number, query, Known(listeners.known[number]), lines, candidates, failed)
        for number, query in enumerate(queries)
    )
    times.append(clock())
    return homes, Trace(stages=tuple(zip(("retrieve", "filter", "layout"), np.diff(times).tolist(), strict=True)))


def draw_lines(queries: tuple[HomeQuery, ...], listeners: Listeners) -> Lines:
    """One line for each shelf that each listener can have."""
    has_taste = np.any(listeners.vectors != 0, axis=1)  # a listener whom training could not place has a vector of zeros
    drawn = [
        (number, slot, spec, query.surface.dedupe)
        for number, query in enumerate(queries)
        for slot, spec in enumerate(_shelves(query))
        if spec.source != "taste" or has_taste[number]
    ]
    specs = tuple(spec for _, _, spec, _ in drawn)
    allow = [query.allow_explicit for query in queries]
    return Lines(
        query=np.array([number for number, _, _, _ in drawn], np.int64),
        slot=np.array([slot for _, slot, _, _ in drawn], np.int64),
        depth=np.array([spec.depth for spec in specs], np.int64),
        size=np.array([spec.size for spec in specs], np.int64),
        minimum=np.array([spec.minimum for spec in specs], np.int64),
        skip_played=np.array([spec.skip_played for spec in specs], np.bool_),
        dedupe=np.array([dedupe for _, _, _, dedupe in drawn], np.bool_),
        source=np.array([spec.source for spec in specs], np.str_),
        specs=specs,
        market=tuple(query.market or market for query, market in zip(queries, listeners.market, strict=True)),
        allow_explicit=np.where([said is None for said in allow], listeners.allow_explicit, np.array(allow, np.bool_)),
    )


def _shelves(query: HomeQuery) -> tuple[ShelfSpec, ...]:
    return query.surface.shelves[: query.shelves or None]


def _page(
    number: int,
    query: HomeQuery,
    known: Known,
    lines: Lines,
    candidates: Candidates,
    failed: NDArray[np.bool_],
) -> Home:
    mine = np.flatnonzero(lines.query == number)
    shelves = tuple(
        Shelf(spec=lines.specs[line], rows=candidates.rows[line, shown], scores=candidates.scores[line, shown])
        for line in mine
        if (shown := candidates.fate[line] == Fate.SHOWN).any()
    )
    met = np.bincount(candidates.fate[mine].ravel(), minlength=len(Fate)).tolist()
    asked = len(_shelves(query))
    lost = int(failed[mine].sum()) + (asked - len(mine) if known in _FAULTS else 0)
    return Home(
        shelves=shelves,
        market=lines.market[number],
        cold_start=known is Known.STRANGER,
        degraded=tuple(_degraded(query, known, int(failed[mine].sum()), len(mine))),
        coverage=100 * (asked - lost) // asked,
        fates={fate: met[fate] for fate in Fate if met[fate] and fate is not Fate.PADDING},
    )


def _degraded(query: HomeQuery, known: Known, failed: int, lines: int) -> list[Degraded]:
    reasons = [_FAULTS[known]] if known in _FAULTS else []
    if known in {Known.LATE, Known.DOWN} and query.hidden is None:
        reasons.append(Degraded.BLOCKLIST_UNKNOWN)
    if failed:
        reasons.append(Degraded.RETRIEVAL_PARTIAL if failed < lines else Degraded.RETRIEVAL_DOWN)
    return reasons
