"""When calls are due: Poisson arrivals whose rate follows a shape."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SHAPES: Final = ("constant", "ramp", "step", "spike")
STAIRS: Final = 4
SPIKE: Final = (0.4, 0.6)  # of the duration, between which the peak stands
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How the rate goes over time: straight lines between points; two points of one time are a jump."""

    seconds: tuple[float, ...]  # of each point, from 0, never falling
    rates: tuple[float, ...]  # calls a second at each point

    @property
    def calls(self) -> float:
        """How many are to be expected."""
        return float(np.trapezoid(self.rates, self.seconds))

    @property
    def duration(self) -> float:
        """Seconds from the first point to the last."""
        return self.seconds[-1]


def shaped(name: str, *, rate: float, duration: float, peak: float = 2.0) -> Shape:
    """A shape by its name: it starts at `rate`, and `peak` times that is where it ends, or how high its spike is.

    Raises:
        ValueError: there is no such shape.
    """
    high = rate * peak
    if name == "constant":
        return Shape(seconds=(0.0, duration), rates=(rate, rate))
    if name == "ramp":
        return Shape(seconds=(0.0, duration), rates=(rate, high))
    if name == "step":
        edges = np.linspace(0.0, duration, STAIRS + 1).repeat(2)[1:-1]
        return Shape(seconds=tuple(edges), rates=tuple(np.linspace(rate, high, STAIRS).repeat(2)))
    if name == "spike":
        up, down = (share * duration for share in SPIKE)
        return Shape(seconds=(0.0, up, up, down, down, duration), rates=(rate, rate, high, high, rate, rate))
    raise ValueError(f"{name!r} is none of {', '.join(SHAPES)}")


def preceded(shape: Shape, seconds: float) -> Shape:
    """The same shape after some seconds at its first rate: a warm-up."""
    later = tuple(seconds + at for at in shape.seconds)
    return Shape(seconds=(0.0, *later), rates=(shape.rates[0], *shape.rates)) if seconds > 0 else shape


def arrivals(shape: Shape, rng: np.random.Generator) -> Floats:
    """When calls are due, `[call] float64` seconds, rising: a Poisson process of that rate.

    Arrivals of a process of rate 1 are mapped by the inverse of the expected number of arrivals so far.
    """
    times, rates = np.asarray(shape.seconds), np.asarray(shape.rates)
    expected = np.concatenate(([0.0], np.cumsum(np.diff(times) * (rates[1:] + rates[:-1]) / 2)))
    counts = _unit_arrivals(expected[-1], rng)
    segment = np.clip(np.searchsorted(expected, counts, side="right") - 1, 0, len(times) - 2)
    rest, begin = counts - expected[segment], rates[segment]
    width = times[segment + 1] - times[segment]
    slope = (rates[segment + 1] - begin) / width
    # begin * x + slope / 2 * x^2 = rest, solved without cancellation; where the rate is 0 to the end nothing arrives
    return np.asarray(times[segment] + 2 * rest / (begin + np.sqrt(begin**2 + 2 * slope * rest)))


def _unit_arrivals(until: float, rng: np.random.Generator) -> Floats:
    """Arrivals of a Poisson process of rate 1 before a time."""
    found = np.empty(0)
    while not found.size or found[-1] < until:
        more = rng.exponential(size=int(until - (found[-1] if found.size else 0.0)) + 64)
        found = np.concatenate((found, (found[-1] if found.size else 0.0) + np.cumsum(more)))
    return found[found < until]
