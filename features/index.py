"""The one door to FAISS for serving: an index file, mapped and shared by all workers, searched by one thread each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from features.compiled import reads_half
from features.errors import SnapshotRefused
from features.scan import Cells, search

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
        self._nprobe = nprobe
        self._cells = _cells(faiss.extract_index_ivf(self._index)) if nprobe and reads_half() else None

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[Scores, Rows]:
        """Scores and rows, each `[query, k]`."""
        if self._cells is not None:
            return search(self._cells, vectors, k, self._nprobe)
        return self.search_by_faiss(vectors, k)

    def search_by_faiss(self, vectors: NDArray[np.float32], k: int) -> tuple[Scores, Rows]:
        """What FAISS's own search answers: where there are no cells, and to hold the loops of `scan` against."""
        params = faiss.SearchParametersIVF(nprobe=self._nprobe) if self._nprobe else None  # type: ignore[call-arg]  # made by SWIG
        scores, rows = self._index.search(vectors, k, params=params)
        return scores, rows


def _cells(index: Any) -> Cells | None:
    """The parts of an index as the build writes it, where they are mapped; None of any other kind of index.

    Nor where D is no multiple of 4: rows lie behind codes then, where no integer begins.
    """
    centres: Any = faiss.downcast_index(index.quantizer)
    plain = not index.by_residual and index.code_size == 2 * index.d and isinstance(centres, faiss.IndexFlatIP)
    if not plain or index.d % 4:
        return None
    lists, number = index.invlists, range(index.nlist)
    size = np.array([lists.list_size(cell) for cell in number], np.int64)
    code_start, codes = _stretch([lists.get_codes(cell) for cell in number], size * index.code_size, step=1)
    row_start, rows = _stretch([lists.get_ids(cell) for cell in number], size * 8, step=8)
    return Cells(
        centres=faiss.rev_swig_ptr(centres.get_xb(), index.nlist * index.d).reshape(index.nlist, index.d),
        size=size,
        code_start=code_start // 2,
        codes=codes.view(np.uint16),
        row_start=row_start,
        rows=rows,
    )


def _stretch(pointers: Sequence[Any], held: Rows, *, step: int) -> tuple[Rows, NDArray[Any]]:
    """What lies from the first to the last of some arrays of `held` bytes, and where in it each begins, in steps."""
    at, full = np.array([int(pointer) for pointer in pointers], np.int64), np.flatnonzero(held)
    first = full[at[full].argmin()]
    size = int((at + held)[full].max() - at[first])
    return np.where(held > 0, at - at[first], 0) // step, faiss.rev_swig_ptr(pointers[first], size // step)


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
