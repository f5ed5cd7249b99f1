"""Counts what promotion did, behind the responses, and sends the counts on every few seconds.

A count that the store does not take is sent again; of what is counted meanwhile nothing is lost but with the process,
and that is told.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from features.errors import Unavailable
from features.promotion_store import MEASURES, Count, PromotionStore, field_of
from ranking.history import DAY_S
from ranking.promotions.binding import Bound
from ranking.types import Home, HomeQuery
from server.metrics import Metrics

ELIGIBLE, PAGES, PLACED = range(len(MEASURES))
_log = logging.getLogger("mantel.placements")


class Placements:
    """The counts of one worker."""

    def __init__(self, store: PromotionStore, metrics: Metrics, *, every_s: float) -> None:
        """Has counted nothing yet."""
        self._store = store
        self._metrics = metrics
        self._every_s = every_s
        self._counts: dict[tuple[int, str], tuple[Bound, NDArray[np.int64]]] = {}  # of a day and a book
        self._sending: list[Count] = []

    def served(
        self, queries: Sequence[HomeQuery], homes: Sequence[Home], eligible: NDArray[np.int64], by: Bound
    ) -> None:
        """A batch was served; `eligible` as the core told. What an engineer asked for does not count."""
        query, campaign = eligible >> 32, eligible & 0xFFFFFFFF
        days = [-1 if one.explained else one.now // DAY_S for one in queries]
        for day in set(days) - {-1}:
            counts = self._of(day, by)
            mine = np.array([one == day for one in days])[query]
            np.add.at(counts[:, ELIGIBLE], campaign[mine], 1)
            for home, its in zip(homes, days, strict=True):
                placed = home.placed if its == day else []
                np.add.at(counts[:, PLACED], placed, 1)
                counts[list(set(placed)), PAGES] += 1

    async def run(self, stop: asyncio.Event) -> None:
        """Sends until `stop` is set."""
        while not stop.is_set():
            await asyncio.sleep(self._every_s)
            await self.flush()

    async def flush(self) -> None:
        """Sends all that was counted and not yet taken."""
        if not self._sending:
            self._sending = [self._count(day, *counts) for (day, _), counts in self._counts.items()]
            self._counts = {}
        try:
            while self._sending:
                await self._store.add(self._sending[0])
                del self._sending[0]
        except Unavailable as error:
            self._metrics.counts_waited()
            _log.warning("counts of placements wait: %s", error)

    async def end(self) -> None:
        """Sends the rest; what is not taken is lost with the process, and told."""
        await self.flush()
        await self.flush()
        lost = sum(sum(count.fields.values()) for count in self._sending)
        lost += sum(int(counts.sum()) for _, counts in self._counts.values())
        if lost:
            self._metrics.counts_lost(lost)
            _log.error("counts of placements are lost: %d", lost)

    def _of(self, day: int, by: Bound) -> NDArray[np.int64]:
        found = self._counts.get((day, by.book.digest))
        if found is None:
            found = by, np.zeros((len(by.book.campaigns), len(MEASURES)), np.int64)
            self._counts[day, by.book.digest] = found
        return found[1]

    @staticmethod
    def _count(day: int, by: Bound, counts: NDArray[np.int64]) -> Count:
        fields = {
            field_of(by.book.campaigns[campaign].id, MEASURES[measure]): int(counts[campaign, measure])
            for campaign, measure in np.argwhere(counts > 0).tolist()
        }
        return Count(id=secrets.token_hex(16), day=_written(day), fields=fields)


def _written(day: int) -> str:
    """A day since 1970, as counts name it."""
    return time.strftime("%Y-%m-%d", time.gmtime(day * DAY_S))
