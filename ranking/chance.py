"""Random numbers by counter: each is a function of its key and its place, so that no draw depends on another.

SplitMix64 (Steele, Lea and Flood 2014): the key's own sequence, entered at any place.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.keys import hash64
from ranking.types import HomeQuery, Lines

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = (np.uint64(bits) for bits in (30, 27, 31, 11))  # an int beside an uint64 makes compiled code float


def keys_of(queries: tuple[HomeQuery, ...], lines: Lines, here: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A key for each of some lines: of listener, session, surface and shelf, `[line]`."""
    keys = np.array([query.seed for query in queries], np.uint64)[lines.query[here]]
    keys += np.array([_hashed(lines.specs[line].id) for line in here.tolist()], np.uint64)
    return keys


_hashed = lru_cache(maxsize=1024)(hash64)  # shelves are few


@compiled
def mixed(key: np.uint64, place: int) -> np.uint64:
    """The 64 bits at a place, from 0, of a key's sequence."""
    bits = key + np.uint64(place + 1) * _GOLDEN
    bits = (bits ^ (bits >> _30)) * _FIRST
    bits = (bits ^ (bits >> _27)) * _SECOND
    return np.uint64(bits ^ (bits >> _31))


@compiled
def uniform(key: np.uint64, place: int) -> float:
    """The number at a place of a key's sequence: at least 0, below 1, in steps of 2**-53."""
    return float(mixed(key, place) >> _11) / 2.0**53
