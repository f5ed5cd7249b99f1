"""Books in Redis: immutable versions of live configuration, by digest, and a pointer to the one in force.

A book is JSON with blobs beside it. Both are named by their SHA-256 and never change; the pointer moves, in the same
transaction in which a new book is written. What a book says, this file does not know.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import BookRefused, NotFound, StaleEtag, Unavailable
from features.keys import Keys
from features.state import State, known_fields, write_whole

LEFT_BEHIND_S: Final = 86_400  # how long a book that is no longer in force stays: workers follow within seconds
MAX_POINTER: Final = 4096  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BookPointer:
    """Which book is in force."""

    digest: str
    sequence: int
    applied_at: float  # unix seconds
    applied_by: str = ""

    def to_bytes(self) -> bytes:
        """The pointer as JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()


def read_book_pointer(raw: bytes) -> BookPointer:
    """Reads what `to_bytes` wrote.

    Raises:
        BookRefused: it is not that.
    """
    try:
        pointer = BookPointer(**known_fields(BookPointer, json.loads(raw)))
        if [type(pointer.digest), type(pointer.sequence)] == [str, int]:
            return pointer
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BookRefused("the pointer to the book cannot be read") from error
    raise BookRefused("the pointer to the book cannot be read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A book as it is stored: its JSON, and its blobs by digest."""

    digest: str
    raw: bytes
    blobs: Mapping[str, bytes]


class BookReader:
    """A worker's door to the books; it waits no longer than it was told, and not on the connections for listeners."""

    def __init__(self, url: str, keys: Keys, kind: str, *, timeout_s: float) -> None:
        """Connects on first use."""
        self._keys = keys
        self._kind = kind
        self._client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    async def look(self) -> BookPointer | None:
        """The pointer; None where no book was ever applied.

        Raises:
            Unavailable: the store cannot be reached.
            BookRefused: the pointer cannot be read.
        """
        raw = await self._head(self._keys.book_pointer(self._kind), MAX_POINTER)
        return read_book_pointer(raw) if raw else None

    async def read(self, digest: str, most: int) -> bytes:
        """A book's JSON or a blob; of one that is larger than `most` bytes one byte more, and no further.

        Raises:
            Unavailable: the store cannot be reached.
            NotFound: it is not there.
        """
        raw = await self._head(self._keys.book(self._kind, digest), most)
        if not raw:
            raise NotFound(f"{digest[:12]} of the book is not in the store")
        return raw

    async def _head(self, key: str, most: int) -> bytes:
        try:
            raw: Any = await self._client.getrange(key, 0, most)
        except redis.ResponseError as error:  # no string
            raise BookRefused("the store holds something else in its place") from error
        except (redis.RedisError, OSError) as error:
            raise Unavailable("the store cannot be reached") from error
        return bytes(raw)

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.aclose()


class BookShelf:
    """The control plane's door to the books of one kind."""

    def __init__(self, client: redis.Redis, keys: Keys, kind: str) -> None:
        """Works on a client that answers bytes."""
        self._client = client
        self._keys = keys
        self._kind = kind

    def pointer(self) -> bytes:
        """The pointer as it is stored; empty where no book was ever applied.

        Raises:
            Unavailable: the store cannot be reached.
        """
        return self._get(self._keys.book_pointer(self._kind))

    def read(self, digest: str) -> bytes:
        """A book's JSON or a blob; empty where it is not there.

        Raises:
            Unavailable: the store cannot be reached.
        """
        return self._get(self._keys.book(self._kind, digest))

    def put(self, book: Bound, pointer: BookPointer, *, after: bytes, left: Iterable[str]) -> None:
        """Writes a book and moves the pointer, in one step; what of the one before is `left` is deleted in a day.

        Raises:
            Unavailable: the store cannot be reached.
            StaleEtag: the pointer is no longer that which the book was to come after.
        """

        def move(pipe: redis.client.Pipeline) -> None:
            raw: Any = pipe.get(self._keys.book_pointer(self._kind))
            if (raw or b"") != after:
                raise StaleEtag("another book was applied meanwhile; look at it first")
            pipe.multi()
            for digest, content in {book.digest: book.raw, **book.blobs}.items():
                pipe.set(self._keys.book(self._kind, digest), content)
            for digest in left:
                pipe.expire(self._keys.book(self._kind, digest), LEFT_BEHIND_S)
            pipe.set(self._keys.book_pointer(self._kind), pointer.to_bytes())

        try:
            self._client.transaction(move, self._keys.book_pointer(self._kind))
        except redis.RedisError as error:
            raise Unavailable("the store cannot be reached") from error

    def _get(self, key: str) -> bytes:
        try:
            raw: Any = self._client.get(key)
        except redis.RedisError as error:
            raise Unavailable("the store cannot be reached") from error
        return bytes(raw or b"")


def keep(state: State, kind: str, book: Bound) -> None:
    """Writes the last good book to disk, whole."""
    write_whole(state.book(kind), to_file(book), durable=True)


def kept(state: State, kind: str) -> Bound | None:
    """The last good book on disk; None where there is none.

    Raises:
        BookRefused: the file cannot be read.
    """
    try:
        return from_file(state.book(kind).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BookRefused(f"the last good book on disk cannot be read: {error!r}") from error


def to_file(book: Bound) -> bytes:
    """A book as one file, with its blobs."""
    blobs = {digest: base64.b64encode(blob).decode() for digest, blob in book.blobs.items()}
    return json.dumps({"digest": book.digest, "json": book.raw.decode(), "blobs": blobs}).encode()


def from_file(content: bytes) -> Bound:
    """Reads what `to_file` wrote.

    Raises:
        ValueError: it was not.
    """
    try:
        said = json.loads(content)
        blobs = {digest: base64.b64decode(blob) for digest, blob in said["blobs"].items()}
        return Bound(digest=said["digest"], raw=said["json"].encode(), blobs=blobs)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a book: {error!r}") from error
