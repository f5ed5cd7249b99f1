"""Searches the cells of an inverted-file index: what FAISS finds in them, in less than half of its time.

Of a query's time FAISS spends more than half on a heap of the best 256. Here all scores of the cells are written down,
the bar that so many reach is found by bisection over their bits, and what reaches it is sorted: each step runs in the
processor's lanes. Cells, codes and rows are those of the FAISS index, in the mapping that all workers share.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled, half, summed

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
_MISSING: Final = np.uint64(2**64 - 1)  # behind every key
_RANK: Final = np.uint64(32)  # where a key's rank begins; below is the row
_ROW: Final = np.uint64(2**32 - 1)
_MOST: Final = 2**31 - 1  # of ranks
_NONE: Final = np.float32(-np.inf).view(np.int32)


class Cells(NamedTuple):
    """An inverted-file index: where the cells lie, and what is in each."""

    centres: Floats  # [cell, D]
    size: Ints  # [cell], how many items
    code_start: Ints  # [cell], where its first item's code begins
    codes: NDArray[np.uint16]  # D for each item: the bits of float16
    row_start: Ints  # [cell], where its items' rows begin
    rows: Ints


def search(cells: Cells, vectors: Floats, k: int, nprobe: int) -> tuple[Floats, Ints]:
    """The best `k` by inner product of what is in the `nprobe` nearest cells: scores and rows, each `[query, k]`.

    Best first, ties to the lower row; row -1 where there are fewer.
    """
    keys = np.full((len(vectors), k), _MISSING)
    _search(cells, np.ascontiguousarray(vectors, np.float32), nprobe, keys)
    keys.sort(axis=1)
    scores, rows = np.empty(keys.shape, np.float32), np.empty(keys.shape, np.int64)
    _read(keys, scores.view(np.int32), rows)
    return scores, rows


@compiled
def _read(keys: NDArray[np.uint64], bits: NDArray[np.int32], rows: Ints) -> None:
    """Takes keys apart: the bits of scores, and rows."""
    for query in range(len(keys)):
        for place in range(keys.shape[1]):
            key = keys[query, place]
            rank = np.int32(_MOST - np.int64(key >> _RANK))
            bits[query, place] = rank ^ ((rank >> 31) & np.int32(_MOST)) if key != _MISSING else _NONE
            rows[query, place] = np.int64(key & _ROW) if key != _MISSING else -1


@compiled
def _search(cells: Cells, vectors: Floats, nprobe: int, keys: NDArray[np.uint64]) -> None:
    near, cell_places = np.empty(len(cells.size), np.float32), np.empty(nprobe, np.int64)
    places = np.empty(keys.shape[1], np.int64)
    for query in range(len(vectors)):
        _score_centres(cells.centres, vectors[query], near)
        chosen = cell_places[: _best(near.view(np.int32), cell_places)]
        held = 0
        for cell in chosen:
            held += cells.size[cell]
        scores, begin = np.empty(held, np.float32), 0
        for cell in chosen:
            end = begin + cells.size[cell]
            _score(cells.codes[cells.code_start[cell] :], vectors[query], scores[begin:end])
            begin = end
        ranks = scores.view(np.int32)
        count, found, begin = _best(ranks, places), 0, 0
        for cell in chosen:
            end = begin + cells.size[cell]
            while found < count and places[found] < end:
                place = places[found]
                row = cells.rows[cells.row_start[cell] + place - begin]
                keys[query, found] = np.uint64(_MOST - ranks[place]) << _RANK | np.uint64(row)
                found += 1
            begin = end


@summed
def _score_centres(centres: Floats, vector: Floats, scores: Floats) -> None:
    for cell in range(len(centres)):
        centre, total = centres[cell], np.float32(0)
        for dimension in range(len(vector)):
            total += centre[dimension] * vector[dimension]
        scores[cell] = total


@summed
def _score(codes: NDArray[np.uint16], vector: Floats, scores: Floats) -> None:
    width = len(vector)
    for item in range(len(scores)):
        code, total = codes[item * width : (item + 1) * width], np.float32(0)
        for dimension in range(width):
            total += half(code[dimension]) * vector[dimension]
        scores[item] = total


@compiled
def _best(ranks: NDArray[np.int32], places: Ints) -> int:
    """Writes the places of the largest floats, as many as there is room for, and how many; their bits become ranks.

    Of those at the bar the first are taken.
    """
    for one in range(len(ranks)):
        ranks[one] = ranks[one] ^ ((ranks[one] >> 31) & np.int32(_MOST))
    wanted = len(places)
    if len(ranks) <= wanted:
        for one in range(len(ranks)):
            places[one] = one
        return len(ranks)
    low, high = np.int64(ranks.min()), np.int64(ranks.max())  # at least as many as are wanted reach the low bar
    while low < high:
        middle = low + (high - low + 1) // 2
        reach = _reaching(ranks, np.int32(middle))
        if reach < wanted:
            high = middle - 1
            continue
        low = middle
        if reach == wanted:
            break
    bar = np.int32(low)
    spare = wanted - _reaching(ranks, np.int32(low + 1)) if low < _MOST else wanted
    found = 0
    for one in range(len(ranks)):
        if ranks[one] >= bar:
            if ranks[one] == bar:
                if spare == 0:
                    continue
                spare -= 1
            places[found] = one
            found += 1
    return found


@compiled
def _reaching(ranks: NDArray[np.int32], bar: np.int32) -> int:
    count = np.int32(0)
    for one in range(len(ranks)):
        count += np.int32(ranks[one] >= bar)
    return int(count)
