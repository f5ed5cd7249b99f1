"""One page: the order of its shelves, each item once, caps of the page, thin shelves dropped.

Attention falls by a factor from row to row and from column to column; what an item is worth in a place is attention
times how much the listener wants it. An item that several shelves could show is shown where attention to it is
largest. Shelves are ordered stage by stage: next comes the shelf that is worth most with what is not on the page yet.
Then shelves change places while the whole page gains.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from ranking.types import Fate

_TRIES: Final = 35  # of an order: 46 us of nine shelves
_GAIN: Final = 1e-9  # less is rounding


class Page(NamedTuple):
    """One page's lines, and the picks that they can show."""

    size: NDArray[np.int64]  # [line], as the columns below
    minimum: NDArray[np.int64]
    pinned: NDArray[np.bool_]
    weight: NDArray[np.float64]
    item: NDArray[np.int64]  # [line, pick], equal where the recording is; -1: no more picks
    artist: NDArray[np.int64]  # [line, pick], equal where the artist is; -1: none
    worth: NDArray[np.float64]  # [line, pick], how much the listener wants it; the most on the page is 1
    alike: NDArray[np.float64]  # [line, line], products of the directions of what lines would show alone
    row_decay: float
    column_decay: float
    likeness: float
    artist_cap: int  # 0: no cap


@compiled
def by_order_of_file(page: Page) -> NDArray[np.int64]:
    """The order of a page's shelves: the pinned, then the others, each as they come."""
    return np.concatenate((np.flatnonzero(page.pinned), np.flatnonzero(~page.pinned)))


@compiled
def by_attention(page: Page) -> NDArray[np.int64]:
    """The order of a page's shelves: the pinned as they come, then stage by stage the one that is worth most.

    Then the others change places while the whole page gains.
    """
    lines = len(page.size)
    order, placed = np.empty(lines, np.int64), np.zeros(lines, np.bool_)
    taken = np.zeros(page.item.max() + 1 if page.item.size else 0, np.bool_)
    along, length = np.zeros(lines), 0.0
    for row in range(lines):
        best, most = -1, -np.inf
        for line in range(lines):
            if placed[line]:
                continue
            if page.pinned[line]:
                best = line
                break
            value = _worth(page, line, taken) - page.likeness * _cosine(along[line], page.alike[line, line], length)
            if best < 0 or value > most:
                best, most = line, value
        order[row], placed[best] = best, True
        _take(page, best, taken)
        length += 2 * along[best] + page.alike[best, best]
        along += page.alike[best]
    return _bettered(page, order)


