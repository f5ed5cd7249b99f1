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
_TOLD: Final = tuple(fate for fate in Fate if fate is not Fate.PADDING)
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
    homes = _homes(queries, listeners, lines, promoted, failed)
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


def _homes(
    queries: tuple[HomeQuery, ...], listeners: Listeners, lines: Lines, promoted: Promoted, failed: NDArray[np.bool_]
) -> tuple[Home, ...]:
    """Columns become pages. Read as lists, once for the batch: an element of an array costs five of a list."""
    pages = promoted.pages
    first, order, fates = lines.first.tolist(), pages.order.tolist(), pages.fates.tolist()
    known, folded_in, explicit = (
        column.tolist() for column in (listeners.known, listeners.folded_in, lines.allow_explicit)
    )
    blind, missed = listeners.blind.tolist(), np.add.reduceat([*failed.tolist(), 0], lines.first[:-1]).tolist()
    shelves = _shelves(lines, promoted)
    homes = []
    for number, query in enumerate(queries):
        unsaid = blind[number] and query.hidden is None
        wanted, drawn = len(query.surface.shelves), first[number + 1] - first[number]
        failures = missed[number] if drawn else 0
        lost = failures + (wanted - drawn if known[number] in _FAULTS or unsaid or query.narrow else 0)
        answered, later = _split(tuple(shelves[line] for line in order[number] if line >= 0), query)
        homes.append(
            Home(
                shelves=answered,
                later=later,
                market=lines.market[number],
                allow_explicit=explicit[number],
                cold_start=known[number] == Known.STRANGER,
                folded_in=folded_in[number],
                assignments=query.assignments,
                experiment_book="" if query.assigner is None else query.assigner.version,
                degraded=tuple(_degraded(Known(known[number]), failures, drawn, blind=unsaid, narrow=query.narrow)),
                coverage=100 * (wanted - lost) // wanted,
                fates={fate: fates[number][fate] for fate in _TOLD if fates[number][fate]},
            )
        )
    return tuple(homes)


def _shelves(lines: Lines, promoted: Promoted) -> list[Shelf]:
    """Every line as a shelf, whether it stands on its page or not."""
    pages, subject = promoted.pages, lines.subject.tolist()
    return [
        Shelf(
            spec=lines.specs[line],
            why=lines.why[line],
            subject=subject[line],
            rows=pages.rows[line, :shown],
            scores=pages.scores[line, :shown],
            new=pages.new[line, :shown],
            propensity=pages.propensity[line, :shown],
            inserted=promoted.inserted(line),
        )
        for line, shown in enumerate(pages.shown.tolist())
    ]


def _split(shelves: tuple[Shelf, ...], query: HomeQuery) -> tuple[tuple[Shelf, ...], tuple[Shelf, ...]]:
    """What is answered, and what comes on later pages."""
    if not query.items:
        count = query.shelves or len(shelves)
        return shelves[:count], shelves[count:]
    parts = [parted(shelf, query.items) for shelf in shelves]
    return tuple(first for first, _ in parts), tuple(rest for _, rest in parts if len(rest.rows))


def _degraded(known: Known, failed: int, lines: int, *, blind: bool, narrow: bool) -> list[Degraded]:
    reasons = [_FAULTS[known]] if known in _FAULTS else []
    if blind:
        reasons.append(Degraded.BLOCKLIST_UNKNOWN)
    if narrow:
        reasons.append(Degraded.DEADLINE_SHORT)
    if failed:
        reasons.append(Degraded.RETRIEVAL_PARTIAL if failed < lines else Degraded.RETRIEVAL_DOWN)
    return reasons
