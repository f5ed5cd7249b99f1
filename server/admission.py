"""Admission: how many calls may be under way at once, found from how long they take. Pure arithmetic; time is a value.

A call that would only wait is refused at once, so that those admitted are answered in time and the work done for them
is not in vain: beyond its capacity a server that queues answers nobody.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from features.errors import Exhausted

WINDOW_S: Final = 0.1
WINDOW_CALLS: Final = 10  # at least, for their mean to mean something
SMOOTHING: Final = 0.2
GRADIENTS: Final = (0.5, 2.0)  # no window counts for less or more
FIRST: Final = 24  # the limit before anything is known
PREFETCH_SHARE: Final = 0.4  # of the limit: the rest is never taken by what nobody waits for
LEAST_PUSHBACK_S: Final = 0.05
PREFETCH_PUSHBACK_S: Final = 1.0
PRIORITY: Final = "x-mantel-priority"  # in a call's metadata


class Priority(StrEnum):
    """Who waits for the answer."""

    VISIBLE = "visible"  # a person does
    PREFETCH = "prefetch"  # nobody yet


def priority_of(metadata: Iterable[tuple[str, str | bytes]]) -> Priority:
    """What a call says of itself; nothing: a person waits; what is not known: nobody does."""
    said = next((value for name, value in metadata if name == PRIORITY), Priority.VISIBLE)
    return Priority.VISIBLE if said == Priority.VISIBLE else Priority.PREFETCH


class Shed(Exhausted):
    """Refused before any work, for want of room; `pushback_ms` is how long to stay away."""

    def __init__(self, pushback_ms: int) -> None:
        super().__init__(f"the server is at its limit; try again in {pushback_ms} ms")
        self.pushback_ms = pushback_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Between what the limit moves; a fixed limit has `least` equal to `most`."""

    least: int = 4
    most: int = 512
    target_s: float = 0.008  # that calls take on average when more are asked for than can be answered


class Admission:
    """The limit of one process on calls of one kind.

    A call enters where fewer are under way than `limit`, one of prefetch than .4 of it; who enters leaves, whatever
    becomes of it. Answered calls are gathered into windows of 0.1 s and 10 calls at least, and at the end of each

        limit *= 1 + 0.2 * (clamp(target / mean, 0.5, 2) - 1), kept within its bounds

    A window in which never more than half of the limit was under way tells nothing of it: then the limit stays. Where
    all is slow, as on a busy machine, it comes down to twice what is under way, and refuses what is beyond; its least
    must keep the server busy.

    Netflix' Gradient2 and Envoy compare the mean with that of unhurried calls, and let `sqrt(limit)` calls queue. Where
    6 at once are all that can be answered in time, that is 2.4 of them, and the mean settles at 1.7 times the target;
    and unhurried calls are hard to tell, while a promise is given.
    """

    def __init__(self, bounds: Bounds) -> None:
        """Starts low: where there is room the limit grows by itself."""
        self._bounds = bounds
        self._limit = float(min(max(FIRST, bounds.least), bounds.most))
        self._mean_s = 0.0  # of the last window; 0: not known yet
        self._calls, self._taken_s, self._peak, self._ends_at = 0, 0.0, 0, 0.0
        self._refused = self._refused_before = False
        self.in_flight = 0

    @property
    def limit(self) -> int:
        """How many calls may be under way."""
        return int(self._limit)

    @property
    def pressed(self) -> bool:
        """Whether a call was refused in this window or the one before."""
        return self._refused or self._refused_before

    def check(self, priority: Priority) -> None:
        """Whether there is room for a call now.

        Raises:
            Shed: there is none.
        """
        room = self.limit if priority is Priority.VISIBLE else math.ceil(self.limit * PREFETCH_SHARE)
        if self.in_flight >= room:
            self._refused = True
            raise Shed(self._pushback_ms(priority))

    def enter(self, priority: Priority) -> None:
        """Lets a call in, which must leave.

        Raises:
            Shed: there is no room.
        """
        self.check(priority)
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)

    def leave(self, *, entered_at: float, now: float, answered: bool) -> None:
        """A call that entered is over; one that was not answered tells nothing of how long answers take."""
        self.in_flight -= 1
        if not answered:
            return
        self._calls += 1
        self._taken_s += now - entered_at
        if now >= self._ends_at and self._calls >= WINDOW_CALLS:
            self._close_window(now)

    def _close_window(self, now: float) -> None:
        self._mean_s = max(self._taken_s / self._calls, 1e-6)
        self._refused, self._refused_before = False, self._refused
        if self._peak > self._limit / 2:
            least, most = GRADIENTS
            gradient = min(most, max(least, self._bounds.target_s / self._mean_s))
            limit = self._limit * (1 + SMOOTHING * (gradient - 1))
            self._limit = min(float(self._bounds.most), max(float(self._bounds.least), limit))
        self._calls, self._taken_s, self._peak, self._ends_at = 0, 0.0, self.in_flight, now + WINDOW_S

    def _pushback_ms(self, priority: Priority) -> int:
        """By then as many calls as are under way now have been answered twice over; prefetch can wait longer."""
        least = LEAST_PUSHBACK_S if priority is Priority.VISIBLE else PREFETCH_PUSHBACK_S
        return int(1000 * max(least, 2 * self._mean_s))
