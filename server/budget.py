"""The time of a batch: what it will cost, as those before it did, and what that leaves for each of its stages.

Pure: times come in as values. Work is counted in shelves, since a page of nine costs more than one of two.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ranking.types import HomeQuery

FIRST_S: Final = 0.0001  # of a shelf, until a batch has been served
FIXED: Final = 4.0  # shelves that a batch costs beside its own, as far as the batches served do not tell
SMOOTHING: Final = 0.1  # of a batch's figures in the means
SPIKE: Final = 4.0  # times what was predicted, beyond which a batch counts no more: the kernel took the core away
NARROWED: Final = 0.25  # of the work of a page that narrowing leaves: .23 of its time in a batch of 16, .42 alone
ANSWER_S: Final = 0.0005  # left for encoding the page, which took 0.2 to 0.3 ms on busy cores, and sending it


class Costs:
    """How long batches take to compute: a fixed part and a part for each shelf, smoothed over the batches served.

    A line through the figures, whose slope leans to that of a batch with `FIXED` shelves more where all were alike.
    """

    def __init__(self) -> None:
        """Guesses until it has learned."""
        self._work, self._seconds = 1.0, (1.0 + FIXED) * FIRST_S
        self._spread, self._slant = 0.0, 0.0  # variance of the work, its covariance with the seconds
        self._fixed, self._each = FIXED * FIRST_S, FIRST_S

    def of(self, work: float) -> float:
        """Seconds that so much work will take."""
        return self._fixed + work * self._each

    def fits(self, seconds: float) -> float:
        """Work that these seconds have room for; below zero, not even for a batch without any."""
        return (seconds - self._fixed) / self._each

    def learn(self, work: float, seconds: float) -> None:
        """A batch of so much work, more than none, took so long."""
        seconds = min(seconds, SPIKE * self.of(work))
        more, longer = work - self._work, seconds - self._seconds
        self._work += SMOOTHING * more
        self._seconds += SMOOTHING * longer
        self._spread = (1 - SMOOTHING) * (self._spread + SMOOTHING * more * more)
        self._slant = (1 - SMOOTHING) * (self._slant + SMOOTHING * more * longer)
        guess = self._seconds / (self._work + FIXED)
        slope = (self._slant + guess) / (self._spread + 1)
        self._each = min(max(slope, guess / 2), self._seconds / self._work)
        self._fixed = self._seconds - self._each * self._work


class Budget:
    """Divides the time of a batch of pages among its stages. What is left, `left_s`, are the seconds to a deadline."""

    def __init__(self, *, batch_s: float, read_s: float) -> None:
        """`batch_s` of the processor a batch may take to compute, and wait for its listeners for `read_s`."""
        self._batch_s = batch_s
        self._read_s = read_s
        self._costs = Costs()
        self._stretch = 1.0  # seconds that pass while one of the processor is used

    def work(self, query: HomeQuery) -> float:
        """What a page costs, in shelves."""
        shelves = len(query.surface.shelves)
        return NARROWED * shelves if query.narrow else shelves

    def room(self, left_s: float) -> float:
        """The work that a batch may hold whose earliest deadline is so near.

        The bound of its own counts what the processor does: were it what passes, batches would shrink, and pages cost
        more, just when others take the core away.
        """
        return self._costs.fits(min(self._batch_s, (left_s - ANSWER_S) / self._stretch))

    def takes(self, work: float) -> float:
        """Seconds from a batch's listeners to its answers."""
        return self._stretch * self._costs.of(work) + ANSWER_S

    def for_read(self, work: float, left_s: float) -> float:
        """Seconds that a batch may wait for its listeners, never below 0; then there is time for narrowed pages.

        What is left is meant up to its latest deadline: a caller in a hurry must not cost the others their listeners.
        """
        return max(0.0, min(self._read_s, left_s - self.takes(NARROWED * work)))

    def narrowed(self, queries: Sequence[HomeQuery], left_s: Sequence[float]) -> tuple[HomeQuery, ...]:
        """The queries, those narrowed that cannot wait until whole pages of all are made."""
        needed_s = self.takes(sum(map(self.work, queries)))
        if min(left_s) >= needed_s:
            return tuple(queries)
        pairs = zip(queries, left_s, strict=True)
        return tuple(query if left >= needed_s else replace(query, narrow=True) for query, left in pairs)

    def learn(self, work: float, *, used_s: float, passed_s: float) -> None:
        """A batch has used so many seconds of the processor, while so many passed."""
        self._costs.learn(work, used_s)
        self._stretch += SMOOTHING * (min(max(passed_s / used_s, 1.0), SPIKE) - self._stretch)
