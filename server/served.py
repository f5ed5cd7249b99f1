"""A served page, and what it shares with the pages of its batch."""

from dataclasses import dataclass

from features.listeners import Frames
from features.snapshot import Snapshot
from ranking.promotions.binding import Bound
from ranking.types import Home, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the pages of a batch have in common."""

    snapshot: Snapshot
    frames: Frames  # of their listeners, as they were read
    promoted_by: Bound | None
    read_s: float
    trace: Trace

    @property
    def size(self) -> int:
        """How many pages."""
        return len(self.frames.records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A page, and its place in the batch that it was made in."""

    home: Home
    batch: Batch
    place: int

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that it was made from."""
        return self.batch.snapshot
