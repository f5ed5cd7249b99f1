"""The experiment book in force: a new one is read, checked, and taken by one reference; a bad one changes nothing."""

import asyncio
import logging
import time
from dataclasses import replace
from typing import Final

from features.books import BookPointer, BookReader, Bound, keep, kept
from features.errors import BookRefused, NotFound, Unavailable
from features.state import State
from ranking.experiments.assignment import Assigner
from ranking.experiments.book import Book, moved, read_book, read_ledger
from ranking.experiments.owners import MAX_BLOB
from ranking.experiments.spec import MAX_JSON
from ranking.types import Degraded, Home
from server.metrics import Metrics

KIND: Final = "experiments"
_log = logging.getLogger("mantel.experiments")


class Experiments:
    """Holds the current book and follows its pointer. A refusal keeps the old one, is logged once, and counted."""

    def __init__(self, state: State, reader: BookReader, metrics: Metrics, *, max_age_s: float) -> None:
        """Holds nothing yet; `refresh` reads."""
        self._state = state
        self._reader = reader
        self._metrics = metrics
        self._max_age_s = max_age_s
        self._read_at = time.monotonic()
        self._book: Book | None = None
        self._fell_back = False
        self._refused = ("", "")  # the digest that the pointer names, and why it is not taken
        self._retried = False  # what is missing may yet come
        self.assigner: Assigner | None = None

    @property
    def refusal(self) -> str:
        """Why the book that the pointer names is not in force; "" where it is."""
        return self._refused[1]

    @property
    def version(self) -> str:
        """The digest of the book in force; "" where there is none."""
        return "" if self.assigner is None else self.assigner.version

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

    def mark_stale(self, homes: tuple[Home, ...]) -> tuple[Home, ...]:
        """The pages, degraded where the pointer could not be read for too long."""
        if time.monotonic() - self._read_at < self._max_age_s:
            return homes
        return tuple(replace(home, degraded=(*home.degraded, Degraded.EXPERIMENTS_STALE)) for home in homes)

    async def close(self) -> None:
        """Closes the connection."""
        await self._reader.close()

    async def _follow(self, pointer: BookPointer) -> None:
        if self._book is not None and pointer.digest == self._book.digest:
            self._refused = ("", "")
            return
        if pointer.digest == self._refused[0] and not self._retried:
            return
        raw = await self._reader.read(pointer.digest, MAX_JSON)
        ledger = await asyncio.to_thread(read_ledger, raw, pointer.digest)
        blobs = {digest: await self._reader.read(digest, MAX_BLOB) for digest in set(ledger.owners.values())}
        book = await asyncio.to_thread(read_book, raw, ledger, blobs)
        if self._book is not None and (wrong := await asyncio.to_thread(moved, self._book, book)):
            raise BookRefused("; ".join(f"{path}: {what}" for path, what in wrong))
        self._refused = ("", "")
        await self._take(book)
        try:
            bound = Bound(digest=book.digest, raw=book.raw, blobs=book.blobs)
            await asyncio.to_thread(keep, self._state, KIND, bound)
        except OSError:
            _log.exception("the last good experiment book on disk stays as it was")

    async def _take(self, book: Book) -> None:
        self.assigner = await asyncio.to_thread(Assigner, book)
        self._book = book
        self._metrics.book_taken(KIND)
        _log.info("experiment book %s in force, %d running", book.digest[:12], len(book.spec.running))

    async def _fall_back(self) -> None:
        """Takes the book on disk, where there is one."""
        try:
            bound = await asyncio.to_thread(kept, self._state, KIND)
            if bound is not None:
                ledger = await asyncio.to_thread(read_ledger, bound.raw, bound.digest)
                await self._take(await asyncio.to_thread(read_book, bound.raw, ledger, bound.blobs))
        except BookRefused:
            self._metrics.book_refused(KIND)
            _log.exception("the last good experiment book on disk is refused")

    def _refuse(self, digest: str, error: Exception) -> None:
        """Remembers a refusal; the same one again goes untold. What is missing is looked for again."""
        refused = digest, str(error) or repr(error)
        if refused == self._refused:
            return
        self._refused, self._retried = refused, isinstance(error, NotFound)
        self._metrics.book_refused(KIND)
        _log.error("experiment book %s refused: %s", digest[:12] or "(no digest)", refused[1])
