"""Tells what became of every candidate, where a query asks for it."""

import numpy as np
from numpy.typing import NDArray

from features.listeners import Listeners
from features.snapshot import Snapshot
from ranking.history import History
from ranking.lists import Asked
from ranking.retrieve import missed_by
from ranking.score import Facts, facts_for, item_terms
from ranking.types import Candidates, Fate, HomeQuery, Lines, Pages, TracedLine


def trace(  # noqa: PLR0913, PLR0917  # tells of everything
    queries: tuple[HomeQuery, ...],
    lines: Lines,
    listeners: Listeners,
    history: History,
    snapshot: Snapshot,
    found: Candidates,
    candidates: Candidates,
    pages: Pages,
) -> tuple[tuple[TracedLine, ...], ...]:
    """The lines of each query that is traced, none of the others; `found` is what retrieval found."""
    facts = facts_for(queries, lines.query, lines.params, history, snapshot)
    missed = _missed(Asked(queries, lines, listeners, history, snapshot), found)
    return tuple(
        tuple(
            _line(line, lines, candidates, pages, facts, float(missed[line]))
            for line in range(int(lines.first[number]), int(lines.first[number + 1]))
            if query.traced
        )
        for number, query in enumerate(queries)
    )


def _line(line: int, lines: Lines, candidates: Candidates, pages: Pages, facts: Facts, missed: float) -> TracedLine:
    """A line's candidates: its picks in their order, then the others by score."""
    picks = candidates.picks[line][candidates.picks[line] >= 0]
    rank = np.full(candidates.rows.shape[1], len(picks))
    rank[picks] = np.arange(len(picks))
    order = np.lexsort((candidates.rows[line], -candidates.scores[line], rank))
    order = order[pages.fate[line, order] != Fate.PADDING]
    rows, scores = candidates.rows[line, order], candidates.scores[line, order]
    return TracedLine(
        spec=lines.specs[line],
        subject=int(lines.subject[line]),
        rows=rows,
        scores=scores,
        terms=item_terms(facts, line, rows, scores),
        fate=pages.fate[line, order],
        missed_by=missed,
    )


def _missed(asked: Asked, found: Candidates) -> NDArray[np.float64]:
    """By how much the item that each query asks about was not found, `[line]`."""
    lines, missed = asked.lines, np.full(len(asked.lines), np.nan)
    rows = asked.snapshot.rows_of(np.array([query.about for query in asked.queries], np.uint64))
    for number in np.flatnonzero(rows >= 0).tolist():
        own = slice(lines.first[number], lines.first[number + 1])
        missed[own] = missed_by(int(rows[number]), asked, found)[own]
    return missed
