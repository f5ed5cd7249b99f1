"""The experiment book in force, as each request asks it."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from features.archive import Archive
from features.books import BookReader
from features.state import State
from ranking.experiments.assignment import Assigner
from ranking.experiments.book import Book, moved, read_book, read_ledger
from ranking.experiments.owners import MAX_BLOB
from ranking.experiments.spec import MAX_JSON
from ranking.types import Degraded, Home
from server.books import Follower, Kind
from server.metrics import Metrics

KIND: Final = "experiments"


def _open(raw: bytes, digest: str) -> tuple[Collection[str], Callable[[Mapping[str, bytes]], Book]]:
    ledger = read_ledger(raw, digest)
    return frozenset(ledger.owners.values()), partial(read_book, raw, ledger)


BOOKS: Final = Kind(name=KIND, max_json=MAX_JSON, max_blob=MAX_BLOB, open=_open)


class Experiments(Follower[Book]):
    """Holds the current book, and who is served which arm by it."""

    def __init__(
        self,
        state: State,
        reader: BookReader,
        metrics: Metrics,
        *,
        max_age_s: float,
        archive: Archive | None = None,
    ) -> None:
        """Holds nothing yet; `refresh` reads."""
        super().__init__(BOOKS, state, reader, metrics, max_age_s=max_age_s, archive=archive)
        self.assigner: Assigner | None = None

    def mark_stale(self, homes: tuple[Home, ...]) -> tuple[Home, ...]:
        """The pages, degraded where the pointer could not be read for too long."""
        if not self.stale:
            return homes
        return tuple(replace(home, degraded=(*home.degraded, Degraded.EXPERIMENTS_STALE)) for home in homes)

    async def _take(self, book: Book) -> str:
        self.assigner = await asyncio.to_thread(Assigner, book)
        return f"{len(book.spec.running)} running"

    def _moved(self, before: Book, after: Book) -> Iterable[tuple[str, str]]:
        return moved(before, after)
