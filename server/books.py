"""A book in force: a new one is read, checked, and taken by one reference; a bad one changes nothing.

What all kinds of books share: a worker follows the pointer, the control plane moves it, and either falls back to the
last good book on disk.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from features.archive import Archive, keep_book
from features.books import BookPointer, BookReader, BookShelf, Bound, keep, kept, read_book_pointer
from features.errors import BookRefused, NotFound, Unavailable, WrongState
from features.state import State
from server.metrics import Metrics

_SHOWN: Final = 12  # hex digits of a digest, in logs


class Stored(Protocol):
    """A book of any kind."""

    @property
    def digest(self) -> str:
        """Its name."""

    @property
    def raw(self) -> bytes:
        """Its canonical JSON."""

    @property
    def blobs(self) -> Mapping[str, bytes]:
        """What lies beside that, by digest."""


BookT = TypeVar("BookT", bound=Stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[BookT]):
    """How books of one kind are read."""

    name: str
    max_json: int  # bytes
    max_blob: int  # bytes, of each
    open: Callable[[bytes, str], tuple[Collection[str], Callable[[Mapping[str, bytes]], BookT]]]
    """JSON and digest -> the blobs that it names, and what makes the book of them; either raises BookRefused."""

    def read(self, raw: bytes, digest: str, blob: Callable[[str], bytes]) -> BookT:
        """A book, all of whose blobs are at hand.

        Raises:
            BookRefused: it is altered, or breaks a rule.
        """
        named, whole = self.open(raw, digest)
        return whole({name: blob(name) for name in named})

    def kept(self, state: State) -> BookT | None:
        """The last good book on disk; None where there is none.

        Raises:
            BookRefused: it cannot be read.
        """
        bound = kept(state, self.name)
        return None if bound is None else self.read(bound.raw, bound.digest, lambda name: bound.blobs.get(name, b""))


class Follower(ABC, Generic[BookT]):
    """Holds a book and follows its pointer. A refusal keeps the old one, is logged once, and counted."""

    def __init__(
        self,
        kind: Kind[BookT],
        state: State,
        reader: BookReader,
        metrics: Metrics,
        *,
        max_age_s: float,
        archive: Archive | None = None,
    ) -> None:
        """Holds nothing yet; `refresh` reads, and archives each book before it is in force."""
        self._kind = kind
        self._state = state
        self._reader = reader
        self._metrics = metrics
        self._max_age_s = max_age_s
        self._archive = archive
        self._read_at = time.monotonic()
        self._book: BookT | None = None
        self._fell_back = False
        self._refused = ("", "")  # the digest that the pointer names, and why it is not taken
        self._retried = False  # what is missing may yet come
        self._log = logging.getLogger(f"mantel.{kind.name}")

    @property
    def refusal(self) -> str:
        """Why the book that the pointer names is not in force; "" where it is."""
        return self._refused[1]

    @property
    def version(self) -> str:
        """The digest of the book in force; "" where there is none."""
        return "" if self._book is None else self._book.digest

    @property
    def stale(self) -> bool:
        """Whether the pointer could not be read for too long."""
        return time.monotonic() - self._read_at >= self._max_age_s

    async def refresh(self) -> None:
        """Follows the pointer; without it, before the first book, takes the one that was last in force here."""
        pointer, digest = None, ""
        try:
            pointer = await self._reader.look()
            digest = "" if pointer is None else pointer.digest
            if pointer is not None or self._book is None:  # a store that lost its data cannot say what is in force
                self._read_at = time.monotonic()
            if pointer is not None:
                await self._follow(pointer)
        except Unavailable:
            pass
        except Exception as error:  # noqa: BLE001  # whatever it is: closed to the new
            self._read_at = time.monotonic()
            self._refuse(digest, error)
        if self._book is None and not self._fell_back:
            self._fell_back = True
            await self._fall_back()

    async def close(self) -> None:
        """Closes the connection."""
        await self._reader.close()

    @abstractmethod
    async def _take(self, book: BookT) -> str:
        """Puts a book in force, by one reference; answers what is worth telling of it."""

    def _moved(self, before: BookT, after: BookT) -> Iterable[tuple[str, str]]:
        """What a book would change that no book may."""
        del before, after
        return ()

    async def _follow(self, pointer: BookPointer) -> None:
        if self._book is not None and pointer.digest == self._book.digest:
            self._refused = ("", "")
            return
        if pointer.digest == self._refused[0] and not self._retried:
            return
        raw = await self._reader.read(pointer.digest, self._kind.max_json)
        named, whole = await asyncio.to_thread(self._kind.open, raw, pointer.digest)
        blobs = {digest: await self._reader.read(digest, self._kind.max_blob) for digest in named}
        book = await asyncio.to_thread(whole, blobs)
        if self._book is not None and (wrong := list(await asyncio.to_thread(self._moved, self._book, book))):
            raise BookRefused("; ".join(f"{path}: {what}" for path, what in wrong))
        await self._put_in_force(book, new=True)
        self._refused = ("", "")

    async def _put_in_force(self, book: BookT, *, new: bool = False) -> None:
        if self._archive is not None:
            await asyncio.to_thread(keep_book, self._archive, self._kind.name, _bound(book))
        told = await self._take(book)
        if new:
            await self._keep(book)  # before it is told to be in force
        self._book = book
        self._metrics.book_taken(self._kind.name)
        self._log.info("book %s in force, %s", book.digest[:_SHOWN], told)

    async def _keep(self, book: BookT) -> None:
        try:
            await asyncio.to_thread(keep, self._state, self._kind.name, _bound(book))
        except OSError:
            self._log.exception("the last good book on disk stays as it was")

    async def _fall_back(self) -> None:
        """Takes the book on disk, where there is one."""
        try:
            book = await asyncio.to_thread(self._kind.kept, self._state)
            if book is not None:
                await self._put_in_force(book)
        except BookRefused:
            self._metrics.book_refused(self._kind.name)
            self._log.exception("the last good book on disk is refused")

    def _refuse(self, digest: str, error: Exception) -> None:
        """Remembers a refusal; the same one again goes untold. What is missing is looked for again."""
        refused = digest, str(error) or repr(error)
        if refused == self._refused:
            return
        self._refused, self._retried = refused, isinstance(error, NotFound)
        self._metrics.book_refused(self._kind.name)
        self._log.error("book %s refused: %s", digest[:_SHOWN] or "(no digest)", refused[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce(Generic[BookT]):
    """What workers serve."""

    book: BookT
    pointer: BookPointer | None  # none: no book was ever applied
    stored: bytes  # the pointer as the store has it
    whole: bool = True  # the store has the book too, and it is good

    @property
    def version(self) -> str:
        """The digest of the book; "" before the first."""
        return "" if self.pointer is None else self.pointer.digest


def in_force(kind: Kind[BookT], shelf: BookShelf, state: State, empty: BookT) -> InForce[BookT]:
    """The book that the pointer names; where that is no good, the last good one, which workers serve.

    Raises:
        Unavailable: the store cannot be reached.
        WrongState: there is none of them.
    """
    stored = shelf.pointer()
    if not stored:
        return InForce(book=empty, pointer=None, stored=stored)
    pointer = None
    try:
        pointer = read_book_pointer(stored)
        book = kind.read(shelf.read(pointer.digest), pointer.digest, shelf.read)
        return InForce(book=book, pointer=pointer, stored=stored)
    except BookRefused as error:
        last = kind.kept(state)
        if last is None:
            raise WrongState(f"the book in the store is refused, and no good one was kept: {error}") from error
        named = BookPointer(digest=last.digest, sequence=0 if pointer is None else pointer.sequence, applied_at=0)
        return InForce(book=last, pointer=named, stored=stored, whole=False)


def put(book: BookT, now: InForce[BookT], shelf: BookShelf, *, by: str) -> BookPointer | None:
    """Makes a book the one in force, after the one that is; the same one again changes nothing.

    Raises:
        Unavailable: the store cannot be reached.
        StaleEtag: another book was applied meanwhile.
    """
    if book.digest == now.book.digest and now.whole:
        return now.pointer
    sequence = 1 if now.pointer is None else now.pointer.sequence + 1
    pointer = BookPointer(digest=book.digest, sequence=sequence, applied_at=time.time(), applied_by=by)
    left = {now.book.digest, *now.book.blobs} - {book.digest, *book.blobs}
    shelf.put(_bound(book), pointer, after=now.stored, left=left)
    return pointer


def _bound(book: Stored) -> Bound:
    return Bound(digest=book.digest, raw=book.raw, blobs=book.blobs)
