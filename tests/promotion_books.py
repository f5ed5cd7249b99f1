"""Promotion books for tests that serve: good ones applied, and poisoned ones written straight into Redis."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from features.books import BookPointer, BookShelf, Bound
from features.promotion_store import PromotionLedger
from protos.promotions.v1 import promotions_pb2
from ranking.promotions.book import Book, bind, digest_of
from ranking.promotions.spec import ALL, Campaign, Feed, Spec, scores_of
from server.promotion_specs import told_book
from server.promotions import KIND
from tests.conftest import Store

FEED: Final = Feed(id="discovery", payer="Fugue Records")
EVERYTHING: Final = [f"t{number:07}" for number in range(1, 2001)]
Items = Mapping[str, float] | Sequence[str]


def spec_of(*campaigns: tuple[dict[str, Any], Items]) -> Spec:
    """Campaigns, each from its fields and its items, of one feed unless they have a payer."""
    made, rows = [], []
    for number, (fields, items) in enumerate(campaigns):
        paid = {} if "payer" in fields else {"feed": FEED.id}
        made.append(Campaign(**{"id": f"c{number}", **paid, **fields}))
        scores = items if isinstance(items, Mapping) else dict.fromkeys(items, 1.0)
        rows += [(number, item_id, score, ALL) for item_id, score in scores.items()]
    return Spec(feeds=(FEED,), campaigns=tuple(made), scores=scores_of(rows))


def put(store: Store, book: Book) -> Book:
    """Writes a book, moves the pointer to it, and confirms its feeds."""
    shelf = BookShelf(store.client, store.keys, KIND)
    pointer = BookPointer(digest=book.digest, sequence=1, applied_at=time.time())
    shelf.put(Bound(digest=book.digest, raw=book.raw, blobs=book.blobs), pointer, after=shelf.pointer(), left=())
    confirm(store, FEED.id)
    return book


def applied(store: Store, *campaigns: tuple[dict[str, Any], Items]) -> Book:
    """A book of campaigns, in force."""
    return put(store, bind(spec_of(*campaigns)))


def confirm(store: Store, *feeds: str, ago_s: int = 0) -> None:
    """Confirms feeds, some time ago."""
    PromotionLedger(store.client, store.keys).confirm(feeds, at=int(time.time()) - ago_s)


def poison(store: Store, raw: bytes, blobs: Mapping[str, bytes]) -> str:
    """Writes bytes as a book, under their right name, and moves the pointer to them; answers the name."""
    digest = digest_of(raw)
    for name, content in {digest: raw, **blobs}.items():
        store.client.set(store.keys.book(KIND, name), content)
    pointer = BookPointer(digest=digest, sequence=9, applied_at=time.time())
    store.client.set(store.keys.book_pointer(KIND), pointer.to_bytes())
    return digest


def said(spec: Spec) -> promotions_pb2.Spec:
    """A spec as the contract says it."""
    return told_book(None, bind(spec), with_items=True).spec
