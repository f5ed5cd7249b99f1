"""Listener records: their bytes in Redis, and a batch of them as columns.

A frame is little-endian: a header, then the float16 vector, then the recent items as three arrays (item keys, last
played days, plays) and the genre weights as two (genre indices, weights). The checksum is the CRC-32 of the frame with
its own four bytes left out. Nothing is pickled; a frame that does not verify spoils its own row only.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.preferences import Wishes, decode_wishes
from features.recent_state import RecentState, decode_states, halves
from features.snapshot import Snapshot

MAGIC: Final = b"ML"
VERSION: Final = 1
MAX_RECENT: Final = 512
EXPLICIT_ALLOWED: Final = 1

# magic, version, flags, dimension, recents, genres, segment, space, total plays, created day, market, length | checksum
_HEAD: Final = struct.Struct("<2sBBHHHHQIH2sI")
_CHECKSUM: Final = struct.Struct("<I")
_BODY: Final = _HEAD.size + _CHECKSUM.size
_RECENT_BYTES: Final = 8 + 2 + 2
_GENRE_BYTES: Final = 2 + 2


class Known(IntEnum):
    """What is known of a listener after reading."""

    STRANGER = 0  # no record: cold start
    RECORD = 1  # a record of the current space
    INVALID = 2  # a record that does not verify, or of another space
    LATE = 3  # the store did not answer in time
    DOWN = 4  # the store could not be reached
    FOLDED_IN = 5  # no record, but recent plays that gave a vector


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerRecord:
    """What is stored of one listener in one embedding space.

    `vector` is `[dimension]`; `recent_*` are `[recent]` with the latest first; `genre_*` are `[genre]`, weights sum to
    at most 1. Days count from 1970-01-01; day 0 is unknown.
    """

    vector: NDArray[np.float16]
    total_plays: int
    segment: int
    market: str
    allow_explicit: bool
    created_day: int
    recent_keys: NDArray[np.uint64]
    recent_days: NDArray[np.uint16]
    recent_plays: NDArray[np.uint16]
    genre_index: NDArray[np.uint16]
    genre_weight: NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """A batch of listeners as columns, one row per query.

    `recent_*` are concatenated over rows; row `b` owns `recent_start[b]:recent_start[b + 1]`.
    """

    known: NDArray[np.uint8]  # [B], values of Known
    vectors: NDArray[np.float32]  # [B, D], zero where not known
    total_plays: NDArray[np.int64]  # [B]
    segment: NDArray[np.int64]  # [B]
    market: tuple[str, ...]  # [B], "" = not said
    allow_explicit: NDArray[np.bool_]  # [B], as the listener said, else as the record says
    recent_start: NDArray[np.int64]  # [B + 1]
    recent_keys: NDArray[np.uint64]
    recent_days: NDArray[np.uint16]
    recent_plays: NDArray[np.uint16]
    genre_weights: NDArray[np.float32]  # [B, G]
    state: RecentState  # what they did of late
    impressions: RecentState  # what they saw of late
    wishes: Wishes  # what they hid and chose
    blind: NDArray[np.bool_]  # [B], nobody can say what they hid
    folded_in: NDArray[np.bool_]  # [B], whose vector comes from recent plays


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """What the store answered of a batch of listeners, `[listener]`: all of them that their pages depend on."""

    records: Sequence[bytes | None]
    states: Sequence[bytes | None]
    preferences: Sequence[bytes | None]
    impressions: Sequence[bytes | None]
    missing: Known  # what is known of who has no record

    @classmethod
    def unread(cls, size: int, missing: Known) -> "Frames":
        """So many listeners of whom nothing was read, and why."""
        none = [None] * size
        return cls(records=none, states=none, preferences=none, impressions=none, missing=missing)

    def take(self, places: Sequence[int]) -> "Frames":
        """Some of the listeners."""
        columns = (self.records, self.states, self.preferences, self.impressions)
        records, states, preferences, impressions = ([column[place] for place in places] for column in columns)
        return Frames(
            records=records, states=states, preferences=preferences, impressions=impressions, missing=self.missing
        )

    def decoded(self, snapshot: Snapshot) -> Listeners:
        """The listeners as columns, as they stand to a snapshot's embedding space."""
        return decode(
            self.records,
            states=self.states,
            preferences=self.preferences,
            impressions=self.impressions,
            space_id=snapshot.space_id,
            dimension=snapshot.manifest.dimension,
            genres=len(snapshot.manifest.genres),
            missing=self.missing,
        )


def encode(record: ListenerRecord, space_id: int) -> bytes:
    """Writes a record as a frame."""
    recents, genres = len(record.recent_keys), len(record.genre_index)
    body = b"".join(
        (
            record.vector.astype("<f2").tobytes(),
            record.recent_keys.astype("<u8").tobytes(),
            record.recent_days.astype("<u2").tobytes(),
            record.recent_plays.astype("<u2").tobytes(),
            record.genre_index.astype("<u2").tobytes(),
            record.genre_weight.astype("<f2").tobytes(),
        )
    )
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        EXPLICIT_ALLOWED if record.allow_explicit else 0,
        len(record.vector),
        recents,
        genres,
        record.segment,
        space_id,
        min(record.total_plays, 2**32 - 1),
        record.created_day,
        record.market.encode().ljust(2, b"\0"),
        _BODY + len(body),
    )
    return head + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head))) + body


