"""Listener records: what publishing loads into Redis, as Parquet parts of (user_id, record, forgotten_ms).

They are an artefact of their own, not part of the snapshot, since they are deleted after publishing (erasure).
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet
from scipy.sparse import csr_matrix

from features.listeners import MAX_RECENT, ListenerRecord, encode
from features.offline.artefact import PRIVATE, entry_of
from features.offline.catalogue import Catalogue
from features.offline.history import History
from features.offline.segments import Segments

RECORDS: Final = "listeners"
CONTENT: Final = 1
"""Changes whenever the same history and vectors give other records."""
RECORDS_MANIFEST: Final = "listeners.json"
MAX_GENRES: Final = 16
PART_ROWS: Final = 100_000
_DAY_SECONDS: Final = 86_400
_MOST: Final = 65_535
_TINY: Final = 2.0**-10  # float16 steps by 2**-24 near zero, so of a vector below this few bits are left


@dataclass(frozen=True, slots=True, kw_only=True)
class Taste:
    """What training says of each listener: `vectors` `[listener, D]` and segments."""

    vectors: NDArray[np.float32]
    segments: Segments


@dataclass(frozen=True, slots=True, kw_only=True)
class Usable:
    """How many listeners have a vector that is finite in float16 and not zero."""

    listeners: int


def write_records(
    history: History,
    catalogue: Catalogue,
    taste: Taste,
    folder: Path,
    *,
    space_id: str,
    progress: Callable[[int, int], None],
) -> Usable:
    """Writes `listeners/part-*.parquet` and `listeners/listeners.json`; returns how many listeners are usable."""
    target = folder / RECORDS
    shutil.rmtree(target, ignore_errors=True)  # left by a build that was killed
    target.mkdir(PRIVATE)
    genres = _genre_matrix(catalogue)
    parts: dict[str, dict[str, Any]] = {}
    usable = 0
    for start in range(0, history.listeners, PART_ROWS):
        stop = min(start + PART_ROWS, history.listeners)
        vectors = halves(taste.vectors[start:stop])
        usable += int((np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)).sum())
        frames = [
            encode(record, int(space_id, 16))
            for record in _records(history, catalogue, vectors, taste.segments, genres, (start, stop))
        ]
        columns = {"user_id": history.user_id[start:stop].to_arrow(), "record": pa.array(frames, pa.binary())}
        table = pa.table(columns | {"forgotten_ms": history.forgotten_ms[start:stop]})
        path = target / f"part-{len(parts):05}.parquet"
        parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
        parts[path.name] = entry_of(path)
        progress(stop, history.listeners)
    said = {"space_id": space_id, "count": history.listeners, "parts": parts}
    (target / RECORDS_MANIFEST).write_text(json.dumps(said, sort_keys=True, indent=1))
    return Usable(listeners=usable)


def halves(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """The vectors in float16; one that would vanish there is scaled up first, its largest number to 1.

    Training leaves such vectors to listeners of items that next to nobody plays. A listener's ranking depends on the
    direction of the vector alone, so the length is free.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    tiny = (largest > 0) & (largest < _TINY)
    return (vectors / np.where(tiny, largest, 1)).astype(np.float16)


def _records(
    history: History,
    catalogue: Catalogue,
    vectors: NDArray[np.float16],
    segments: Segments,
    genres: csr_matrix,
    listeners: tuple[int, int],
) -> Iterator[ListenerRecord]:
    start, stop = listeners
    recent = _recent(history, start, stop)
    keys = catalogue.columns["item_key"][history.item[recent]]
    days = np.clip(history.seconds[recent] // _DAY_SECONDS, 0, _MOST).astype(np.uint16)
    plays = np.minimum(history.plays[recent], _MOST).astype(np.uint16)
    total = np.add.reduceat(
        history.plays[history.start[start] : history.start[stop]], history.start[start:stop] - history.start[start]
    ).tolist()
    genre_start, genre_index, genre_weight = _genre_weights(history, genres, start, stop)
    bounds = (history.start[start : stop + 1] - history.start[start]).tolist()
    market = ["", *catalogue.markets]
    for place, listener in enumerate(range(start, stop)):
        first, last = bounds[place], min(bounds[place + 1], bounds[place] + MAX_RECENT)
        mine = slice(genre_start[place], genre_start[place + 1])
        yield ListenerRecord(
            vector=vectors[place],
            total_plays=total[place],
            segment=int(segments.of[listener]),
            market=market[int(history.market[listener]) + 1],
            allow_explicit=bool(history.allow_explicit[listener]),
            created_day=int(history.created_day[listener]),
            recent_keys=keys[first:last],
            recent_days=days[first:last],
            recent_plays=plays[first:last],
            genre_index=genre_index[mine],
            genre_weight=genre_weight[mine],
        )


def _recent(history: History, start: int, stop: int) -> NDArray[np.int64]:
    """The listens of some listeners, each listener's latest first; by plays where the time is equal or unknown."""
    listens = slice(history.start[start], history.start[stop])
    owner = np.repeat(np.arange(stop - start), np.diff(history.start[start : stop + 1]))
    order = np.lexsort((history.item[listens], -history.plays[listens], -history.seconds[listens], owner))
    return np.asarray(order + history.start[start])


def _genre_matrix(catalogue: Catalogue) -> csr_matrix:
    """How much of each item is of each genre, `[item, genre]`: 1, 1/2, 1/3 … in its own order, adding up to 1."""
    genre = catalogue.columns["genre"]
    row, place = np.nonzero(genre >= 0)
    weight = 1 / (place + 1)
    total = np.bincount(row, weight, minlength=len(genre))
    shape = (len(genre), max(1, len(catalogue.genres)))
    return csr_matrix(((weight / total[row]).astype(np.float32), (row, genre[row, place])), shape=shape)


def _genre_weights(
    history: History, genres: csr_matrix, start: int, stop: int
) -> tuple[list[int], NDArray[np.uint16], NDArray[np.float16]]:
    """Each listener's weightiest genres by share of plays: where a listener's begin, their indices, their weights."""
    listens = slice(history.start[start], history.start[stop])
    bounds = history.start[start : stop + 1] - history.start[start]
    plays = csr_matrix(
        (history.plays[listens].astype(np.float64), history.item[listens], bounds),
        shape=(stop - start, genres.shape[0]),
    )
    played = (plays @ genres).tocoo()
    total = np.add.reduceat(history.plays[listens], bounds[:-1])
    # A little less than the share: rounded to float16 the weights shall not add up to more than 1.
    weight = (played.data / total[played.row] * (1 - 2**-10)).astype(np.float16)
    order = np.lexsort((played.col, -weight.astype(np.float32), played.row))
    row = played.row[order]
    first = np.searchsorted(row, np.arange(stop - start + 1))
    kept = np.arange(len(row)) - first[row] < MAX_GENRES
    sizes = np.bincount(row[kept], minlength=stop - start)
    kept_order = order[kept]
    ends = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    return ends, played.col[kept_order].astype(np.uint16), weight[kept_order]
