"""Listener preferences: their bytes in Redis, and a batch of them as columns.

A frame is little-endian: a header; hidden items and hidden artists as two ascending arrays of keys, which is all that
serving reads; then the length of each id in one byte, and the ids as UTF-8, in the order of their keys. An artist that
an event hid has the id of the item that it named: which these are follows, as places among the artists, and then what
was shown again of late. The checksum is the CRC-32 of the frame with its own four bytes left out. Who hid what must
never be guessed: a frame that does not verify says nothing, not that nothing is hidden.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.keys import hash64

MAGIC: Final = b"MP"
VERSION: Final = 1
MAX_HIDDEN: Final = 1000  # items, and as many artists
_SAID_EXPLICIT: Final = 1
_ALLOWED_EXPLICIT: Final = 2
_PROMOTIONS_OFF: Final = 4

# magic, version, flags, items, artists, discovery, length | checksum
_HEAD: Final = struct.Struct("<2sBBHHfI")
_CHECKSUM: Final = struct.Struct("<I")
_MORE: Final = struct.Struct("<HHH")  # artists hidden through an item, items shown again, artists shown again
_MARK: Final = np.dtype([("key", "<u8"), ("at_ms", "<u8")])
_BODY: Final = _HEAD.size + _CHECKSUM.size
_NO_KEYS: Final = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """What one listener wishes; ids, and pairs that begin with a key, stand in the order of keys, each once."""

    hidden_items: tuple[str, ...] = ()
    hidden_artists: tuple[str, ...] = ()
    hidden_through: tuple[tuple[int, str], ...] = ()  # more hidden artists: key, and the item by which they were
    shown_items: tuple[tuple[int, int], ...] = ()  # hidden no more of late: key, and when in unix milliseconds
    shown_artists: tuple[tuple[int, int], ...] = ()
    allow_explicit: bool | None = None  # None: never said
    promotions_off: bool = False
    discovery: float | None = None  # 0 all familiar … 1 all new, in float32; None: never said


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The preferences of a batch of listeners as columns; row `b` owns `item_start[b]:item_start[b + 1]`."""

    unreadable: NDArray[np.bool_]  # [B], a frame is there that does not verify
    read: NDArray[np.bool_]  # [B], a frame is there that does
    item_start: NDArray[np.int64]  # [B + 1]
    hidden_items: NDArray[np.uint64]  # item keys, ascending in each row
    artist_start: NDArray[np.int64]  # [B + 1]
    hidden_artists: NDArray[np.uint64]  # artist keys, ascending in each row
    said_explicit: NDArray[np.bool_]  # [B]
    allow_explicit: NDArray[np.bool_]  # [B], where it was said
    promotions_off: NDArray[np.bool_]  # [B]
    discovery: NDArray[np.float64]  # [B], nan: never said


def encode_preferences(preferences: Preferences) -> bytes:
    """Writes preferences as a frame."""
    through = dict(preferences.hidden_through)
    items, artists = by_key(preferences.hidden_items), by_key(preferences.hidden_artists) | through
    artists = dict(sorted(artists.items()))
    texts = [name.encode() for name in (*items.values(), *artists.values())]
    body = b"".join(
        (
            np.fromiter(items, "<u8", len(items)).tobytes(),
            np.fromiter(artists, "<u8", len(artists)).tobytes(),
            bytes(map(len, texts)),
            *texts,
            _more(preferences, [place for place, key in enumerate(artists) if key in through]),
        )
    )
    said = 0 if preferences.allow_explicit is None else _SAID_EXPLICIT
    said |= _ALLOWED_EXPLICIT if preferences.allow_explicit else 0
    said |= _PROMOTIONS_OFF if preferences.promotions_off else 0
    dial = math.nan if preferences.discovery is None else preferences.discovery
    head = _HEAD.pack(MAGIC, VERSION, said, len(items), len(artists), dial, _BODY + len(body))
    return head + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head))) + body


