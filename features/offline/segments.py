"""Segments: listeners of like taste, whose mean stands in where a listener's own vector cannot be had."""

from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from features.snapshot import SEGMENTS

_SAMPLE: Final = 4_096 * SEGMENTS  # listeners that k-means looks at
_ROUNDS: Final = 20

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """`mean` is `[SEGMENTS, D]`, zero where a segment has nobody; `of` is each listener's segment, `[listener]`."""

    mean: Vectors
    of: NDArray[np.int64]


def make_segments(vectors: Vectors, *, seed: int) -> Segments:
    """Clusters listeners by the direction of their vectors, `[listener, D]`; a mean is of the vectors themselves.

    Length says how much somebody listens, not to what. Fewer listeners than SEGMENTS are a segment each.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1)
    kmeans = faiss.Kmeans(
        unit.shape[1],
        min(SEGMENTS, len(unit)),
        niter=_ROUNDS,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=_SAMPLE,
    )
    # Listeners stand in the order of a hash, so every n-th is a fair sample.
    kmeans.train(np.ascontiguousarray(unit[:: -(-len(unit) // _SAMPLE)]))
    segment = kmeans.index.search(unit, 1)[1][:, 0]
    mean = np.zeros((SEGMENTS, unit.shape[1]), np.float32)
    for number in np.unique(segment):
        mean[number] = vectors[segment == number].mean(axis=0, dtype=np.float64)
    return Segments(mean=mean, of=segment)
