"""Neighbours: for each much played item the items nearest by cosine ("because you play X")."""

from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from features.offline.stages import Stage
from features.snapshot import NEIGHBOURS

MOST: Final = 1_000_000
EXACT_UP_TO: Final = 20_000
RECALL: Final = 0.97
_SAMPLE: Final = 500
_BLOCK: Final = 16_384

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """`row` `[M]`, ascending, says which rows have neighbours; the others are `[M, NEIGHBOURS]`, best first."""

    row: NDArray[np.int32]
    neighbour: NDArray[np.int32]
    cosine: NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The neighbours of the first `done` rows."""

    done: int
    neighbour: NDArray[np.int32]
    cosine: NDArray[np.float16]


def find_neighbours(vectors: Vectors, plays: NDArray[np.int64], *, seed: int, stage: Stage) -> Neighbours:
    """Finds the neighbours of the most played items, up to MOST, among one another.

    An item without plays has no neighbours and is nobody's: its vector is the mean of its artist's, so it would stand
    first beside everything of that artist. `vectors` is `[item, D]`, `plays` is `[item]`.
    """
    rows = np.flatnonzero(plays)
    if len(rows) > MOST:
        rows = np.sort(rows[np.lexsort((rows, -plays[rows]))[:MOST]])
    unit = vectors[rows]
    norms = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(norms > 0, norms, 1)
    index = _index(unit, seed)
    neighbour = np.full((len(rows), NEIGHBOURS), -1, np.int32)
    cosine = np.zeros((len(rows), NEIGHBOURS), np.float16)
    width = min(NEIGHBOURS, len(rows) - 1)
    left = stage.left(_Found)
    done = left.done if left else 0
    if left:
        neighbour[:done], cosine[:done] = left.neighbour, left.cosine
    for start in range(done, len(rows), _BLOCK):
        own = np.arange(start, min(start + _BLOCK, len(rows)))
        scores, found = index.search(unit[own], width + 1)
        others = _others(found, own)
        places = found[others].reshape(len(own), width)
        neighbour[own, :width] = np.where(places >= 0, rows[places], -1)
        cosine[own, :width] = np.where(places >= 0, scores[others].reshape(len(own), width), 0)
        done = int(own[-1]) + 1
        stage.keep(_Found(done=done, neighbour=neighbour[:done], cosine=cosine[:done]))
        stage(done, len(rows))
    return Neighbours(row=rows.astype(np.int32), neighbour=neighbour, cosine=cosine)


def _others(found: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Marks all of a row but the item itself; the last where the item, among its equals, was not found."""
    others: NDArray[np.bool_] = found != own[:, None]
    others[others.all(axis=1), -1] = False
    return others


def _index(unit: Vectors, seed: int) -> Any:
    """An index over unit vectors: exact when small, else cells, as many of them searched as RECALL needs."""
    if len(unit) <= EXACT_UP_TO:
        flat = faiss.IndexFlatIP(unit.shape[1])
        flat.add(unit)
        return flat
    cells = 1 << int(np.log2(4 * np.sqrt(len(unit))))
    index: Any = faiss.index_factory(unit.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(seed)
    index.train(unit[np.sort(rng.choice(len(unit), min(len(unit), 64 * cells), replace=False))])
    index.add(unit)
    sample = unit[np.sort(rng.choice(len(unit), _SAMPLE, replace=False))]
    exact, _ = faiss.knn(sample, unit, NEIGHBOURS + 1, metric=faiss.METRIC_INNER_PRODUCT)
    for nprobe in (4, 8, 16, 24, 32, 48, 64, 96, 128, 256):
        index.nprobe = nprobe
        scores, _ = index.search(sample, NEIGHBOURS + 1)
        if (scores >= exact[:, -1:] - 1e-6).mean() >= RECALL:
            break
    return index
