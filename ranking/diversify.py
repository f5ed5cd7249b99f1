"""Chooses the picks of a line: by score, MMR, DPP or calibration, within caps and spacing.

Every choice is greedy and ties go to the earlier candidate, so the first picks of a longer choice are the shorter one.
Of the picks as many as are `shown` count as chosen; those behind them, the reserve, are each chosen as the next one.
A pool is one line's candidates, best first; picks are places in it, -1 where the line has no more. Each method answers
which candidates the caps have closed.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled, summed

Floats = NDArray[np.float64]
Units = NDArray[np.float32]  # [D, candidate]: candidates last, so that products of all with one vector add up in step
Picks = NDArray[np.int64]  # [pick]
Opens = NDArray[
    np.int64
]  # [candidate], from which pick on it keeps within the caps; NEVER: it cannot be picked any more

NEVER: Final = 1 << 30
_STOP: Final = 1e-10
_BLOCK: Final = 16  # candidates
_NOISE: Final = 1e-6  # what float32 products leave of a duplicate: 4.8e-7 measured
_SPANNED: Final = 1e-4  # a shorter rest of a unit vector adds no direction
_KEEP: Final = 0.01  # a of q~ = (1-a)q + a p
_ABSENT: Final = 1e-9  # a genre with less of the target moves the divergence by less than 5e-9


class Pool(NamedTuple):
    """One line's candidates, and what it may hold of one artist and one album."""

    relevance: Floats  # [candidate], falling
    artist: NDArray[np.uint64]  # [candidate]; 0: none, never capped
    album: NDArray[np.uint64]  # [candidate]; 0: none, never capped
    artist_cap: int  # 0: no cap
    album_cap: int  # 0: no cap
    gap: int  # how many picks stand at least between two of one artist


class Vectors(NamedTuple):
    """Where the candidates' vectors are."""

    items: NDArray[np.float32]  # [item, D]
    rows: NDArray[np.int64]  # [candidate]


class Genres(NamedTuple):
    """The candidates' distributions over genres, and the one that the line should come near."""

    genre: NDArray[np.int16]  # [candidate, 8], a genre at most once; -1: none
    weight: Floats  # [candidate, 8]
    target: NDArray[np.float32]  # [genre]


@compiled
def by_score(pool: Pool, picks: Picks) -> Opens:
    """The best by relevance."""
    opens = np.zeros(len(pool.relevance), np.int64)
    for number in range(len(picks)):
        picks[number] = -1
        for one in range(len(opens)):
            if opens[one] <= number:  # relevance falls
                picks[number] = one
                break
        _hold(pool, picks, number, opens)
    return opens


@compiled
def mmr(pool: Pool, vectors: Vectors, strength: float, shown: int, picks: Picks) -> Opens:
    """Maximal marginal relevance: argmax l*rel - (1-l)*max(0, cosine to a pick); l = 1 is by score (Carbonell 1998).

    A zero vector is like nothing. What a candidate was worth bounds what it is worth, for picks only add to what it is
    near: only the best is valued anew, until the best is new.
    """
    size = len(pool.relevance)
    opens, valued, near = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size)
    value, tops, length = strength * pool.relevance, _no_tops(size), _lengths(vectors)
    for number in range(len(picks)):
        count = min(number, shown) if strength < 1 else 0
        best = _best_of_all(value, opens, number, tops)
        while best >= 0 and valued[best] < count:
            own = vectors.items[vectors.rows[best]]
            for pick in picks[valued[best] : count]:
                if pick >= 0 and length[pick] * length[best] > 0:
                    product = dot(own, vectors.items[vectors.rows[pick]])
                    near[best] = max(near[best], product / (length[pick] * length[best]))
            valued[best] = count
            value[best] = strength * pool.relevance[best] - (1 - strength) * near[best]
            best = _best_again(value, opens, number, tops, best)
        picks[number] = best
        _hold(pool, picks, number, opens)
    return opens


@compiled
def _lengths(vectors: Vectors) -> Floats:
    lengths = np.empty(len(vectors.rows))
    for one in range(len(lengths)):
        own = vectors.items[vectors.rows[one]]
        lengths[one] = np.sqrt(dot(own, own))
    return lengths


@compiled
def dpp(pool: Pool, unit: Units, theta: float, shown: int, picks: Picks) -> Opens:
    """Greedy MAP of a determinantal point process, B_i = exp(theta*r_i/2) f_i; theta = inf is by score (Chen 2018).

    The update is Gram-Schmidt in the D dimensions, not the paper's Cholesky rows: the same numbers without its
    O(k^2 n). Weights are relative to the line's best, so no relevance overflows and 1e-10 means the same everywhere.
    """
    size, dimension = len(pool.relevance), unit.shape[0]
    opens, left, along = np.zeros(size, np.int64), np.zeros(size, np.float32), np.empty(size, np.float32)
    for one in range(size):  # 1, whatever the last bits of a norm, which would break ties
        left[one] = 1.0 if unit[:, one].any() else 0.0
    basis, gain = np.zeros((len(picks), dimension)), np.empty(size)
    for number in range(len(picks)):
        most = 0.0
        for one in range(size):
            weight = 0.0 if np.isinf(theta) else np.exp(theta * (pool.relevance[one] - pool.relevance[0]))
            gain[one] = weight * left[one] if left[one] >= _NOISE else 0.0
            if opens[one] <= number:
                most = max(most, gain[one])
        value = pool.relevance if most < _STOP else gain
        pick = picks[number] = _best_between(value, opens, number, 0, size)
        _hold(pool, picks, number, opens)
        if pick >= 0 and number < shown and not np.isinf(theta):
            found = unit[:, pick].astype(np.float64)
            for known in basis[:number]:
                found -= np.sum(known * found) * known
            length = np.sqrt(np.sum(found * found))
            if length >= _SPANNED:
                basis[number] = found / length
                _along(unit, basis[number].astype(np.float32), along)
                for one in range(size):
                    left[one] -= along[one] ** 2
    return opens


