"""Recent state: every entry stands alone, and who is known by it alone gets pages of taste."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.keys import hash64
from features.listeners import Known, Listeners, decode
from features.recent_state import ENTRY, Did, decode_states, encode_entry
from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.fold_in import fold_in
from ranking.history import recall
from tests.conftest import Served, Store
from tests.test_home import NOW, read

ENTRIES = st.tuples(
    st.sampled_from(Did),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
)


@given(batch=st.lists(st.lists(ENTRIES, max_size=9) | st.none(), max_size=6), torn=st.integers(0, ENTRY.itemsize - 1))
@settings(deadline=None)
def test_what_is_appended_is_what_is_read(batch: list[list[tuple[Did, int, int, int, int]] | None], torn: int) -> None:
    """Every field of every entry comes back in its listener's row, by time, also before a torn end."""

    def written(entries: list[tuple[Did, int, int, int, int]]) -> bytes:
        parts = [encode_entry(did, key, at=at, session=by, seconds=heard) for did, key, at, by, heard in entries]
        return b"".join((*parts, bytes(torn)))

    values = [None if entries is None else written(entries) for entries in batch]
    state = decode_states(values)
    for row, entries in enumerate(batch):
        own = slice(state.start[row], state.start[row + 1])
        columns = (state.did, state.item_key, state.at, state.session, state.seconds)
        found = list(zip(*(column[own].tolist() for column in columns), strict=True))
        wanted = [(int(did), *rest) for did, *rest in entries or []]
        assert sorted(found) == sorted(wanted)
        assert [one[2] for one in found] == sorted(one[2] for one in wanted)


