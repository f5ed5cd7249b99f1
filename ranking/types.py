"""The values that a request passes through: query, lines, candidates, page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranking.experiments.assignment import Assigner, Assignment
from ranking.params import Params
from ranking.promotions.spec import Mark
from ranking.surfaces import ShelfSpec, Surface, Why

WORLDWIDE: Final = ""
Pairs = NDArray[np.int64]  # query << 32 | row, ascending


class Fate(IntEnum):
    """What became of a candidate. The first mark stays."""

    KEPT = 0  # passed every filter: in reserve, or shown
    SHOWN = 1
    PADDING = 2  # no candidate: the row's line is shorter than the longest
    MARKET = 3  # not licensed in the listener's market
    UNAVAILABLE = 4  # outside its window of availability
    EXPLICIT = 5  # marked explicit, and the listener does not allow it
    HIDDEN = 6  # the listener hid it or its artist
    EXCLUDED = 7  # the request excludes it
    PLAYED = 8  # played already, on a shelf that shows only what was not
    OFF_GENRE = 9  # found for a genre's shelf, but not of the genre
    CAPPED = 10  # its artist or album has its share of the line already
    DUPLICATE = 11  # it, or another release of its recording, stands on another shelf
    THIN = 12  # its shelf had too few items left to be shown
    PICKED = 13  # chosen for its line, not yet laid out; none is left when the page is
    SAME_RECORDING = 14  # another release of its recording is the better one of the line
    PAGE_CAPPED = 15  # its artist has its share of the page already
    LATER = 16  # stands on a later page
    GAVE_WAY = 17  # stood on its shelf until a promoted item was inserted
    OUTDRAWN = 18  # stood on its shelf until exploration drew another for its place


class Degraded(StrEnum):
    """What made a page lesser; the names are those of the contract."""

    LISTENER_LATE = "LISTENER_LATE"
    LISTENER_INVALID = "LISTENER_INVALID"
    STORE_DOWN = "STORE_DOWN"
    RETRIEVAL_PARTIAL = "RETRIEVAL_PARTIAL"
    RETRIEVAL_DOWN = "RETRIEVAL_DOWN"
    SNAPSHOT_STALE = "SNAPSHOT_STALE"
    EXPERIMENTS_STALE = "EXPERIMENTS_STALE"
    PROMOTIONS_OFF = "PROMOTIONS_OFF"
    BLOCKLIST_UNKNOWN = "BLOCKLIST_UNKNOWN"
    PAGING_OFF = "PAGING_OFF"
    DEADLINE_SHORT = "DEADLINE_SHORT"


def _no_keys() -> NDArray[np.uint64]:
    return np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeQuery:
    """One request, validated and resolved."""

    user_id: str
    surface: Surface
    now: int  # unix seconds
    market: str = WORLDWIDE  # "": as the listener's record says
    allow_explicit: bool | None = None  # None: as the listener's record says
    excluded: NDArray[np.uint64] = field(default_factory=_no_keys)  # item keys
    hidden: NDArray[np.uint64] | None = None  # item keys as the client knows them; None: not said
    shelves: int = 0  # how many to answer from the top; 0: all
    items: int = 0  # how many of each shelf to answer; 0: all
    session: int = 0  # low 32 bits of the hash of the client's session id; 0: it named none
    seed: int = 0  # of (user, session, surface): what makes a discover shelf differ between sessions
    given: NDArray[np.uint64] = field(default_factory=_no_keys)  # item keys of the caller's own candidates
    near: int = 0  # item key that given candidates are ranked by nearness to; 0: by the listener's taste
    traced: bool = False  # whether the page tells what became of every candidate
    about: int = 0  # item key that a traced page tells more of; 0: none
    explained: bool = False  # an engineer asks: it is not counted as served
    narrow: bool = (
        False  # no time for a whole page: neither searched shelves, where others are left, nor diversity nor chance
    )
    device: str = ""
    locale: str = ""
    assigner: Assigner | None = None  # of the experiment book in force when the request came; None: there is none
    forced: Mapping[str, Assignment] = field(default_factory=dict)  # by layer
    fixed: frozenset[tuple[str, int]] = frozenset()  # what no arm overrides: shelf ("": any) and place of a param
    assignments: tuple[Assignment, ...] = ()  # once it is assigned: the arms that it is served with


class Hidden(NamedTuple):
    """What the listeners of a batch hid."""

    items: Pairs
    artist_start: NDArray[np.int64]  # [query + 1]; query q hid artists[artist_start[q]:artist_start[q + 1]]
    artists: NDArray[np.uint64]  # artist keys, ascending for each


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The batch's queries to be filled: one line for each shelf of each request, `[line]` unless said otherwise."""

    query: NDArray[np.int64]  # which request of the batch
    first: NDArray[np.int64]  # [query + 1]; query q owns lines first[q]:first[q + 1]
    slot: NDArray[np.int64]  # which shelf of its surface
    pinned: NDArray[np.bool_]  # stands on top, in the surface's order
    depth: NDArray[np.int64]  # how many candidates it may have
    size: NDArray[np.int64]  # how many items it shows
    minimum: NDArray[np.int64]  # with fewer it is dropped
    skip_played: NDArray[np.bool_]
    source: NDArray[np.int64]  # its code
    subject: NDArray[np.int64]  # the row that neighbours or given items are near to, or the genre; -1: none
    why: tuple[Why, ...]  # [line], what its reason speaks of
    params: Params  # [line, param]
    page_params: Params  # [query, param]
    specs: tuple[ShelfSpec, ...]
    market: tuple[str, ...]  # [query], resolved
    allow_explicit: NDArray[np.bool_]  # [query], resolved
    hidden: Hidden

    def __len__(self) -> int:
        """How many lines."""
        return len(self.specs)

    def take(self, chosen: NDArray[np.int64]) -> "Lines":
        """Some of the lines, of the same queries."""
        columns = ("query", "slot", "pinned", "depth", "size", "minimum", "skip_played", "source", "subject", "params")
        picked = {name: getattr(self, name)[chosen] for name in columns}
        first = np.searchsorted(picked["query"], np.arange(len(self.first)))
        specs, why = (tuple(column[line] for line in chosen.tolist()) for column in (self.specs, self.why))
        return replace(self, **picked, first=first, specs=specs, why=why)


