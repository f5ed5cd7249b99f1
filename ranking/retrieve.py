"""Fills lines with candidates: one search for all listener-like queries of the batch, and columns for the rest."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.listeners import Listeners
from features.snapshot import Snapshot
from ranking.history import History
from ranking.params import INDEX, column
from ranking.types import Candidates, Fate, HomeQuery, Lines

SEARCHED: Final = ("taste", "discover", "genre")
LEAST_DEPTH: Final = 256


def retrieve(
    queries: tuple[HomeQuery, ...], lines: Lines, listeners: Listeners, history: History, snapshot: Snapshot
) -> tuple[Candidates, NDArray[np.bool_]]:
    """Candidates of every line, and which lines' retrieval failed, `[line]`."""
    width = int(lines.depth.max(initial=0))
    rows = np.full((len(lines), width), -1, np.int64)
    scores = np.full((len(lines), width), -np.inf)
    failed = np.zeros(len(lines), np.bool_)
    searched = np.isin(lines.source, SEARCHED)
    for depth in np.unique(_reach(lines.depth[searched])).tolist():
        here = np.flatnonzero(searched & (_reach(lines.depth) == depth))
        vectors = _vectors(here, queries, lines, listeners, snapshot)
        try:
            found_scores, found = snapshot.retriever.search(vectors, depth)
        except RuntimeError:  # what FAISS raises; the page goes on without these lines
            failed[here] = True
            continue
        scores[here, :depth], rows[here, :depth] = found_scores[:, :width], found[:, :width]
    for line in np.flatnonzero(~searched):
        found, affinity = _listed(int(line), queries, lines, listeners, history, snapshot)
        rows[line, : len(found)] = found[:width]
        scores[line, : len(found)] = affinity[:width]
    padding = (rows < 0) | (np.arange(width) >= lines.depth[:, None])
    rows[padding] = -1
    scores[padding] = -np.inf
    fate = np.where(padding, Fate.PADDING, Fate.KEPT).astype(np.uint8)
    return Candidates(rows=rows, scores=scores, fate=fate), failed


