"""Fills lines that need no search: history, neighbours, lists by market, editors' rows, given items."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.listeners import Listeners
from features.snapshot import Snapshot
from ranking.history import DAY_S, History, weight
from ranking.params import INDEX
from ranking.surfaces import CODES
from ranking.types import HomeQuery, Lines

_NO_KEYS: Final = np.empty(0, np.uint64)


class Found(NamedTuple):
    """What is found, `[line, candidate]`; lists fill their lines from the left."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]

    def put(
        self, here: NDArray[np.int64] | int, rows: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]]
    ) -> None:
        """Puts candidates into lines, as far as there is room."""
        width = min(self.rows.shape[1], rows.shape[-1])
        self.rows[here, :width] = rows[..., :width]
        self.scores[here, :width] = scores[..., :width]


class Asked(NamedTuple):
    """What lists are made from."""

    queries: tuple[HomeQuery, ...]
    lines: Lines
    listeners: Listeners
    history: History
    snapshot: Snapshot


def list_lines(asked: Asked, found: Found) -> None:
    """Fills every line that needs no search."""
    for source, fill in _FILLED.items():
        here = np.flatnonzero(asked.lines.source == CODES[source])
        if len(here):
            fill(asked, here, found)


def market_rows(asked: Asked, here: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of each line's market in the lists by market; 0 is for who is of no known market."""
    index, markets = asked.snapshot.market_index, asked.lines.market
    return np.array([index.get(markets[query], -1) + 1 for query in asked.lines.query[here].tolist()], np.int64)


def _history(asked: Asked, here: NDArray[np.int64], found: Found) -> None:
    history, lines = asked.history, asked.lines
    today = np.array([query.now // DAY_S for query in asked.queries], np.int64)
    half_life = lines.params[here, INDEX["recency_half_life_days"]]
    _weigh(history, here, lines.query[here], today[lines.query[here]], half_life, found)


@compiled
def _weigh(
    history: History,
    here: NDArray[np.int64],
    query: NDArray[np.int64],
    today: NDArray[np.int64],
    half_life: NDArray[np.float64],
    found: Found,
) -> None:
    """Puts what listeners play into their lines, what counts most now first, ties to the lower row."""
    for number in range(len(here)):
        first, last = history.start[query[number]], history.start[query[number] + 1]
        by_row = first + np.argsort(history.row[first:last], kind="mergesort")
        counts = np.array(
            [weight(history.plays[one], history.day[one], today[number], half_life[number]) for one in by_row]
        )
        order = np.argsort(-counts, kind="mergesort")
        for place in range(min(len(order), found.rows.shape[1])):
            found.rows[here[number], place] = history.row[by_row[order[place]]]
            found.scores[here[number], place] = counts[order[place]]


def _neighbours(asked: Asked, here: NDArray[np.int64], found: Found) -> None:
    columns = asked.snapshot.columns
    place = np.searchsorted(columns["neighbour_row"], asked.lines.subject[here])
    found.put(here, columns["neighbour"][place], columns["neighbour_cosine"][place])


def _popular(asked: Asked, here: NDArray[np.int64], found: Found) -> None:
    listed = asked.snapshot.columns["popular"][market_rows(asked, here)]
    found.put(here, listed, _in_order(listed))


def _newest(asked: Asked, here: NDArray[np.int64], found: Found) -> None:
    """By affinity, for listeners with a taste; else in the list's own order."""
    width = found.rows.shape[1]
    listed = asked.snapshot.columns["newest"][market_rows(asked, here), :width]
    scores = _in_order(listed)
    own = asked.listeners.vectors[asked.lines.query[here]]
    tasteful = np.flatnonzero(own.any(axis=1))
    vectors = asked.snapshot.columns["vector"][np.maximum(listed[tasteful], 0)]
    scores[tasteful] = np.vecdot(vectors, own[tasteful, None])
    found.put(here, listed, scores)


def _editorial(asked: Asked, here: NDArray[np.int64], found: Found) -> None:
    for line in here.tolist():
        by_market = asked.lines.specs[line].item_keys
        market = asked.lines.market[asked.lines.query[line]]
        rows = asked.snapshot.rows_of(by_market.get(market, by_market.get("", _NO_KEYS)))
        rows = rows[rows >= 0]
        found.put(line, rows, _in_order(rows))


def _given(asked: Asked, here: NDArray[np.int64], found: Found) -> None:
    """The caller's own candidates: by cosine to an item, else by the listener's taste, else by popularity."""
    vectors = asked.snapshot.columns["vector"]
    for line in here.tolist():
        query, near = int(asked.lines.query[line]), int(asked.lines.subject[line])
        rows = np.unique(asked.snapshot.rows_of(asked.queries[query].given))
        rows, own = rows[rows >= 0], asked.listeners.vectors[query]
        if near >= 0:
            found.put(line, rows, cosines(vectors[rows], vectors[near]))
        elif own.any():
            found.put(line, rows, np.vecdot(vectors[rows], own[None]))
        else:
            found.put(line, rows, asked.snapshot.columns["popularity"][rows])


_FILLED: Final[Mapping[str, Callable[[Asked, NDArray[np.int64], Found], None]]] = {
    "history": _history,
    "neighbours": _neighbours,
    "popular": _popular,
    "newest": _newest,
    "editorial": _editorial,
    "given": _given,
}


def cosines(vectors: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each vector with another, `[vector]`; a zero vector is like nothing."""
    left, right = vectors.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right)
    return np.asarray(np.vecdot(left, right[None]) / np.where(lengths > 0, lengths, 1))


def _in_order(rows: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Scores that keep a list's own order: one over the place."""
    return np.broadcast_to(1 / np.arange(1, rows.shape[-1] + 1), rows.shape).copy()
