"""The promotion book in force, bound to the snapshot in service; its feeds fade unless they are confirmed."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from features.archive import Archive
from features.books import BookReader
from features.errors import Unavailable
from features.promotion_store import PromotionStore
from features.snapshot import Snapshot
from features.state import State
from ranking.promotions.binding import Bound, bound
from ranking.promotions.book import MAX_BLOB, MAX_JSON, Book, open_book
from ranking.types import Degraded, Home
from server.books import Follower, Kind
from server.metrics import Metrics

KIND: Final = "promotions"
BOOKS: Final = Kind(name=KIND, max_json=MAX_JSON, max_blob=MAX_BLOB, open=open_book)


class PromotionBooks(Follower[Book]):
    """Holds the current book as rows of the current snapshot, found anew when either changes."""

    def __init__(  # noqa: PLR0913  # what a follower needs, and its own
        self,
        state: State,
        reader: BookReader,
        store: PromotionStore,
        metrics: Metrics,
        *,
        serving: Callable[[], Snapshot | None],
        max_age_s: float,
        archive: Archive | None = None,
    ) -> None:
        """Holds nothing yet; `refresh` reads. `serving` answers the snapshot in service."""
        super().__init__(BOOKS, state, reader, metrics, max_age_s=max_age_s, archive=archive)
        self._store = store
        self._serving = serving
        self._confirmed: Mapping[str, int] = {}
        self._unreadable: tuple[str, ...] = ()
        self._bound: Bound | None = None
        self._prepared: Bound | None = None  # to a snapshot that is about to serve

    @property
    def refusal(self) -> str:
        """Why the book that the pointer names is not in force, or a feed counts as never confirmed."""
        if self._unreadable and not super().refusal:
            return f"the confirmation of {', '.join(self._unreadable[:8])} cannot be read"
        return super().refusal

    async def refresh(self) -> None:
        """Follows pointer, confirmations and snapshot."""
        await super().refresh()
        if self._book is None:
            return
        await self._confirm(self._book)
        snapshot = self._serving()
        if snapshot is not None and (self._bound is None or self._bound.snapshot != snapshot.digest):
            found = self._prepared_for(snapshot)
            if found is None:
                found = await asyncio.to_thread(self._bind, self._book, snapshot)
            self._bound = found if found.at == self._confirmed else found.confirmed(self._confirmed)

    def prepare(self, snapshot: Snapshot) -> None:
        """Binds the book to a snapshot before it serves; called from the thread that loads it."""
        if self._book is not None:
            self._prepared = self._bind(self._book, snapshot)

    def bound_to(self, snapshot: Snapshot) -> Bound | None:
        """The book in force, bound to a snapshot; None where there is none, or nobody could look for too long."""
        if self.stale:
            return None
        now = self._bound
        return now if now is not None and now.snapshot == snapshot.digest else self._prepared_for(snapshot)

    def mark(self, homes: tuple[Home, ...], by: Bound | None) -> tuple[Home, ...]:
        """The pages with the book that they were promoted by; degraded where promotion is off because of a fault."""
        if by is not None:
            return tuple(map(by.marked, homes))
        if not self.stale or self._book is None or not self._book.campaigns:
            return homes
        return tuple(replace(home, degraded=(*home.degraded, Degraded.PROMOTIONS_OFF)) for home in homes)

    async def close(self) -> None:
        """Closes the connections."""
        await super().close()
        await self._store.close()

    async def _take(self, book: Book) -> str:
        await self._confirm(book)
        snapshot = self._serving()
        self._bound = None if snapshot is None else await asyncio.to_thread(self._bind, book, snapshot)
        self._prepared = None
        unknown = 0 if self._bound is None else self._bound.unknown
        return f"{len(book.campaigns)} campaigns, {len(book.scores)} scores, {unknown} of unknown items"

    async def _confirm(self, book: Book) -> None:
        """Looks when the feeds were confirmed; where nobody can tell, they fade from what was known."""
        try:
            found = await self._store.confirmations([feed.id for feed in book.feeds])
        except Unavailable:
            return
        if found.unreadable and found.unreadable != self._unreadable:
            self._log.error("no time stands as the confirmation of %s: not promoted", ", ".join(found.unreadable[:8]))
        self._unreadable = found.unreadable
        if found.at != self._confirmed:
            self._confirmed = found.at
            bounds = self._bound, self._prepared
            self._bound, self._prepared = (one and one.confirmed(found.at) for one in bounds)

    def _bind(self, book: Book, snapshot: Snapshot) -> Bound:
        return bound(book, snapshot).confirmed(self._confirmed)

    def _prepared_for(self, snapshot: Snapshot) -> Bound | None:
        found = self._prepared
        good = found is not None and found.snapshot == snapshot.digest and found.book is self._book
        return found if good else None
