"""Promotion, the last stage: promoted items are inserted into the finished organic pages, from the top shelf down.

What may cost or fill a share of the page is counted from its top through each shelf: the whole page is promoted, and
only then cut into the pages that a client turns. The organic pages stay as they are, beside the promoted ones.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.snapshot import Snapshot
from ranking.history import DAY_S, History
from ranking.insertion import Ranked, Standing, insert
from ranking.layout import NEW_DAYS
from ranking.offers import SOURCES, Audience, Flags, Ints, Promotions, Records, market_bit, offer
from ranking.params import INDEX, Params
from ranking.score import relevance
from ranking.surfaces import PROMOTABLE
from ranking.types import Candidates, Fate, HomeQuery, Insertion, Lines, Pages

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]
_SHARE: Final = INDEX["promotion_share"]
_SHOWN: Final = int(Fate.SHOWN)  # numba compares arrays with numbers only


def _none() -> Ints:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """Pages with promotion, and what they are without."""

    pages: Pages
    organic: Pages
    placed: "Placed | None" = None  # None: the pages are the organic ones
    eligible: Ints = field(default_factory=_none)  # query << 32 | campaign that could have promoted something there

    def inserted(self, line: int) -> Insertion | None:
        """What promotion did to a shelf; None: nothing."""
        if self.placed is None or not self.placed.counts[line]:
            return None
        shown = self.pages.shown[line]
        return Insertion(
            campaign=self.placed.campaign[line, :shown],
            organic_rank=self.placed.rank[line, :shown],
            organic=self.organic.rows[line, :shown],
        )


class Placed(NamedTuple):
    """What stands on pages by promotion."""

    counts: Ints  # [line]
    campaign: Ints  # [line, item]; -1: none
    rank: Ints  # [line, item], the place in the organic order


class Batch(NamedTuple):
    """What pages are promoted by."""

    first: Ints  # [query + 1], the lines of each
    query: Ints  # [line]
    promotable: Flags  # [line]
    params: Params  # [line, param]
    page_params: Params  # [query, param]
    once: Flags  # [query], a recording stands once on the page
    now: Ints  # [query], unix seconds
    artist: Keys  # [item], as the columns below
    album: Keys
    recording: Keys
    released: NDArray[np.int32]


class Found(NamedTuple):
    """What lines may show, and what promotes it."""

    rows: Ints  # [line, candidate]
    scores: Floats  # [line, candidate]
    picks: Ints  # [line, pick]
    campaign: Ints  # [line, pick]; -1: none
    bonus: Floats  # [line, pick]


def promote(  # noqa: PLR0913, PLR0917  # the last stage sees what all others made
    queries: tuple[HomeQuery, ...],
    lines: Lines,
    history: History,
    snapshot: Snapshot,
    candidates: Candidates,
    pages: Pages,
    promotions: Promotions | None,
) -> Promoted:
    """The pages with promoted items inserted; with nothing to promote they are the organic ones themselves."""
    if promotions is None or not len(promotions.scores) or not promotions.allowed.any():
        return Promoted(pages=pages, organic=pages)
    rows, picks, audience = candidates.rows, candidates.picks, _audience(queries, lines, history, pages)
    offers = offer(promotions, audience, rows, picks)
    if not len(offers.eligible):
        return Promoted(pages=pages, organic=pages)
    columns = snapshot.columns
    batch = Batch(
        first=lines.first,
        query=lines.query,
        promotable=audience.promotable,
        params=lines.params,
        page_params=lines.page_params,
        once=np.array([query.surface.dedupe for query in queries], np.bool_),
        now=audience.now,
        artist=columns["artist_key"],
        album=columns["album_key"],
        recording=columns["recording_key"],
        released=columns["released"],
    )
    changed = ("rows", "scores", "new", "fate", "fates")
    promoted = pages._replace(**{name: getattr(pages, name).copy() for name in changed})
    nowhere = np.full(pages.rows.shape, -1, np.int64)
    placed = Placed(np.zeros(len(lines), np.int64), nowhere, nowhere.copy())
    found = Found(rows, candidates.scores, picks, offers.campaign, offers.bonus)
    _promote(promotions.campaigns, batch, found, promoted, placed)
    return Promoted(pages=promoted, organic=pages, placed=placed, eligible=offers.eligible)


def _audience(queries: tuple[HomeQuery, ...], lines: Lines, history: History, pages: Pages) -> Audience:
    return Audience(
        first=lines.first,
        promotable=np.array([spec.promotable and spec.source in PROMOTABLE for spec in lines.specs], np.bool_)
        & (lines.params[:, _SHARE] > 0),
        source=np.array([SOURCES.get(spec.source, 0) for spec in lines.specs], np.int64),
        shown=pages.shown,
        params=lines.params,
        page_params=lines.page_params,
        now=np.array([query.now for query in queries], np.int64),
        market=np.array([market_bit(market) for market in lines.market], np.int64),
        start=history.start,
        played=history.row,
        day=history.day,
    )


@compiled
def _promote(campaigns: Records, batch: Batch, found: Found, pages: Pages, placed: Placed) -> None:
    for query in range(len(batch.first) - 1):
        own = slice(batch.first[query], batch.first[query + 1])
        if not np.any(found.campaign[own] >= 0):
            continue
        page = _standing(batch, query, found.rows[own], pages.fate[own])
        for line in pages.order[query]:
            if line < 0:
                break
            if not batch.promotable[line]:
                page.counts[0] += pages.shown[line]
                continue
            order = _in_order(found.picks[line], pages.fate[line])
            ranked = _ranked(campaigns, batch, found, pages, line, order)
            slate, moved = insert(ranked, batch.params[line], batch.page_params[query], page)
            if not np.any(moved):
                continue
            _show(batch, found, pages, line, found.picks[line][order], slate)
            for place in range(len(slate)):
                placed.rank[line, place] = slate[place]
                if moved[slate[place]]:
                    placed.campaign[line, place] = ranked.campaign[slate[place]]
                    placed.counts[line] += 1


@compiled
def _standing(batch: Batch, query: int, rows: Ints, fate: NDArray[np.uint8]) -> Standing:
    """The organic page."""
    stands = fate == _SHOWN
    row = np.empty(np.sum(stands), np.int64)
    count = 0
    for line in range(rows.shape[0]):
        for place in range(rows.shape[1]):
            if stands[line, place]:
                row[count] = rows[line, place]
                count += 1
    return Standing(
        row,
        batch.recording[row],
        batch.artist[row],
        batch.once[query],
        np.zeros(count, np.uint64),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(2, np.int64),
        np.zeros(2),
    )


@compiled
def _in_order(picks: Ints, fate: NDArray[np.uint8]) -> Ints:
    """A line's picks, those that stand first."""
    count = 0
    while count < len(picks) and picks[count] >= 0:
        count += 1
    stands = fate[picks[:count]] == _SHOWN
    return np.concatenate((np.flatnonzero(stands), np.flatnonzero(~stands)))


