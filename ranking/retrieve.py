"""Fills lines with candidates: one search for all listener-like queries of the batch, and lists for the rest."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.listeners import Listeners
from features.snapshot import Snapshot
from ranking.chance import keys_of
from ranking.direction import concentration, turn
from ranking.history import History
from ranking.lines import SEARCHED
from ranking.lists import Asked, Found, cosines, list_lines, market_rows
from ranking.params import INDEX
from ranking.surfaces import CODES, RESERVE
from ranking.types import Candidates, Fate, HomeQuery, Lines

LEAST_DEPTH: Final = 256
_LISTENER_LIKE: Final = np.array([source in SEARCHED for source in CODES])  # by code
_NEAR: Final = np.array([source in {*SEARCHED, "neighbours"} for source in CODES])


def retrieve(
    queries: tuple[HomeQuery, ...], lines: Lines, listeners: Listeners, history: History, snapshot: Snapshot
) -> tuple[Candidates, NDArray[np.bool_]]:
    """Candidates of every line, and which lines' retrieval failed, `[line]`."""
    width = int(lines.depth.max(initial=0))
    found = Found(np.full((len(lines), width), -1, np.int64), np.empty((len(lines), width)))
    asked = Asked(queries, lines, listeners, history, snapshot)
    failed = _search(asked, found)
    list_lines(asked, found)
    fate = np.empty(found.rows.shape, np.uint8)
    _pad(lines.depth, found, fate)
    return Candidates(rows=found.rows, scores=found.scores, fate=fate), failed


@compiled
def _pad(depth: NDArray[np.int64], found: Found, fate: NDArray[np.uint8]) -> None:
    """Marks what is no candidate: beyond a line's depth, or where less was found."""
    for line in range(len(depth)):
        for place in range(fate.shape[1]):
            there = place < depth[line] and found.rows[line, place] >= 0
            fate[line, place] = Fate.KEPT if there else Fate.PADDING
            if not there:
                found.rows[line, place], found.scores[line, place] = -1, -np.inf


def starved(lines: Lines, candidates: Candidates) -> NDArray[np.int64]:
    """The lines for which a search kept too few to choose from, as in a market with few licences.

    Too few is less than what caps, recordings and other shelves may take: with a threshold of one size, `discover` fell
    to a third of its items in markets of 10 %.
    """
    return np.flatnonzero(_starved(candidates.fate, lines.size, lines.depth, _NEAR[lines.source]))


