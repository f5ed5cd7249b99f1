"""Tells what became of every candidate, where a query asks for it."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from features.listeners import Listeners
from features.snapshot import Snapshot
from ranking.filters import drop
from ranking.history import History
from ranking.impressions import Seen
from ranking.lists import Asked
from ranking.retrieve import missed_by
from ranking.score import Facts, facts_for, item_terms
from ranking.types import Candidates, Fate, HomeQuery, Lines, Pages, TracedLine


def trace(  # noqa: PLR0913, PLR0917  # tells of everything
    queries: tuple[HomeQuery, ...],
    lines: Lines,
    listeners: Listeners,
    lived: tuple[History, Seen],
    snapshot: Snapshot,
    found: Candidates,
    candidates: Candidates,
    pages: Pages,
) -> tuple[tuple[TracedLine, ...], ...]:
    """The lines of each query that is traced, none of the others; `found` is what retrieval found.

    `lived` is what they played and saw.
    """
    history = lived[0]
    facts = facts_for(queries, lines, *lived, snapshot)
    asked = Asked(queries, lines, listeners, history, snapshot)
    about = snapshot.rows_of(np.array([query.about for query in queries], np.uint64))[lines.query]
    about[np.array([query.about == 0 for query in queries], np.bool_)[lines.query]] = -1
    refused, missed = _refused(asked, about), _missed(asked, about, found)
    return tuple(
        tuple(
            _line(line, lines, candidates, pages, facts, (Fate(refused[line]), float(missed[line])))
            for line in range(int(lines.first[number]), int(lines.first[number + 1]))
            if query.traced
        )
        for number, query in enumerate(queries)
    )


def _line(
    line: int, lines: Lines, candidates: Candidates, pages: Pages, facts: Facts, asked_about: tuple[Fate, float]
) -> TracedLine:
    """A line's candidates: its picks in their order, then the others by score."""
    picks = candidates.picks[line][candidates.picks[line] >= 0]
    rank = np.full(candidates.rows.shape[1], len(picks))
    rank[picks] = np.arange(len(picks))
    order = np.lexsort((candidates.rows[line], -candidates.scores[line], rank))
    order = order[pages.fate[line, order] != Fate.PADDING]
    rows, scores = candidates.rows[line, order], candidates.scores[line, order]
    return TracedLine(
        spec=replace(lines.specs[line], params=lines.params[line]),
        subject=int(lines.subject[line]),
        rows=rows,
        scores=scores,
        terms=item_terms(facts, line, rows, scores),
        fate=pages.fate[line, order],
        explored=-1 if pages.open[line] < 0 else int(pages.rows[line, pages.open[line]]),
        propensity=float(pages.propensity[line].min(initial=1)),
        refused=asked_about[0],
        missed_by=asked_about[1],
    )


def _refused(asked: Asked, about: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What the filters say of the row that each line is asked about, `[line]`; -1 is about none."""
    fate = np.where(about < 0, Fate.PADDING, Fate.KEPT).astype(np.uint8)[:, None]
    alone = Candidates(rows=about[:, None], scores=np.zeros((len(about), 1)), fate=fate)
    told = drop(asked.queries, asked.lines, asked.history, asked.snapshot, alone).fate[:, 0]
    return np.where(told == Fate.PADDING, Fate.KEPT, told).astype(np.uint8)


def _missed(asked: Asked, about: NDArray[np.int64], found: Candidates) -> NDArray[np.float64]:
    """By how much the row that each line is asked about was not found, `[line]`."""
    missed = np.full(len(about), np.nan)
    for row in np.unique(about[about >= 0]).tolist():
        missed[about == row] = missed_by(row, asked, found)[about == row]
    return missed
