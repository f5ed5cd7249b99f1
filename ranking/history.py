"""What a listener plays: record and recent state as rows of this snapshot, and how much each counts now."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.listeners import Listeners
from features.recent_state import PLAYED, RecentState
from features.snapshot import Snapshot

DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A batch's plays, `[play]`, of each listener one per item; items that the snapshot lacks are left out."""

    query: NDArray[np.int64]  # whose, ascending
    row: NDArray[np.int64]
    day: NDArray[np.int64]  # of the latest play, since 1970; 0: unknown
    plays: NDArray[np.int64]

    def of(self, query: int) -> "History":
        """The plays of one listener."""
        mine = slice(*np.searchsorted(self.query, [query, query + 1]))
        return History(query=self.query[mine], row=self.row[mine], day=self.day[mine], plays=self.plays[mine])

    def weight(self, now: NDArray[np.int64], half_life_days: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much each play counts at `now` `[query]` seconds: log plays, halved every half-life `[query]`, `[play]`.

        Plays of unknown time do not fade.
        """
        age = np.where(self.day > 0, np.maximum(now[self.query] // DAY_S - self.day, 0), 0)
        return np.log1p(self.plays) * np.exp2(-age / half_life_days[self.query])


def recall(listeners: Listeners, snapshot: Snapshot) -> History:
    """The history of a batch of listeners."""
    rows = snapshot.rows_of(listeners.recent_keys)
    query = np.repeat(np.arange(len(listeners.known)), np.diff(listeners.recent_start))
    here = rows >= 0
    recorded = History(
        query=query[here],
        row=rows[here],
        day=listeners.recent_days[here].astype(np.int64),
        plays=listeners.recent_plays[here].astype(np.int64),
    )
    return _joined(recorded, listeners.state, snapshot) if len(listeners.state.did) else recorded


def _joined(recorded: History, state: RecentState, snapshot: Snapshot) -> History:
    """With the plays of recent state: of an item the plays add up, and the latest day stands."""
    played = np.isin(state.did, PLAYED)
    rows = snapshot.rows_of(state.item_key[played])
    query, day = state.listener[played][rows >= 0], state.at[played][rows >= 0] // DAY_S
    pairs = np.concatenate((recorded.query << 32 | recorded.row, query << 32 | rows[rows >= 0]))
    both, which = np.unique(pairs, return_inverse=True)
    plays, days = np.zeros(len(both), np.int64), np.zeros(len(both), np.int64)
    np.add.at(plays, which, np.concatenate((recorded.plays, np.ones(len(query), np.int64))))
    np.maximum.at(days, which, np.concatenate((recorded.day, day)))
    return History(query=both >> 32, row=both & 0xFFFFFFFF, day=days, plays=plays)
