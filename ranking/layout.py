"""Lays lines out as pages: picks in their order, each item once, thin shelves dropped."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ranking.arrange import RESERVE
from ranking.types import Candidates, Fate, Lines


def lay_out(lines: Lines, candidates: Candidates) -> Candidates:
    """Marks what each line shows, from the top shelf down; `[line, candidate]`, in the order of the line's choice.

    An item belongs to the first shelf that shows it; shelves below refill from their reserve. A shelf with fewer items
    than its minimum shows none, and gives its items back.
    """
    fate = candidates.fate.copy()
    pairs = lines.query[:, None] << 32 | candidates.rows[:, : RESERVE * int(lines.size.max(initial=0))]
    taken = np.empty(0, np.int64)
    for slot in range(int(lines.slot.max(initial=-1)) + 1):
        here = np.flatnonzero(lines.slot == slot)
        taken = np.concatenate((taken, _show(here, lines, pairs[here], fate, taken)))
    fate[fate == Fate.PICKED] = Fate.KEPT
    return replace(candidates, fate=fate)


def _show(
    here: NDArray[np.int64], lines: Lines, pairs: NDArray[np.int64], fate: NDArray[np.uint8], taken: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Marks one slot's lines in `fate` and answers the (query, row) pairs that they show."""
    marks = fate[here, : pairs.shape[1]]
    kept = marks == Fate.PICKED
    repeated = kept & lines.dedupe[here, None] & np.isin(pairs, taken)
    kept &= ~repeated
    shown = kept & (np.cumsum(kept, axis=1) <= lines.size[here, None])
    thin = shown.sum(axis=1) < lines.minimum[here]
    marks[repeated] = Fate.DUPLICATE
    marks[shown] = Fate.SHOWN
    marks[kept & thin[:, None]] = Fate.THIN
    fate[here, : pairs.shape[1]] = marks
    shown[thin] = False
    found: NDArray[np.int64] = pairs[shown]
    return found