@compiled
def _ranked(campaigns: Records, batch: Batch, found: Found, pages: Pages, line: int, order: Ints) -> Ranked:
    """A line in its organic order, with what promotes it."""
    places, campaign = found.picks[line][order], found.campaign[line][order]
    row, payer = found.rows[line][places], np.full(len(order), -1)
    for rank in range(len(order)):
        if campaign[rank] >= 0:
            payer[rank] = campaigns[campaign[rank]].payer
    return Ranked(
        pages.shown[line],
        relevance(found.scores[line], pages.fate[line], places),
        found.bonus[line][order],
        row,
        batch.artist[row],
        batch.album[row],
        batch.recording[row],
        campaign,
        payer,
        pages.open[line],
    )


@compiled
def _show(batch: Batch, found: Found, pages: Pages, line: int, places: Ints, slate: Ints) -> None:
    """Puts a slate in a line's place, and tells what came and what gave way."""
    query, shown = batch.query[line], len(slate)
    for place in range(shown):
        row = found.rows[line, places[slate[place]]]
        pages.rows[line, place] = row
        pages.scores[line, place] = found.scores[line, places[slate[place]]]
        pages.new[line, place] = 0 <= batch.now[query] // DAY_S - batch.released[row] < NEW_DAYS
    for rank in range(len(places)):
        stands = np.any(slate == rank)
        if stands != (rank < shown):
            fate = Fate.SHOWN if stands else Fate.GAVE_WAY
            pages.fates[query, pages.fate[line, places[rank]]] -= 1
            pages.fates[query, fate] += 1
            pages.fate[line, places[rank]] = fate
