"""Frames: how files that are only ever appended to tell whole entries from a torn tail.

A frame is a head (magic, kind, how many pages it tells of, the body's length, the CRC-32 of all of that and the body)
and its body. Whoever dies while writing leaves a tail that does not verify: a reader stops before it.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

MAGIC: Final = b"MSL1"
MOST_BYTES: Final = 1 << 26  # of a body: a length beyond that was never written
_HEAD: Final = struct.Struct("<4sIII")  # magic, kind, pages, length | checksum
_CHECKSUM: Final = struct.Struct("<I")
_BODY: Final = _HEAD.size + _CHECKSUM.size

PAGES: Final = 1
SAMPLE: Final = 2


class Frame(NamedTuple):
    """One entry."""

    kind: int
    pages: int
    body: bytes


def framed(frame: Frame) -> bytes:
    """Writes a frame."""
    head = _HEAD.pack(MAGIC, frame.kind, frame.pages, len(frame.body))
    return b"".join((head, _CHECKSUM.pack(zlib.crc32(frame.body, zlib.crc32(head))), frame.body))


def frames_of(raw: bytes) -> Iterator[Frame]:
    """The whole frames of a file, in order, up to its end or to the first that does not verify."""
    place = 0
    while len(raw) - place >= _BODY:
        magic, kind, pages, length = _HEAD.unpack_from(raw, place)
        start = place + _BODY
        if magic != MAGIC or length > min(MOST_BYTES, len(raw) - start):
            return
        body = raw[start : start + length]
        (checksum,) = _CHECKSUM.unpack_from(raw, place + _HEAD.size)
        if checksum != zlib.crc32(body, zlib.crc32(raw[place : place + _HEAD.size])):
            return
        yield Frame(kind, pages, body)
        place = start + length


def pages_in(raw: bytes) -> int:
    """How many pages the whole frames of a file tell of."""
    return sum(frame.pages for frame in frames_of(raw))
