"""Tracking tokens: which page, slot, item and arms an event comes from, so that nobody need look anything up.

A token is base64url of: version, key id, page id, when the page was served, shelf and place, item key, the codes of
the arms, zeros up to a multiple of three, and a tag of eight bytes. HMAC-SHA256 over what the page's tokens share and
the listener gives a key for the page; SipHash-2-4 with it over slot and item gives each tag. So a page costs one HMAC,
and no client can claim a slot, an item, an arm or a listener that the page did not have. 44 characters, 48 with an arm.
"""

import base64
import hmac
import re
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.events import Seen
from server.signing import SigningKey, SigningKeys

VERSION: Final = 1
_PAGE: Final = struct.Struct("<BB8sI")
_SLOT: Final = struct.Struct("<BBQ")
_TAG: Final = 8
_ARM: Final = 4
_FIXED: Final = _PAGE.size + _SLOT.size + _TAG
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]*")
_ALPHABET: Final = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8)

Bytes = NDArray[np.uint8]


class Slot(NamedTuple):
    """Where on its page an item stands, from 0."""

    shelf: int
    place: int


TOP: Final = Slot(0, 0)


class Stamp(NamedTuple):
    """What the tokens of one page share."""

    before: Bytes  # the bytes before the slot
    after: Bytes  # the bytes after the item key: arms and zeros
    low: np.uint64  # halves of the page's key
    high: np.uint64


def stamp(key: SigningKey, *, page: str, at: int, user_id: str, arms: Sequence[int]) -> Stamp:
    """What the tokens of a page share; `arms` are codes."""
    before = _PAGE.pack(VERSION, key.id, bytes.fromhex(page), at)
    after = struct.pack(f"<{len(arms)}I", *arms)
    after += bytes(-(_FIXED + len(after)) % 3)
    low, high = _page_key(key, before + after, user_id)
    return Stamp(np.frombuffer(before, np.uint8), np.frombuffer(after, np.uint8), np.uint64(low), np.uint64(high))


def token_length(of: Stamp) -> int:
    """How many characters the tokens of a page have."""
    return (_FIXED + len(of.after)) // 3 * 4


@compiled
def write_tokens(of: Stamp, keys: NDArray[np.uint64], lengths: NDArray[np.int64], first: Slot, out: Bytes) -> None:
    """Writes the tokens of items into the last columns of `out`, `[item, byte]`; shelves have so many items each."""
    begin, slot = len(of.before), len(of.before) + 2
    width = slot + 8 + len(of.after) + 8
    raw = np.zeros(width, np.uint8)
    raw[:begin] = of.before
    raw[slot + 8 : width - 8] = of.after
    item = 0
    for number in range(len(lengths)):
        shelf = first.shelf + number
        for place in range(first.place, first.place + lengths[number]):
            raw[begin], raw[begin + 1] = shelf, place
            tag = sip_tag(of.low, of.high, keys[item], shelf, place)
            for byte in range(8):
                raw[slot + byte] = (keys[item] >> np.uint64(8 * byte)) & np.uint64(255)
                raw[width - 8 + byte] = (tag >> np.uint64(8 * byte)) & np.uint64(255)
            column = out.shape[1] - width // 3 * 4
            for start in range(0, width, 3):
                three = np.int64(raw[start]) << 16 | np.int64(raw[start + 1]) << 8 | np.int64(raw[start + 2])
                out[item, column] = _ALPHABET[three >> 18]
                out[item, column + 1] = _ALPHABET[three >> 12 & 63]
                out[item, column + 2] = _ALPHABET[three >> 6 & 63]
                out[item, column + 3] = _ALPHABET[three & 63]
                column += 4
            item += 1


@compiled
def sip_tag(low: np.uint64, high: np.uint64, key: np.uint64, shelf: int, place: int) -> np.uint64:
    """SipHash-2-4 of ten bytes, an item key, a shelf and a place, as 64 bits (Aumasson and Bernstein, 2012)."""
    a = np.uint64(low) ^ np.uint64(0x736F6D6570736575)
    b = np.uint64(high) ^ np.uint64(0x646F72616E646F6D)
    c = np.uint64(low) ^ np.uint64(0x6C7967656E657261)
    d = np.uint64(high) ^ np.uint64(0x7465646279746573)
    last = np.uint64(10) << np.uint64(56) | np.uint64(place) << np.uint64(8) | np.uint64(shelf)
    for word, rounds in ((np.uint64(key), 2), (last, 2), (np.uint64(0), 4)):
        if rounds == 4:
            c ^= np.uint64(0xFF)
        d ^= word
        for _ in range(rounds):
            a += b
            b = (b << np.uint64(13) | b >> np.uint64(51)) ^ a
            a = a << np.uint64(32) | a >> np.uint64(32)
            c += d
            d = (d << np.uint64(16) | d >> np.uint64(48)) ^ c
            a += d
            d = (d << np.uint64(21) | d >> np.uint64(43)) ^ a
            c += b
            b = (b << np.uint64(17) | b >> np.uint64(47)) ^ c
            c = c << np.uint64(32) | c >> np.uint64(32)
        a ^= word
    return a ^ b ^ c ^ d


def read_token(text: str, user_id: str, keys: SigningKeys) -> Seen | None:
    """What a token of a listener says; None where it is none of this service, or of another listener."""
    raw = base64.urlsafe_b64decode(text) if len(text) % 4 == 0 and _TOKEN.fullmatch(text) else b""
    if len(raw) < _FIXED:
        return None
    version, key_id, page, at = _PAGE.unpack_from(raw)
    shelf, place, item_key = _SLOT.unpack_from(raw, _PAGE.size)
    after = raw[_PAGE.size + _SLOT.size : -_TAG]
    key = keys.of(key_id)
    if version != VERSION or key is None:
        return None
    low, high = _page_key(key, raw[: _PAGE.size] + after, user_id)
    tag = int(sip_tag(np.uint64(low), np.uint64(high), np.uint64(item_key), shelf, place))
    if not hmac.compare_digest(tag.to_bytes(_TAG, "little"), raw[-_TAG:]):
        return None
    arms = np.frombuffer(after, "<u4", len(after) // _ARM).tolist()
    return Seen(page=page.hex(), at=at, shelf=shelf, place=place, item_key=item_key, arms=tuple(arms))


def _page_key(key: SigningKey, shared: bytes, user_id: str) -> tuple[int, int]:
    low, high = struct.unpack("<QQ", hmac.digest(key.secret, b"item" + shared + b"|" + user_id.encode(), "sha256")[:16])
    return low, high
