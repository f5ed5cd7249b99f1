"""Between the contract and the promotion book: what a promoter says becomes a spec, and a book is told."""

import json
from typing import Any, Final

from features.books import BookPointer
from features.errors import InvalidInput
from protos.promotions.v1 import promotions_pb2
from ranking.promotions.book import Book
from ranking.promotions.spec import ALL, Campaign, Feed, Spec, read_lines, scores_of

_TEXTS: Final = ("id", "feed", "payer")


def read_spec(said: promotions_pb2.Spec) -> Spec:
    """The spec of a request; the contract's zeros are what was not said.

    Raises:
        InvalidInput: naming every field of a feed or a campaign that is wrong by itself.
    """
    wrong: list[tuple[str, str]] = []
    feeds = read_lines(Feed, (_line({"id": one.id, "payer": one.payer}) for one in said.feeds), "feeds", wrong)
    campaigns = read_lines(Campaign, (_line(_fields(one)) for one in said.campaigns), "campaigns", wrong)
    if wrong:
        raise InvalidInput(*wrong)
    scores = scores_of(
        (number, item.item_id, item.score, _segment(item))
        for number, one in enumerate(said.campaigns)
        for item in one.items
    )
    return Spec(feeds=feeds, campaigns=campaigns, scores=scores)


def told_book(pointer: BookPointer | None, book: Book, *, with_items: bool) -> promotions_pb2.Book:
    """A book as the contract says it; without a pointer it is none that was applied."""
    told = promotions_pb2.Book()
    if pointer is not None:
        told.version, told.sequence, told.applied_by = pointer.digest, pointer.sequence, pointer.applied_by
        told.applied_at.FromMicroseconds(int(pointer.applied_at * 1e6))
    for feed in book.feeds:
        told.spec.feeds.add(id=feed.id, payer=feed.payer)
    for one in book.campaigns:
        campaign = told.spec.campaigns.add(
            id=one.id,
            feed=one.feed,
            payer=one.payer,
            why=one.why,
            markets=one.markets,
            segments=one.segments,
            minimum_plays=one.minimum_plays,
            shelves=one.shelves,
        )
        if one.since:
            campaign.since.seconds = one.since
        if one.until:
            campaign.until.seconds = one.until
    if with_items:
        scores = book.scores
        columns = scores.campaign.tolist(), scores.item_ids, scores.score.tolist(), scores.segment.tolist()
        for number, item_id, score, segment in zip(*columns, strict=True):
            item = told.spec.campaigns[number].items.add(item_id=item_id, score=score)
            if segment != ALL:
                item.segment = segment
    return told


def _segment(item: promotions_pb2.PromotedItem) -> int:
    """The segment of a score; below ALL is a mistake that is told later."""
    return (item.segment if item.segment >= 0 else ALL - 1) if item.HasField("segment") else ALL


def _fields(one: promotions_pb2.Campaign) -> dict[str, Any]:
    """What a campaign says, without its items."""
    said: dict[str, Any] = {name: getattr(one, name) for name in _TEXTS}
    said |= {name: list(getattr(one, name)) for name in ("markets", "segments", "shelves")}
    said |= {"why": dict(one.why), "minimum_plays": one.minimum_plays}
    said |= {name: getattr(one, name).seconds for name in ("since", "until") if one.HasField(name)}
    return {name: value for name, value in said.items() if value or name == "id"}


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps(said).encode()
