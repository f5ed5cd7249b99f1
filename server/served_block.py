"""Served pages become a block of their log: a few arrays for all of them, nothing per item."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from features.recent_state import session_of
from features.served_pages import LIST, Arm, Block, Organic, Page, Placement, Timing, Versions
from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.experiments.assignment import Assignment
from ranking.home import STAGES
from ranking.types import HomeQuery
from server.guard import Call
from server.paging import Turned
from server.queries import DEFAULT_SURFACE
from server.served import Batch, Served

Request = home_pb2.GetHomeRequest | home_pb2.GetShelfRequest


class Source(NamedTuple):
    """The surfaces that a process serves by."""

    surfaces: str  # digest of their file
    preset: str


class Noted(NamedTuple):
    """A page that was served, to be logged."""

    call: Call
    request: Message
    query: HomeQuery
    served: Served
    served_ms: int
    sampled: bool


def block_of(noted: Sequence[Noted], snapshot: Snapshot, source: Source) -> Block:
    """Pages that were all made from one snapshot, as a block."""
    shared = _Shared(source)
    pages = [_page(one, shared) for one in noted]
    shelves = [shelf for one in noted for shelf in one.served.home.shelves]
    rows = [shelf.rows for shelf in shelves]
    keys = snapshot.columns["item_key"]
    placements, organic, slates = _of_promotion(noted)
    chances = np.concatenate([shelf.propensity for shelf in shelves]) if shelves else _NO_SCORES
    left_to_chance = np.flatnonzero(chances != 1)
    return Block(
        pages=pages,
        versions=list(shared.versions),
        stages=list(STAGES),
        batches=[_timing(batch) for batch in shared.batches],
        arms=[Arm(one.layer, one.experiment, one.arm, one.reason) for one in shared.arms],
        shelves=[shelf.spec.id for shelf in shelves],
        counts=np.frombuffer(bytes(map(len, rows)), np.uint8),
        item_keys=keys[np.concatenate(rows)] if rows else _NO_KEYS,
        scores=np.concatenate([shelf.scores for shelf in shelves]).astype(np.float32) if shelves else _NO_SCORES,
        propensities=list(zip(left_to_chance.tolist(), chances[left_to_chance].tolist(), strict=True)),
        placements=placements,
        organic=organic,
        organic_keys=keys[np.concatenate(slates)] if slates else _NO_KEYS,
    )


def block_of_turn(request_id: str, served_ms: int, request: Request, turned: Turned, source: Source) -> Block:
    """A later part of a page, as a block of its own; its arms and versions are those of the part before."""
    words, rows = turned.words, turned.rows
    shelf = np.repeat(np.arange(len(words.heads)), words.lengths)
    counts = np.bincount(shelf[rows >= 0], minlength=len(words.heads))
    there = counts > 0
    keys = turned.snapshot.columns["item_key"]
    context = request.context
    page = Page(
        turned.page,
        request_id,
        served_ms,
        request.user_id,
        request.surface or DEFAULT_SURFACE,
        session_of(request.session_id),
        context.market or turned.market,
        context.device if context.device.isprintable() else "",
        context.locale,
        0,
        0,
        0,
        0,
        int(there.sum()),
        words.first.shelf,
        words.first.place,
        "",
        "",
    )
    heads = [head for head, some in zip(words.heads, there.tolist(), strict=True) if some]
    return Block(
        pages=[page],
        versions=[Versions(turned.snapshot.digest, "", "", *source)],
        stages=[],
        batches=[Timing(1, 0, [])],
        arms=[],
        shelves=[home_pb2.Shelf.FromString(head).id for head in heads],
        counts=counts[there].astype(np.uint8),
        item_keys=keys[rows[rows >= 0]],
        scores=words.scores[rows >= 0].astype(np.float32),
        propensities=[],
        placements=[],
        organic=[],
        organic_keys=_NO_KEYS,
    )


def versions_of(served: Served, source: Source) -> Versions:
    """What a page was made from."""
    home = served.home
    return Versions(served.batch.snapshot.digest, home.experiment_book, home.promotion_book, *source)


_NO_KEYS: Final = np.empty(0, np.uint64)
_NO_SCORES: Final = np.empty(0, np.float32)


class _Shared:
    """What pages of a block share, each numbered when it is first met."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.versions: dict[Versions, int] = {}
        self._of_books: dict[tuple[str, str], int] = {}
        self.batches: list[Batch] = []
        self.arms: list[Assignment] = []
        self._numbers: dict[int, int] = {}  # of batches and arms, by identity: all live as long as the block

    def version(self, served: Served) -> int:
        books = served.home.experiment_book, served.home.promotion_book
        if books not in self._of_books:
            self._of_books[books] = self.versions.setdefault(versions_of(served, self.source), len(self.versions))
        return self._of_books[books]

    def batch(self, batch: Batch) -> int:
        number = self._numbers.get(id(batch))
        if number is None:
            number = self._numbers[id(batch)] = len(self.batches)
            self.batches.append(batch)
        return number

    def arm(self, one: Assignment) -> str:
        number = self._numbers.get(id(one))
        if number is None:
            number = self._numbers[id(one)] = len(self.arms)
            self.arms.append(one)
        return str(number)


def _page(one: Noted, shared: _Shared) -> Page:
    query, home, request_id = one.query, one.served.home, one.call.request_id
    return Page(
        request_id,
        request_id,
        one.served_ms,
        query.user_id,
        query.surface.name,
        query.session,
        home.market,
        query.device if query.device.isprintable() else "",
        query.locale,
        shared.version(one.served),
        shared.batch(one.served.batch),
        1 if home.cold_start else 0,
        1 if one.sampled else 0,
        len(home.shelves),
        0,
        0,
        LIST.join([shared.arm(arm) for arm in home.assignments]) if home.assignments else "",
        LIST.join(home.degraded) if home.degraded else "",
    )


def _timing(batch: Batch) -> Timing:
    return Timing(batch.size, int(batch.read_s * 1e6), [int(seconds * 1e6) for _, seconds in batch.trace.stages])


def _of_promotion(noted: Sequence[Noted]) -> tuple[list[Placement], list[Organic], list[NDArray[np.int64]]]:
    """Which items stand by promotion, and the slates of their shelves without it."""
    placements, organic, slates = [], [], []
    first = 0
    shelves = ((shelf, one.served.home.campaigns) for one in noted for shelf in one.served.home.shelves)
    for number, (shelf, campaigns) in enumerate(shelves):
        if shelf.inserted is not None:
            by, ranks = shelf.inserted.campaign.tolist(), shelf.inserted.organic_rank.tolist()
            placements += [
                Placement(first + place, campaigns[campaign].id, ranks[place])
                for place, campaign in enumerate(by)
                if campaign >= 0
            ]
            organic.append(Organic(number, len(shelf.inserted.organic)))
            slates.append(shelf.inserted.organic)
        first += len(shelf.rows)
    return placements, organic, slates
