"""Gives a vector to listeners of whom only recent plays are known in this embedding space.

The vector is what training would have found with the items as they are: (Y'Y + (a-1) Y_u'Y_u + l I) x = a Y_u'1, with
Y_u the items that the listener played, a the confidence of a play, l the regularization (Hu et al. 2008, section 4).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from features.listeners import Known, Listeners
from features.snapshot import GENRES_PER_ITEM, Snapshot
from ranking.history import History


def fold_in(listeners: Listeners, history: History, snapshot: Snapshot) -> Listeners:
    """The listeners, with vector and genre weights for each who has plays but no vector."""
    unheard = (listeners.known == Known.LATE) | (listeners.known == Known.DOWN)
    placeless = ~unheard & ~listeners.vectors.any(axis=1) & (history.start[1:] > history.start[:-1])
    if not placeless.any():
        return listeners
    vectors, weights = listeners.vectors.copy(), listeners.genre_weights.copy()
    for query in np.flatnonzero(placeless).tolist():
        mine = slice(history.start[query], history.start[query + 1])
        vectors[query] = solve(history.row[mine], snapshot)
        weights[query] = _genre_weights(history.row[mine], history.plays[mine], snapshot)
    folded_in = placeless & vectors.any(axis=1)  # not by items that nobody played, whose vectors may be zero
    known = np.where(folded_in & (listeners.known == Known.STRANGER), Known.FOLDED_IN, listeners.known)
    return replace(
        listeners, vectors=vectors, genre_weights=weights, known=known.astype(np.uint8), folded_in=np.asarray(folded_in)
    )


def solve(rows: NDArray[np.int64], snapshot: Snapshot) -> NDArray[np.float32]:
    """The vector of a listener who played some items, `[D]`."""
    trained, gram = snapshot.manifest.built["settings"], snapshot.columns["yty"].astype(np.float64)
    played = snapshot.columns["vector"][rows].astype(np.float64)
    left = gram + (trained["alpha"] - 1) * (played.T @ played) + trained["regularization"] * np.eye(len(gram))
    return np.linalg.solve(left, trained["alpha"] * played.sum(axis=0)).astype(np.float32)


def _genre_weights(rows: NDArray[np.int64], plays: NDArray[np.int64], snapshot: Snapshot) -> NDArray[np.float32]:
    """The share of each genre in what was played, `[genre]`; an item's genres weigh 1, 1/2, 1/3 … in their order."""
    genre = snapshot.columns["genre"][rows]
    share = np.where(genre >= 0, 1 / np.arange(1, GENRES_PER_ITEM + 1), 0.0)
    share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-12)
    weight = np.zeros(len(snapshot.manifest.genres))
    np.add.at(weight, genre[genre >= 0], (share * np.log1p(plays)[:, None])[genre >= 0])
    total = weight.sum()
    return (weight / total if total > 0 else weight).astype(np.float32)
