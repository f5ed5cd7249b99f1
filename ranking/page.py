"""One page: the order of its shelves, each item once, caps of the page, thin shelves dropped.

Attention falls by a factor from row to row and from column to column; what an item is worth in a place is attention
times the chance that the listener wants it. An item that several shelves could show is shown where attention to it is
largest. Shelves are ordered stage by stage: next comes the shelf that is worth most with what is not on the page yet.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranking.compiled import compiled
from ranking.types import Fate


class Page(NamedTuple):
    """One page's lines, and the picks that they can show."""

    size: NDArray[np.int64]  # [line], as the columns below
    minimum: NDArray[np.int64]
    pinned: NDArray[np.bool_]
    weight: NDArray[np.float64]
    item: NDArray[np.int64]  # [line, pick], equal where the recording is; -1: no more picks
    artist: NDArray[np.uint64]  # [line, pick]; 0: none
    worth: NDArray[np.float64]  # [line, pick], the chance that the listener wants it
    direction: NDArray[np.float64]  # [line, D], of what the line would show alone
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
    """The order of a page's shelves: the pinned as they come, then stage by stage the one that is worth most."""
    lines, dimension = len(page.size), page.direction.shape[1]
    order, placed = np.empty(lines, np.int64), np.zeros(lines, np.bool_)
    taken, above = np.zeros(page.item.max() + 1 if page.item.size else 0, np.bool_), np.zeros(dimension)
    for row in range(lines):
        best, most = -1, -np.inf
        for line in range(lines):
            if placed[line]:
                continue
            if page.pinned[line]:
                best = line
                break
            value = _worth(page, line, taken, above)
            if best < 0 or value > most:
                best, most = line, value
        order[row], placed[best] = best, True
        _take(page, best, taken)
        above += page.direction[best]
    return order


@compiled
def settle(page: Page, order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """What the shelves show in an order: those that stay, and the fate of each pick, `[line, pick]`.

    While shelves are thin the lowest of them goes, and the others are settled anew without it.
    """
    marks = np.full(page.item.shape, Fate.KEPT, np.uint8)
    stay, thin = order, 0
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
    total = 0.0
    above = np.zeros(page.direction.shape[1])
    for row in range(len(order)):
        line, worth, column = order[row], 0.0, 0
        for pick in range(page.item.shape[1]):
            if marks[line, pick] == Fate.SHOWN:
                worth += page.column_decay**column * page.worth[line, pick]
                column += 1
        worth = page.weight[line] * worth - page.likeness * _cosine(page.direction[line], above)
        total += page.row_decay**row * worth
        above += page.direction[line]
    return float(total)


@compiled
def _worth(page: Page, line: int, taken: NDArray[np.bool_], above: NDArray[np.float64]) -> float:
    """What a shelf would be worth as the next one; less than any other where it would be thin."""
    worth, attention, shown = 0.0, 1.0, 0
    for pick in range(page.item.shape[1]):
        item = page.item[line, pick]
        if item >= 0 and not taken[item] and shown < page.size[line]:
            worth += attention * page.worth[line, pick]
            attention *= page.column_decay
            shown += 1
    if shown < page.minimum[line]:
        return -np.inf
    return float(page.weight[line] * worth - page.likeness * _cosine(page.direction[line], above))


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
        artists, played = np.empty(page.item.size, np.uint64), 0
        for row in range(len(order)):
            line, shown = order[row], 0
            for pick in range(page.item.shape[1]):
                item, artist = page.item[line, pick], page.artist[line, pick]
                marks[line, pick] = Fate.KEPT
                if item < 0 or shown == page.size[line]:
                    continue
                if taken[item] or (owner[item] >= 0 and owner[item] != line):
                    marks[line, pick] = Fate.DUPLICATE
                elif artist > 0 and 0 < page.artist_cap <= np.sum(artists[:played] == artist):
                    marks[line, pick] = Fate.PAGE_CAPPED
                    denied |= owner[item] == line
                    owner[item] = -1
                else:
                    marks[line, pick] = Fate.SHOWN
                    taken[item] = True
                    artists[played] = artist
                    played += 1
                    shown += 1
            if shown < page.minimum[line]:
                thin = row
    return thin


@compiled
def _cosine(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    lengths = np.sqrt(np.sum(left * left)) * np.sqrt(np.sum(right * right))
    return float(np.sum(left * right) / lengths) if lengths > 0 else 0.0
