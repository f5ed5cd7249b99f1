"""PromotionService: applying the promotion book, telling what it says and what came of it, confirming feeds."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from features.books import BookShelf
from features.errors import InvalidInput, NotFound, StaleEtag
from features.promotion_store import Confirmations, PromotionLedger
from features.state import State
from protos.promotions.v1 import promotions_pb2
from ranking.history import DAY_S
from ranking.offers import faded
from ranking.promotions.book import EMPTY, Book, bind
from ranking.promotions.spec import Campaign
from server.books import InForce, in_force, put
from server.guard import Call
from server.promotion_specs import read_spec, told_book
from server.promotions import BOOKS

STATS_DAYS: Final = 7
MOST_DAYS: Final = 35


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The items of the snapshot in service."""

    snapshot: str  # its digest; "": there is none on this machine
    item_key: NDArray[np.uint64]  # ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionService:
    """Answers promoters. Everything here may wait: it runs in threads, away from the data plane's processes."""

    state: State
    shelf: BookShelf
    ledger: PromotionLedger
    catalogue: Callable[[], Catalogue]

    async def apply_book(
        self, request: promotions_pb2.ApplyBookRequest, call: Call
    ) -> promotions_pb2.ApplyBookResponse:
        """Makes a spec the book in force and confirms its feeds, or tells whether it could be."""
        return await asyncio.to_thread(self._apply, request, call)

    async def get_book(self, request: promotions_pb2.GetBookRequest, call: Call) -> promotions_pb2.GetBookResponse:
        """The book in force."""
        del call
        now = await asyncio.to_thread(self._in_force)
        book = await asyncio.to_thread(told_book, now.pointer, now.book, with_items=request.with_items)
        return promotions_pb2.GetBookResponse(book=book)

    async def list_promotions(
        self, _: promotions_pb2.ListPromotionsRequest, call: Call
    ) -> promotions_pb2.ListPromotionsResponse:
        """What has become of each feed and campaign."""
        del call
        return await asyncio.to_thread(self._list)

    async def get_stats(self, request: promotions_pb2.GetStatsRequest, call: Call) -> promotions_pb2.GetStatsResponse:
        """How often campaigns could have been placed, and were."""
        del call
        if not 0 <= request.days <= MOST_DAYS:
            raise InvalidInput(("days", f"must be from 0 to {MOST_DAYS}"))
        stats = await asyncio.to_thread(lambda: list(self._stats(request)))
        return promotions_pb2.GetStatsResponse(stats=stats)

    async def confirm_feed(
        self, request: promotions_pb2.ConfirmFeedRequest, call: Call
    ) -> promotions_pb2.ConfirmFeedResponse:
        """Notes that a feed's scores still stand."""
        del call
        if not request.feed:
            raise InvalidInput(("feed", "must be said"))
        at = await asyncio.to_thread(self._confirm, request.feed)
        return promotions_pb2.ConfirmFeedResponse(confirmed_at=Timestamp(seconds=at))

    def _apply(self, request: promotions_pb2.ApplyBookRequest, call: Call) -> promotions_pb2.ApplyBookResponse:
        book, now = bind(read_spec(request.spec)), self._in_force()
        if request.etag != now.version:
            raise StaleEtag("another book is in force than the etag says; look at it first")
        at = int(time.time())
        told = Confirmations(at={feed.id: at for feed in book.feeds}, unreadable=())
        pointer = None
        if not request.validate_only:
            pointer = put(book, now, self.shelf, by=call.principal.name)
            self.ledger.confirm(told.at, at=at)
        answered = told_book(pointer, book, with_items=False)
        return promotions_pb2.ApplyBookResponse(book=answered, campaigns=_statuses(book, told, self.catalogue()))

    def _list(self) -> promotions_pb2.ListPromotionsResponse:
        now, catalogue = self._in_force(), self.catalogue()
        told = self.ledger.confirmations([feed.id for feed in now.book.feeds])
        response = promotions_pb2.ListPromotionsResponse(
            version=now.version,
            campaigns=_statuses(now.book, told, catalogue),
            snapshot_version=catalogue.snapshot,
        )
        for feed in now.book.feeds:
            status = response.feeds.add(id=feed.id, payer=feed.payer, freshness=_freshness(feed.id, told))
            if feed.id in told.at:
                status.confirmed_at.seconds = told.at[feed.id]
        return response

    def _confirm(self, feed: str) -> int:
        if feed not in {one.id for one in self._in_force().book.feeds}:
            raise NotFound("feed: the book in force has no such feed")
        at = int(time.time())
        self.ledger.confirm([feed], at=at)
        return at

    def _stats(self, request: promotions_pb2.GetStatsRequest) -> Iterator[promotions_pb2.CampaignStats]:
        today = int(time.time()) // DAY_S
        for day in range(today, today - (request.days or STATS_DAYS), -1):
            written = time.strftime("%Y-%m-%d", time.gmtime(day * DAY_S))
            for campaign, counts in sorted(self.ledger.counts(written).items()):
                if not request.campaigns or campaign in request.campaigns:
                    yield promotions_pb2.CampaignStats(
                        campaign=campaign,
                        day=written,
                        eligible_pages=counts.get("eligible", 0),
                        placed_pages=counts.get("pages", 0),
                        placements=counts.get("placed", 0),
                    )

    def _in_force(self) -> InForce[Book]:
        return in_force(BOOKS, self.shelf, self.state, EMPTY)


def _statuses(book: Book, told: Confirmations, catalogue: Catalogue) -> Iterator[promotions_pb2.CampaignStatus]:
    now, campaigns = int(time.time()), len(book.campaigns)
    bound = np.isin(book.scores.item_key, catalogue.item_key)
    here, all_ = (
        np.bincount(column, minlength=campaigns) for column in (book.scores.campaign[bound], book.scores.campaign)
    )
    for number, one in enumerate(book.campaigns):
        status = promotions_pb2.CampaignStatus(
            id=one.id,
            feed=one.feed,
            payer=book.marks[number].payer,
            state=_state(one, now, told),
            markets=one.markets,
            items_bound=int(here[number]),
            items_unknown=int(all_[number] - here[number]),
        )
        if one.since:
            status.since.seconds = one.since
        if one.until:
            status.until.seconds = one.until
        yield status


def _state(campaign: Campaign, now: int, told: Confirmations) -> str:
    if now < campaign.since:
        return "scheduled"
    if campaign.until and now >= campaign.until:
        return "ended"
    return "faded" if campaign.feed and not _freshness(campaign.feed, told) else "running"


def _freshness(feed: str, told: Confirmations) -> float:
    return faded(int(time.time()) - told.at[feed]) if feed in told.at else 0.0
