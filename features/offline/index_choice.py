"""The index of a snapshot: its type and parameters, chosen by measured recall at the depth that is served.

Recall is measured against brute force with the vectors' own norms, for vectors of real listeners, under the settings
of serving (one thread, no BLAS).
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from features.index import FaissRetriever, Retriever, use_one_thread
from features.offline.cells import POINTS_PER_CELL, cell_index
from features.offline.stages import Stage
from features.snapshot import INDEX

FLAT_UP_TO: Final = 10_000  # a query of 10,000 takes 123 us, with cells 101; of 20,000 174 and 99
LADDER: Final = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_SAMPLE: Final = 1_000
_TIMED: Final = 200

Vectors = NDArray[np.float32]
IndexKind = Literal["auto", "flat", "ivf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """What index is wanted: `depth` is how many items a search is asked for, `target_recall` the share it must find."""

    kind: IndexKind = "auto"
    depth: int = 256
    target_recall: float = 0.98
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexChoice:
    """The index that was built; `found` is what it answers the sampled listeners, `[sample, depth]` rows."""

    factory: str
    nprobe: int  # 0: the index has no cells
    depth: int
    recall: float
    micros: float  # of one query on one thread, median
    found: NDArray[np.int64]


def choose_index(
    items: Vectors,
    listeners: Vectors,
    folder: Path,
    *,
    settings: IndexSettings,
    stage: Stage,
) -> IndexChoice:
    """Builds and writes the index over `items` `[item, D]`, and measures it with a sample of `listeners`."""
    cells = _cells(len(items), settings.kind)
    if cells:
        index = cell_index(items, cells, seed=settings.seed, stage=stage)
    else:
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(np.ascontiguousarray(items))
    faiss.write_index(index, str(folder / INDEX))
    del index
    rng = np.random.default_rng(settings.seed)
    sample = np.sort(rng.choice(len(listeners), min(_SAMPLE, len(listeners)), replace=False))
    queries = listeners[sample].astype(np.float16).astype(np.float32)  # as a listener's record holds them
    with ThreadPoolExecutor(1, initializer=use_one_thread) as serving:
        return serving.submit(_measured, items, queries, folder / INDEX, cells, settings).result()


def _cells(items: int, kind: IndexKind) -> int:
    """How many cells divide the items, 0 for a flat index; about 4 sqrt(items), a power of two."""
    if kind == "flat" or (kind == "auto" and items <= FLAT_UP_TO):
        return 0
    most = max(1, items // POINTS_PER_CELL)
    return int(min(1 << round(math.log2(4 * items**0.5)), 1 << most.bit_length() - 1))


def _measured(items: Vectors, queries: Vectors, path: Path, cells: int, settings: IndexSettings) -> IndexChoice:
    depth = min(settings.depth, len(items))
    exact, _ = faiss.knn(queries, np.asarray(items), depth, metric=faiss.METRIC_INNER_PRODUCT)
    ladder = [0] if not cells else [*(n for n in LADDER if n < cells), cells]
    for nprobe in ladder:
        retriever = FaissRetriever(path, dimension=items.shape[1], items=len(items), nprobe=nprobe)
        _, found = retriever.search(queries, depth)
        recall = recall_of(items, queries, found, exact[:, -1])
        if recall >= settings.target_recall:
            break
    factory = f"IVF{cells},SQfp16" if cells else "Flat"
    micros = _micros(retriever, queries[:_TIMED], depth)
    return IndexChoice(factory=factory, nprobe=nprobe, depth=depth, recall=recall, micros=micros, found=found)


def recall_of(items: Vectors, queries: Vectors, found: NDArray[np.int64], least: NDArray[np.float32]) -> float:
    """The share of found rows `[query, k]` that score at least `least` `[query]`, the k-th best score there is.

    By score and not by row, since items with equal vectors stand for one another.
    """
    hits = 0
    for query, rows, bar in zip(queries, found, least, strict=True):
        scores = items[rows[rows >= 0]] @ query
        hits += int((scores >= bar - 1e-5 * abs(bar)).sum())
    return hits / found.size


def _micros(retriever: Retriever, queries: Vectors, depth: int) -> float:
    took: list[float] = []
    for query in queries:
        start = time.perf_counter()
        retriever.search(query[None], depth)
        took.append(time.perf_counter() - start)
    return float(np.median(took)) * 1e6
