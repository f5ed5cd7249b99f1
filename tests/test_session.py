"""Sessions: what a listener does counts on the next page, by Rocchio's feedback as it is defined."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.listeners import Listeners
from features.recent_state import Did, decode_states, encode_entry
from features.snapshot import Snapshot
from ranking.params import INDEX, PARAMS, resolve
from ranking.session import EARLY_S, PAUSE_S, steer
from ranking.surfaces import Surface
from ranking.types import HomeQuery
from tests.test_home import NOW, read, serve, spec

PULL, PUSH, LEAN = (PARAMS[INDEX[name]].default for name in ("session_pull", "session_push", "session_lean"))
Event = tuple[Did, int, int, int]  # what, which row, seconds before now, seconds heard


def state_of(snapshot: Snapshot, events: Sequence[Event], session: int = 0) -> bytes:
    """The events as they stand in a listener's recent state."""
    keys = snapshot.columns["item_key"]
    return b"".join(
        encode_entry(did, int(keys[row]), at=NOW - ago, seconds=heard, session=session)
        for did, row, ago, heard in events
    )


def steered(snapshot: Snapshot, listeners: Listeners, events: Sequence[Event], session: int = 0) -> NDArray[np.float64]:
    """The vector of the first listener after events."""
    query = HomeQuery(user_id="u", surface=Surface(name="s", shelves=()), now=NOW, session=session)
    state = decode_states([state_of(snapshot, events, session=session)])
    return np.asarray(steer((query,), replace(listeners, state=state), snapshot).vectors[0], np.float64)


def plainly(own: NDArray[np.float64], items: NDArray[np.float64], events: Sequence[Event]) -> NDArray[np.float64]:
    """The same by definition, for events of one session."""
    unit = items / np.linalg.norm(items, axis=1, keepdims=True)
    length = np.linalg.norm(own)
    start = now = own / length
    for did, row, _, heard in events:
        if did in {Did.LIKE, Did.COMPLETE}:
            now = now + PULL * unit[row]
        elif did is Did.SKIP:
            now = now - PUSH * (1 if heard < EARLY_S else 0.5) * max(0, now @ unit[row]) * unit[row]
        else:
            continue
        now = (1 - LEAN) * now + LEAN * start
        now = now / np.linalg.norm(now)
    return np.asarray(length * now)


EVENTS = st.lists(
    st.tuples(st.sampled_from(Did), st.integers(0, 1999), st.just(60), st.integers(0, 2 * EARLY_S)), max_size=12
)


@given(events=EVENTS)
@settings(deadline=None, max_examples=100)
def test_the_vector_is_steered_as_defined(snapshot: Snapshot, records: dict[str, bytes], events: list[Event]) -> None:
    """Every order of likes, completes, skips, plays and hides: the same direction, and the listener's own length."""
    listeners = read(snapshot, [next(iter(records.values()))])
    events = [(did, row, 600 - 10 * place, heard) for place, (did, row, _, heard) in enumerate(events)]
    own, items = listeners.vectors[0].astype(np.float64), np.asarray(snapshot.columns["vector"], np.float64)
    found = steered(snapshot, listeners, events)
    assert found == pytest.approx(plainly(own, items, events), abs=1e-4 * float(np.linalg.norm(own)))
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(own), rel=1e-5)


def mixed(own: NDArray[np.float64], genre: NDArray[np.int16], events: Sequence[Event]) -> NDArray[np.float64]:
    """The mix of genres after events of one session, by definition."""
    now = own / own.sum()
    for did, row, _, heard in events:
        genres = [one for one in genre[row].tolist() if one >= 0]
        weights = {one: 1 / place for place, one in enumerate(genres, 1)}
        share = {one: weight / sum(weights.values()) for one, weight in weights.items()}
        if did not in {Did.LIKE, Did.COMPLETE, Did.SKIP} or not genres:
            continue
        given = np.array([share.get(one, 0.0) for one in range(len(own))])
        if did is Did.SKIP:
            now = now * (1 - PUSH * (1 if heard < EARLY_S else 0.5) * given)
        else:
            now = (now + PULL * given) / (1 + PULL)
        now = (1 - LEAN) * now + LEAN * own / own.sum()
        now = now / now.sum()
    return np.asarray(now)


@given(events=EVENTS)
@settings(deadline=None, max_examples=100)
def test_the_mix_of_genres_follows_as_defined(
    snapshot: Snapshot, records: dict[str, bytes], events: list[Event]
) -> None:
    """Likes bring an item's genres, skips take from them, plays say nothing; the shares still make up one."""
    listeners = read(snapshot, [next(iter(records.values()))])
    events = [(did, row, 600 - 10 * place, heard) for place, (did, row, _, heard) in enumerate(events)]
    query = HomeQuery(user_id="u", surface=Surface(name="s", shelves=()), now=NOW)
    state = decode_states([state_of(snapshot, events)])
    found = steer((query,), replace(listeners, state=state), snapshot).genre_weights[0]
    own, genre = listeners.genre_weights[0].astype(np.float64), np.asarray(snapshot.columns["genre"])
    if any(did in {Did.LIKE, Did.COMPLETE, Did.SKIP} for did, *_ in events):
        assert found == pytest.approx(mixed(own, genre, events), abs=1e-3)  # of float16 in the record
    else:
        assert np.array_equal(found, listeners.genre_weights[0])


@pytest.mark.parametrize(
    ("ago", "session", "counts"),
    [
        ((60,), 0, True),
        ((PAUSE_S + 60,), 0, False),
        ((2 * PAUSE_S - 60, PAUSE_S - 60), 0, True),
        ((9 * PAUSE_S,), 7, True),
    ],
)
def test_a_session_ends_with_a_pause_unless_the_client_names_it(
    snapshot: Snapshot, records: dict[str, bytes], ago: tuple[int, ...], session: int, *, counts: bool
) -> None:
    """Half an hour without an event ends it; events that follow each other sooner, or of the same name, are of it."""
    listeners = read(snapshot, [next(iter(records.values()))])
    row = int(np.argmin(np.asarray(snapshot.columns["vector"]) @ listeners.vectors[0]))
    events = [(Did.LIKE, row, one, 0) for one in ago]
    found = steered(snapshot, listeners, events, session=session)
    assert np.allclose(found, listeners.vectors[0]) != counts


def test_likes_bring_more_of_the_kind_and_skips_less(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """On the next page, the shelf of taste is nearer to what was liked, and further from what was skipped."""
    surface = Surface(
        name="s", shelves=(spec("taste", "taste", depth=256, skip_played=True),), params=resolve({"page_artist_cap": 0})
    )
    vectors = np.asarray(snapshot.columns["vector"], np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearer = further = 0
    frames = list(records.values())[:40]
    for frame in frames:
        query = HomeQuery(user_id="u", surface=surface, now=NOW, allow_explicit=True)
        before = serve(snapshot, (query,), [frame])[0].shelves[0].rows
        for did, row in ((Did.LIKE, before[-1]), (Did.SKIP, before[0])):
            state = state_of(snapshot, [(did, int(row), 60, 0)] * 2)
            after = serve(snapshot, (query,), [frame], states=[state])[0].shelves[0].rows
            gained = (unit[after] @ unit[row]).mean() - (unit[before] @ unit[row]).mean()
            nearer += did is Did.LIKE and gained > 0
            further += did is Did.SKIP and gained < 0
    assert nearer > 0.8 * len(frames)
    assert further > 0.8 * len(frames)
