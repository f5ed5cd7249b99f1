"""Lays lines out as pages: best first, each item once, thin shelves dropped."""

import numpy as np
from numpy.typing import NDArray

from ranking.types import Candidates, Fate, Lines


def lay_out(lines: Lines, candidates: Candidates) -> Candidates:
    """Orders every line by score and marks what is shown, from the top shelf down; `[line, candidate]`, sorted.

    Ties go to the lower row, which is the lower item key. An item belongs to the first shelf that shows it; shelves
    below refill from their reserve. A shelf with fewer items than its minimum shows none, and gives its items back.
    """
    order = np.lexsort((candidates.rows, -_sink(candidates.scores)))
    rows = np.take_along_axis(candidates.rows, order, axis=1)
    scores = np.take_along_axis(candidates.scores, order, axis=1)
    fate = np.take_along_axis(candidates.fate, order, axis=1)
    pairs = lines.query[:, None] << 32 | rows
    taken = np.empty(0, np.int64)
    for slot in range(int(lines.slot.max(initial=-1)) + 1):
        here = np.flatnonzero(lines.slot == slot)
        taken = np.concatenate((taken, _show(here, lines, pairs[here], fate, taken)))
    return Candidates(rows=rows, scores=scores, fate=fate)


def _show(
    here: NDArray[np.int64], lines: Lines, pairs: NDArray[np.int64], fate: NDArray[np.uint8], taken: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Marks one slot's lines in `fate` and answers the (query, row) pairs that they show."""
    marks = fate[here]
    kept = marks == Fate.KEPT
    repeated = kept & lines.dedupe[here, None] & np.isin(pairs, taken)
    kept &= ~repeated
    shown = kept & (np.cumsum(kept, axis=1) <= lines.size[here, None])
    thin = shown.sum(axis=1) < lines.minimum[here]
    marks[repeated] = Fate.DUPLICATE
    marks[shown] = Fate.SHOWN
    marks[kept & thin[:, None]] = Fate.THIN
    fate[here] = marks
    shown[thin] = False
    found: NDArray[np.int64] = pairs[shown]
    return found


def _sink(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores with everything that is not a finite number at the bottom."""
    return np.where(np.isfinite(scores), scores, -np.inf)
