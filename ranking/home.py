"""The product on one screen: a batch of requests becomes a batch of pages.

A batch of one is served by the same code, and equals its row in any larger batch.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.listeners import Known, Listeners
from features.snapshot import Snapshot
from ranking.arrange import arrange
from ranking.assign import assign
from ranking.explore import explore
from ranking.filters import drop
from ranking.fold_in import fold_in
from ranking.history import History, recall
from ranking.impressions import recall_seen
from ranking.layout import lay_out, put_off
from ranking.lines import draw_lines
from ranking.offers import Promotions
from ranking.promote import Promoted, promote
from ranking.retrieve import from_list, retrieve, starved
from ranking.score import score
from ranking.session import steer
from ranking.trace import trace
from ranking.types import (
    Candidates,
    Degraded,
    Fate,
    Home,
    HomeQuery,
    Lines,
    Shelf,
    Trace,
    joined,
    parted,
)

STAGES: Final = ("assign", "draw", "retrieve", "filter", "score", "arrange", "layout", "explore", "promote")
_FAULTS: Final = {
    Known.LATE: Degraded.LISTENER_LATE,
    Known.INVALID: Degraded.LISTENER_INVALID,
    Known.DOWN: Degraded.STORE_DOWN,
}


def assemble(
    queries: tuple[HomeQuery, ...],
    listeners: Listeners,
    snapshot: Snapshot,
    *,
    promotions: Promotions | None = None,
    clock: Callable[[], float],
) -> tuple[tuple[Home, ...], Trace]:
    """Pages for a batch of queries, one per query in order; `clock` only times the stages."""
    times = [clock()]
    queries = assign(queries, listeners)
    times.append(clock())
    history, seen = recall(listeners, snapshot), recall_seen(queries, listeners, snapshot)
    listeners = steer(queries, fold_in(listeners, history, snapshot), snapshot)
    lines = draw_lines(queries, listeners, history, snapshot)
    times.append(clock())
    found, failed = retrieve(queries, lines, listeners, history, snapshot)
    times.append(clock())
    candidates = drop(queries, lines, history, snapshot, found)
    candidates = feed(queries, lines, listeners, history, snapshot, candidates)
    times.append(clock())
    candidates = score(queries, lines, history, seen, snapshot, candidates)
    times.append(clock())
    candidates = arrange(lines, listeners, snapshot, candidates)
    times.append(clock())
    pages = lay_out(queries, lines, listeners, snapshot, candidates)
    times.append(clock())
    candidates, pages = explore(queries, lines, snapshot, candidates, pages)
    times.append(clock())
    promoted = promote(queries, lines, history, snapshot, candidates, pages, promotions)
    put_off(queries, candidates, promoted.pages)
    times.append(clock())
    homes = tuple(_home(number, query, listeners, lines, promoted, failed) for number, query in enumerate(queries))
    if any(query.traced for query in queries):
        told = trace(queries, lines, listeners, (history, seen), snapshot, found, candidates, promoted.pages)
        homes = tuple(replace(home, lines=own) for home, own in zip(homes, told, strict=True))
    stages = tuple(zip(STAGES, np.diff(times).tolist(), strict=True))
    return homes, Trace(stages=stages, eligible=promoted.eligible)


def feed(
    queries: tuple[HomeQuery, ...],
    lines: Lines,
    listeners: Listeners,
    history: History,
    snapshot: Snapshot,
    candidates: Candidates,
) -> Candidates:
    """Adds their market's own list, filtered likewise, to lines that the filters left too little."""
    thin = starved(lines, candidates)
    if not len(thin):
        return candidates
    some = lines.take(thin)
    more = from_list(queries, some, listeners, history, snapshot)
    return joined(candidates, thin, drop(queries, some, history, snapshot, more))


def _home(
    number: int,
    query: HomeQuery,
    listeners: Listeners,
    lines: Lines,
    promoted: Promoted,
    failed: NDArray[np.bool_],
) -> Home:
    known, blind = Known(listeners.known[number]), bool(listeners.blind[number]) and query.hidden is None
    pages = promoted.pages
    first, last = int(lines.first[number]), int(lines.first[number + 1])
    shelves = tuple(
        Shelf(
            spec=lines.specs[line],
            why=lines.why[line],
            subject=int(lines.subject[line]),
            rows=pages.rows[line, : pages.shown[line]],
            scores=pages.scores[line, : pages.shown[line]],
            new=pages.new[line, : pages.shown[line]],
            propensity=pages.propensity[line, : pages.shown[line]],
            inserted=promoted.inserted(line),
        )
        for line in pages.order[number].tolist()
        if line >= 0
    )
    wanted, missed = len(query.surface.shelves), int(np.count_nonzero(failed[first:last]))
    lost = missed + (wanted - (last - first) if known in _FAULTS or blind else 0)
    met = pages.fates[number].tolist()
    answered, later = _split(shelves, query)
    return Home(
        shelves=answered,
        later=later,
        market=lines.market[number],
        allow_explicit=bool(lines.allow_explicit[number]),
        cold_start=known is Known.STRANGER,
        folded_in=bool(listeners.folded_in[number]),
        assignments=query.assignments,
        experiment_book="" if query.assigner is None else query.assigner.version,
        degraded=tuple(_degraded(known, missed, last - first, blind=blind)),
        coverage=100 * (wanted - lost) // wanted,
        fates={fate: met[fate] for fate in Fate if met[fate] and fate is not Fate.PADDING},
    )


def _split(shelves: tuple[Shelf, ...], query: HomeQuery) -> tuple[tuple[Shelf, ...], tuple[Shelf, ...]]:
    """What is answered, and what comes on later pages."""
    if not query.items:
        count = query.shelves or len(shelves)
        return shelves[:count], shelves[count:]
    parts = [parted(shelf, query.items) for shelf in shelves]
    return tuple(first for first, _ in parts), tuple(rest for _, rest in parts if len(rest.rows))


def _degraded(known: Known, failed: int, lines: int, *, blind: bool) -> list[Degraded]:
    reasons = [_FAULTS[known]] if known in _FAULTS else []
    if blind:
        reasons.append(Degraded.BLOCKLIST_UNKNOWN)
    if failed:
        reasons.append(Degraded.RETRIEVAL_PARTIAL if failed < lines else Degraded.RETRIEVAL_DOWN)
    return reasons
