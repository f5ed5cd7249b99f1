"""Owner arrays: of a layer's 1,000,000 buckets, which experiment holds each, and whether it serves it.

An entry is twice the holder's number, plus one where the bucket is live; 0 is free. So no bucket has two holders.
"""

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ranking.experiments.spec import BUCKETS

MOST_HOLDERS: Final = 32_767
MAX_BLOB: Final = 2_100_000  # bytes; zlib adds 5 bytes in 16 kB to what it cannot compress
_LEVEL: Final = 1  # of a full layer: 0.06 s and 0.85 MB; 6 takes 0.5 s for no less
Owners = NDArray[np.uint16]  # [bucket]


def nobody() -> Owners:
    """A layer whose buckets are all free."""
    return np.zeros(BUCKETS, np.uint16)


def holder(owners: Owners) -> Owners:
    """The number of each bucket's holder, 0 where it is free."""
    return owners >> np.uint16(1)


def live(owners: Owners, number: int) -> NDArray[np.bool_]:
    """The buckets that a holder serves."""
    return np.equal(owners, 2 * number + 1)


def reserve(owners: Owners, number: int, count: int, allowed: NDArray[np.bool_], rng: np.random.Generator) -> bool:
    """Extends a holder's reservation to `count` free buckets, drawn at random; answers whether there were enough."""
    missing = count - int(np.count_nonzero(holder(owners) == number))
    free = np.flatnonzero((owners == 0) & allowed)
    if missing > len(free):
        return False
    owners[rng.choice(free, missing, replace=False)] = 2 * number
    return True


def ramp(owners: Owners, number: int, count: int, rng: np.random.Generator) -> None:
    """Extends what a holder serves to `count` of its buckets, drawn at random; none is taken back."""
    missing = count - int(np.count_nonzero(live(owners, number)))
    waiting = np.flatnonzero(owners == 2 * number)
    owners[rng.choice(waiting, missing, replace=False)] = 2 * number + 1


def pack(owners: Owners) -> bytes:
    """The array as a compressed blob."""
    return zlib.compress(owners.astype("<u2").tobytes(), _LEVEL)


def unpack(blob: bytes) -> Owners:
    """Reads what `pack` wrote; never unpacks more than a layer. Raises ValueError where it is not that."""
    size = 2 * BUCKETS
    reader = zlib.decompressobj()
    try:
        raw = reader.decompress(blob, size + 1)
    except zlib.error as error:
        raise ValueError("no compressed array") from error
    if len(raw) != size or reader.unconsumed_tail or reader.unused_data:
        raise ValueError(f"does not hold {BUCKETS:,} buckets")
    owners = np.frombuffer(raw, "<u2").astype(np.uint16)
    owners.flags.writeable = False
    return owners