@compiled
def _starved(
    fate: NDArray[np.uint8], size: NDArray[np.int64], depth: NDArray[np.int64], near: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    starved = np.zeros(len(fate), np.bool_)
    for line in range(len(fate)):
        kept, found = 0, False
        for one in fate[line]:
            kept += one == Fate.KEPT
            found |= one != Fate.PADDING  # a search that failed found none
        starved[line] = near[line] and found and kept < min(RESERVE * size[line], depth[line] // 2)
    return starved


def from_list(
    queries: tuple[HomeQuery, ...], lines: Lines, listeners: Listeners, history: History, snapshot: Snapshot
) -> Candidates:
    """Candidates of starved lines from their market's popular list, by affinity to what the line searches for.

    The list holds up to 1,000 items that the market may show. Where a market may show 1 % of a million items, its list
    gives .984 of the best twelve in 28 us, the index with a bitmap of the licences .960 in 225 us; where 0.1 %, 1.000
    and .622.
    """
    asked = Asked(queries, lines, listeners, history, snapshot)
    columns, neighbours = snapshot.columns, lines.source == CODES["neighbours"]
    own = np.empty((len(lines), snapshot.manifest.dimension), np.float32)
    own[~neighbours] = _vectors(asked, np.flatnonzero(~neighbours))
    own[neighbours] = columns["vector"][lines.subject[neighbours]]
    markets, which = np.unique(market_rows(asked, np.arange(len(lines))), return_inverse=True)
    listed = columns["popular"][markets].astype(np.int64)
    vectors = columns["vector"][np.maximum(listed, 0)]  # of each market once: gathering costs more than the products
    length = np.sqrt(np.vecdot(vectors, vectors)).astype(np.float64)
    rows, scores = listed[which], np.empty((len(lines), listed.shape[1]))
    for line, market in enumerate(which.tolist()):
        scores[line] = np.vecdot(vectors[market], own[line][None])
        if neighbours[line]:
            scores[line] /= np.where(length[market] > 0, length[market] * np.linalg.norm(own[line]), 1)
    absent = (rows < 0) | (neighbours & (rows == lines.subject[:, None]).T).T
    scores[absent] = -np.inf
    best = np.argpartition(-scores, min(LEAST_DEPTH, rows.shape[1]) - 1, axis=1)[:, :LEAST_DEPTH]
    rows, scores = np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)
    fate = np.where(scores == -np.inf, Fate.PADDING, Fate.KEPT).astype(np.uint8)
    return Candidates(rows=np.where(scores == -np.inf, -1, rows), scores=scores, fate=fate)


def missed_by(row: int, asked: Asked, candidates: Candidates) -> NDArray[np.float64]:
    """How much more affinity an item had needed to be found, `[line]`; nan where nothing was searched for it.

    `candidates` are those that `retrieve` found.
    """
    lines, vectors = asked.lines, asked.snapshot.columns["vector"]
    near = np.full(len(lines), np.nan)
    searched = np.flatnonzero(_LISTENER_LIKE[lines.source])
    near[searched] = np.vecdot(_vectors(asked, searched), vectors[row])
    neighbours = np.flatnonzero(lines.source == CODES["neighbours"])
    near[neighbours] = cosines(vectors[lines.subject[neighbours]], vectors[row])
    found = np.isfinite(candidates.scores)
    lowest = np.min(candidates.scores, axis=1, where=found, initial=np.inf)
    return np.where(found.any(axis=1), lowest - near, np.nan)


def _search(asked: Asked, found: Found) -> NDArray[np.bool_]:
    """Searches for the lines that are vectors, all of one depth at once; which of them failed, `[line]`."""
    failed = np.zeros(len(asked.lines), np.bool_)
    searched = np.flatnonzero(_LISTENER_LIKE[asked.lines.source])
    reach = _reach(asked.lines.depth[searched])
    for depth in sorted(set(reach.tolist())):
        here = searched[reach == depth]
        try:
            scores, rows = asked.snapshot.retriever.search(_vectors(asked, here), depth)
        except RuntimeError:  # what FAISS raises; the page goes on without these lines
            failed[here] = True
            continue
        _put(here, rows, scores, found)
    return failed


@compiled
def _put(here: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float32], found: Found) -> None:
    """Puts what was searched for into its lines, as far as there is room."""
    for number in range(len(here)):
        for place in range(min(rows.shape[1], found.rows.shape[1])):
            found.rows[here[number], place] = rows[number, place]
            found.scores[here[number], place] = scores[number, place]


def _reach(depth: NDArray[np.int64]) -> NDArray[np.int64]:
    """The depth that a line is searched to: 256, 512, 1,024 … whatever else is in the batch, `[line]`.

    Among equal scores at the cut, the depth decides which are found: it must not depend on the other lines.
    """
    doublings = np.maximum(np.ceil(np.log2(depth / LEAST_DEPTH)), 0).astype(np.int64)
    return LEAST_DEPTH << doublings


def _vectors(asked: Asked, here: NDArray[np.int64]) -> NDArray[np.float32]:
    """The query of each searched line: the listener's own vector, turned, or a genre's leaning to the listener."""
    lines = asked.lines
    source, params = lines.source[here], lines.params[here]
    vectors = asked.listeners.vectors[lines.query[here]].astype(np.float64)
    discover, genre = np.flatnonzero(source == CODES["discover"]), np.flatnonzero(source == CODES["genre"])
    if len(discover):
        turned = vectors[discover]
        kappa = concentration(params[discover, INDEX["discovery_noise"]], vectors.shape[1])
        turn(turned, kappa, keys_of(asked.queries, lines, here[discover]))
        vectors[discover] = turned
    if len(genre):
        centroids = asked.snapshot.columns["genre_centroid"]
        _lean(vectors, genre, centroids, lines.subject[here], params[:, INDEX["genre_lean"]].copy())
    return vectors.astype(np.float32)


@compiled
def _lean(
    vectors: NDArray[np.float64],
    here: NDArray[np.int64],
    centroids: NDArray[np.float32],
    subject: NDArray[np.int64],
    lean: NDArray[np.float64],
) -> None:
    """Makes some listeners' vectors into genres' that lean to them: both of length 1, then of the listener's."""
    for line in here:
        own, centre = vectors[line], centroids[subject[line]].astype(np.float64)
        length, size = np.sqrt(np.sum(own**2)), np.sqrt(np.sum(centre**2))
        for dimension in range(len(own)):
            part = lean[line] * own[dimension] / length if length > 0 else 0.0
            rest = (1 - lean[line]) * centre[dimension] / size if size > 0 else 0.0
            own[dimension] = length * (part + rest)
