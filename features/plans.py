"""Plans of pages: what stands below the part of a page that was answered, as its later parts will show it.

A frame is little-endian: a header; the lengths of shelves, item keys, scores, places of extras and arms as arrays; then
the lengths of heads and extras, and these with the envelope as bytes. The checksum is the CRC-32 of the frame with its
own four bytes left out. Heads, extras and envelope are parts of a response as the page's words were chosen: nobody here
looks into them. 96 items on 8 shelves take 2.2 kB.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.keys import hash64

MAGIC: Final = b"MG"
VERSION: Final = 1
_EXPLICIT: Final = 1

# magic, version, flags, owner, at, first, market, shelves, items, extras, arms, length | checksum
_HEAD: Final = struct.Struct("<2sBBQIH2sHHHHI")
_CHECKSUM: Final = struct.Struct("<I")
_BODY: Final = _HEAD.size + _CHECKSUM.size
_ITEM: Final = 8 + 4 + 2  # bytes of an item in the arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The rest of one page, or of one shelf."""

    owner: int  # of `owner_of`
    at: int  # when the page was served, unix seconds
    first: int  # how many shelves, or items of the one shelf, stood before it
    market: str  # resolved, as the next two
    allow_explicit: bool
    arms: tuple[int, ...]  # codes
    envelope: bytes  # what every part of the page tells beside its shelves
    heads: tuple[bytes, ...]  # [shelf], what a shelf tells beside its items
    lengths: NDArray[np.int64]  # [shelf], how many items
    keys: NDArray[np.uint64]  # [item], item keys
    scores: NDArray[np.float32]  # [item]
    extra: NDArray[np.int64]  # [item], a place in `extras`
    extras: tuple[bytes, ...]  # what items tell beside card and score; the first is empty


def owner_of(user_id: str, surface: str, shelf_id: str) -> int:
    """Whose page it is: of a listener, a surface, and one shelf of it ("": all)."""
    return hash64(f"{user_id}|{surface}|{shelf_id}")


def encode_plan(plan: Plan) -> bytes:
    """Writes a plan as a frame."""
    body = b"".join(
        (
            plan.lengths.astype("<u2").tobytes(),
            plan.keys.astype("<u8").tobytes(),
            plan.scores.astype("<f4").tobytes(),
            plan.extra.astype("<u2").tobytes(),
            np.array(plan.arms, "<u4").tobytes(),
            np.array([len(one) for one in (*plan.heads, *plan.extras)], "<u4").tobytes(),
            *plan.heads,
            *plan.extras,
            plan.envelope,
        )
    )
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        _EXPLICIT if plan.allow_explicit else 0,
        plan.owner,
        plan.at,
        plan.first,
        plan.market.encode().ljust(2, b"\0"),
        len(plan.heads),
        len(plan.keys),
        len(plan.extras),
        len(plan.arms),
        _BODY + len(body),
    )
    return head + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head))) + body


def decode_plan(frame: bytes) -> Plan | None:
    """Reads what `encode_plan` wrote; None where it does not verify."""
    head = _verify(frame)
    if head is None:
        return None
    _, _, flags, owner, at, first, market, shelves, items, extras, arms, _ = head
    arrays = _arrays(frame, (("<u2", shelves), ("<u8", items), ("<f4", items), ("<u2", items), ("<u4", arms)))
    lengths, keys, scores, extra, codes = arrays
    texts = _BODY + 2 * shelves + _ITEM * items + 4 * arms + 4 * (shelves + extras)
    sizes = np.frombuffer(frame, "<u4", shelves + extras, texts - 4 * (shelves + extras))
    ends = np.concatenate(([texts], texts + np.cumsum(sizes, dtype=np.int64))).tolist()
    said = tuple(frame[start:end] for start, end in pairwise(ends))
    return Plan(
        owner=owner,
        at=at,
        first=first,
        market=market.rstrip(b"\0").decode("ascii", "replace"),
        allow_explicit=bool(flags & _EXPLICIT),
        arms=tuple(codes.tolist()),
        envelope=frame[ends[-1] :],
        heads=said[:shelves],
        lengths=lengths.astype(np.int64),
        keys=keys,
        scores=scores,
        extra=extra.astype(np.int64),
        extras=said[shelves:],
    )


def _arrays(frame: bytes, layout: Sequence[tuple[str, int]]) -> Iterator[NDArray[Any]]:
    place = _BODY
    for kind, count in layout:
        yield np.frombuffer(frame, kind, count, place)
        place += np.dtype(kind).itemsize * count


def _verify(frame: bytes) -> tuple[Any, ...] | None:
    if len(frame) < _BODY:
        return None
    head = _HEAD.unpack_from(frame)
    if (head[0], head[1], head[-1]) != (MAGIC, VERSION, len(frame)):
        return None
    view = memoryview(frame)
    (checksum,) = _CHECKSUM.unpack_from(frame, _HEAD.size)
    return head if checksum == zlib.crc32(view[_BODY:], zlib.crc32(view[: _HEAD.size])) else None
