"""Chooses the picks of many lines at once: by score, MMR, DPP or calibration, within caps and spacing.

Every choice is greedy and ties go to the lower index, so the first picks of a longer choice are the shorter choice, and
a line's picks are the same in any batch.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]  # [line, candidate]
Mask = NDArray[np.bool_]  # [line, candidate]
Strength = NDArray[np.floating[Any]]  # [line]
Picks = NDArray[np.int64]  # [line, pick]; -1: the line has no more

_NEVER: Final = np.iinfo(np.int16).max
_STOP: Final = 1e-10
_NOISE: Final = np.float32(1e-6)  # what float32 products leave of a duplicate: 4.8e-7 measured
_KEEP: Final = 0.01  # a of q~ = (1-a)q + a p
_ABSENT: Final = 1e-9  # a genre with less of the target moves the divergence by less than 5e-9
_STEP: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """What a line may hold of one artist and one album."""

    artist: NDArray[np.uint64]  # [line, candidate]; 0: none, never capped
    album: NDArray[np.uint64]  # [line, candidate]; 0: none, never capped
    artist_cap: NDArray[np.int64]  # [line]; 0: no cap
    album_cap: NDArray[np.int64]  # [line]; 0: no cap
    gap: NDArray[np.int64]  # [line]; how many picks stand at least between two of one artist


@dataclass(frozen=True, slots=True, kw_only=True)
class Genres:
    """The candidates' distributions over genres, and the one that each line should come near."""

    index: NDArray[np.int16]  # [line, candidate, 8], a genre at most once; -1: none
    weight: Floats  # [line, candidate, 8]
    target: Floats  # [line, genre]


def by_score(relevance: Floats, usable: Mask, picks: int, caps: Caps | None = None) -> Picks:
    """The best by relevance, `[line, pick]`."""
    draw = _Draw(relevance, usable, picks, caps)
    for _ in draw.rounds:
        draw.best(draw.relevance.copy())
    return draw.chosen


def mmr(
    relevance: Floats, unit: Floats, usable: Mask, strength: Strength, picks: int, caps: Caps | None = None
) -> Picks:
    """Maximal marginal relevance: argmax l*rel - (1-l)*max(0, cosine to a pick); l = 1 is by score (Carbonell 1998).

    `unit` is `[line, candidate, D]` and finite everywhere; a zero vector is like nothing.
    """
    draw = _Draw(relevance, usable, picks, caps)
    unit = _stepped(unit)
    worth = _column(strength) * draw.relevance
    rest, near = _column(1 - strength), np.zeros_like(worth)
    for _ in draw.rounds:
        pick = draw.best(worth - rest * near)
        np.maximum(near, _along(unit, unit[draw.lines, pick], near), out=near)
    return draw.chosen


def dpp(relevance: Floats, unit: Floats, usable: Mask, theta: Strength, picks: int, caps: Caps | None = None) -> Picks:
    """Greedy MAP of a determinantal point process, B_i = exp(theta*r_i/2) f_i; theta = inf is by score (Chen 2018).

    The update is Gram-Schmidt in the D dimensions, not the paper's Cholesky rows: the same numbers without its
    O(k^2 n). Weights are relative to the line's best, so no relevance overflows and 1e-10 means the same everywhere.
    """
    draw = _Draw(relevance, usable, picks, caps)
    unit = _stepped(unit)
    weight = _tilted(draw, theta)
    left = (np.vecdot(unit, unit)[:, : relevance.shape[1]] > 0.5).astype(np.float32)  # 1: last bits of norms break ties
    basis = np.zeros((len(unit), picks, unit.shape[2]))
    for number in draw.rounds:
        gain = weight * np.where(left < _NOISE, 0, left)
        flat = (gain * draw.open()).max(axis=1) < _STOP  # nothing new is left: fill up by relevance
        gain[flat] = draw.relevance[flat]
        pick = draw.best(gain)
        known, found = basis[:, :number], unit[draw.lines, pick].astype(np.float64)
        found -= np.vecmat(np.matvec(known, found), known)
        length = np.sqrt(np.vecdot(found, found))
        basis[:, number] = found / np.where(length < 1e-4, np.inf, length)[:, None]  # what is spanned adds no direction
        left -= _along(unit, basis[:, number].astype(np.float32), left) ** 2
    return draw.chosen


def calibrated(
    relevance: Floats, genres: Genres, usable: Mask, strength: Strength, picks: int, caps: Caps | None = None
) -> Picks:
    """Calibration: argmax (1-l)*sum s - l*KL(p||q~), q~ = (1-a)q + a p, a = 0.01; l = 0 is by score (Steck 2018).

    Only sum_g p log q~ varies, and of it only what a candidate adds: p log(1 + w / (m + n c p)) for each of its genres,
    with m the picks' weight of the genre, n the picks with this one, c = a/(1-a).
    """
    draw = _Draw(relevance, usable, picks, caps)
    place, share, weight = _wanted(genres)
    worth, lean = _column(1 - strength) * draw.relevance, _column(strength)
    held = np.zeros(genres.target.shape, np.float32)
    floor = np.float32(_KEEP / (1 - _KEEP)) * np.where(share > 0, share, 1)
    for number in draw.rounds:
        added = held.take(place)
        added += np.float32(number + 1) * floor
        np.divide(weight, added, out=added)
        np.log1p(added, out=added)
        added *= share
        pick = draw.best(worth + lean * added.sum(axis=0))
        for slot in range(len(place)):  # slot by slot: an item's genres differ, so no two writes meet
            held.ravel()[place[slot, draw.lines, pick]] += weight[slot, draw.lines, pick]
    return draw.chosen