@compiled
def calibrated(pool: Pool, genres: Genres, strength: float, shown: int, picks: Picks) -> Opens:
    """Calibration: argmax (1-l)*sum s - l*KL(p||q~), q~ = (1-a)q + a p, a = 0.01; l = 0 is by score (Steck 2018).

    Only sum_g p log q~ varies, and of it only what a candidate adds: p log(1 + w / (m + n c p)) for each of its genres,
    with m the picks' weight of the genre, n the picks with this one, c = a/(1-a). Both m and n only grow, so what a
    candidate was worth bounds what it is worth: only the best is valued anew, until the best is new.
    """
    size = len(pool.relevance)
    opens, valued = np.zeros(size, np.int64), np.zeros(size, np.int64)
    value, tops, held = np.empty(size), _no_tops(size), np.zeros(len(genres.target))
    for one in range(size):
        value[one] = (1 - strength) * pool.relevance[one] + strength * _added(genres, one, 0, held)
    for number in range(len(picks)):
        count = min(number, shown)
        best = _best_of_all(value, opens, number, tops)
        while best >= 0 and valued[best] < count:
            value[best] = (1 - strength) * pool.relevance[best] + strength * _added(genres, best, count, held)
            valued[best] = count
            best = _best_again(value, opens, number, tops, best)
        picks[number] = best
        _hold(pool, picks, number, opens)
        if best >= 0 and number < shown:
            for slot in range(genres.genre.shape[1]):
                if genres.genre[best, slot] >= 0:
                    held[genres.genre[best, slot]] += genres.weight[best, slot]
    return opens


@compiled
def _added(genres: Genres, one: int, count: int, held: Floats) -> float:
    """What a candidate adds to sum_g p log q~, with so many picks that hold so much of each genre."""
    added = 0.0
    for slot in range(genres.genre.shape[1]):
        genre = genres.genre[one, slot]
        share = genres.target[genre] if genre >= 0 else 0.0
        if share > _ABSENT:
            floor = (count + 1) * share * _KEEP / (1 - _KEEP)
            added += share * np.log(1 + genres.weight[one, slot] / (held[genre] + floor))
    return added


@compiled
def units(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> Units:
    """The vectors of rows, scaled to length 1; a zero vector stays."""
    unit = np.empty((vectors.shape[1], len(rows)), np.float32)
    for place in range(len(rows)):
        vector = vectors[rows[place]]
        length = np.sqrt(dot(vector, vector))
        for dimension in range(len(vector)):
            unit[dimension, place] = vector[dimension] / length if length > 0 else 0.0
    return unit


@summed
def dot(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """The inner product."""
    total = np.float32(0)
    for at in range(len(left)):
        total += left[at] * right[at]
    return float(total)


@compiled
def _best_between(value: Floats, opens: NDArray[np.int64], number: int, first: int, last: int) -> int:
    """The best of some candidates that may be picked now; -1: none."""
    best = -1
    for one in range(first, last):
        if opens[one] <= number and (best < 0 or value[one] > value[best]):
            best = one
    return best


@compiled
def _no_tops(size: int) -> NDArray[np.int64]:
    """Room for the best of each block of candidates: a value that changes costs a look at its block, not at all."""
    return np.full((size + _BLOCK - 1) // _BLOCK, -1)


@compiled
def _best_of_all(value: Floats, opens: NDArray[np.int64], number: int, tops: NDArray[np.int64]) -> int:
    """The best of the candidates that may be picked now, with the best of each block put into `tops`."""
    for block in range(len(tops)):
        tops[block] = _best_between(value, opens, number, block * _BLOCK, min((block + 1) * _BLOCK, len(value)))
    return _best_top(value, tops)


@compiled
def _best_again(value: Floats, opens: NDArray[np.int64], number: int, tops: NDArray[np.int64], changed: int) -> int:
    """The best once one value has changed."""
    block = changed // _BLOCK
    tops[block] = _best_between(value, opens, number, block * _BLOCK, min((block + 1) * _BLOCK, len(value)))
    return _best_top(value, tops)


@compiled
def _best_top(value: Floats, tops: NDArray[np.int64]) -> int:
    best = -1
    for top in tops:
        if top >= 0 and (best < 0 or value[top] > value[best]):
            best = top
    return int(best)


@compiled
def _hold(pool: Pool, picks: Picks, number: int, opens: NDArray[np.int64]) -> None:
    """Notes from which pick on each candidate keeps within the caps, after a pick."""
    pick = picks[number]
    if pick < 0:
        opens[:] = NEVER  # else spacing would open the line again
        return
    opens[pick] = NEVER
    artist, album = pool.artist[pick], pool.album[pick]
    of_artist, of_album = 0, 0
    for before in picks[: number + 1]:
        of_artist += pool.artist[before] == artist
        of_album += pool.album[before] == album
    artist_full = 0 < pool.artist_cap <= of_artist
    album_full = 0 < pool.album_cap <= of_album
    for one in range(len(opens)):
        if artist > 0 and pool.artist[one] == artist:
            opens[one] = max(opens[one], NEVER if artist_full else number + 1 + pool.gap)
        if album > 0 and album_full and pool.album[one] == album:
            opens[one] = NEVER


@compiled
def _along(unit: Units, direction: NDArray[np.float32], products: NDArray[np.float32]) -> None:
    """The products of every candidate with one direction, added up dimension by dimension."""
    products[:] = 0
    for dimension in range(len(direction)):
        part = direction[dimension]
        for one in range(len(products)):
            products[one] += unit[dimension, one] * part
