"""Orders each line and chooses what it may show: by score or diversified, within caps of artist and album."""

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.listeners import Listeners
from features.snapshot import Limit, Snapshot
from ranking.diversify import NEVER, Genres, Opens, Pool, Vectors, by_score, calibrated, dpp, mmr, units
from ranking.params import DIVERSITY, INDEX, Params
from ranking.surfaces import RESERVE
from ranking.types import Candidates, Fate, Lines

_SHARED: Final = int(Limit.SHARED)
_KEPT: Final = int(Fate.KEPT)  # numba compares arrays with numbers only
_METHOD: Final = INDEX["diversity"]
_POOL: Final = INDEX["diversity_pool"]
_ARTIST_CAP, _ALBUM_CAP, _GAP = (INDEX[name] for name in ("artist_cap", "album_cap", "artist_gap"))
_LAMBDA, _THETA, _CALIBRATION = (INDEX[name] for name in ("mmr_lambda", "dpp_theta", "calibration_lambda"))
_MMR, _DPP, _CALIBRATED = (DIVERSITY.index(name) for name in ("mmr", "dpp", "calibration"))


class Arranged(NamedTuple):
    """What lines are arranged by."""

    query: NDArray[np.int64]  # [line]
    size: NDArray[np.int64]  # [line]
    params: Params  # [line, param]
    genre_weights: NDArray[np.float32]  # [query, genre]
    vector: NDArray[np.float32]  # [item, D], as the columns below
    artist: NDArray[np.uint64]
    album: NDArray[np.uint64]
    recording: NDArray[np.uint64]
    limits: NDArray[np.uint8]
    genre: NDArray[np.int16]


def arrange(lines: Lines, listeners: Listeners, snapshot: Snapshot, candidates: Candidates) -> Candidates:
    """The candidates with the picks of each line, in the order of its choice.

    Without a method and caps the order is by score, ties to the lower row, which is the lower item key. Of a recording
    a line keeps its best release. What no pick can be for its line's caps is CAPPED.
    """
    columns = snapshot.columns
    by = Arranged(
        query=lines.query,
        size=lines.size,
        params=lines.params,
        genre_weights=listeners.genre_weights,
        vector=columns["vector"],
        artist=columns["artist_key"],
        album=columns["album_key"],
        recording=columns["recording_key"],
        limits=columns["limits"],
        genre=columns["genre"],
    )
    fate = candidates.fate.copy()
    picks = np.full((len(lines), RESERVE * int(lines.size.max(initial=0))), -1, np.int64)
    _arrange(by, candidates.rows, candidates.scores, fate, picks)
    return replace(candidates, fate=fate, picks=picks)


@compiled
def _arrange(
    by: Arranged,
    rows: NDArray[np.int64],
    scores: NDArray[np.float64],
    fate: NDArray[np.uint8],
    picks: NDArray[np.int64],
) -> None:
    for line in range(rows.shape[0]):
        ranked = _ranked(rows[line], scores[line], fate[line])
        _keep_one_release(by, ranked, rows[line], fate[line])
        quota = RESERVE * by.size[line]
        kept = ranked[fate[line][ranked] == _KEPT]
        most = max(int(by.params[line, _POOL]), quota)
        chosen, opens = _choose(by, line, rows[line][kept[:most]], scores[line][kept[:most]], quota)
        while chosen[quota - 1] < 0 and most < len(kept):  # caps have eaten the pool
            most *= 2
            chosen, opens = _choose(by, line, rows[line][kept[:most]], scores[line][kept[:most]], quota)
        for number in range(len(opens)):
            if opens[number] >= NEVER:
                fate[line, kept[number]] = Fate.CAPPED
        for number in range(quota):
            if chosen[number] >= 0:
                picks[line, number] = kept[chosen[number]]
                fate[line, picks[line, number]] = Fate.PICKED


@compiled
def _ranked(rows: NDArray[np.int64], scores: NDArray[np.float64], fate: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The places of what was kept, by score, ties by row; what has no finite score is left out."""
    places, count, falling = np.empty(len(rows), np.int64), 0, True
    for one in range(len(rows)):
        if fate[one] == Fate.KEPT and np.isfinite(scores[one]):
            places[count] = one
            falling &= count == 0 or scores[places[count - 1]] >= scores[one]
            count += 1
    ranked = places[:count]
    if not falling:  # what retrieval found mostly falls already
        ranked = ranked[np.argsort(-scores[ranked], kind="mergesort")]
    for number in range(1, len(ranked)):  # stable by place, but ties go by row
        one, at = ranked[number], number
        while at > 0 and scores[ranked[at - 1]] == scores[one] and rows[ranked[at - 1]] > rows[one]:
            ranked[at] = ranked[at - 1]
            at -= 1
        ranked[at] = one
    return ranked


@compiled
def _keep_one_release(
    by: Arranged, ranked: NDArray[np.int64], rows: NDArray[np.int64], fate: NDArray[np.uint8]
) -> None:
    """Marks what is of the same recording as something better."""
    shared, count = np.empty(len(ranked), np.int64), 0
    for place in ranked:
        if not by.limits[rows[place]] & _SHARED:
            continue
        for better in shared[:count]:
            if by.recording[rows[better]] == by.recording[rows[place]]:
                fate[place] = Fate.SAME_RECORDING
                break
        shared[count] = place
        count += 1


@compiled
def _choose(
    by: Arranged, line: int, rows: NDArray[np.int64], relevance: NDArray[np.float64], quota: int
) -> tuple[NDArray[np.int64], Opens]:
    chosen = np.full(quota, -1, np.int64)
    params = by.params[line]
    pool = Pool(
        relevance,
        by.artist[rows],
        by.album[rows],
        int(params[_ARTIST_CAP]),
        int(params[_ALBUM_CAP]),
        int(params[_GAP]),
    )
    method = int(params[_METHOD])
    if method == _MMR:
        opens = mmr(pool, Vectors(by.vector, rows), params[_LAMBDA], by.size[line], chosen)
    elif method == _DPP:
        opens = dpp(pool, units(by.vector, rows), params[_THETA], by.size[line], chosen)
    elif method == _CALIBRATED:
        genres = Genres(by.genre[rows], _genre_shares(by.genre[rows]), by.genre_weights[by.query[line]])
        opens = calibrated(pool, genres, params[_CALIBRATION], by.size[line], chosen)
    else:
        opens = by_score(pool, chosen)
    return chosen, opens


@compiled
def _genre_shares(genre: NDArray[np.int16]) -> NDArray[np.float64]:
    """Each item's genres weigh 1, 1/2, 1/3 … in their own order, as in the listener's own mix."""
    shares = np.zeros(genre.shape)
    for item in range(len(genre)):
        total = 0.0
        for slot in range(genre.shape[1]):
            total += 1 / (slot + 1) if genre[item, slot] >= 0 else 0.0
        for slot in range(genre.shape[1]):
            if genre[item, slot] >= 0:
                shares[item, slot] = 1 / (slot + 1) / total
    return shares