def decode_preferences(frame: bytes) -> Preferences | None:
    """Reads what `encode_preferences` wrote, ids included; None where it does not verify."""
    head = _verify(frame)
    if head is None:
        return None
    _, _, flags, items, artists, dial, _ = head
    place = _BODY + 9 * (items + artists)
    names = []
    for length in frame[place - items - artists : place]:
        names.append(frame[place : place + length].decode("utf-8", "replace"))
        place += length
    through, shown_items, shown_artists = _read_more(frame[place:])
    keys = np.frombuffer(frame, "<u8", artists, _BODY + 8 * items).tolist()
    return Preferences(
        hidden_items=tuple(names[:items]),
        hidden_artists=tuple(name for place, name in enumerate(names[items:]) if place not in through),
        hidden_through=tuple((keys[place], names[items + place]) for place in sorted(through)),
        shown_items=shown_items,
        shown_artists=shown_artists,
        allow_explicit=bool(flags & _ALLOWED_EXPLICIT) if flags & _SAID_EXPLICIT else None,
        promotions_off=bool(flags & _PROMOTIONS_OFF),
        discovery=None if math.isnan(dial) else dial,
    )


def _more(preferences: Preferences, through: Sequence[int]) -> bytes:
    """What stands behind the ids; nothing where there is nothing to say."""
    shown = preferences.shown_items, preferences.shown_artists
    if not through and not any(shown):
        return b""
    marks = np.array([*shown[0], *shown[1]], _MARK).tobytes()
    return _MORE.pack(len(through), *map(len, shown)) + np.array(through, "<u2").tobytes() + marks


def _read_more(rest: bytes) -> tuple[set[int], tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    if not rest:
        return set(), (), ()
    through, items, artists = _MORE.unpack_from(rest)
    places = np.frombuffer(rest, "<u2", through, _MORE.size)
    marks = tuple(np.frombuffer(rest, _MARK, items + artists, _MORE.size + 2 * through).tolist())
    return set(places.tolist()), marks[:items], marks[items:]


def decode_wishes(frames: Sequence[bytes | None]) -> Wishes:
    """Reads what serving needs of a batch of frames; None is a listener who never said anything."""
    return _silent(len(frames)) if all(frame is None for frame in frames) else _read(frames)


@lru_cache(maxsize=64)
def _silent(size: int) -> Wishes:
    """The columns of so many who never said anything, who are the most: making them anew costs 30 us a batch."""
    return _read([None] * size)


def _read(frames: Sequence[bytes | None]) -> Wishes:
    size = len(frames)
    items, artists = np.zeros(size + 1, np.int64), np.zeros(size + 1, np.int64)
    flags, dial = np.zeros(size, np.uint8), np.full(size, np.nan)
    unreadable, read = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    item_parts, artist_parts = [_NO_KEYS], [_NO_KEYS]
    for row, frame in enumerate(frames):
        if frame is None:
            continue
        head = _verify(frame)
        if head is None:
            unreadable[row] = True
            continue
        read[row] = True
        _, _, flags[row], count, others, dial[row], _ = head
        items[row + 1], artists[row + 1] = count, others
        item_parts.append(np.frombuffer(frame, "<u8", count, _BODY))
        artist_parts.append(np.frombuffer(frame, "<u8", others, _BODY + 8 * count))
    return Wishes(
        unreadable=unreadable,
        read=read,
        item_start=np.cumsum(items),
        hidden_items=np.concatenate(item_parts),
        artist_start=np.cumsum(artists),
        hidden_artists=np.concatenate(artist_parts),
        said_explicit=(flags & _SAID_EXPLICIT) > 0,
        allow_explicit=(flags & _ALLOWED_EXPLICIT) > 0,
        promotions_off=(flags & _PROMOTIONS_OFF) > 0,
        discovery=dial,
    )


def by_key(ids: Sequence[str]) -> dict[int, str]:
    """Ids by their keys, ascending, each once."""
    return dict(sorted((hash64(one), one) for one in ids))


def _verify(frame: bytes) -> tuple[Any, ...] | None:
    if len(frame) < _BODY:
        return None
    head = _HEAD.unpack_from(frame)
    magic, version, _, items, artists, dial, length = head
    if (magic, version, length) != (MAGIC, VERSION, len(frame)) or length < _BODY + 9 * (items + artists):
        return None
    (checksum,) = _CHECKSUM.unpack_from(frame, _HEAD.size)
    if checksum != zlib.crc32(memoryview(frame)[_BODY:], zlib.crc32(memoryview(frame)[: _HEAD.size])):
        return None
    return head if math.isnan(dial) or 0 <= dial <= 1 else None
