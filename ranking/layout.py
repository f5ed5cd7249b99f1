"""Lays lines out as pages: what each shelf shows, and in which order the shelves stand."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.listeners import Listeners
from features.snapshot import Snapshot
from ranking.diversify import dot
from ranking.history import DAY_S
from ranking.page import Page, by_attention, by_order_of_file, settle
from ranking.params import INDEX, PARAMS, Params
from ranking.types import Candidates, Fate, HomeQuery, Lines, Pages

_ROW, _COLUMN, _LIKENESS, _ARTISTS, _ORDER = (
    INDEX[name] for name in ("row_decay", "column_decay", "shelf_likeness", "page_artist_cap", "page_order")
)
_WEIGHT: Final = INDEX["shelf_weight"]
_BY_FILE: Final = PARAMS[_ORDER].choices.index("file")
NEW_DAYS: Final = 14  # for so long an item counts as newly released
_FATES: Final = max(Fate) + 1


class Batch(NamedTuple):
    """What pages are made of."""

    first: NDArray[np.int64]  # [query + 1], the lines of each
    size: NDArray[np.int64]  # [line], as the columns below
    minimum: NDArray[np.int64]
    pinned: NDArray[np.bool_]
    params: Params  # [line, param]
    page_params: Params  # [query, param]
    dedupe: NDArray[np.bool_]  # [query], as the columns below
    today: NDArray[np.int64]  # days since 1970
    taste: NDArray[np.float32]  # [query, D]
    vector: NDArray[np.float32]  # [item, D], as the columns below
    popularity: NDArray[np.float32]
    recording: NDArray[np.uint64]
    artist: NDArray[np.uint64]
    released: NDArray[np.int32]


def lay_out(
    queries: tuple[HomeQuery, ...], lines: Lines, listeners: Listeners, snapshot: Snapshot, candidates: Candidates
) -> Pages:
    """The pages of a batch. A shelf with fewer items than its minimum shows none, and gives its items back."""
    columns = snapshot.columns
    batch = Batch(
        first=lines.first,
        size=lines.size,
        minimum=lines.minimum,
        pinned=lines.pinned,
        params=lines.params,
        page_params=lines.page_params,
        dedupe=np.array([query.surface.dedupe for query in queries], np.bool_),
        today=np.array([query.now // DAY_S for query in queries], np.int64),
        taste=listeners.vectors,
        vector=columns["vector"],
        popularity=columns["popularity"],
        recording=columns["recording_key"],
        artist=columns["artist_key"],
        released=columns["released"],
    )
    widest = int(lines.size.max(initial=0))
    most = int((lines.first[1:] - lines.first[:-1]).max(initial=0))
    pages = Pages(
        order=np.full((len(queries), most), -1, np.int64),
        shown=np.zeros(len(lines), np.int64),
        rows=np.full((len(lines), widest), -1, np.int64),
        scores=np.zeros((len(lines), widest)),
        new=np.zeros((len(lines), widest), np.bool_),
        open=np.full(len(lines), -1, np.int64),
        propensity=np.ones((len(lines), widest)),
        fate=candidates.fate.copy(),
        fates=np.zeros((len(queries), _FATES), np.int64),
    )
    _lay_out(batch, candidates.rows, candidates.scores, candidates.picks, pages)
    return pages


def put_off(queries: tuple[HomeQuery, ...], candidates: Candidates, pages: Pages) -> None:
    """Marks what comes on a later page: the shelves, and the items of each, beyond what is asked for."""
    shelves = np.array([query.shelves for query in queries], np.int64)
    items = np.array([query.items for query in queries], np.int64)
    if shelves.any() or items.any():
        _put_off(shelves, items, candidates.rows, pages)


@compiled
def _put_off(shelves: NDArray[np.int64], items: NDArray[np.int64], rows: NDArray[np.int64], pages: Pages) -> None:
    for query in range(len(shelves)):
        if shelves[query] == 0 and items[query] == 0:
            continue
        for place in range(pages.order.shape[1]):
            line = pages.order[query, place]
            if line < 0:
                break
            below = 0 < shelves[query] <= place
            answered = min(items[query], pages.shown[line]) if items[query] > 0 else pages.shown[line]
            for one in range(rows.shape[1]):
                if pages.fate[line, one] != Fate.SHOWN:
                    continue
                if below or not np.any(pages.rows[line, :answered] == rows[line, one]):
                    pages.fate[line, one] = Fate.LATER
                    pages.fates[query, Fate.SHOWN] -= 1
                    pages.fates[query, Fate.LATER] += 1


@compiled
def _lay_out(
    batch: Batch, rows: NDArray[np.int64], scores: NDArray[np.float64], picks: NDArray[np.int64], pages: Pages
) -> None:
    for query in range(len(batch.first) - 1):
        first, last = batch.first[query], batch.first[query + 1]
        page = _page(batch, query, rows[first:last], picks[first:last])
        by_file = batch.page_params[query, _ORDER] == _BY_FILE
        order, marks = settle(page, by_order_of_file(page) if by_file else by_attention(page))
        for row in range(len(order)):
            line = order[row]
            pages.order[query, row] = first + line
            _show(pages, first + line, rows, scores, picks, marks[line])
            shown = pages.rows[first + line, : pages.shown[first + line]]
            for place in range(len(shown)):
                age = batch.today[query] - batch.released[shown[place]]
                pages.new[first + line, place] = 0 <= age < NEW_DAYS
        for line in range(first, last):
            for pick in range(picks.shape[1]):
                if picks[line, pick] >= 0:
                    pages.fate[line, picks[line, pick]] = marks[line - first, pick]
            for fate in pages.fate[line]:
                pages.fates[query, fate] += 1


@compiled
def _show(  # compiled: a tuple of them would cost more than the work
    pages: Pages,
    line: int,
    rows: NDArray[np.int64],
    scores: NDArray[np.float64],
    picks: NDArray[np.int64],
    marks: NDArray[np.uint8],
) -> None:
    shown = 0
    for pick in range(picks.shape[1]):
        if marks[pick] == Fate.SHOWN:
            pages.rows[line, shown] = rows[line, picks[line, pick]]
            pages.scores[line, shown] = scores[line, picks[line, pick]]
            shown += 1
    pages.shown[line] = shown


@compiled
def _page(batch: Batch, query: int, rows: NDArray[np.int64], picks: NDArray[np.int64]) -> Page:
    first, last = batch.first[query], batch.first[query + 1]
    lines, most = picks.shape
    worth, direction = np.zeros(picks.shape), np.zeros((lines, batch.vector.shape[1]), np.float32)
    alike = np.empty((lines, lines))
    own = batch.taste[query]
    known = bool(own.any())
    for line in range(lines):
        for pick in range(most):
            if picks[line, pick] < 0:
                continue
            row = rows[line, picks[line, pick]]
            vector = batch.vector[row]
            worth[line, pick] = max(dot(vector, own) if known else batch.popularity[row], 0.0)
            if pick < batch.size[first + line]:
                for dimension in range(len(vector)):
                    direction[line, dimension] += vector[dimension]
        for other in range(line + 1):
            alike[line, other] = alike[other, line] = dot(direction[line], direction[other])
    most_wanted = worth.max() if worth.size else 0.0
    if most_wanted > 0:  # so that the length of a listener's vector means nothing
        worth /= most_wanted
    item = _numbered(picks, rows, batch.recording)
    if not batch.dedupe[query]:
        item = np.where(item >= 0, np.arange(picks.size).reshape(picks.shape), -1)
    params = batch.page_params[query]
    return Page(
        batch.size[first:last],
        batch.minimum[first:last],
        batch.pinned[first:last],
        batch.params[first:last, _WEIGHT].copy(),
        item,
        _numbered(picks, rows, batch.artist),
        worth,
        alike,
        params[_ROW],
        params[_COLUMN],
        params[_LIKENESS],
        int(params[_ARTISTS]),
    )


@compiled
def _numbered(picks: NDArray[np.int64], rows: NDArray[np.int64], column: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A number for each pick, equal where the column is; -1 where it is 0, or no pick."""
    number, count = np.full(picks.shape, -1, np.int64), 0
    places = 2 ** int(np.ceil(np.log2(2 * picks.size + 1)))  # of a table by the keys' last bits, next free one
    keys, numbers = np.zeros(places, np.uint64), np.empty(places, np.int64)
    for line in range(picks.shape[0]):
        for pick in range(picks.shape[1]):
            key = column[rows[line, picks[line, pick]]] if picks[line, pick] >= 0 else np.uint64(0)
            if key > 0:
                place = np.int64(key & np.uint64(places - 1))
                while keys[place] > 0 and keys[place] != key:
                    place = (place + 1) % places
                if keys[place] == 0:
                    keys[place], numbers[place] = key, count
                    count += 1
                number[line, pick] = numbers[place]
    return number