def starved(lines: Lines, candidates: Candidates) -> NDArray[np.int64]:
    """The searched lines that kept too few candidates to fill their shelf, as in a market with few licences."""
    kept = (candidates.fate == Fate.KEPT).sum(axis=1)
    searched = np.isin(lines.source, SEARCHED) & (candidates.fate != Fate.PADDING).any(axis=1)  # a failed one has none
    return np.flatnonzero(searched & (kept < np.minimum(lines.size, lines.depth // 2)))


def from_list(
    queries: tuple[HomeQuery, ...], lines: Lines, listeners: Listeners, snapshot: Snapshot, width: int
) -> Candidates:
    """Candidates of searched lines from their market's popular list, by inner product with the line's query.

    The list holds up to 1,000 items that the market may show: with few licences all of them, so nothing is missed.
    """
    rows, scores = np.full((len(lines), width), -1, np.int64), np.full((len(lines), width), -np.inf)
    vectors = _vectors(np.arange(len(lines)), queries, lines, listeners, snapshot)
    for line in range(len(lines)):
        market = snapshot.market_index.get(lines.market[lines.query[line]], -1)
        listed = snapshot.columns["popular"][market + 1][:width]
        found = listed[listed >= 0].astype(np.int64)
        rows[line, : len(found)] = found
        scores[line, : len(found)] = np.vecdot(snapshot.columns["vector"][found], vectors[line][None])
    fate = np.where(rows < 0, Fate.PADDING, Fate.KEPT).astype(np.uint8)
    return Candidates(rows=rows, scores=scores, fate=fate)


def missed_by(  # explains, off the path
    row: int,
    queries: tuple[HomeQuery, ...],
    lines: Lines,
    listeners: Listeners,
    snapshot: Snapshot,
    candidates: Candidates,
) -> NDArray[np.float64]:
    """How much more affinity an item had needed to be found, `[line]`; nan where nothing was searched for it.

    `candidates` are those that `retrieve` found.
    """
    near, vectors = np.full(len(lines), np.nan), snapshot.columns["vector"]
    searched = np.flatnonzero(np.isin(lines.source, SEARCHED))
    near[searched] = np.vecdot(_vectors(searched, queries, lines, listeners, snapshot), vectors[row])
    for line in np.flatnonzero(lines.source == "neighbours").tolist():
        both = _unit(vectors[[row, lines.subject[line]]].astype(np.float64))
        near[line] = both[0] @ both[1]
    found = np.isfinite(candidates.scores)
    lowest = np.min(candidates.scores, axis=1, where=found, initial=np.inf)
    return np.where(found.any(axis=1), lowest - near, np.nan)


def _reach(depth: NDArray[np.int64]) -> NDArray[np.int64]:
    """The depth that a line is searched to: 256, 512, 1,024 … whatever else is in the batch, `[line]`.

    Among equal scores at the cut, the depth decides which are found: it must not depend on the other lines.
    """
    doublings = np.maximum(np.ceil(np.log2(depth / LEAST_DEPTH)), 0).astype(np.int64)
    return LEAST_DEPTH << doublings


def _vectors(
    here: NDArray[np.int64],
    queries: tuple[HomeQuery, ...],
    lines: Lines,
    listeners: Listeners,
    snapshot: Snapshot,
) -> NDArray[np.float32]:
    """The query of each searched line: the listener's own vector, perturbed, or a genre's leaning to the listener."""
    own = listeners.vectors[lines.query[here]].astype(np.float64)
    length = np.linalg.norm(own, axis=1, keepdims=True)
    source, params = lines.source[here], lines.params[here]
    seeds = np.array([query.seed for query in queries], np.uint64)[lines.query[here]]
    noise = np.where(source == "discover", params[:, INDEX["discovery_noise"]], 0.0)[:, None]
    vectors = own + noise * length * _unit(_normal(seeds + lines.slot[here].astype(np.uint64), own.shape[1]))
    genre = source == "genre"
    if genre.any():
        lean = column(params[genre], "genre_lean")
        centre = _unit(snapshot.columns["genre_centroid"][lines.subject[here[genre]]].astype(np.float64))
        vectors[genre] = length[genre] * (lean * _unit(own[genre]) + (1 - lean) * centre)
    return np.asarray(vectors, np.float32)


def _listed(
    line: int,
    queries: tuple[HomeQuery, ...],
    lines: Lines,
    listeners: Listeners,
    history: History,
    snapshot: Snapshot,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows of a line that needs no search, with their affinity."""
    spec, query = lines.specs[line], int(lines.query[line])
    market = lines.market[query]
    if spec.source == "history":
        mine = history.of(query)
        now = np.full(query + 1, queries[query].now)
        weight = mine.weight(now, np.full(query + 1, lines.params[line, INDEX["recency_half_life_days"]]))
        order = np.lexsort((mine.row, -weight))
        return mine.row[order], weight[order]
    if spec.source == "neighbours":
        place = np.searchsorted(snapshot.columns["neighbour_row"], lines.subject[line])
        cosines = snapshot.columns["neighbour_cosine"][place].astype(np.float64)
        return snapshot.columns["neighbour"][place].astype(np.int64), cosines
    if spec.source == "given":
        return _given(queries[query], int(lines.subject[line]), listeners.vectors[query], snapshot)
    if spec.source == "editorial":
        found = snapshot.rows_of(spec.item_keys.get(market, spec.item_keys.get("", np.empty(0, np.uint64))))
        rows = found[found >= 0]
    else:
        listed = snapshot.columns[spec.source][snapshot.market_index.get(market, -1) + 1][: spec.depth]
        rows = listed[listed >= 0].astype(np.int64)
    if spec.source == "newest" and listeners.vectors[query].any():
        return rows, (snapshot.columns["vector"][rows] @ listeners.vectors[query]).astype(np.float64)
    return rows, 1 / np.arange(1, len(rows) + 1)  # the list's own order


def _given(
    query: HomeQuery, near: int, own: NDArray[np.float32], snapshot: Snapshot
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The caller's own candidates: by cosine to an item, else by the listener's taste, else by popularity."""
    found = np.unique(snapshot.rows_of(query.given))
    rows = found[found >= 0]
    if near >= 0:
        unit = _unit(snapshot.columns["vector"][np.concatenate(([near], rows))].astype(np.float64))
        return rows, np.vecdot(unit[1:], unit[:1])
    if own.any():
        return rows, np.vecdot(snapshot.columns["vector"][rows], own[None]).astype(np.float64)
    return rows, snapshot.columns["popularity"][rows].astype(np.float64)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > 0, vectors / np.where(length > 0, length, 1), 0.0)


def _normal(seeds: NDArray[np.uint64], dimension: int) -> NDArray[np.float64]:
    """Normal deviates `[seed, dimension]`, by SplitMix64 and Box-Muller: one seed's do not depend on the others."""
    start = seeds[:, None] * np.uint64(2 * dimension)
    mixed: NDArray[np.uint64] = np.add(start, np.arange(1, 2 * dimension + 1, dtype=np.uint64))
    mixed = mixed * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    uniform = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53
    radius = np.sqrt(-2 * np.log1p(-uniform[:, :dimension]))
    deviates: NDArray[np.float64] = radius * np.cos(2 * np.pi * uniform[:, dimension:])
    return deviates
