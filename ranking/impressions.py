"""What a listener saw before this session and has not played since: how often, within seven days.

Impressions never reorder a session's page: those count that are older than the session, and of them as many as are
still there when the session has added its own. The seven days run back from the day on which it began.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.listeners import Listeners
from features.recent_state import Did, RecentState
from features.snapshot import Snapshot
from ranking.history import DAY_S
from ranking.session import PAUSE_S
from ranking.types import HomeQuery

DAYS: Final = 7
COUNTED: Final = 256
"""The latest impressions before the session: the store keeps 512, so a session may add 256 and change nothing."""

_IMPRESSION, _PLAY, _COMPLETE, _LIKE = (int(did) for did in (Did.IMPRESSION, Did.PLAY, Did.COMPLETE, Did.LIKE))
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]


class Seen(NamedTuple):
    """How often each listener saw what they have not played."""

    start: Ints  # [query + 1]; query q owns start[q]:start[q + 1] of the columns below
    row: Ints  # ascending for each
    times: Ints


class Entries(NamedTuple):
    """What listeners did or saw, each listener's by time."""

    start: Ints  # [query + 1], as in Seen
    item_key: Keys
    at: Ints
    session: NDArray[np.uint32]
    did: NDArray[np.uint8]


class Plays(NamedTuple):
    """The plays of listeners' records."""

    start: Ints  # [query + 1], as in Seen
    item_key: Keys
    day: NDArray[np.uint16]  # of the last one, since 1970; 0: unknown


class Now(NamedTuple):
    """When and in which session each request comes, `[query]`."""

    at: Ints
    session: NDArray[np.uint32]  # 0: not named


class Counts(NamedTuple):
    """What is found of each listener."""

    start: Ints  # [query + 1], as in Seen
    item_key: Keys  # ascending for each
    times: Ints


def recall_seen(queries: tuple[HomeQuery, ...], listeners: Listeners, snapshot: Snapshot) -> Seen:
    """What the listeners of a batch saw; items that the snapshot lacks are left out."""
    shown, start = listeners.impressions, np.zeros(len(queries) + 1, np.int64)
    if not len(shown.did):
        return Seen(start=start, row=np.empty(0, np.int64), times=np.empty(0, np.int64))
    now = Now(
        np.array([query.now for query in queries], np.int64),
        np.array([query.session for query in queries], np.uint32),
    )
    plays = Plays(listeners.recent_start, listeners.recent_keys, listeners.recent_days)
    counts = Counts(start, np.empty(len(shown.did), np.uint64), np.empty(len(shown.did), np.int64))
    _count(_entries(shown), _entries(listeners.state), plays, now, counts)
    found = int(start[-1])
    rows, times = snapshot.rows_of(counts.item_key[:found]), counts.times[:found]  # rows ascend as keys do
    here = rows >= 0
    if not here.all():
        start = np.concatenate(([0], np.cumsum(here)))[start]
    return Seen(start=start, row=rows[here], times=times[here])


@compiled
def times_seen(rows: Ints, times: Ints, row: int) -> int:
    """How often a listener saw a row: of `times` at its place in `rows`, ascending; 0 where it is not there."""
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        if rows[middle] < row:
            low = middle + 1
        else:
            high = middle
    return int(times[low]) if low < len(rows) and rows[low] == row else 0


@compiled
def session_began(shown: Entries, done: Entries, query: int, now: int, session: int) -> int:
    """When the session of a request began: its earliest entry, done or seen; now where it has none yet.

    Of a session are the entries that name it, and what no pause of 30 minutes parts from them or from now: where the
    client names the session, only entries that name none.
    """
    begin = now
    one, other = shown.start[query + 1] - 1, done.start[query + 1] - 1
    while one >= shown.start[query] or other >= done.start[query]:
        if one >= shown.start[query] and (other < done.start[query] or shown.at[one] >= done.at[other]):
            at, name = shown.at[one], shown.session[one]
            one -= 1
        else:
            at, name = done.at[other], done.session[other]
            other -= 1
        if at > now:
            continue
        named = session > 0 and name == session
        if named or (begin - at <= PAUSE_S and (session == 0 or name == 0)):
            begin = min(begin, at)
        elif session == 0:
            break
    return begin


@compiled
def _count(shown: Entries, done: Entries, plays: Plays, now: Now, counts: Counts) -> None:
    found, key, at = 0, np.empty(COUNTED, np.uint64), np.empty(COUNTED, np.int64)
    for query in range(len(now.at)):
        begin = session_began(shown, done, query, now.at[query], now.session[query])
        held = _before(shown, query, begin, key, at)
        order = np.argsort(key[:held], kind="mergesort")
        item, heard = np.unique(key[:held]), np.full(held, -1, np.int64)
        _hear(done, plays, query, now.at[query], item, heard)
        number = 0
        for place in range(len(item)):
            count = 0
            while number < held and key[order[number]] == item[place]:
                count += at[order[number]] > heard[place]
                number += 1
            if count > 0:
                counts.item_key[found], counts.times[found] = item[place], count
                found += 1
        counts.start[query + 1] = found


@compiled
def _before(shown: Entries, query: int, begin: int, key: Keys, at: Ints) -> int:
    """Puts the latest impressions before a session into `key` and `at`; how many.

    Of an item those of one second are one.
    """
    held, earliest = 0, (begin // DAY_S - DAYS) * DAY_S
    first = shown.start[query]
    for entry in range(shown.start[query + 1] - 1, first - 1, -1):
        when, item = shown.at[entry], shown.item_key[entry]
        if when < earliest or held == len(key):
            break
        again = entry > first and shown.at[entry - 1] == when and shown.item_key[entry - 1] == item
        if when < begin and shown.did[entry] == _IMPRESSION and not again:
            key[held], at[held] = item, when
            held += 1
    return held


@compiled
def _hear(done: Entries, plays: Plays, query: int, now: int, item: Keys, heard: Ints) -> None:
    """Puts the last second in which each item was played into `heard`; of a record only the day is known."""
    for entry in range(done.start[query], done.start[query + 1]):
        if done.did[entry] in (_PLAY, _COMPLETE, _LIKE) and done.at[entry] <= now:
            place = np.searchsorted(item, done.item_key[entry])
            if place < len(item) and item[place] == done.item_key[entry]:
                heard[place] = max(heard[place], done.at[entry])
    for play in range(plays.start[query], plays.start[query + 1]):
        place = np.searchsorted(item, plays.item_key[play])
        if place < len(item) and item[place] == plays.item_key[play]:
            day = np.int64(plays.day[play])
            if day > heard[place] // DAY_S and day > 0:
                heard[place] = (day + 1) * DAY_S - 1


def _entries(state: RecentState) -> Entries:
    return Entries(state.start, state.item_key, state.at, state.session, state.did)
