"""What may not be shown. A filter marks a fate and never deletes; the first mark stays."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.snapshot import Limit, Snapshot
from ranking.compiled import compiled
from ranking.history import History
from ranking.types import Candidates, Fate, HomeQuery, Lines

Pairs = NDArray[np.int64]  # query << 32 | row, ascending
_NONE: Final = np.empty(0, np.uint64)
_RESTRICTED: Final = int(Limit.MARKETS)
_EXPLICIT: Final = int(Limit.EXPLICIT)
_WINDOWED: Final = int(Limit.WINDOW)


class Asked(NamedTuple):
    """What the filters look at."""

    query: NDArray[np.int64]  # [line]
    genre: NDArray[np.int64]  # [line]; -1: not a genre's shelf
    skip_played: NDArray[np.bool_]  # [line]
    market: NDArray[np.int64]  # [query]; -1: unknown
    allow_explicit: NDArray[np.bool_]  # [query]
    now: NDArray[np.int64]  # [query]
    hidden: Pairs
    excluded: Pairs
    played: Pairs
    limits: NDArray[np.uint8]  # [item], as the columns below
    market_bits: NDArray[np.uint64]
    available_from: NDArray[np.int64]
    available_until: NDArray[np.int64]
    genres: NDArray[np.int16]


@compiled
def _mark(asked: Asked, rows: NDArray[np.int64], fate: NDArray[np.uint8]) -> None:  # a branch a filter
    """The filters in their order."""
    limits = asked.limits
    for line in range(rows.shape[0]):
        query, genre, skip_played = asked.query[line], asked.genre[line], asked.skip_played[line]
        market, now, allow_explicit = asked.market[query], asked.now[query], asked.allow_explicit[query]
        for place in range(rows.shape[1]):
            row = rows[line, place]
            if fate[line, place] != Fate.KEPT:
                continue
            if limits[row] & _RESTRICTED and unlicensed(asked.market_bits, row, market):
                fate[line, place] = Fate.MARKET
            elif limits[row] & _WINDOWED and unavailable(asked.available_from, asked.available_until, row, now):
                fate[line, place] = Fate.UNAVAILABLE
            elif limits[row] & _EXPLICIT and not allow_explicit:
                fate[line, place] = Fate.EXPLICIT
            elif among(asked.hidden, query, row):
                fate[line, place] = Fate.HIDDEN
            elif among(asked.excluded, query, row):
                fate[line, place] = Fate.EXCLUDED
            elif skip_played and among(asked.played, query, row):
                fate[line, place] = Fate.PLAYED
            elif genre >= 0 and off_genre(asked.genres, row, genre):
                fate[line, place] = Fate.OFF_GENRE


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
    return not np.any(genres[row] == wanted)


@compiled
def among(pairs: Pairs, query: int, row: int) -> bool:
    """Whether the listener hid or played an item, or the request excludes it."""
    wanted, low, high = query << 32 | row, 0, len(pairs)
    while low < high:
        middle = (low + high) // 2
        if pairs[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low < len(pairs) and pairs[low] == wanted


def drop(
    queries: tuple[HomeQuery, ...], lines: Lines, history: History, snapshot: Snapshot, candidates: Candidates
) -> Candidates:
    """Marks every candidate that a filter drops."""
    columns = snapshot.columns
    asked = Asked(
        query=lines.query,
        genre=np.where(lines.source == "genre", lines.subject, -1),
        skip_played=lines.skip_played,
        market=np.array([snapshot.market_index.get(name, -1) for name in lines.market], np.int64),
        allow_explicit=lines.allow_explicit,
        now=np.array([query.now for query in queries], np.int64),
        hidden=_pairs(snapshot, (query.hidden for query in queries)),
        excluded=_pairs(snapshot, (query.excluded for query in queries)),
        played=np.sort(history.query << 32 | history.row),
        limits=columns["limits"],
        market_bits=columns["market_bits"],
        available_from=columns["available_from"],
        available_until=columns["available_until"],
        genres=columns["genre"],
    )
    fate = candidates.fate.copy()
    _mark(asked, candidates.rows, fate)
    return replace(candidates, fate=fate)


def _pairs(snapshot: Snapshot, keys: Iterable[NDArray[np.uint64] | None]) -> Pairs:
    """The rows of each query's item keys: one look-up for the whole batch."""
    per_query = [_NONE if found is None else found for found in keys]
    lengths = [len(found) for found in per_query]
    if not sum(lengths):
        return np.empty(0, np.int64)
    rows = snapshot.rows_of(np.concatenate(per_query))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    found: NDArray[Any] = (owner << 32 | rows)[rows >= 0]
    return np.sort(found)
