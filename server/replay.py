"""Served pages made again, from what was logged of a sample of them: as they were, or as a change would make them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

import numpy as np

from features.archive import SURFACES, Archive, kept_book
from features.errors import BookRefused, InvalidInput, MantelError, SnapshotRefused
from features.index import use_one_thread
from features.listeners import Frames
from features.samples import Sample
from features.snapshot import Snapshot, load
from features.state import State
from protos.home.v1 import home_pb2
from ranking.experiments.assignment import Assigner
from ranking.experiments.book import Book
from ranking.home import assemble
from ranking.offers import offered_to
from ranking.promotions.binding import Bound, bound
from ranking.promotions.book import Book as PromotionBook
from ranking.surfaces import Surface, load_surfaces
from ranking.types import HomeQuery
from server import experiments, explain, promotions
from server.agreement import overlap, rbo
from server.books import BookT, Kind
from server.identity import Principal, Role
from server.page_record import Page, difference, page_record, read_page
from server.queries import to_query, to_shelf_query
from server.version import VERSION

KEPT: Final = 4  # snapshots, books and surfaces files that stay loaded
_RETRIEVAL: Final = {"RETRIEVAL_PARTIAL", "RETRIEVAL_DOWN"}
_NARROWED: Final = "DEADLINE_SHORT"  # of a page whose query was narrowed, and of no other

Records = Callable[[str, str], bytes | None]  # user id, space id: what is stored of the listener in that space


def no_records(_user_id: str, _space_id: str) -> bytes | None:
    """Knows nobody."""
    return None


class Unreplayable(MantelError):
    """A page cannot be made again; why is the same text for all pages of the same cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to be otherwise than it was. Nothing: as it was."""

    settings: Mapping[str, str] = field(default_factory=dict)  # params
    assigner: Assigner | None = None
    snapshot: Snapshot | None = None
    records: Records = no_records  # for a snapshot of another embedding space
    promotions: PromotionBook | None = None  # its feeds count as confirmed when the page was served


AS_IT_WAS: Final = Change()


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What became of pages that were made again."""

    equal: int
    different: tuple[tuple[Sample, str], ...]  # and where they first differ
    impossible: Mapping[str, int]  # by cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A page as it was served, and as it would be."""

    sample: Sample
    control: Page
    treatment: Page
    overlap: float
    rbo: float
    changed: tuple[str, ...]  # shelves that hold other items or another order, are gone or new


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What a change would make of the pages of a sample of listeners."""

    pairs: tuple[Pair, ...]
    impossible: Mapping[str, int]


class Replayer:
    """Makes pages again from what the state directory still holds."""

    def __init__(self, state: State) -> None:
        """Loads what samples name when they do."""
        use_one_thread()
        self._state = state
        self.archive = Archive(state.served_versions, state.served_samples)
        self.snapshot = lru_cache(KEPT)(self._snapshot)
        self.book = lru_cache(KEPT)(self._book)
        self.promotion_book = lru_cache(KEPT)(self._promotion_book)
        self._bounds: dict[tuple[str, str], Bound] = {}  # by the digests of book and snapshot
        self._assigner = lru_cache(KEPT)(lambda digest: Assigner(self.book(digest)))
        self._surfaces = lru_cache(KEPT)(self._surfaces_of)

    def page(self, sample: Sample, change: Change = AS_IT_WAS) -> bytes:
        """A sampled page, made again.

        Raises:
            Unreplayable: something that it was made from is not there any more, or not as it was.
            InvalidInput: the change does not fit it.
        """
        if sample.program != VERSION:
            raise Unreplayable(f"served by version {sample.program} of this program, this is {VERSION}")
        degraded = set(read_page(sample.page)["degraded"])
        if _RETRIEVAL & degraded:
            raise Unreplayable("a search failed when it was served")
        served = self.snapshot(sample.versions.snapshot)
        snapshot = change.snapshot or served
        frames = self._frames(sample, served, change)
        query = replace(self._query(sample, change.assigner), narrow=_NARROWED in degraded)
        if change.settings:
            query = explain.what_if(query, change.settings)
        listeners, by = frames.decoded(snapshot), self._promoted_by(sample, change.promotions, snapshot)
        offered = None if by is None else offered_to(by.promotions, listeners)
        (home,), _ = assemble((query,), listeners, snapshot, promotions=offered, clock=lambda: 0.0)
        return page_record(home if by is None else by.marked(home), snapshot)

    def title(self, sample: Sample, change: Change, key: int) -> str:
        """The title of an item of a sampled page, or of one made by a change; its key where neither snapshot has it."""
        for snapshot in (change.snapshot, self.snapshot(sample.versions.snapshot)):
            row = -1 if snapshot is None else int(snapshot.rows_of(np.array([key], np.uint64))[0])
            if snapshot is not None and row >= 0:
                start, stop = snapshot.columns["card_offset"][row : row + 2].tolist()
                return home_pb2.Item.FromString(snapshot.cards[start:stop]).title
        return f"{key:016x}"

    def _frames(self, sample: Sample, served: Snapshot, change: Change) -> Frames:
        try:
            frames = sample.listener
        except ValueError as error:
            raise Unreplayable(str(error)) from error
        space = served.manifest.space_id if change.snapshot is None else change.snapshot.manifest.space_id
        if space == served.manifest.space_id:
            return frames
        return replace(frames, records=[change.records(sample.user_id, space)])

    def _query(self, sample: Sample, assigner: Assigner | None) -> HomeQuery:
        versions = sample.versions
        if assigner is None and versions.experiments:
            assigner = self._assigner(versions.experiments)
        surfaces = self._surfaces(versions.surfaces, versions.preset)
        principal = Principal(name="replay", roles=tuple(map(Role, sample.roles)))
        if sample.method == "GetHome":
            request = home_pb2.GetHomeRequest.FromString(sample.request)
            return to_query(request, surfaces, principal, assigner, now=sample.now)
        shelf = home_pb2.GetShelfRequest.FromString(sample.request)
        return to_shelf_query(shelf, surfaces, principal, assigner, now=sample.now)

    def _promoted_by(self, sample: Sample, changed: PromotionBook | None, snapshot: Snapshot) -> Bound | None:
        digest = sample.versions.promotions
        book = changed or (self.promotion_book(digest) if digest else None)
        if book is None:
            return None
        now = {feed.id: sample.now for feed in book.feeds}
        key = book.digest, snapshot.digest
        found = self._bounds[key] = self._bounds.get(key) or bound(book, snapshot)
        return found.confirmed(sample.confirmed if changed is None else now)

    def _snapshot(self, digest: str) -> Snapshot:
        folder = self._state.snapshots / digest
        if not folder.is_dir():
            raise Unreplayable(f"snapshot {digest[:12]} was collected")
        try:
            return load(folder)
        except SnapshotRefused as error:
            raise Unreplayable(f"snapshot {digest[:12]} cannot be loaded: {error}") from error

    def _book(self, digest: str) -> Book:
        return self._kept(experiments.BOOKS, digest)

    def _promotion_book(self, digest: str) -> PromotionBook:
        return self._kept(promotions.BOOKS, digest)

    def _kept(self, kind: Kind[BookT], digest: str) -> BookT:
        kept = kept_book(self.archive, kind.name, digest)
        if kept is None:
            raise Unreplayable(f"{kind.name.removesuffix('s')} book {digest[:12]} is not kept")
        try:
            return kind.read(kept.raw, kept.digest, lambda name: kept.blobs.get(name, b""))
        except BookRefused as error:
            raise Unreplayable(f"{kind.name.removesuffix('s')} book {digest[:12]} cannot be read: {error}") from error

    def _surfaces_of(self, digest: str, preset: str) -> Mapping[str, Surface]:
        path = self.archive.path(SURFACES, digest)
        if not path.exists():
            raise Unreplayable(f"surfaces file {digest[:12]} is not kept")
        try:
            return load_surfaces(path, preset)
        except InvalidInput as error:
            raise Unreplayable(f"surfaces file {digest[:12]} cannot be read: {error}") from error


def check(replayer: Replayer, samples: Iterable[Sample | None]) -> Check:
    """Makes pages again as they were, and compares each with what was served, to the last bit."""
    equal, different, impossible = 0, [], Counter[str]()
    for sample in samples:
        if sample is None:
            impossible["logged by another version of this program"] += 1
            continue
        try:
            page = replayer.page(sample)
        except (Unreplayable, InvalidInput) as error:
            impossible[str(error)] += 1
            continue
        if page == sample.page:
            equal += 1
        else:
            different.append((sample, difference(read_page(sample.page), read_page(page))))
    return Check(equal=equal, different=tuple(different), impossible=impossible)


def compare(replayer: Replayer, samples: Iterable[Sample | None], change: Change, *, k: int) -> Diff:
    """Sets pages as they were served beside what a change would make of them."""
    pairs, impossible = [], Counter[str]()
    for sample in samples:
        if sample is None:
            impossible["logged by another version of this program"] += 1
            continue
        try:
            pairs.append(_pair(sample, read_page(sample.page), read_page(replayer.page(sample, change)), k))
        except (Unreplayable, InvalidInput) as error:
            impossible[str(error)] += 1
    return Diff(pairs=tuple(pairs), impossible=impossible)


def most_changed(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """The pages that a change changes most, by rank-biased overlap."""
    return sorted((pair for pair in pairs if pair.changed), key=lambda pair: (pair.rbo, pair.sample.page_id))[:count]


def _pair(sample: Sample, control: Page, treatment: Page, k: int) -> Pair:
    before, after = _items(control), _items(treatment)
    return Pair(
        sample=sample,
        control=control,
        treatment=treatment,
        overlap=overlap(before, after, k),
        rbo=rbo(before, after),
        changed=_changed(control, treatment),
    )


def _items(page: Page) -> list[int]:
    """A page's items from its top, each once."""
    return list(dict.fromkeys(key for shelf in page["shelves"] for key in shelf["items"]))


def _changed(control: Page, treatment: Page) -> tuple[str, ...]:
    before, after = ({shelf["id"]: shelf["items"] for shelf in page["shelves"]} for page in (control, treatment))
    return tuple(name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name))
