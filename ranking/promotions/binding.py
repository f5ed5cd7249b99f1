"""A promotion book becomes rows of a snapshot: once for each pair of them, never for a request."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from features.snapshot import Snapshot
from ranking.offers import FOREVER, SCORE, SOURCES, Promotions, Records, indexed, market_bit, open_campaigns
from ranking.promotions.book import Book
from ranking.types import Home


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A promotion book, as it stands to a snapshot."""

    book: Book
    snapshot: str  # its digest
    promotions: Promotions  # for no listener yet
    unknown: int  # how many scores are of items that the snapshot lacks
    at: Mapping[str, int] = field(default_factory=dict)  # when its feeds were confirmed, unix seconds

    def confirmed(self, at: Mapping[str, int]) -> "Bound":
        """With its feeds confirmed at these times, in unix seconds; one that is not named never was."""
        campaigns = self.promotions.campaigns.copy()
        campaigns["confirmed"] = [at.get(one.feed, 0) for one in self.book.campaigns]
        return replace(self, promotions=self.promotions._replace(campaigns=campaigns), at=at)

    def marked(self, home: Home) -> Home:
        """A page that was promoted by it."""
        return replace(home, promotion_book=self.book.digest, campaigns=self.book.marks)


def bound(book: Book, snapshot: Snapshot) -> Bound:
    """Finds a book's items in a snapshot; no feed of it is confirmed yet."""
    said = book.scores
    row = snapshot.rows_of(said.item_key)
    here = (row >= 0) & (said.score > 0)
    scores = np.zeros(int(here.sum()), SCORE)
    scores["row"], scores["campaign"] = row[here], said.campaign[here]
    scores["score"], scores["segment"] = said.score[here], said.segment[here]
    promotions = indexed(scores, _campaigns(book), snapshot.manifest.items)
    return Bound(book=book, snapshot=snapshot.digest, promotions=promotions, unknown=int((row < 0).sum()))


def _campaigns(book: Book) -> Records:
    numbers: dict[str, int] = {}
    records = open_campaigns(len(book.campaigns))
    records["payer"] = [numbers.setdefault(mark.payer, len(numbers)) for mark in book.marks]
    records["fades"] = [bool(one.feed) for one in book.campaigns]
    records["since"] = [one.since for one in book.campaigns]
    records["until"] = [one.until or FOREVER for one in book.campaigns]
    records["plays"] = [one.minimum_plays for one in book.campaigns]
    for record, one in zip(records, book.campaigns, strict=True):
        for name, bits in (
            ("segments", one.segments),
            ("sources", [SOURCES[source] for source in one.shelves]),
            ("markets", [market_bit(market) for market in one.markets]),
        ):
            if bits:
                record[name] = _words(bits, record[name].size)
    return records


def _words(bits: Iterable[int], count: int) -> Any:
    words = np.zeros(count, np.uint64)
    for bit in bits:
        words[bit >> 6] |= np.uint64(1 << (bit & 63))
    return words if count > 1 else words[0]
