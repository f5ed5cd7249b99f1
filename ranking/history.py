"""What a listener plays: record and recent state as rows of this snapshot, and how much each counts now."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.listeners import Listeners
from features.recent_state import PLAYED, RecentState
from features.snapshot import Snapshot

DAY_S = 86_400
_IS_PLAY: Final = np.isin(np.arange(256), PLAYED)  # by what was done


class History(NamedTuple):
    """A batch's plays, `[play]`, of each listener one per item; items that the snapshot lacks are left out."""

    start: NDArray[np.int64]  # [query + 1]; query q owns start[q]:start[q + 1]
    query: NDArray[np.int64]  # whose, ascending
    row: NDArray[np.int64]
    day: NDArray[np.int64]  # of the latest play, since 1970; 0: unknown
    plays: NDArray[np.int64]


@compiled
def weight(plays: int, day: int, today: int, half_life_days: float) -> float:
    """How much plays count today: their log, halved every half-life; plays of unknown time do not fade."""
    age = max(today - day, 0) if day > 0 else 0
    return float(np.log1p(plays) * 2.0 ** (-age / half_life_days))


def recall(listeners: Listeners, snapshot: Snapshot) -> History:
    """The history of a batch of listeners."""
    rows = snapshot.rows_of(listeners.recent_keys)
    query = np.repeat(np.arange(len(listeners.known)), np.diff(listeners.recent_start))
    here = rows >= 0
    day, plays = listeners.recent_days[here].astype(np.int64), listeners.recent_plays[here].astype(np.int64)
    queries = len(listeners.known)
    recorded = History(start=_starts(query[here], queries), query=query[here], row=rows[here], day=day, plays=plays)
    return _joined(recorded, listeners.state, snapshot) if len(listeners.state.did) else recorded


def _joined(recorded: History, state: RecentState, snapshot: Snapshot) -> History:
    """With the plays of recent state: of an item the plays add up, and the latest day stands."""
    played = _IS_PLAY[state.did]
    rows = snapshot.rows_of(state.item_key[played])
    query, day = state.listener[played][rows >= 0], state.at[played][rows >= 0] // DAY_S
    pairs = np.concatenate((recorded.query << 32 | recorded.row, query << 32 | rows[rows >= 0]))
    both, which = np.unique(pairs, return_inverse=True)
    plays, days = np.zeros(len(both), np.int64), np.zeros(len(both), np.int64)
    np.add.at(plays, which, np.concatenate((recorded.plays, np.ones(len(query), np.int64))))
    np.maximum.at(days, which, np.concatenate((recorded.day, day)))
    query = both >> 32
    start = _starts(query, len(recorded.start) - 1)
    return History(start=start, query=query, row=both & 0xFFFFFFFF, day=days, plays=plays)


def _starts(query: NDArray[np.int64], queries: int) -> NDArray[np.int64]:
    return np.searchsorted(query, np.arange(queries + 1))