@given(entries=st.lists(ENTRIES, max_size=9), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_the_order_of_arrival_means_nothing(entries: list[tuple[Did, int, int, int, int]], seed: int) -> None:
    """Entries that differ by when they happened or to what are read alike in whatever order they were appended."""
    distinct = list({(one[2], one[1], one[0]): one for one in entries}.values())
    shuffled = [distinct[place] for place in np.random.default_rng(seed).permutation(len(distinct))]
    one, other = (
        decode_states(
            [b"".join(encode_entry(did, key, at=at, session=by, seconds=heard) for did, key, at, by, heard in some)]
        )
        for some in (distinct, shuffled)
    )
    for name in ("item_key", "at", "session", "seconds", "did"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist()


@given(spoiled=st.integers(0, 4), at=st.integers(0, ENTRY.itemsize - 1), flip=st.integers(1, 255))
@settings(deadline=None)
def test_a_spoiled_entry_spoils_no_other(spoiled: int, at: int, flip: int) -> None:
    """A byte changed anywhere in one entry: that entry is gone, the other four stand."""
    raw = bytearray(b"".join(encode_entry(Did.PLAY, key, at=1000 + key) for key in range(5)))
    raw[spoiled * ENTRY.itemsize + at] ^= flip
    assert decode_states([bytes(raw)]).item_key.tolist() == [key for key in range(5) if key != spoiled]


def played(keys: NDArray[np.uint64], did: Did = Did.COMPLETE) -> bytes:
    """A state in which items were played just before now."""
    return b"".join(encode_entry(did, int(key), at=NOW - 60) for key in keys)


def known_by_state(snapshot: Snapshot, states: Sequence[bytes], missing: Known = Known.STRANGER) -> Listeners:
    """Listeners without a record."""
    manifest = snapshot.manifest
    return decode(
        [None] * len(states),
        states=states,
        space_id=snapshot.space_id,
        dimension=manifest.dimension,
        genres=len(manifest.genres),
        missing=missing,
    )


def test_folding_in_a_whole_history_gives_the_trained_vector(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """From the items of a record alone comes nearly the vector that training found: median cosine above .99."""
    known = read(snapshot, list(records.values())[:100])
    own = [slice(*known.recent_start[row : row + 2]) for row in range(100)]
    states = known_by_state(snapshot, [played(known.recent_keys[one]) for one in own])
    folded = fold_in(states, recall(states, snapshot), snapshot)
    assert (folded.known == Known.FOLDED_IN).all()
    assert folded.folded_in.all()
    lengths = np.linalg.norm(folded.vectors, axis=1) * np.linalg.norm(known.vectors, axis=1)
    assert np.median(np.vecdot(folded.vectors, known.vectors) / lengths) > 0.99


def test_only_plays_fold_a_listener_in(snapshot: Snapshot) -> None:
    """Skips and hides alone, items that nobody knows, and a record that can be used leave a listener as they were."""
    keys = snapshot.columns["item_key"][:5]
    foreign = played(np.arange(1, 6, dtype=np.uint64))
    states = known_by_state(snapshot, [played(keys, Did.SKIP), played(keys, Did.HIDE), foreign, b""])
    assert fold_in(states, recall(states, snapshot), snapshot) is states


def test_plays_of_record_and_state_add_up(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """An item of both has the plays of both and the later day; an item of one has its own."""
    frame = next(iter(records.values()))
    known = read(snapshot, [frame])
    fresh = np.setdiff1d(snapshot.columns["item_key"], known.recent_keys)[:1]
    both = np.concatenate((known.recent_keys[:1], known.recent_keys[:1], fresh))
    joined = recall(replace(known, state=decode_states([played(both)])), snapshot)
    plays = dict(zip(joined.row.tolist(), zip(joined.plays.tolist(), joined.day.tolist(), strict=True), strict=True))
    row, other = snapshot.rows_of(np.concatenate((known.recent_keys[:1], fresh))).tolist()
    assert plays[row] == (int(known.recent_plays[0]) + 2, (NOW - 60) // 86_400)
    assert plays[other] == (1, (NOW - 60) // 86_400)
    assert len(plays) == len(known.recent_keys) + 1 == len(joined.row)


async def test_who_is_known_by_recent_plays_only_gets_their_taste(served: Served, published: Store) -> None:
    """No record but recent plays: shelves of taste, a note, neither cold start nor degraded."""
    snapshot = served.plane.snapshots.current
    assert snapshot is not None
    genre = snapshot.columns["genre"][:, 0]
    rows = np.flatnonzero((genre == np.bincount(genre[genre >= 0]).argmax()) & (snapshot.columns["limits"] == 0))[:6]
    published.client.set(published.keys.state("newcomer"), played(snapshot.columns["item_key"][rows]))
    page = await served.get_home("newcomer")
    assert page.notes == [home_pb2.NOTE_LISTENER_FOLDED_IN]
    assert (page.cold_start, page.degraded, page.coverage) == (False, False, 100)
    shelves = {shelf.id: shelf for shelf in page.shelves}
    assert {"jump-back-in", "picked-for-you", "because-you-play"} <= set(shelves)
    heard = {hash64(item.item_id) for item in shelves["jump-back-in"].items}
    assert heard == set(snapshot.columns["item_key"][rows].tolist())


async def test_a_broken_record_with_recent_plays_is_told_and_folded_in(served: Served, published: Store) -> None:
    """The record cannot be used: LISTENER_INVALID, and shelves of taste from the recent plays all the same."""
    snapshot = served.plane.snapshots.current
    assert snapshot is not None
    published.client.set(published.keys.record("u0000001", snapshot.manifest.space_id), b"no record")
    keys = snapshot.columns["item_key"][snapshot.columns["limits"] == 0][:6]
    published.client.set(published.keys.state("u0000001"), played(keys))
    page = await served.get_home("u0000001")
    assert page.degraded_reasons == [home_pb2.DEGRADED_REASON_LISTENER_INVALID]
    assert page.notes == [home_pb2.NOTE_LISTENER_FOLDED_IN]
    assert "picked-for-you" in {shelf.id for shelf in page.shelves}
