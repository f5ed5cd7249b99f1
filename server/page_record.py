"""A served page as replay compares it: all that the core decided, in names that outlive a snapshot.

Two pages are equal if and only if their bytes are: JSON writes a float64 so that it reads back to the last bit.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from features.snapshot import Snapshot
from ranking.promotions.spec import Mark
from ranking.types import Degraded, Home, Shelf

OF_THE_CORE: Final = frozenset(
    {
        Degraded.LISTENER_LATE,
        Degraded.LISTENER_INVALID,
        Degraded.STORE_DOWN,
        Degraded.RETRIEVAL_PARTIAL,
        Degraded.RETRIEVAL_DOWN,
        Degraded.BLOCKLIST_UNKNOWN,
        Degraded.DEADLINE_SHORT,
    }
)
"""Reasons that a page is made again with; the others tell of the worker and its clock."""

Page = dict[str, Any]


def page_record(home: Home, snapshot: Snapshot) -> bytes:
    """Writes a page."""
    told = {
        "shelves": [_shelf(shelf, home.campaigns, snapshot) for shelf in home.shelves],
        "market": home.market,
        "cold_start": home.cold_start,
        "folded_in": home.folded_in,
        "coverage": home.coverage,
        "degraded": [reason.value for reason in home.degraded if reason in OF_THE_CORE],
        "arms": [[one.layer, one.experiment, one.arm, one.reason.value] for one in home.assignments],
        "experiment_book": home.experiment_book,
        "promotion_book": home.promotion_book,
    }
    return json.dumps(told, sort_keys=True).encode()


def read_page(raw: bytes) -> Page:
    """Reads what `page_record` wrote."""
    page: Page = json.loads(raw)
    return page


def difference(one: Page, other: Page) -> str:
    """Where two pages first differ, as a path; "" where they do not."""
    if [shelf["id"] for shelf in one["shelves"]] != [shelf["id"] for shelf in other["shelves"]]:
        return "shelves"
    for left, right in zip(one["shelves"], other["shelves"], strict=True):
        for name in left.keys() | right.keys():
            if left.get(name) != right.get(name):
                return f"{left['id']}.{name}"
    return next((name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)), "")


def _shelf(shelf: Shelf, campaigns: Sequence[Mark], snapshot: Snapshot) -> dict[str, Any]:
    keys = snapshot.columns["item_key"]
    told: dict[str, Any] = {
        "id": shelf.spec.id,
        "why": shelf.why,
        "subject": _subject(shelf, snapshot),
        "items": keys[shelf.rows].tolist(),
        "scores": shelf.scores.tolist(),
        "new": shelf.new.tolist(),
        "propensities": shelf.propensity.tolist(),
    }
    if shelf.inserted is not None:
        told["campaigns"] = [campaigns[by].id if by >= 0 else "" for by in shelf.inserted.campaign.tolist()]
        told["organic_ranks"] = shelf.inserted.organic_rank.tolist()
        told["organic"] = keys[shelf.inserted.organic].tolist()
    return told


def _subject(shelf: Shelf, snapshot: Snapshot) -> str:
    """What a shelf's reason speaks of: an item by its key, or a genre."""
    if shelf.why in {"neighbours", "similar"}:
        return str(int(snapshot.columns["item_key"][shelf.subject]))
    return snapshot.manifest.genres[shelf.subject] if shelf.why == "genre" else ""
