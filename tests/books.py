"""Experiment books for tests that serve: good ones applied, and poisoned ones written straight into Redis."""

import json
import time
from typing import Any, Final

from features.books import BookPointer, BookShelf, Bound
from ranking.experiments.applying import EMPTY, apply
from ranking.experiments.book import Book, digest_of
from ranking.experiments.spec import Spec, read_spec
from server.experiments import KIND
from tests.conftest import Store

LAYERS: Final = [
    {"id": "order", "params": ["page_order", "shelf_likeness"]},
    {"id": "variety", "params": ["diversity", "mmr_lambda", "artist_cap"]},
]


def experiment(key: str, layer: str, params: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """An experiment served to its whole reservation: a control, and a treatment with params."""
    arms = [{"key": "control"}, {"key": "treatment", "params": params}]
    return {"key": key, "layer": layer, "reserved": 1.0, "ramp": 1.0, "arms": arms, **fields}


BY_FILE: Final = experiment("by-file", "order", {"page_order": "file"})
UNCAPPED: Final = experiment("uncapped", "variety", {"diversity": "plain", "artist_cap": 0})


def spec_of(*experiments: dict[str, Any]) -> Spec:
    """A spec of experiments in two layers."""
    return read_spec(json.dumps({"layers": LAYERS, "experiments": experiments}))


def bound(book: Book) -> Bound:
    """A book as it is stored."""
    return Bound(digest=book.digest, raw=book.raw, blobs=book.blobs)


def put(store: Store, book: Book) -> Book:
    """Writes a book, and moves the pointer to it."""
    shelf = BookShelf(store.client, store.keys, KIND)
    pointer = BookPointer(digest=book.digest, sequence=1, applied_at=time.time())
    shelf.put(bound(book), pointer, after=shelf.pointer(), left=())
    return book


def applied(store: Store, *experiments: dict[str, Any], previous: Book = EMPTY, seed: int = 1) -> Book:
    """A book of experiments, in force."""
    return put(store, apply(previous, spec_of(*experiments), seed=seed))


def poison(store: Store, raw: bytes) -> str:
    """Writes bytes as a book, under their right name, and moves the pointer to them; answers the name."""
    digest = digest_of(raw)
    store.client.set(store.keys.book(KIND, digest), raw)
    pointer = BookPointer(digest=digest, sequence=9, applied_at=time.time())
    store.client.set(store.keys.book_pointer(KIND), pointer.to_bytes())
    return digest
