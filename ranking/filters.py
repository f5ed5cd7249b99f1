"""What may not be shown. A filter marks a fate and never deletes; the first mark stays."""

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.snapshot import Limit, Snapshot
from ranking.hidden import among, by_hidden, pairs
from ranking.history import History
from ranking.surfaces import CODES
from ranking.types import Candidates, Fate, HomeQuery, Lines, Pairs

_RESTRICTED: Final = int(Limit.MARKETS)
_EXPLICIT: Final = int(Limit.EXPLICIT)
_WINDOWED: Final = int(Limit.WINDOW)


class Played(NamedTuple):
    """What each listener played, as tables to look rows up in: by their last bits, in the next free slot."""

    start: NDArray[np.int64]  # [query + 1]; query q owns slots start[q]:start[q + 1], a power of two of them
    slots: NDArray[np.int64]  # rows; -1: free


class Rules(NamedTuple):
    """What the filters look at."""

    query: NDArray[np.int64]  # [line]
    genre: NDArray[np.int64]  # [line]; -1: not a genre's shelf
    skip_played: NDArray[np.bool_]  # [line]
    market: NDArray[np.int64]  # [query]; -1: unknown
    allow_explicit: NDArray[np.bool_]  # [query]
    now: NDArray[np.int64]  # [query]
    hidden: Pairs
    hidden_start: NDArray[np.int64]  # [query + 1]; query q hid hidden_artists[hidden_start[q]:hidden_start[q + 1]]
    hidden_artists: NDArray[np.uint64]
    excluded: Pairs
    played: Played
    limits: NDArray[np.uint8]  # [item], as the columns below
    market_bits: NDArray[np.uint64]
    available_from: NDArray[np.int64]
    available_until: NDArray[np.int64]
    genres: NDArray[np.int16]
    artists: NDArray[np.uint64]


@compiled
def _mark(rules: Rules, rows: NDArray[np.int64], fate: NDArray[np.uint8]) -> None:  # a branch a filter
    """The filters in their order."""
    limits, artists, hidden_artists = rules.limits, rules.artists, rules.hidden_artists
    for line in range(rows.shape[0]):
        query, genre, skip_played = rules.query[line], rules.genre[line], rules.skip_played[line]
        market, now, allow_explicit = rules.market[query], rules.now[query], rules.allow_explicit[query]
        hid, hid_end = rules.hidden_start[query], rules.hidden_start[query + 1]
        for place in range(rows.shape[1]):
            row = rows[line, place]
            if fate[line, place] != Fate.KEPT:
                continue
            if limits[row] & _RESTRICTED and unlicensed(rules.market_bits, row, market):
                fate[line, place] = Fate.MARKET
            elif limits[row] & _WINDOWED and unavailable(rules.available_from, rules.available_until, row, now):
                fate[line, place] = Fate.UNAVAILABLE
            elif limits[row] & _EXPLICIT and not allow_explicit:
                fate[line, place] = Fate.EXPLICIT
            elif among(rules.hidden, query, row) or (
                hid < hid_end and by_hidden(hidden_artists, hid, hid_end, artists[row])
            ):
                fate[line, place] = Fate.HIDDEN
            elif among(rules.excluded, query, row):
                fate[line, place] = Fate.EXCLUDED
            elif skip_played and has_played(rules.played, query, row):
                fate[line, place] = Fate.PLAYED
            elif genre >= 0 and off_genre(rules.genres, row, genre):
                fate[line, place] = Fate.OFF_GENRE


@compiled
def _tables(start: NDArray[np.int64], rows: NDArray[np.int64]) -> Played:
    """Twice as many slots as rows at least: a row that is not there, as most are not, is told by its first slot."""
    begin = np.zeros(len(start), np.int64)
    for query in range(len(start) - 1):
        size = 1
        while size < 2 * (start[query + 1] - start[query] + 1):
            size *= 2
        begin[query + 1] = begin[query] + size
    slots = np.full(begin[-1], -1)
    for query in range(len(start) - 1):
        for row in rows[start[query] : start[query + 1]]:
            place, mask = row, begin[query + 1] - begin[query] - 1
            while slots[begin[query] + (place & mask)] >= 0:
                place += 1
            slots[begin[query] + (place & mask)] = row
    return Played(begin, slots)