@compiled
def settle(page: Page, order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """What the shelves show in an order: those that stay, and the fate of each pick, `[line, pick]`.

    What has fewer picks than its minimum goes at once. While shelves are thin the lowest of them goes, and the others
    are settled anew without it.
    """
    marks = np.full(page.item.shape, Fate.KEPT, np.uint8)
    stay, staying, thin = order.copy(), 0, 0
    for line in order:
        if _holds(page.item[line], page.minimum[line]):
            stay[staying] = line
            staying += 1
        else:
            marks[line] = Fate.THIN
    stay = stay[:staying]
    while thin >= 0 and len(stay):
        owner = _owners(page, stay)
        thin = _fill(page, stay, owner, marks)
        if thin >= 0:
            gone = stay[thin]
            stay = np.concatenate((stay[:thin], stay[thin + 1 :]))
            for pick in range(page.item.shape[1]):
                marks[gone, pick] = Fate.THIN
    return stay, marks


@compiled
def utility(page: Page, order: NDArray[np.int64], marks: NDArray[np.uint8]) -> float:
    """What a settled page is worth: over its shelves, attention times what they show, less their likeness to it."""
    total, high = 0.0, 1.0
    along, length = np.zeros(len(page.size)), 0.0
    for line in order:
        worth, attention = 0.0, 1.0
        for pick in range(page.item.shape[1]):
            if marks[line, pick] == Fate.SHOWN:
                worth += attention * page.worth[line, pick]
                attention *= page.column_decay
        like = page.likeness * _cosine(along[line], page.alike[line, line], length)
        total += high * (page.weight[line] * worth - like)
        high *= page.row_decay
        length += 2 * along[line] + page.alike[line, line]
        along += page.alike[line]
    return float(total)


@compiled
def _bettered(page: Page, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order, after swaps of two shelves and moves of one that the settled page gains by, until none does."""
    first, lines = int(page.pinned.sum()), len(order)
    most = utility(page, *settle(page, order))
    several = max(lines - first - 1, 0)
    changes = several + 3 * several * (several - 1) // 2  # of neighbours both moves are the swap
    tries, untried = 0, changes
    while untried > 0:
        for upper in range(first, lines):
            for lower in range(upper + 1, lines):
                for change in range(3 if lower > upper + 1 else 1):
                    if untried <= 0 or tries == _TRIES:
                        return order
                    other = _changed(order, upper, lower, change)
                    value = utility(page, *settle(page, other))
                    tries, untried = tries + 1, untried - 1
                    if value > most + _GAIN:
                        order, most, untried = other, value, changes
    return order


@compiled
def _changed(order: NDArray[np.int64], upper: int, lower: int, change: int) -> NDArray[np.int64]:
    """The order with two shelves swapped, the lower moved to the upper's place, or the upper to the lower's."""
    other = order.copy()
    if change == 1:
        other[upper + 1 : lower + 1] = order[upper:lower]
    elif change == 2:
        other[upper:lower] = order[upper + 1 : lower + 1]
    if change < 2:
        other[upper] = order[lower]
    if change != 1:
        other[lower] = order[upper]
    return other


@compiled
def _worth(page: Page, line: int, taken: NDArray[np.bool_]) -> float:
    """What a shelf would show as the next one is worth; less than any other where it would be thin."""
    worth, attention, shown = 0.0, 1.0, 0
    for pick in range(page.item.shape[1]):
        item = page.item[line, pick]
        if item >= 0 and not taken[item] and shown < page.size[line]:
            worth += attention * page.worth[line, pick]
            attention *= page.column_decay
            shown += 1
    return float(page.weight[line] * worth) if shown >= page.minimum[line] else -np.inf


@compiled
def _take(page: Page, line: int, taken: NDArray[np.bool_]) -> None:
    shown = 0
    for pick in range(page.item.shape[1]):
        item = page.item[line, pick]
        if item >= 0 and not taken[item] and shown < page.size[line]:
            taken[item] = True
            shown += 1


@compiled
def _owners(page: Page, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each item the line where attention to it is largest; -1 where it is in reserve only, for the first in need."""
    items = page.item.max() + 1
    owner, most = np.full(items, -1, np.int64), np.zeros(items)
    for row in range(len(order)):
        line, attention = order[row], page.row_decay**row
        for pick in range(min(page.size[line], page.item.shape[1])):
            item = page.item[line, pick]
            if item >= 0 and attention > most[item]:
                owner[item], most[item] = line, attention
            attention *= page.column_decay
    return owner


@compiled
def _fill(page: Page, order: NDArray[np.int64], owner: NDArray[np.int64], marks: NDArray[np.uint8]) -> int:
    """Marks what each shelf shows, from the top; the row of the lowest that is thin, -1 where none is.

    What the page's cap denies its owner is for the first of the others, whose release may be by another artist.
    """
    thin, denied = -1, True
    while denied:
        thin, denied = -1, False
        taken = np.zeros(len(owner), np.bool_)
        artists = np.zeros(page.artist.max() + 1, np.int64)
        for row in range(len(order)):
            line, shown = order[row], 0
            for pick in range(page.item.shape[1]):
                item, artist = page.item[line, pick], page.artist[line, pick]
                marks[line, pick] = Fate.KEPT
                if item < 0 or shown == page.size[line]:
                    continue
                if taken[item] or (owner[item] >= 0 and owner[item] != line):
                    marks[line, pick] = Fate.DUPLICATE
                elif artist >= 0 and 0 < page.artist_cap <= artists[artist]:
                    marks[line, pick] = Fate.PAGE_CAPPED
                    denied |= owner[item] == line
                    owner[item] = -1
                else:
                    marks[line, pick] = Fate.SHOWN
                    taken[item] = True
                    if artist >= 0:
                        artists[artist] += 1
                    shown += 1
            if shown < page.minimum[line]:
                thin = row
    return thin


@compiled
def _holds(picks: NDArray[np.int64], least: int) -> bool:
    return least <= 0 or (least <= len(picks) and picks[least - 1] >= 0)


@compiled
def _cosine(product: float, left: float, right: float) -> float:
    """Of two directions, from their product and each one's with itself."""
    return float(product / np.sqrt(left * right)) if left * right > 0 else 0.0
