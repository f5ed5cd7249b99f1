"""What is asked: steps drawn from a seed before the first call, so that the same seed asks the same.

A step is one call. Most are first pages of listeners drawn by Zipf; some follow an earlier step: its next page, or
events about what it showed. Whom a step follows is drawn too, among those that were due while one could have looked at
them; where that one brought no answer, an app would ask for the page again, and so does the step.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

PAGE, NEXT, PREFETCH, EVENTS = range(4)
KINDS: Final = ("page", "next page", "prefetch", "events")
STRANGERS: Final = 1_000_000  # whom nothing is known of, as many as are told apart
SESSION_S: Final = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The shares of the traffic, and how listeners behave."""

    events: float = 0.1  # of all calls
    next_pages: float = 0.1
    prefetch: float = 0.0  # first pages that a server under overload refuses first
    strangers: float = 0.02  # of first pages
    zipf: float = 1.0  # how much more the listener of rank r asks: r^-zipf
    page_size: int = 6  # shelves of a page; 0: all of the surface
    surfaces: tuple[tuple[str, float], ...] = (("home", 1.0),)  # with their weights
    markets: tuple[str, ...] = ("",)  # "": the listener's own
    looking_s: tuple[float, float] = (0.5, 3.0)  # from a page to its next page or its events


class Steps(NamedTuple):
    """The calls of a run, by columns."""

    due: NDArray[np.float64]  # [step] seconds from the start, rising
    kind: NDArray[np.uint8]  # [step]
    listener: NDArray[np.int64]  # [step] rank; from the number of listeners on they are strangers
    surface: NDArray[np.uint8]  # [step] of the mix
    market: NDArray[np.uint8]  # [step] of the mix
    follows: NDArray[np.int64]  # [step] the step that a next page or events go on from; -1 for first pages
    chance: NDArray[np.uint32]  # [step] for what else is drawn: which events

    def session(self, step: int) -> str:
        """The session of a step: a listener's half hour of the run."""
        return f"load-{self.listener[step]}-{int(self.due[step] // SESSION_S)}"


def draw(mix: Mix, listeners: int, due: NDArray[np.float64], rng: np.random.Generator) -> Steps:
    """The steps of a run in which calls are due at those times, for that many listeners; for 0 all are strangers."""
    count = due.size
    shares = (1 - mix.next_pages - mix.prefetch - mix.events, mix.next_pages, mix.prefetch, mix.events)
    kind = rng.choice(len(KINDS), size=count, p=np.asarray(shares)).astype(np.uint8)
    follows = _followed(due, kind, due - rng.uniform(*mix.looking_s, size=count))
    kind[(follows < 0) & ((kind == NEXT) | (kind == EVENTS))] = PAGE  # nothing was shown yet
    weights = np.asarray([weight for _, weight in mix.surfaces])
    listener = _by_zipf(listeners or STRANGERS, mix.zipf, count, rng)
    stranger = rng.random(count) < mix.strangers
    listener[stranger] = listeners + rng.integers(STRANGERS, size=int(stranger.sum()))
    surface = rng.choice(len(weights), size=count, p=weights / weights.sum()).astype(np.uint8)
    market = rng.integers(len(mix.markets), size=count).astype(np.uint8)
    for step in np.flatnonzero(follows >= 0):  # in order: one that is followed may follow
        for column in (listener, surface, market):
            column[step] = column[follows[step]]
    chance = rng.integers(1 << 32, size=count, dtype=np.uint32)
    return Steps(due, kind, listener, surface, market, follows, chance)


def _followed(due: NDArray[np.float64], kind: NDArray[np.uint8], looked: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each next page and each call of events the last page that was due at the time looked at; else -1."""
    pages = np.flatnonzero((kind == PAGE) | (kind == NEXT))
    place = np.searchsorted(due[pages], looked, side="right") - 1
    found = np.where(place >= 0, pages[np.maximum(place, 0)], -1) if pages.size else np.full(due.size, -1)
    return np.asarray(np.where((kind == NEXT) | (kind == EVENTS), found, -1), np.int64)


def _by_zipf(ranks: int, exponent: float, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Ranks from 0, `[count] int64`, drawn with weights (rank + 1)^-exponent."""
    heights = np.cumsum(np.arange(1, ranks + 1, dtype=np.float64) ** -exponent)
    return np.asarray(np.searchsorted(heights, rng.random(count) * heights[-1], side="right"), np.int64)
