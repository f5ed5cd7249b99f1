"""Constrained insertion: promoted items stand higher on a finished shelf, as far as its guardrails let them.

Relevance orders, and promotion never changes it: an item's key is its relevance plus its bonus, and it may stand where
the first organic item has less. Every insertion shifts those before it, so all of the slate is checked again on a trial
of it, and a trial that breaks a rule is given up. What then stands by promotion stands higher than it would without.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from ranking.params import INDEX, Params

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]
Flags = NDArray[np.bool_]

_SHARE, _FIRST, _GAP, _DEPTH, _FLOOR, _LOSS, _PAGE_LOSS, _PAGE_SHARE = (
    INDEX[f"promotion_{name}"]
    for name in ("share", "first", "gap", "depth", "floor", "loss", "page_loss", "page_share")
)
_OF_ARTIST, _OF_CAMPAIGN, _OF_PAYER = (INDEX[f"promotion_{name}_cap"] for name in ("artist", "campaign", "payer"))
_ARTIST_CAP, _ALBUM_CAP, _ARTIST_GAP, _PAGE_ARTIST_CAP = (
    INDEX[name] for name in ("artist_cap", "album_cap", "artist_gap", "page_artist_cap")
)
_TOP: Final = 3  # the first places, of which promotion may take few
_ROUNDING: Final = 1e-9  # 0.29 * 100 is less than 29


class Ranked(NamedTuple):
    """A shelf's organic order, `[rank]`: the first `shown` stand on it, the others behind."""

    shown: int
    relevance: Floats  # 0-1
    bonus: Floats  # 0: not promoted
    row: Ints
    artist: Keys  # 0: none
    album: Keys
    recording: Keys
    campaign: Ints
    payer: Ints
    held: int  # the place that is left to chance: whatever stands there stays; -1: none


class Standing(NamedTuple):
    """A page as it stands while promotion goes down its shelves."""

    row: Ints  # [place], of all its shelves, in no order; as the columns below
    recording: Keys
    artist: Keys
    once: bool  # a recording stands on it once
    artists: Keys  # [number], what stands by promotion so far, as the columns below
    campaigns: Ints
    payers: Ints
    counts: Ints  # [2], items from the top so far; of them by promotion
    worth: Floats  # [2], of the shelves so far: without promotion; as they stand


@compiled
def insert(ranked: Ranked, params: Params, page_params: Params, page: Standing) -> tuple[Ints, Flags]:
    """The slate of a shelf, `[place]` its ranks, and which ranks stand there by promotion; the page is told of it."""
    slate, moved = np.arange(ranked.shown), np.zeros(len(ranked.row), np.bool_)
    organic = worth(ranked.relevance, slate)
    now, used = organic, 0
    page.counts[0] += ranked.shown
    most = quota(params[_SHARE], page_params[_PAGE_SHARE], ranked.shown, page.counts)
    for rank in _by_key(ranked, params) if organic > 0 else np.empty(0, np.int64):
        if used == most:
            break
        place = _target(ranked, slate, moved, rank, params)
        gone = _gives_way(ranked, slate, moved, rank)
        if place == ranked.shown or gone < 0 or np.any(slate[: place + 1] == rank):
            continue
        trial = _trial(ranked, slate, gone, place, rank)
        then = worth(ranked.relevance, trial)
        moved[rank] = (
            1 - then / organic <= params[_LOSS]
            and 1 - (page.worth[1] + then) / (page.worth[0] + organic) <= page_params[_PAGE_LOSS]
            and _within_caps(ranked, rank, gone, page, page_params)
            and _within_shelf(ranked, trial, rank, params)
        )
        if moved[rank] and not _spaced(ranked, trial, moved, params):
            moved[rank] = False
        if moved[rank]:
            slate, now, used = trial, then, used + 1
            _note(ranked, rank, gone, page)
    page.worth[0] += organic
    page.worth[1] += now
    return slate, moved


@compiled
def worth(relevance: Floats, slate: Ints) -> float:
    """The relevance of a slate, discounted by place as DCG is: sum of r / log2(place + 2), places from 0."""
    total = 0.0
    for place in range(len(slate)):
        total += relevance[slate[place]] / np.log2(place + 2.0)
    return total


@compiled
def quota(share: float, page_share: float, shown: int, counts: Ints) -> int:
    """How many items of a shelf may stand by promotion: its share, but one at least, and what the page has left."""
    own = max(1, int(share * shown + _ROUNDING)) if share > 0 else 0
    return max(0, min(own, int(page_share * counts[0] + _ROUNDING) - int(counts[1])))


@compiled
def _by_key(ranked: Ranked, params: Params) -> Ints:
    """The ranks that may be promoted, by relevance and bonus, ties by rank."""
    deep = min(int(params[_DEPTH] * ranked.shown + _ROUNDING), len(ranked.row))
    may = (ranked.bonus[:deep] > 0) & (ranked.relevance[:deep] >= params[_FLOOR])
    some = np.flatnonzero(may & (np.arange(deep) != ranked.held))
    return some[np.argsort(-(ranked.relevance[some] + ranked.bonus[some]), kind="mergesort")]