def decode(  # noqa: PLR0913  # all that is read of a listener
    frames: Sequence[bytes | None],
    *,
    space_id: int,
    dimension: int,
    genres: int,
    missing: Known = Known.STRANGER,
    states: Sequence[bytes | None] = (),
    preferences: Sequence[bytes | None] = (),
    impressions: Sequence[bytes | None] = (),
) -> Listeners:
    """Reads a batch of frames into columns; `None` becomes a row of what `missing` says, a bad frame an INVALID one.

    `states`, `preferences` and `impressions` are the listeners' own, none at all where they were not read.
    """
    size = len(frames)
    known = np.full(size, missing, np.uint8)
    vectors = np.zeros((size, dimension), np.float32)
    total_plays = np.zeros(size, np.int64)
    segment = np.full(size, -1, np.int64)
    allow_explicit = np.ones(size, np.bool_)
    recents = np.zeros(size + 1, np.int64)
    weights = np.zeros((size, genres), np.float32)
    market = [""] * size
    parts: list[tuple[bytes, int, int]] = []
    for row, frame in enumerate(frames):
        if frame is None:
            continue
        head = _verify(frame, space_id, dimension)
        if head is None:
            known[row] = Known.INVALID
            continue
        _, _, flags, _, n_recent, n_genre, segment[row], _, total_plays[row], _, code, _ = head
        known[row] = Known.RECORD
        allow_explicit[row] = bool(flags & EXPLICIT_ALLOWED)
        market[row] = code.rstrip(b"\0").decode("ascii", "replace")
        vectors[row] = np.frombuffer(frame, "<f2", dimension, _BODY)
        recents[row + 1] = n_recent
        start = _BODY + 2 * dimension
        parts.append((frame, start, n_recent))
        _add_genres(weights[row], frame, start + _RECENT_BYTES * n_recent, n_genre)
    broken = ~np.isfinite(vectors).all(axis=1)  # written so: its checksum is right
    known[broken], vectors[broken] = Known.INVALID, 0
    wishes = decode_wishes(preferences or [None] * size)
    asked = (known == Known.RECORD) | (known == Known.STRANGER)
    allow_explicit &= asked & ~wishes.unreadable  # closed: nobody can say
    keys, days, plays = _recents(parts)
    state, seen = halves(decode_states([*(states or [None] * size), *(impressions or [None] * size)]))  # at one go
    return Listeners(
        known=known,
        vectors=vectors,
        total_plays=total_plays,
        segment=segment,
        market=tuple(market),
        allow_explicit=np.where(wishes.said_explicit, wishes.allow_explicit, allow_explicit),
        recent_start=np.cumsum(recents),
        recent_keys=keys,
        recent_days=days,
        recent_plays=plays,
        genre_weights=weights,
        state=state,
        impressions=seen,
        wishes=wishes,
        blind=wishes.unreadable | (((known == Known.LATE) | (known == Known.DOWN)) & ~wishes.read),
        folded_in=np.zeros(size, np.bool_),
    )


def created_day(frame: bytes) -> int:
    """The day on which the account of a record began, since 1970; 0 where it is unknown."""
    return int(_HEAD.unpack_from(frame)[9])


def _verify(frame: bytes, space_id: int, dimension: int) -> tuple[Any, ...] | None:
    if len(frame) < _BODY:
        return None
    head = _HEAD.unpack_from(frame)
    magic, version, _, dim, n_recent, n_genre, _, space, _, _, _, length = head
    if (magic, version, dim, space, length) != (MAGIC, VERSION, dimension, space_id, len(frame)):
        return None
    if length != _BODY + 2 * dim + _RECENT_BYTES * n_recent + _GENRE_BYTES * n_genre:
        return None
    (checksum,) = _CHECKSUM.unpack_from(frame, _HEAD.size)
    if checksum != zlib.crc32(memoryview(frame)[_BODY:], zlib.crc32(memoryview(frame)[: _HEAD.size])):
        return None
    return head


def _add_genres(weights: NDArray[np.float32], frame: bytes, start: int, count: int) -> None:
    index = np.frombuffer(frame, "<u2", count, start)
    value = np.frombuffer(frame, "<f2", count, start + 2 * count)
    inside = index < len(weights)
    weights[index[inside]] = value[inside]


def _recents(
    parts: list[tuple[bytes, int, int]],
) -> tuple[NDArray[np.uint64], NDArray[np.uint16], NDArray[np.uint16]]:
    keys = b"".join([frame[start : start + 8 * n] for frame, start, n in parts])
    days = b"".join([frame[start + 8 * n : start + 10 * n] for frame, start, n in parts])
    plays = b"".join([frame[start + 10 * n : start + 12 * n] for frame, start, n in parts])
    return np.frombuffer(keys, "<u8"), np.frombuffer(days, "<u2"), np.frombuffer(plays, "<u2")
