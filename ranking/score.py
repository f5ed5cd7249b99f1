"""Scores candidates: what retrieval found, scaled per line, plus weighted terms of the item itself."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from features.snapshot import UNKNOWN_DAY, Snapshot
from ranking.history import DAY_S
from ranking.params import INDEX, Params, column
from ranking.types import Candidates, Fate, HomeQuery, Lines


def score(queries: tuple[HomeQuery, ...], lines: Lines, snapshot: Snapshot, candidates: Candidates) -> Candidates:
    """The candidates with the score that orders each line: affinity, popularity and freshness, each 0-1, weighted."""
    rows, params = np.maximum(candidates.rows, 0), lines.params
    total = column(params, "affinity_weight") * scaled(candidates)
    popularity = column(params, "popularity_weight")
    if popularity.any():
        total = total + popularity * snapshot.columns["popularity"][rows]
    freshness = column(params, "freshness_weight")
    if freshness.any():
        today = np.array([query.now // DAY_S for query in queries], np.int64)[lines.query][:, None]
        half_life = column(params, "freshness_half_life_days")
        total = total + freshness * _fresh(snapshot.columns["released"][rows], today, half_life)
    return replace(candidates, scores=np.where(candidates.fate == Fate.PADDING, -np.inf, total))


def item_terms(
    rows: NDArray[np.int64], scores: NDArray[np.float64], params: Params, now: int, snapshot: Snapshot
) -> dict[str, NDArray[np.float64]]:
    """What each item's score is made of, `[item]` by name; affinity is what the other terms leave."""
    today = np.int64(now // DAY_S)
    released, half_life = snapshot.columns["released"][rows], params[INDEX["freshness_half_life_days"]]
    terms = {
        "popularity": params[INDEX["popularity_weight"]] * snapshot.columns["popularity"][rows].astype(np.float64),
        "freshness": params[INDEX["freshness_weight"]] * _fresh(released, today, half_life),
    }
    return {"affinity": scores - sum(terms.values()), **terms}


def scaled(candidates: Candidates) -> NDArray[np.float64]:
    """Affinity from 0 to 1 over what each line kept, `[line, candidate]`; nan where it was no finite number."""
    scores = np.where(np.isfinite(candidates.scores), candidates.scores, np.nan)
    kept = (candidates.fate == Fate.KEPT) & np.isfinite(scores)
    low = np.min(scores, axis=1, where=kept, initial=np.inf)[:, None]
    high = np.max(scores, axis=1, where=kept, initial=-np.inf)[:, None]
    span = np.where(high > low, high - low, 1.0)
    return np.where(high >= low, (scores - np.where(high >= low, low, 0.0)) / span, np.nan)


def _fresh(
    released: NDArray[np.int32], today: NDArray[np.int64] | np.int64, half_life: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    age = np.maximum(today - released.astype(np.int64), 0)
    return np.where(released == UNKNOWN_DAY, 0.0, np.exp2(-age / half_life))
