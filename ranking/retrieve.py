"""Fills lines with candidates: one search for all listener-like queries of the batch, and lists for the rest."""

import numpy as np
from numpy.typing import NDArray

from features.listeners import Listeners
from features.snapshot import Snapshot
from ranking.types import Candidates, Fate, Lines


def retrieve(lines: Lines, listeners: Listeners, snapshot: Snapshot) -> tuple[Candidates, NDArray[np.bool_]]:
    """Candidates of every line, and which lines' retrieval failed, `[line]`."""
    width = int(lines.depth.max(initial=0))
    rows = np.full((len(lines), width), -1, np.int64)
    scores = np.full((len(lines), width), -np.inf, np.float32)
    failed = np.zeros(len(lines), np.bool_)
    taste = np.flatnonzero(lines.source == "taste")
    if len(taste):
        failed[taste] = not _search(taste, lines, listeners, snapshot, (rows, scores))
    for line in np.flatnonzero(lines.source != "taste"):
        found = _listed(int(line), lines, snapshot)[:width]
        rows[line, : len(found)] = found
        scores[line, : len(found)] = 1 / np.arange(1, len(found) + 1)  # the list's own order
    padding = (rows < 0) | (np.arange(width) >= lines.depth[:, None])
    rows[padding] = -1
    scores[padding] = -np.inf
    fate = np.where(padding, Fate.PADDING, Fate.KEPT).astype(np.uint8)
    return Candidates(rows=rows, scores=scores, fate=fate), failed


def _search(
    taste: NDArray[np.int64],
    lines: Lines,
    listeners: Listeners,
    snapshot: Snapshot,
    out: tuple[NDArray[np.int64], NDArray[np.float32]],
) -> bool:
    """Searches at the deepest line's depth; shallower lines are masked (sound for flat and IVF indexes)."""
    depth = int(lines.depth[taste].max())
    try:
        scores, rows = snapshot.retriever.search(listeners.vectors[lines.query[taste]], depth)
    except RuntimeError:  # what FAISS raises; the page goes on without these lines
        return False
    out[0][taste, :depth] = rows
    out[1][taste, :depth] = scores
    return True


def _listed(line: int, lines: Lines, snapshot: Snapshot) -> NDArray[np.int64]:
    """The rows of a list, best first: popular in the market (else worldwide), or the editors' for it (else for all)."""
    spec, market = lines.specs[line], lines.market[lines.query[line]]
    if spec.source == "popular":
        rows: NDArray[np.int64] = snapshot.columns["popular"][snapshot.market_index.get(market, -1) + 1]
        return rows
    keys = spec.item_keys.get(market, spec.item_keys.get("", np.empty(0, np.uint64)))
    found = snapshot.rows_of(keys)
    return found[found >= 0]
