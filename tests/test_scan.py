"""Searching the cells of an index by loops of our own: FAISS's own search is the answer that they are held against."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from features.compiled import reads_half
from features.index import FaissRetriever, use_one_thread

pytestmark = pytest.mark.skipif(not reads_half(), reason="FAISS searches where the processor reads no float16")
Vectors = NDArray[np.float32]


def retriever_over(folder: Path, items: Vectors, *, cells: int, nprobe: int) -> FaissRetriever:
    """An index of some vectors, opened as workers open it."""
    path, dimension = folder / "index.faiss", items.shape[1]
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dimension), dimension, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.train(items)
    index.add(items)
    faiss.write_index(index, str(path))
    use_one_thread()
    return FaissRetriever(path, dimension=items.shape[1], items=len(items), nprobe=nprobe)


def drawn(count: int, dimension: int, seed: int) -> Vectors:
    """Vectors of very different lengths, as trained ones are."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, dimension)) * rng.lognormal(0, 1, (count, 1))).astype(np.float32)


@pytest.mark.parametrize(
    ("dimension", "k", "nprobe"), [(64, 256, 12), (64, 1, 1), (20, 40, 64), (8, 512, 3), (17, 9, 5)]
)
def test_what_it_finds_is_what_faiss_finds(tmp_path: Path, dimension: int, k: int, nprobe: int) -> None:
    """The same rows, but where scores differ by rounding, and scores to six digits; -1 where cells hold less."""
    retriever = retriever_over(tmp_path, drawn(6_000, dimension, 3), cells=64, nprobe=nprobe)
    queries = drawn(50, dimension, 4)
    scores, rows = retriever.search(queries, k)
    expected, by_faiss = retriever.search_by_faiss(queries, k)
    there = by_faiss >= 0
    assert np.array_equal(rows >= 0, there)
    assert np.allclose(scores[there], expected[there], rtol=1e-5, atol=1e-6 * np.abs(expected[there]).max())
    assert np.mean(rows == by_faiss) > 0.99
    assert np.all(np.diff(scores[there.all(axis=1)], axis=1) <= 0)


def test_a_batch_finds_what_its_queries_find_alone(tmp_path: Path) -> None:
    """To the last bit."""
    retriever = retriever_over(tmp_path, drawn(3_000, 24, 5), cells=32, nprobe=5)
    queries = drawn(9, 24, 6)
    scores, rows = retriever.search(queries, 100)
    for query in range(len(queries)):
        own_scores, own_rows = retriever.search(queries[query : query + 1], 100)
        assert np.array_equal(own_scores[0], scores[query])
        assert np.array_equal(own_rows[0], rows[query])


def test_equal_scores_come_by_row_and_each_row_once(tmp_path: Path) -> None:
    """Of items that are all alike so many are found as are asked for, the lower rows first."""
    items = np.repeat(drawn(40, 8, 7), 25, axis=0)
    retriever = retriever_over(tmp_path, items, cells=16, nprobe=16)
    scores, rows = retriever.search(np.concatenate((drawn(5, 8, 8), np.zeros((1, 8), np.float32))), 60)
    for own_scores, own_rows in zip(scores, rows, strict=True):
        assert len(set(own_rows.tolist())) == 60
        order = np.lexsort((own_rows, -own_scores))
        assert np.array_equal(order, np.arange(60))
