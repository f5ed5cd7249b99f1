"""Page tokens: which page, how far the client is, signed for one listener, surface and shelf.

A token is base64url of 27 bytes: version, key id, kind, page id, when the page was served, offset, and ten bytes of
HMAC-SHA256 over these and whom it is for.
"""

import base64
import hmac
import re
import struct
from dataclasses import dataclass
from typing import Final

from server.signing import SigningKey, SigningKeys

VERSION: Final = 1
_BODY: Final = struct.Struct("<BBBQIH")
_MAC: Final = 10
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{36}")  # what base64 would pass over or read twice is no token


@dataclass(frozen=True, slots=True, kw_only=True)
class PageToken:
    """How far a client has turned a page."""

    page: str  # the page's id, 16 hex digits
    at: int  # when it was served, unix seconds
    offset: int  # how many of its shelves, or of its shelf's items, stood before


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Whom a token is for."""

    user_id: str
    surface: str
    shelf_id: str = ""  # "": of a whole page


def write_page_token(token: PageToken, reader: Reader, key: SigningKey) -> str:
    """The token as clients see it."""
    body = _BODY.pack(VERSION, key.id, bool(reader.shelf_id), int(token.page, 16), token.at, token.offset)
    return base64.urlsafe_b64encode(body + _mac(body, reader, key)).decode()


def read_page_token(text: str, reader: Reader, keys: SigningKeys) -> PageToken | None:
    """Reads what `write_page_token` wrote; None where it was not, or for another reader, or with too old a key."""
    raw = base64.urlsafe_b64decode(text) if _TOKEN.fullmatch(text) else b""
    if not raw:
        return None
    body, mac = raw[: _BODY.size], raw[_BODY.size :]
    version, key_id, _, page, at, offset = _BODY.unpack(body)
    key = keys.of(key_id)
    if version != VERSION or key is None or not hmac.compare_digest(mac, _mac(body, reader, key)):
        return None
    return PageToken(page=f"{page:016x}", at=at, offset=offset)


def _mac(body: bytes, reader: Reader, key: SigningKey) -> bytes:
    said = b"page" + body + f"{reader.user_id}|{reader.surface}|{reader.shelf_id}".encode()  # no id holds a bar
    return hmac.digest(key.secret, said, "sha256")[:_MAC]