@compiled
def _target(ranked: Ranked, slate: Ints, moved: Flags, rank: int, params: Params) -> int:
    """The highest place whose organic item has less than the key, and that spacing leaves free; the length: none."""
    key, place, size = ranked.relevance[rank] + ranked.bonus[rank], 0, len(slate)
    while place < size and (place == ranked.held or moved[slate[place]] or ranked.relevance[slate[place]] >= key):
        place += 1
    while place < size and (place == ranked.held or not _free(slate, moved, place, params)):
        place += 1
    return place


@compiled
def _free(slate: Ints, moved: Flags, place: int, params: Params) -> bool:
    gap, first = int(params[_GAP]), 0
    for other in range(len(slate)):
        if moved[slate[other]]:
            first += other < _TOP
            if abs(other - place) < gap:
                return False
    return place >= _TOP or first < int(params[_FIRST])


@compiled
def _gives_way(ranked: Ranked, slate: Ints, moved: Flags, rank: int) -> int:
    """What an insertion takes off: the item itself where it stands lower, else the lowest organic one; -1: none."""
    if np.any(slate == rank):
        return rank
    for other in slate[::-1]:
        if not moved[other] and other != ranked.held:
            return int(other)
    return -1


@compiled
def _trial(ranked: Ranked, slate: Ints, gone: int, place: int, rank: int) -> Ints:
    """The slate with a rank inserted; what is held, of a rank like its place, stays where it is."""
    held = ranked.held
    left = slate[(slate != gone) & (slate != held)]
    at = place - 1 if 0 <= held < place else place
    trial = np.concatenate((left[:at], np.array([rank]), left[at:]))
    return trial if held < 0 else np.concatenate((trial[:held], np.array([held]), trial[held:]))


@compiled
def _spaced(ranked: Ranked, trial: Ints, moved: Flags, params: Params) -> bool:
    """Whether all that stands by promotion is above its organic rank, and as far apart as it must."""
    gap, artist_gap, last, first = int(params[_GAP]), int(params[_ARTIST_GAP]), -len(trial) - 20, 0
    for place in range(len(trial)):
        rank = trial[place]
        if not moved[rank]:
            continue
        if place >= rank or place - last < gap:
            return False
        last, first = place, first + (place < _TOP)
        for near in range(max(place - artist_gap, 0), min(place + artist_gap + 1, len(trial))):
            if near != place and ranked.artist[rank] > 0 and ranked.artist[trial[near]] == ranked.artist[rank]:
                return False
    return first <= int(params[_FIRST])


@compiled
def _within_shelf(ranked: Ranked, trial: Ints, rank: int, params: Params) -> bool:
    """Whether the artist and the album of an item have no more than their share of the slate."""
    artists, albums = (
        np.sum(ranked.artist[trial] == ranked.artist[rank]),
        np.sum(ranked.album[trial] == ranked.album[rank]),
    )
    artist_cap, album_cap = int(params[_ARTIST_CAP]), int(params[_ALBUM_CAP])
    return (ranked.artist[rank] == 0 or artist_cap == 0 or artists <= artist_cap) and (
        ranked.album[rank] == 0 or album_cap == 0 or albums <= album_cap
    )


@compiled
def _within_caps(ranked: Ranked, rank: int, gone: int, page: Standing, page_params: Params) -> bool:
    """Whether the page keeps each recording once, and artist, campaign and payer within their caps."""
    artist, cap, held = ranked.artist[rank], int(page_params[_PAGE_ARTIST_CAP]), page.counts[1]
    if gone != rank:
        if page.once and np.any(page.recording == ranked.recording[rank]):
            return False
        if artist > 0 and 0 < cap < 1 + np.sum(page.artist == artist) - (ranked.artist[gone] == artist):
            return False
    return (
        (artist == 0 or _open(page_params[_OF_ARTIST], np.sum(page.artists[:held] == artist)))
        and _open(page_params[_OF_CAMPAIGN], np.sum(page.campaigns[:held] == ranked.campaign[rank]))
        and _open(page_params[_OF_PAYER], np.sum(page.payers[:held] == ranked.payer[rank]))
    )


@compiled
def _open(cap: float, held: int) -> bool:
    return int(cap) == 0 or held < int(cap)


@compiled
def _note(ranked: Ranked, rank: int, gone: int, page: Standing) -> None:
    """Tells the page of an insertion."""
    place = np.flatnonzero(page.row == ranked.row[gone])[0]
    page.row[place], page.recording[place] = ranked.row[rank], ranked.recording[rank]
    page.artist[place] = ranked.artist[rank]
    held = page.counts[1]
    page.artists[held], page.campaigns[held] = ranked.artist[rank], ranked.campaign[rank]
    page.payers[held] = ranked.payer[rank]
    page.counts[1] += 1
