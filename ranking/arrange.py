"""Orders each line and chooses what it may show: by score or diversified, within caps of artist and album."""

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.listeners import Listeners
from features.snapshot import Snapshot
from ranking.diversify import Caps, Genres, by_score, calibrated, dpp, mmr
from ranking.params import DIVERSITY, INDEX
from ranking.types import Candidates, Fate, Lines

RESERVE: Final = 2  # picks per place on the shelf: what falls as a duplicate is refilled from the second half


def arrange(lines: Lines, listeners: Listeners, snapshot: Snapshot, candidates: Candidates) -> Candidates:
    """The candidates in the order of their line's choice: picks first, the rest behind by score; `[line, candidate]`.

    A candidate that no pick can be for its line's caps is CAPPED. Without a method and caps the order is by score, and
    ties go to the lower row, which is the lower item key.
    """
    if not candidates.rows.size:
        return candidates
    candidates = _by_score(candidates)
    quota = RESERVE * lines.size[:, None]
    picks = min(candidates.rows.shape[1], int(quota.max()))
    pool = np.maximum(lines.params[:, INDEX["diversity_pool"]].astype(np.int64)[:, None], quota)
    pooled = (candidates.fate == Fate.KEPT) & (np.arange(candidates.rows.shape[1]) < pool)
    chosen = np.full((len(lines), picks), -1, np.int64)
    method = lines.params[:, INDEX["diversity"]].astype(np.int64)
    for number in np.unique(method).tolist():
        here = np.flatnonzero(method == number)
        usable = pooled[here, : int(pool[here].max())]
        chosen[here] = _choose(DIVERSITY[number], here, picks, lines, listeners, snapshot, candidates, usable)
    chosen[np.arange(picks) >= quota] = -1
    return _reordered(candidates, chosen, pooled, quota)


def _by_score(candidates: Candidates) -> Candidates:
    """By score, ties by row; what was dropped or is no number stands at the end."""
    kept = (candidates.fate == Fate.KEPT) & np.isfinite(candidates.scores)
    sunk = np.where(kept, -candidates.scores, np.inf)
    order = np.argsort(sunk, axis=1, kind="stable")
    ranked = np.take_along_axis(sunk, order, axis=1)
    tied = np.flatnonzero(((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] < np.inf)).any(axis=1))
    order[tied] = np.lexsort((candidates.rows[tied], sunk[tied]))  # dearer: only where it matters
    return _permuted(candidates, order)


def _choose(  # noqa: PLR0913, PLR0917  # a method needs what it looks at
    method: str,
    here: NDArray[np.int64],
    picks: int,
    lines: Lines,
    listeners: Listeners,
    snapshot: Snapshot,
    candidates: Candidates,
    usable: NDArray[np.bool_],
) -> NDArray[np.int64]:
    params, width = lines.params[here], usable.shape[1]
    rows = np.maximum(candidates.rows[here, :width], 0)
    relevance = np.where(usable, candidates.scores[here, :width], 0.0).astype(np.float32)
    caps = Caps(
        artist=snapshot.columns["artist_key"][rows],
        album=snapshot.columns["album_key"][rows],
        artist_cap=params[:, INDEX["artist_cap"]].astype(np.int64),
        album_cap=params[:, INDEX["album_cap"]].astype(np.int64),
        gap=params[:, INDEX["artist_gap"]].astype(np.int64),
    )
    if method == "mmr":
        return mmr(relevance, _unit(snapshot, rows), usable, params[:, INDEX["mmr_lambda"]], picks, caps)
    if method == "dpp":
        return dpp(relevance, _unit(snapshot, rows), usable, params[:, INDEX["dpp_theta"]], picks, caps)
    if method == "calibration":
        genres = _genres(snapshot, rows, listeners.genre_weights[lines.query[here]])
        return calibrated(relevance, genres, usable, params[:, INDEX["calibration_lambda"]], picks, caps)
    return by_score(relevance, usable, picks, caps)


def _reordered(
    candidates: Candidates, chosen: NDArray[np.int64], pooled: NDArray[np.bool_], quota: NDArray[np.int64]
) -> Candidates:
    """Marks the picks and brings them to the front; of a line that ended early the rest of the pool is capped."""
    count, width = candidates.rows.shape
    rank = np.tile(np.arange(chosen.shape[1], chosen.shape[1] + width), (count, 1))
    line, place = np.nonzero(chosen >= 0)
    rank[line, chosen[line, place]] = place
    picked = rank < chosen.shape[1]
    early = (chosen >= 0).sum(axis=1, keepdims=True) < quota
    fate = np.where(picked, Fate.PICKED, np.where(pooled & early, Fate.CAPPED, candidates.fate)).astype(np.uint8)
    return _permuted(replace(candidates, fate=fate), np.argsort(rank, axis=1, kind="stable"))


def _permuted(candidates: Candidates, order: NDArray[np.int64]) -> Candidates:
    return Candidates(
        rows=np.take_along_axis(candidates.rows, order, axis=1),
        scores=np.take_along_axis(candidates.scores, order, axis=1),
        fate=np.take_along_axis(candidates.fate, order, axis=1),
    )


def _unit(snapshot: Snapshot, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    vectors = snapshot.columns["vector"][rows]
    length = np.sqrt(np.vecdot(vectors, vectors))[:, :, None]
    return np.asarray(vectors / np.where(length > 0, length, 1), np.float32)


def _genres(snapshot: Snapshot, rows: NDArray[np.int64], target: NDArray[np.float32]) -> Genres:
    """Each item's genres weigh 1, 1/2, 1/3 … in their own order, as in the listener's own mix."""
    index = snapshot.columns["genre"][rows]
    weight = np.where(index >= 0, 1 / np.arange(1, index.shape[2] + 1), 0.0)
    total = weight.sum(axis=2, keepdims=True)
    return Genres(index=index, weight=(weight / np.where(total > 0, total, 1)).astype(np.float32), target=target)
