"""An inverted-file index for inner product over vectors of very different lengths.

An item's length grows with its number of listeners, and the longest tenth holds most answers. FAISS's own recipe for
inner product divides by direction alone, so every cell has a few long vectors among many short ones, and many cells
must be searched. Here vectors are divided as x / sqrt|x|, by direction and somewhat by length, and a cell is found by
the mean of its vectors weighted with |x|^3, that is by its long ones. Stored and scored are the vectors themselves.

Measured: cells searched and microseconds of one query on one thread, for .98 of the best 256.

                                         FAISS's recipe   its cells, found by long vectors   this
   17,632 of HetRec Last.fm, 256 cells       128,   107                 96,  89               96, 69
  100,000 synthetic items, 1,024 cells       128,   166                 64, 114               48, 75
1,000,000 synthetic items, 4,096 cells     1,024, 2,730                                       64, 98

The first two with regularization 100 and confidence 32, brute force 123 and 796 us; the third with 30 and 5, where
lengths differ more. Made into a search by distance with one dimension more, 512 of 1,024 cells found .81. Codes are
float16: the steps of 8-bit ones are stretched by the few long vectors; with them the third needs 192 cells and 164 us.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
from faiss.contrib.ivf_tools import add_preassigned
from numpy.typing import NDArray

from features.offline.stages import Stage

EXACT_UP_TO: Final = 4_096  # cells
_GROUP: Final = 64  # cells, on average
_GROUPS_SEARCHED: Final = 16
POINTS_PER_CELL: Final = 39  # FAISS warns below
_TRAINED_ON: Final = 64  # points per cell
_ROUNDS: Final = 10
_BLOCK: Final = 1 << 18

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """The middle of each cell, `[cell, D]`, among shortened vectors."""

    middle: Vectors


def cell_index(vectors: Vectors, cells: int, *, seed: int, stage: Stage) -> Any:
    """A FAISS `IVF{cells},SQfp16` index over `vectors` `[item, D]`, searched by inner product."""
    dimension = vectors.shape[1]
    rng = np.random.default_rng(seed)
    size = min(len(vectors), _TRAINED_ON * cells)
    sample = np.ascontiguousarray(vectors[np.sort(rng.choice(len(vectors), size, replace=False))])
    divided = stage.left(_Cells) or _divide(sample, cells, seed)
    stage.keep(divided)
    divider = _finder(dimension, cells)
    divider.train(divided.middle)
    divider.add(divided.middle)
    centres = faiss.IndexFlatIP(dimension)
    centres.add(np.zeros((cells, dimension), np.float32))  # in place of training; the real ones come last
    index = faiss.IndexIVFScalarQuantizer(
        centres, dimension, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.train(sample)
    total, weight = np.zeros((cells, dimension)), np.zeros(cells)
    for start, block in _blocks(vectors):
        cell = divider.search(_shortened(block), 1)[1][:, 0]
        add_preassigned(index, block, cell)  # type: ignore[no-untyped-call]
        cubes = np.linalg.norm(block, axis=1).astype(np.float64) ** 3
        for number, sums in _sums(cell, block * cubes[:, None]):
            total[number] += sums
        weight += np.bincount(cell, cubes, minlength=cells)
        stage(start + len(block), len(vectors))
    centres.reset()
    centres.add((total / np.maximum(weight, np.finfo(np.float64).tiny)[:, None]).astype(np.float32))
    return index


def _divide(sample: Vectors, cells: int, seed: int) -> _Cells:
    kmeans = faiss.Kmeans(
        sample.shape[1],
        cells,
        niter=_ROUNDS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=_TRAINED_ON,
    )
    kmeans.index = _finder(sample.shape[1], cells)
    kmeans.train(_shortened(sample))
    return _Cells(middle=np.asarray(kmeans.centroids))


def _finder(dimension: int, cells: int) -> Any:
    """What finds a vector's cell, not trained: among all, or in the nearest groups where there are many.

    Measured on 10 million items: 99.9 % of 20,000 of them found the nearest of 16,384 cells, in 15 us instead of 84.
    """
    if cells <= EXACT_UP_TO:
        return faiss.IndexFlatL2(dimension)
    index: Any = faiss.index_factory(dimension, f"IVF{cells // _GROUP},Flat", faiss.METRIC_L2)
    index.nprobe = _GROUPS_SEARCHED
    return index


def _shortened(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.sqrt(np.where(norms > 0, norms, 1)), np.float32)


def _blocks(vectors: Vectors) -> Iterator[tuple[int, Vectors]]:
    for start in range(0, len(vectors), _BLOCK):
        yield start, np.ascontiguousarray(vectors[start : start + _BLOCK])


def _sums(cell: NDArray[np.int64], rows: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Each cell that occurs, with the sum of its rows."""
    order = np.argsort(cell, kind="stable")
    number, first = np.unique(cell[order], return_index=True)
    yield from zip(number.tolist(), np.add.reduceat(rows[order], first), strict=True)
