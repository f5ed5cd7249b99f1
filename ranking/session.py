"""Lets what a listener does count at once: likes and completes pull their vector, skips push it away.

Rocchio's feedback on unit vectors, in the order of the events: a like or complete adds pull * item, a skip takes
push * max(0, cosine) * item, half of that where more than 30 s were heard; after each the vector leans back to the
listener's own by a share, and is scaled to its length.
"""

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.listeners import Listeners
from features.recent_state import Did
from features.snapshot import Snapshot
from ranking.assign import page_params
from ranking.compiled import compiled
from ranking.diversify import dot
from ranking.params import INDEX, Params
from ranking.types import HomeQuery

PAUSE_S: Final = 1800  # ends a session that the client does not name
EARLY_S: Final = 30  # a skip before it says no; later it says enough
_PULL, _PUSH, _LEAN = (INDEX[name] for name in ("session_pull", "session_push", "session_lean"))
_COMPLETE, _LIKE, _SKIP = int(Did.COMPLETE), int(Did.LIKE), int(Did.SKIP)


class Events(NamedTuple):
    """What listeners did of late, each listener's oldest first."""

    start: NDArray[np.int64]  # [query + 1]; query q owns start[q]:start[q + 1]
    row: NDArray[np.int64]  # [event], as the columns below; -1: the snapshot lacks the item
    did: NDArray[np.uint8]
    at: NDArray[np.int64]
    seconds: NDArray[np.int64]
    session: NDArray[np.uint32]


class Now(NamedTuple):
    """When and in which session each request comes, `[query]`."""

    at: NDArray[np.int64]
    session: NDArray[np.uint32]  # low bits of the hash of the client's session id; 0: not named
    params: Params  # [query, param]


def steer(queries: tuple[HomeQuery, ...], listeners: Listeners, snapshot: Snapshot) -> Listeners:
    """The listeners, each with their vector as the events of the session leave it."""
    state = listeners.state
    if not len(state.did):
        return listeners
    rows = snapshot.rows_of(state.item_key)
    events = Events(state.start, rows, state.did, state.at, state.seconds, state.session)
    now = Now(
        np.array([query.now for query in queries], np.int64),
        np.array([query.session for query in queries], np.uint32),
        page_params(queries),
    )
    vectors = listeners.vectors.copy()
    _steer(events, now, snapshot.columns["vector"], vectors)
    return replace(listeners, vectors=vectors)


@compiled
def _steer(events: Events, now: Now, items: NDArray[np.float32], vectors: NDArray[np.float32]) -> None:
    for query in range(len(vectors)):
        first, last = events.start[query], events.start[query + 1]
        length = np.sqrt(dot(vectors[query], vectors[query]))
        if first == last or length == 0:
            continue
        params, own = now.params[query], vectors[query].astype(np.float64) / length
        begin = session_start(events, first, last, now.at[query], now.session[query])
        steered = own.copy()
        for event in range(begin, last):
            row, did, session = events.row[event], events.did[event], events.session[event]
            if row < 0 or events.at[event] > now.at[query]:
                continue
            if session > 0 and now.session[query] > 0 and session != now.session[query]:
                continue  # of another session of the client's
            norm = np.sqrt(dot(items[row], items[row]))
            if norm == 0:
                continue
            item = items[row].astype(np.float64) / norm
            if did in (_LIKE, _COMPLETE):
                steered += params[_PULL] * item
            elif did == _SKIP:
                near = max(0.0, np.sum(steered * item))
                steered -= params[_PUSH] * (1.0 if events.seconds[event] < EARLY_S else 0.5) * near * item
            else:
                continue
            steered = (1 - params[_LEAN]) * steered + params[_LEAN] * own
            size = np.sqrt(np.sum(steered * steered))
            steered = steered / size if size > 0 else own.copy()
        for dimension in range(vectors.shape[1]):
            vectors[query, dimension] = length * steered[dimension]


@compiled
def session_start(events: Events, first: int, last: int, now: int, session: int) -> int:
    """The first event of the session: back from now while no pause is too long, or as far as the client names it."""
    begin, after = last, now
    for event in range(last - 1, first - 1, -1):
        named = session > 0 and events.session[event] == session
        if named or (begin == event + 1 and after - events.at[event] <= PAUSE_S):
            begin = event
            after = min(after, events.at[event])
    return begin
