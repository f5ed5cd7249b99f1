"""The lists that need no listener: popular and newest, worldwide and by market."""

from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.offline.catalogue import Catalogue
from features.offline.history import History
from features.snapshot import UNKNOWN_DAY

DEPTH: Final = 1_000
SHELF: Final = 12
"""Items that fill a shelf."""
WORLD_WEIGHT: Final = 0.5
"""How much the world's taste counts in a market: with a few local plays nearly all, with many nearly nothing."""

Rows = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Rows of items, `[1 + market, depth]`, best first, -1 where there are no more; row 0 is of no market."""

    popular: Rows
    newest: Rows


def make_lists(history: History, catalogue: Catalogue, plays: NDArray[np.int64]) -> Lists:
    """Orders the items for each market: none that it may not show, none whose time was over by `history.now`.

    Row 0 is for who is of no known market, and so holds only what every market may show.

    Popular is by log(1 + plays in the market) + WORLD_WEIGHT log(1 + plays), so that one listener's favourite does not
    lead a thin market; newest by day of release, then plays. Ties go to the lower row. `plays` is `[item]`.
    """
    depth = min(DEPTH, catalogue.items)
    world = np.log1p(plays)
    current = _current(history, catalogue)
    by_release = _by_release(history, catalogue, plays)
    everywhere = current & catalogue.everywhere
    popular = [_best(world, everywhere, depth)]
    newest = [_first(by_release, everywhere, depth)]
    for market in range(len(catalogue.markets)):
        allowed = current & catalogue.allowed(market)
        local = np.log1p(_plays_in(history, market, catalogue.items))
        popular.append(_best(local + WORLD_WEIGHT * world, allowed, depth))
        newest.append(_first(by_release, allowed, depth))
    return Lists(popular=np.stack(popular), newest=np.stack(newest))


def shortest_list(popular: Rows, catalogue: Catalogue) -> float:
    """The worst market's number of popular items, over SHELF or all that it may ever show where that is less, up to 1.

    1 also where a market may show nothing: there is nothing to miss.
    """
    allowed = [np.count_nonzero(catalogue.allowed(market)) for market in range(len(catalogue.markets))]
    wanted = np.minimum(SHELF, [np.count_nonzero(catalogue.everywhere), *allowed])
    return float((np.minimum((popular >= 0).sum(axis=1), wanted) / np.maximum(wanted, 1))[wanted > 0].min(initial=1.0))


def popularity_of(catalogue: Catalogue, plays: NDArray[np.int64]) -> NDArray[np.float64]:
    """Popularity from 0 to 1, `[item]`: as given, over the largest given where that is above 1; else log plays."""
    given = catalogue.columns["popularity"]
    scale = max(1.0, float(np.nanmax(given, initial=1.0)))
    derived = np.log1p(plays) / max(1.0, float(np.log1p(plays.max())))
    return np.where(np.isnan(given), derived, given / scale)


def _current(history: History, catalogue: Catalogue) -> NDArray[np.bool_]:
    return np.asarray(catalogue.columns["available_until"] > history.now)


def _by_release(history: History, catalogue: Catalogue, plays: NDArray[np.int64]) -> NDArray[np.int64]:
    """The items with a known day of release that is not to come, latest first."""
    released = catalogue.columns["released"]
    today = (date.fromisoformat(history.as_of) - date(1970, 1, 1)).days if history.as_of else np.inf
    rows = np.flatnonzero((released > UNKNOWN_DAY) & (released <= today))
    return rows[np.lexsort((rows, -plays[rows], -released[rows].astype(np.int64)))]


def _plays_in(history: History, market: int, items: int) -> NDArray[np.float64]:
    mine = np.repeat(history.market == market, np.diff(history.start))
    return np.bincount(history.item[mine], history.plays[mine], minlength=items).astype(np.float64)


def _best(score: NDArray[np.float64], allowed: NDArray[np.bool_], depth: int) -> Rows:
    rows = np.flatnonzero(allowed)
    if len(rows) > depth:
        least = np.partition(score[rows], len(rows) - depth)[len(rows) - depth]
        rows = rows[score[rows] >= least]  # with all that tie for the last place
    return _padded(rows[np.argsort(-score[rows], kind="stable")], depth)


def _first(rows: NDArray[np.int64], allowed: NDArray[np.bool_], depth: int) -> Rows:
    return _padded(rows[allowed[rows]], depth)


def _padded(rows: NDArray[np.int64], depth: int) -> Rows:
    out = np.full(depth, -1, np.int32)
    out[: min(depth, len(rows))] = rows[:depth]
    return out