def _no_picks() -> NDArray[np.int64]:
    return np.empty((0, 0), np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What was found for each line, `[line, candidate]`; -1 rows are padding."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]  # what retrieval found, then what orders the line
    fate: NDArray[np.uint8]
    picks: NDArray[np.int64] = field(default_factory=_no_picks)  # [line, pick], places in the order of choice; -1: none


def joined(candidates: Candidates, lines: NDArray[np.int64], more: Candidates) -> Candidates:
    """The candidates, with more for some lines behind them; what a line has already is not added."""
    width = candidates.rows.shape[1]
    wider = ((0, 0), (0, more.rows.shape[1]))
    rows = np.pad(candidates.rows, wider, constant_values=-1)
    scores = np.pad(candidates.scores, wider, constant_values=-np.inf)
    fate = np.pad(candidates.fate, wider, constant_values=Fate.PADDING)
    for number, line in enumerate(lines.tolist()):
        new = ~np.isin(more.rows[number], candidates.rows[line])
        rows[line, width:][new] = more.rows[number, new]
        scores[line, width:][new] = more.scores[number, new]
        fate[line, width:][new] = more.fate[number, new]
    return Candidates(rows=rows, scores=scores, fate=fate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Insertion:
    """What promotion did to a shelf, beside the slate that it would have been without."""

    campaign: NDArray[np.int64]  # [item], by which it stands higher than it would, or at all; -1: it does not
    organic_rank: NDArray[np.int64]  # [item], its place from 0 in the organic order; not below the length: behind it
    organic: NDArray[np.int64]  # [item], the rows of the shelf without promotion


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """One row of a page: items best first."""

    spec: ShelfSpec
    why: Why  # what its reason speaks of
    subject: int  # the row that neighbours or given items are near to, or the genre; -1: none
    rows: NDArray[np.int64]  # [item]
    scores: NDArray[np.float64]  # [item]
    new: NDArray[np.bool_]  # [item], whether it was released of late
    propensity: NDArray[np.float64]  # [item], with which probability it stands there; 1 where nothing is left to chance
    inserted: Insertion | None = None  # None: nothing stands by promotion


def parted(shelf: Shelf, count: int) -> tuple[Shelf, Shelf]:
    """The first items of a shelf, and the rest of them."""
    first, rest = (_some(shelf, part) for part in (slice(count), slice(count, None)))
    return first, rest


def _some(shelf: Shelf, part: slice) -> Shelf:
    was = shelf.inserted
    inserted = was and Insertion(
        campaign=was.campaign[part], organic_rank=was.organic_rank[part], organic=was.organic[part]
    )
    columns = {name: getattr(shelf, name)[part] for name in ("rows", "scores", "new", "propensity")}
    return replace(shelf, **columns, inserted=inserted)


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedLine:
    """What became of every candidate of a line, in the order of its choice, `[candidate]`, padding left out."""

    spec: ShelfSpec
    subject: int
    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    terms: Mapping[str, NDArray[np.float64]]  # what each score is made of
    fate: NDArray[np.uint8]
    explored: int  # the row that stands in the place left to chance; -1: there is none
    propensity: float  # with which probability it stands there
    refused: Fate  # what a filter says of the item asked about, found or not; KEPT: nothing, or none is asked about
    missed_by: float  # how much more affinity the item asked about had needed to be found; nan: not asked, or no search


class Pages(NamedTuple):
    """How the lines of a batch stand on their pages."""

    order: NDArray[np.int64]  # [query, shelf], lines from the top; -1: no more
    shown: NDArray[np.int64]  # [line], how many items
    rows: NDArray[np.int64]  # [line, item]
    scores: NDArray[np.float64]  # [line, item]
    new: NDArray[np.bool_]  # [line, item], released of late
    open: NDArray[np.int64]  # [line], the place, from 0, that is left to chance: promotion leaves it alone; -1: none
    propensity: NDArray[np.float64]  # [line, item]
    fate: NDArray[np.uint8]  # [line, candidate]
    fates: NDArray[np.int64]  # [query, fate], how many candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """One page, and how it came to be."""

    shelves: tuple[Shelf, ...]  # what is answered
    market: str  # resolved
    cold_start: bool
    degraded: tuple[Degraded, ...]
    coverage: int  # percent of lines whose retrieval answered
    fates: Mapping[Fate, int]  # padding excluded
    folded_in: bool = False  # the listener's vector comes from recent plays
    assignments: tuple[Assignment, ...] = ()
    experiment_book: str = ""  # its digest; "": there is none
    promotion_book: str = ""  # likewise
    campaigns: Sequence[Mark] = ()  # of that book: what stands by promotion names them by number
    lines: tuple[TracedLine, ...] = ()  # where the query is traced
    later: tuple[Shelf, ...] = ()  # what stands below: shelves, or more of the one that is answered
    allow_explicit: bool = False  # resolved

    @property
    def placed(self) -> list[int]:
        """The campaign of each item that stands by promotion, from the top."""
        inserted = (shelf.inserted.campaign for shelf in self.shelves if shelf.inserted is not None)
        return [campaign for column in inserted for campaign in column.tolist() if campaign >= 0]


def _no_pairs() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """How long each stage took for a batch, in seconds, in order; and what promotion had to choose from."""

    stages: tuple[tuple[str, float], ...]
    eligible: NDArray[np.int64] = field(default_factory=_no_pairs)  # query << 32 | campaign that it could promote
