"""The one door to FAISS for serving: an index file, mapped and shared by all workers, searched by one thread each."""

from pathlib import Path
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from features.errors import SnapshotRefused

Scores = NDArray[np.float32]  # [query, k]
Rows = NDArray[np.int64]  # [query, k]


class Retriever(Protocol):
    """Finds the rows with the largest inner product."""

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[Scores, Rows]:
        """Scores and rows, each `[query, k]`, best first; row -1 where there are fewer than k."""
        ...


def use_one_thread() -> None:
    """Binds the calling thread's searches to one OpenMP thread, and their results to no batch size.

    The thread count is per calling thread. FAISS switches to BLAS at 20 queries, which changes the last bits of the
    scores, so a batch would differ from its rows served alone.
    """
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = 2**31 - 1


class FaissRetriever:
    """A FAISS index opened from a file."""

    def __init__(self, path: Path, *, dimension: int, items: int, nprobe: int) -> None:
        """Maps the file (`IO_FLAG_MMAP_IFC`; the older `IO_FLAG_MMAP` searches ten times slower).

        Raises:
            SnapshotRefused: FAISS cannot read the file, or it holds another dimension, count or metric.
        """
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise SnapshotRefused(f"{path.name}: FAISS cannot read it: {error}") from error
        found = (self._index.d, self._index.ntotal, self._index.metric_type)
        wanted = (dimension, items, faiss.METRIC_INNER_PRODUCT)
        if found != wanted:
            raise SnapshotRefused(f"{path.name}: (dimension, items, metric) is {found}, the manifest says {wanted}")
        self._params = faiss.SearchParametersIVF(nprobe=nprobe) if nprobe else None  # type: ignore[call-arg]  # made by SWIG

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[Scores, Rows]:
        """Scores and rows, each `[query, k]`."""
        scores, rows = self._index.search(vectors, k, params=self._params)
        return scores, rows


class ExactRetriever:
    """Brute force over a matrix: the answer that an index is measured by."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        """Takes the items' vectors, `[item, dimension]`."""
        self._vectors = vectors

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[Scores, Rows]:
        """Scores and rows, each `[query, k]`; ties go to the lower row."""
        scores = vectors @ self._vectors.T
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64)
        found = np.take_along_axis(scores, rows, axis=1).astype(np.float32)
        short = k - rows.shape[1]
        if short > 0:
            rows = np.pad(rows, ((0, 0), (0, short)), constant_values=-1)
            found = np.pad(found, ((0, 0), (0, short)), constant_values=-np.inf)
        return found, rows
