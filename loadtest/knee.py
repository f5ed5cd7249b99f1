"""The knee: the highest rate at which every one of several runs keeps to its bounds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from loadtest.verdict import Figures, Outcome, Verdict

Attempt = Callable[[float], tuple[Figures, Verdict]]  # a run at a rate
AGAIN: Final = 2  # runs made anew, at each rate, for those without a verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What the runs at one rate came to; of a rate that does not hold, those until one failed."""

    rate: float
    runs: tuple[tuple[Figures, Verdict], ...]

    @property
    def outcome(self) -> Outcome:
        """Whether the rate holds; none where a run had no verdict."""
        outcomes = {verdict.outcome for _, verdict in self.runs}
        return next((one for one in (Outcome.NONE, Outcome.FAIL) if one in outcomes), Outcome.PASS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """What a search came to."""

    rate: float  # the highest that holds; 0: none does
    tried: tuple[Tried, ...]  # in order
    reason: str = ""  # why the knee may lie higher: the generator was the bottleneck there


def find_knee(attempt: Attempt, *, start: float, runs: int = 3, precision: float = 0.05, most: float = 1e6) -> Knee:
    """Doubles the rate until it does not hold, or halves it until it does; then bisects, by ratio.

    Ends when the lowest rate that does not hold is within `precision` of the highest that does, at a rate without a
    verdict, or below one call a second.
    """
    tried: list[Tried] = []
    low, high, rate = 0.0, math.inf, start
    while high > low * (1 + precision) and 1 <= rate <= most:
        tried.append(_at(attempt, rate, runs))
        outcome = tried[-1].outcome
        if outcome is Outcome.NONE:
            why = "; ".join(dict.fromkeys(reason for _, verdict in tried[-1].runs for reason in verdict.reasons))
            return Knee(rate=low, tried=tuple(tried), reason=f"no verdict at {rate:,.0f} calls/s: {why}")
        low, high = (rate, high) if outcome is Outcome.PASS else (low, rate)
        rate = low * 2 if high == math.inf else high / 2 if low == 0 else math.sqrt(low * high)
    return Knee(rate=low, tried=tuple(tried))


def _at(attempt: Attempt, rate: float, runs: int) -> Tried:
    found: list[tuple[Figures, Verdict]] = []
    again = AGAIN
    while len(found) < runs and all(verdict.outcome is Outcome.PASS for _, verdict in found):
        one = attempt(rate)
        if one[1].outcome is Outcome.NONE and again:
            again -= 1  # the machine may have been busy for a moment
            continue
        found.append(one)
    return Tried(rate=rate, runs=tuple(found))
