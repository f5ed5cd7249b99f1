"""What each listener hid: their own preferences, and what the request brings, as rows and artists of this snapshot."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.listeners import Listeners
from features.snapshot import Snapshot
from ranking.compiled import compiled
from ranking.types import Hidden, HomeQuery, Pairs

_NO_KEYS: Final = np.empty(0, np.uint64)


def hidden_from(queries: tuple[HomeQuery, ...], listeners: Listeners, snapshot: Snapshot) -> Hidden:
    """What may not return to each query's listener; a request adds to the preferences and takes nothing from them."""
    wishes, asked = listeners.wishes, [_NO_KEYS if query.hidden is None else query.hidden for query in queries]
    owner = np.repeat(np.arange(len(queries)), np.diff(wishes.item_start))
    asker = np.repeat(np.arange(len(queries)), [len(keys) for keys in asked])
    keys = np.concatenate((wishes.hidden_items, *asked))
    return Hidden(
        items=pairs(np.concatenate((owner, asker)), keys, snapshot),
        artist_start=wishes.artist_start,
        artists=wishes.hidden_artists,
    )


def pairs(owner: NDArray[np.int64], keys: NDArray[np.uint64], snapshot: Snapshot) -> Pairs:
    """Queries with the rows of item keys, `[key]`; keys that the snapshot lacks are left out."""
    if not len(keys):
        return np.empty(0, np.int64)
    rows = snapshot.rows_of(keys)
    found: Pairs = (owner << 32 | rows)[rows >= 0]
    return np.sort(found)


@compiled
def among(pairs: Pairs, query: int, row: int) -> bool:
    """Whether the listener hid or played an item, or the request excludes it."""
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
