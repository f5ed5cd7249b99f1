"""What each listener hid: by preference, where events put it too, and as the request says; as rows and artists."""

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.listeners import Listeners
from features.snapshot import Snapshot
from ranking.types import Hidden, HomeQuery, Pairs

_NONE: Final = np.empty(0, np.uint64)


def hidden_from(queries: tuple[HomeQuery, ...], listeners: Listeners, snapshot: Snapshot) -> Hidden:
    """What may not return to each query's listener; a request adds to the preferences and takes nothing from them."""
    wishes, asked = listeners.wishes, [query.hidden for query in queries]
    if len(wishes.hidden_items):
        own = np.split(wishes.hidden_items, wishes.item_start[1:-1])
        asked = [one if more is None else np.concatenate((one, more)) for one, more in zip(own, asked, strict=True)]
    return Hidden(items=pairs(snapshot, asked), artist_start=wishes.artist_start, artists=wishes.hidden_artists)


def pairs(snapshot: Snapshot, keys: Iterable[NDArray[np.uint64] | None]) -> Pairs:
    """The rows of each query's item keys: one look-up for the whole batch."""
    per_query = [_NONE if found is None else found for found in keys]
    lengths = [len(found) for found in per_query]
    if not sum(lengths):
        return np.empty(0, np.int64)
    rows = snapshot.rows_of(np.concatenate(per_query))
    found: Pairs = (np.repeat(np.arange(len(lengths)), lengths) << 32 | rows)[rows >= 0]
    return np.sort(found)


@compiled
def among(pairs: Pairs, query: int, row: int) -> bool:
    """Whether the listener hid an item, or the request excludes it."""
    wanted, low, high = query << 32 | row, 0, len(pairs)
    while low < high:
        middle = (low + high) // 2
        if pairs[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low < len(pairs) and pairs[low] == wanted


@compiled
def by_hidden(artists: NDArray[np.uint64], first: int, last: int, artist: int) -> bool:
    """Whether the artist is among those that a listener hid, `artists[first:last]`, ascending."""
    low, high = first, last
    while low < high:
        middle = (low + high) // 2
        if artists[middle] < artist:
            low = middle + 1
        else:
            high = middle
    return low < last and artists[low] == artist
