"""What may not be shown. A filter marks a fate and never deletes; the first mark stays."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.snapshot import Snapshot
from ranking.history import History
from ranking.types import Candidates, Fate, HomeQuery, Lines

Mask = NDArray[np.bool_]  # [line, candidate]
_NONE: Final = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the filters look at: the batch and the candidates before any mark."""

    queries: tuple[HomeQuery, ...]
    lines: Lines
    history: History
    snapshot: Snapshot
    rows: NDArray[np.int64]  # [line, candidate]; padding points at row 0


def market(asked: Asked) -> Mask:
    """Items licensed elsewhere only. Where the market is unknown, every item with a restriction is doubtful."""
    bits = asked.snapshot.columns["market_bits"][asked.rows]  # [line, candidate, word]
    wanted = np.zeros((len(asked.queries), bits.shape[2]), np.uint64)
    for query, name in enumerate(asked.lines.market):
        number = asked.snapshot.market_index.get(name)
        if number is not None:
            wanted[query, number // 64] = np.uint64(1 << (number % 64))
    restricted: Mask = np.any(bits != 0, axis=2)
    allowed: Mask = np.any(bits & wanted[asked.lines.query][:, None, :] != 0, axis=2)
    return restricted & ~allowed


def unavailable(asked: Asked) -> Mask:
    """Items before or after their window of availability."""
    now = np.array([query.now for query in asked.queries], np.int64)[asked.lines.query][:, None]
    columns = asked.snapshot.columns
    late: Mask = (columns["available_from"][asked.rows] > now) | (columns["available_until"][asked.rows] <= now)
    return late


def explicit(asked: Asked) -> Mask:
    """Explicit items, where the listener does not allow them."""
    refused = ~asked.lines.allow_explicit[asked.lines.query][:, None]
    found: Mask = asked.snapshot.columns["explicit"][asked.rows] & refused
    return found


def hidden(asked: Asked) -> Mask:
    """Items that the listener hid."""
    return _among(asked, (query.hidden for query in asked.queries))


def excluded(asked: Asked) -> Mask:
    """Items that the request excludes."""
    return _among(asked, (query.excluded for query in asked.queries))


def played(asked: Asked) -> Mask:
    """Items that the listener played, on shelves that show only what was not."""
    if not asked.lines.skip_played.any():
        return np.zeros(asked.rows.shape, np.bool_)
    pairs = np.sort(asked.history.query << 32 | asked.history.row)
    return _paired(asked, pairs) & asked.lines.skip_played[:, None]


def off_genre(asked: Asked) -> Mask:
    """On a genre's shelf, items that are not of it."""
    genre = np.where(asked.lines.source == "genre", asked.lines.subject, -1)[:, None]
    if not (genre >= 0).any():
        return np.zeros(asked.rows.shape, np.bool_)
    theirs = asked.snapshot.columns["genre"][asked.rows]
    among: Mask = np.any(theirs == genre[:, :, None], axis=2)
    return (genre >= 0) & ~among


FILTERS: Final[tuple[tuple[Fate, Callable[[Asked], Mask]], ...]] = (
    (Fate.MARKET, market),
    (Fate.UNAVAILABLE, unavailable),
    (Fate.EXPLICIT, explicit),
    (Fate.HIDDEN, hidden),
    (Fate.EXCLUDED, excluded),
    (Fate.PLAYED, played),
    (Fate.OFF_GENRE, off_genre),
)


def drop(
    queries: tuple[HomeQuery, ...], lines: Lines, history: History, snapshot: Snapshot, candidates: Candidates
) -> Candidates:
    """Marks every candidate that a filter drops."""
    rows = np.maximum(candidates.rows, 0)
    asked = Asked(queries=queries, lines=lines, history=history, snapshot=snapshot, rows=rows)
    fate = candidates.fate.copy()
    for mark, finds in FILTERS:
        fate[finds(asked) & (fate == Fate.KEPT)] = mark
    return replace(candidates, fate=fate)


def _among(asked: Asked, keys: Iterable[NDArray[np.uint64] | None]) -> Mask:
    """Which candidates are among each query's keys: one search over (query, row) pairs for the whole batch."""
    per_query = [_NONE if found is None else found for found in keys]
    lengths = [len(found) for found in per_query]
    if not sum(lengths):
        return np.zeros(asked.rows.shape, np.bool_)
    rows = asked.snapshot.rows_of(np.concatenate(per_query))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return _paired(asked, np.sort((owner << 32 | rows)[rows >= 0]))


def _paired(asked: Asked, pairs: NDArray[np.int64]) -> Mask:
    """Which candidates are among ascending (query, row) pairs."""
    if not len(pairs):
        return np.zeros(asked.rows.shape, np.bool_)
    wanted = asked.lines.query[:, None] << 32 | asked.rows
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    found: Mask = pairs[place] == wanted
    return found