class _Draw:
    """The picks so far, and when each candidate may be picked."""

    def __init__(self, relevance: Floats, usable: Mask, picks: int, caps: Caps | None) -> None:
        able = usable & np.isfinite(relevance)
        self.lines = np.arange(len(able))
        self.relevance = np.where(able, relevance, 0).astype(np.float32)
        self.chosen = np.full((len(able), picks), -1, np.int64)
        self.rounds = range(picks if able.size else 0)
        self._from = np.where(able, 0, _NEVER).astype(np.int16)  # the first round in which a candidate may be picked
        self._round = 0
        self._caps = caps and _Held(caps, picks)

    def open(self) -> Mask:
        """Which candidates may be picked now."""
        now: Mask = self._from <= self._round
        return now

    def best(self, value: Floats) -> NDArray[np.int64]:
        """Picks the best open candidate of each line by `value`, which it overwrites; `[line]`, any where none is."""
        np.copyto(value, -np.inf, where=~self.open())
        pick: NDArray[np.int64] = value.argmax(axis=1)
        ended = value[self.lines, pick] == -np.inf
        self.chosen[:, self._round] = np.where(ended, -1, pick)
        self._from[self.lines, pick] = _NEVER
        self._from[ended] = _NEVER  # else spacing would open the line again
        if self._caps:
            np.maximum(self._from, self._caps.hold(self.lines, pick, self._round), out=self._from)
        self._round += 1
        return pick


class _Held:
    """What the picks hold of artists and albums; both in one array, since small calls are what a small batch costs."""

    def __init__(self, caps: Caps, picks: int) -> None:
        self._keys = np.stack((caps.artist, caps.album))  # [key, line, candidate]
        self._held = np.zeros((2, len(caps.gap), picks), np.uint64)
        cap = np.stack((caps.artist_cap, caps.album_cap))
        self._cap = np.where(cap > 0, cap, picks + 1)
        self._gap = np.stack((np.clip(caps.gap, 0, picks), np.zeros_like(caps.gap)))

    def hold(self, lines: NDArray[np.int64], pick: NDArray[np.int64], number: int) -> NDArray[np.int16]:
        """Holds a round's picks and answers from which round on each candidate keeps within the caps."""
        key = self._keys[:, lines, pick]
        self._held[:, :, number] = key
        full = (self._held == key[:, :, None]).sum(axis=2) >= self._cap
        after = np.where(full, _NEVER, number + 1 + self._gap)
        after[key == 0] = 0
        start: NDArray[np.int16] = ((self._keys == key[:, :, None]) * after.astype(np.int16)[:, :, None]).max(axis=0)
        return start


def _column(values: Strength) -> Floats:
    return values.astype(np.float32)[:, None]


def _stepped(unit: Floats) -> Floats:
    """Vectors with the candidates filled up to a multiple of 16 by zeros, contiguous.

    BLAS sums the last odd rows in another order, so a candidate's product would depend on the width of its batch.
    Multiples of 16 are free of it (OpenBLAS from Prescott to Sapphire Rapids; multiples of 4 are not).
    """
    odd = -unit.shape[1] % _STEP
    return np.ascontiguousarray(np.pad(unit, ((0, 0), (0, odd), (0, 0))) if odd else unit, np.float32)


def _along(unit: Floats, direction: Floats, like: Floats) -> Floats:
    """Products of each line's vectors with its direction, `[line, candidate]`; 0.4 of einsum's time."""
    products: Floats = np.matvec(unit, direction)[:, : like.shape[1]]
    return products


def _tilted(draw: _Draw, theta: Strength) -> Floats:
    """The weights exp(theta*r), 1 at the line's best; all 0 where theta is infinite."""
    able = draw.open()
    top = np.where(able, draw.relevance, -np.inf).max(axis=1, initial=-np.inf)
    below = np.where(able, draw.relevance - np.where(np.isfinite(top), top, 0)[:, None], 0)
    finite = np.isfinite(theta)
    weight: Floats = (np.exp(np.where(finite, theta, 0)[:, None] * below) * finite[:, None]).astype(np.float32)
    return weight


def _wanted(genres: Genres) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Genres slot first, `[slot, line, candidate]`: place in the lines' targets, target's share, item's weight.

    Slots come first so that a sum over them has one order at every shape. What the target does not hold weighs nothing.
    """
    lines, count = genres.target.shape
    index = genres.index.transpose(2, 0, 1)
    place = np.maximum(index, 0) + np.arange(lines)[:, None] * count
    share = genres.target.take(place).astype(np.float32)
    counts = (index >= 0) & (share > _ABSENT)
    used = counts.any(axis=(1, 2))
    share = np.where(counts, share, 0)[used]
    weight = np.where(counts, genres.weight.transpose(2, 0, 1), 0).astype(np.float32)[used]
    return np.ascontiguousarray(place[used]), share, weight