@compiled
def has_played(played: Played, query: int, row: int) -> bool:
    """Whether the listener of a query plays an item."""
    begin = played.start[query]
    place, mask = row, played.start[query + 1] - begin - 1
    while True:
        found = played.slots[begin + (place & mask)]
        if found < 0 or found == row:
            return bool(found == row)
        place += 1


@compiled
def unlicensed(market_bits: NDArray[np.uint64], row: int, market: int) -> bool:
    """Whether a restricted item is licensed elsewhere only; where the market is unknown (-1), it is doubtful."""
    return market < 0 or (market_bits[row, market // 64] >> np.uint64(market % 64)) & np.uint64(1) == 0


@compiled
def unavailable(available_from: NDArray[np.int64], available_until: NDArray[np.int64], row: int, now: int) -> bool:
    """Whether an item is outside its window of availability."""
    return not available_from[row] <= now < available_until[row]


@compiled
def off_genre(genres: NDArray[np.int16], row: int, wanted: int) -> bool:
    """Whether an item is not of the genre of the shelf that it was found for."""
    for genre in genres[row]:  # noqa: SIM110  # `all` of a generator is not compiled; np.any makes an array each time
        if genre == wanted:
            return False
    return True


def permitted(
    rows: NDArray[np.int64], snapshot: Snapshot, *, market: str, allow_explicit: bool, now: int
) -> NDArray[np.bool_]:
    """Which rows may be shown in a market at a time, whoever the listener is, `[row]`; -1 never."""
    columns, nothing = snapshot.columns, np.empty(0, np.int64)
    rules = Rules(
        query=np.zeros(1, np.int64),
        genre=np.full(1, -1, np.int64),
        skip_played=np.zeros(1, np.bool_),
        market=np.array([snapshot.market_index.get(market, -1)], np.int64),
        allow_explicit=np.array([allow_explicit], np.bool_),
        now=np.array([now], np.int64),
        hidden=nothing,
        hidden_start=np.zeros(2, np.int64),
        hidden_artists=np.empty(0, np.uint64),
        excluded=nothing,
        played=Played(np.arange(2), np.full(1, -1)),
        limits=columns["limits"],
        market_bits=columns["market_bits"],
        available_from=columns["available_from"],
        available_until=columns["available_until"],
        genres=columns["genre"],
        artists=columns["artist_key"],
    )
    fate = np.where(rows < 0, Fate.PADDING, Fate.KEPT).astype(np.uint8)[None]
    _mark(rules, rows[None], fate)
    kept: NDArray[np.bool_] = fate[0] == Fate.KEPT
    return kept


def drop(
    queries: tuple[HomeQuery, ...], lines: Lines, history: History, snapshot: Snapshot, candidates: Candidates
) -> Candidates:
    """Marks every candidate that a filter drops."""
    columns = snapshot.columns
    rules = Rules(
        query=lines.query,
        genre=np.where(lines.source == CODES["genre"], lines.subject, -1),
        skip_played=lines.skip_played,
        market=np.array([snapshot.market_index.get(name, -1) for name in lines.market], np.int64),
        allow_explicit=lines.allow_explicit,
        now=np.array([query.now for query in queries], np.int64),
        hidden=lines.hidden.items,
        hidden_start=lines.hidden.artist_start,
        hidden_artists=lines.hidden.artists,
        excluded=pairs(snapshot, (query.excluded for query in queries)),
        played=_tables(history.start, history.row),
        limits=columns["limits"],
        market_bits=columns["market_bits"],
        available_from=columns["available_from"],
        available_until=columns["available_until"],
        genres=columns["genre"],
        artists=columns["artist_key"],
    )
    fate = candidates.fate.copy()
    _mark(rules, candidates.rows, fate)
    return replace(candidates, fate=fate)
