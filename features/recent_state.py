"""Recent state: what a listener did of late, as fixed-size entries in one Redis string, oldest first.

An entry is 24 bytes, little-endian, with a checksum of its own: whoever appends or trims it need not read it, and one
spoiled entry spoils no other. Items are named by their keys, which outlive snapshots and embedding spaces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.keys import hash64

VERSION: Final = 1
ENTRY: Final = np.dtype(
    [
        ("item_key", "<u8"),
        ("at", "<u4"),  # unix seconds
        ("session", "<u4"),  # low bits of the session id's hash
        ("seconds", "<u2"),  # how long it was heard
        ("did", "u1"),  # of Did
        ("version", "u1"),
        ("checksum", "<u4"),
    ]
)
_MIX: Final = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))


class Did(IntEnum):
    """What a listener did with an item."""

    PLAY = 1
    COMPLETE = 2
    SKIP = 3
    LIKE = 4
    HIDE = 5  # a memory only: what is hidden stands in the listener's preferences
    IMPRESSION = 6  # in a string of its own, so that what was only seen never pushes out what was done


PLAYED: Final = (Did.PLAY, Did.COMPLETE, Did.LIKE)
"""What counts as a play, a like too; a skip does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentState:
    """What a batch of listeners did, `[entry]`, each listener's by time; row `b` owns `start[b]:start[b + 1]`."""

    start: NDArray[np.int64]  # [B + 1]
    item_key: NDArray[np.uint64]
    at: NDArray[np.int64]  # unix seconds
    session: NDArray[np.uint32]
    seconds: NDArray[np.int64]
    did: NDArray[np.uint8]

    @property
    def listener(self) -> NDArray[np.int64]:
        """Whose each entry is."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))


_NOTHING: Final[Mapping[str, NDArray[Any]]] = {
    "item_key": np.empty(0, np.uint64),
    "at": np.empty(0, np.int64),
    "session": np.empty(0, np.uint32),
    "seconds": np.empty(0, np.int64),
    "did": np.empty(0, np.uint8),
}


def session_of(session_id: str) -> int:
    """How an entry names a session; 0: none was said."""
    return hash64(session_id) & 0xFFFFFFFF if session_id else 0


def encode_entry(did: Did, item_key: int, *, at: int, session: int = 0, seconds: int = 0) -> bytes:
    """One entry; times beyond what it holds are cut to it."""
    return encode_entries([(did, item_key, at, session, seconds)])[0]


def encode_entries(done: Sequence[tuple[Did, int, int, int, int]]) -> list[bytes]:
    """Entries of (did, item key, at, session, seconds), each by itself; times beyond what they hold are cut to it."""
    size = ENTRY.itemsize
    entries = np.array(
        [
            (key, min(max(at, 0), 2**32 - 1), session & 0xFFFFFFFF, min(max(seconds, 0), 2**16 - 1), did, VERSION, 0)
            for did, key, at, session, seconds in done
        ],
        ENTRY,
    )
    entries["checksum"] = _checksum(entries.view(np.uint64).reshape(-1, 3))
    raw = entries.tobytes()
    return [raw[place : place + size] for place in range(0, len(raw), size)]


def decode_states(values: Sequence[bytes | None]) -> RecentState:
    """The entries of a batch of listeners; what does not verify, or is of another version, is left out."""
    size = ENTRY.itemsize
    whole = [b"" if value is None else value[: len(value) // size * size] for value in values]
    raw = b"".join(whole)
    if not raw:  # what most listeners have
        return RecentState(start=np.zeros(len(whole) + 1, np.int64), **_NOTHING)
    entries, words = np.frombuffer(raw, ENTRY), np.frombuffer(raw, "<u8").reshape(-1, 3)
    good = (entries["checksum"] == _checksum(words)) & (entries["version"] == VERSION)
    owner = np.repeat(np.arange(len(whole)), [len(value) // size for value in whole])[good]
    kept = entries[good]
    said = ("seconds", "session", "did", "item_key", "at")
    order = np.lexsort((*(kept[name] for name in said), owner))  # they stand as they arrived
    kept = kept[order]
    return RecentState(
        start=np.searchsorted(owner, np.arange(len(whole) + 1)),
        item_key=np.ascontiguousarray(kept["item_key"]),  # a strided view would be another type to compiled loops
        at=kept["at"].astype(np.int64),
        session=np.ascontiguousarray(kept["session"]),
        seconds=kept["seconds"].astype(np.int64),
        did=np.ascontiguousarray(kept["did"]),
    )


def halves(both: RecentState) -> tuple[RecentState, RecentState]:
    """What was decoded of two strings of each listener, the first strings of all and then the second."""
    size = len(both.start) // 2
    middle = int(both.start[size])
    return _part(both, both.start[: size + 1], slice(middle)), _part(both, both.start[size:], slice(middle, None))


def _part(state: RecentState, start: NDArray[np.int64], part: slice) -> RecentState:
    columns = {name: getattr(state, name)[part] for name in _NOTHING}
    return RecentState(start=start - start[0], **columns)


def _checksum(words: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """The low bits of MurmurHash3's finalizer over an entry's three words but the checksum, `[entry]`."""
    mixed = np.zeros(len(words), np.uint64)
    for word in (words[:, 0], words[:, 1], words[:, 2] & np.uint64(0xFFFFFFFF)):
        mixed = mixed + np.uint64(0x9E3779B97F4A7C15) ^ word
        for factor in _MIX:
            mixed = (mixed ^ mixed >> np.uint64(33)) * factor
        mixed ^= mixed >> np.uint64(33)
    return mixed.astype(np.uint32)
