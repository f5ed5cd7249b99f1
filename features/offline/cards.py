"""Cards: the static fields of `mantel.home.v1.Item` (numbers 1 to 9), encoded once per item when a snapshot is built.

The bytes are what protobuf itself writes for those fields: a response appends the dynamic fields (from number 10 on)
and frames the whole as one item of a shelf. Fields that hold their default value are absent, as in any proto3 message.
"""

from collections.abc import Iterable
from typing import Final

CARD_FORMAT: Final = 1
"""Changes whenever a static field gets another number, type or meaning."""

KINDS: Final = {"track": 1, "album": 2, "artist": 3, "playlist": 4, "podcast": 5, "episode": 6, "audiobook": 7}
"""Kind to its number in `mantel.home.v1.ItemKind`."""

_ITEM_ID, _TITLE, _SUBTITLE, _IMAGE_URI = b"\x0a", b"\x1a", b"\x22", b"\x2a"  # number << 3 | 2: length-delimited
_KINDS: Final = [b"", *(b"\x10" + bytes([number]) for number in KINDS.values())]  # number << 3 | 0: varint
_EXPLICIT: Final = {False: b"", True: b"\x30\x01"}
_LENGTHS: Final = [bytes([length]) for length in range(128)]

Fields = tuple[str, int, str, str, str, bool]
"""item_id, kind's number, title, subtitle, image_uri, explicit."""


def encode_cards(items: Iterable[Fields]) -> list[bytes]:
    """One card per item, in order."""
    return [
        b"".join(
            (
                _text(_ITEM_ID, item_id),
                _KINDS[kind],
                _text(_TITLE, title),
                _text(_SUBTITLE, subtitle),
                _text(_IMAGE_URI, image_uri),
                _EXPLICIT[explicit],
            )
        )
        for item_id, kind, title, subtitle, image_uri, explicit in items
    ]


def item_id_of(card: bytes) -> str:
    """The item_id that a card begins with; it is at most 128 bytes, so its length may take two bytes."""
    start = 2 if card[1] < 0x80 else 3
    length = card[1] if start == 2 else (card[1] & 0x7F) | card[2] << 7
    return card[start : start + length].decode()


def _text(tag: bytes, text: str) -> bytes:
    if not text:
        return b""
    raw = text.encode()
    size = len(raw)
    return tag + (_LENGTHS[size] if size < 128 else _varint(size)) + raw


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
