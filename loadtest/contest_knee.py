"""The knee: the highest rate at which a server still answers in time, and how it answers well below it.

Open loop: calls are sent by Poisson's law whatever comes back, and latency counts from when a call was due.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from loadtest.generator import Load

CONFIRMATIONS: Final = 3
TRIES: Final = 12  # runs that may confirm; a machine on which more are needed is not steady
STEP: Final = 0.03  # of the rate, to which the knee is told
Probe = Callable[[float, float], Awaitable[Load]]  # of a rate, for seconds
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """Where a server's knee is, and its p99 at a share of that rate."""

    rate: float
    share: float
    p99_ms: float  # median over runs at that share
    p50_ms: float
    constant_p99_ms: float  # of a server that answers a constant, at the same rate in the same minutes
    late_ms: float  # how late the generator sent, at the worst


async def find(
    probe: Probe, constant: Probe, *, most: float, rules: Mapping[str, float], progress: Progress
) -> Knee | None:
    """Searches below `most`, confirms, and measures at the share; None where no rate is confirmed in so many tries."""
    rate = await highest(probe, most=most, rules=rules, progress=progress)
    if rate is None:
        return None
    ours, theirs, runs = list[Load](), list[Load](), int(rules["runs"])
    for number in range(runs):
        progress("at its share", number, runs)
        ours.append(await probe(rules["share"] * rate, rules["search_s"]))
        theirs.append(await constant(rules["share"] * rate, rules["search_s"]))
    return Knee(
        rate=rate,
        share=rules["share"],
        p99_ms=median(p_ms(load, 0.99) for load in ours),
        p50_ms=median(p_ms(load, 0.5) for load in ours),
        constant_p99_ms=median(p_ms(load, 0.99) for load in theirs),
        late_ms=1000 * max(load.late_s for load in (*ours, *theirs)),
    )


async def highest(probe: Probe, *, most: float, rules: Mapping[str, float], progress: Progress) -> float | None:
    """The highest rate below `most` that holds, in so many runs one after the other; None: there is none.

    A rate holds where no call failed, and of all at most the share `refused` was, with the 99th percentile in time.
    """

    async def holds(rate: float, seconds: float) -> bool:
        load = await probe(rate, seconds)
        refused = len(load.refused) > rules["refused"] * (len(load.refused) + len(load.latencies))
        return load.failed == 0 and not refused and p_ms(load, 0.99) <= rules["p99_ms"]

    low, high = 0.0, most
    while high - low > STEP * high and high > STEP * most:
        progress("search", 0, 1)
        middle = (low + high) / 2
        low, high = (middle, high) if await holds(middle, rules["search_s"]) else (low, middle)
    rate, confirmed = low, 0
    for number in range(TRIES):
        progress("confirm", number, TRIES)
        if rate and await holds(rate, rules["confirm_s"]):
            confirmed += 1
        else:
            rate, confirmed = rate * (1 - STEP), 0
        if confirmed == CONFIRMATIONS:
            return rate
    return None


def p_ms(load: Load, quantile: float) -> float:
    """A quantile of the latencies; infinite where nothing was answered."""
    return 1000 * float(np.quantile(load.latencies, quantile)) if len(load.latencies) else float("inf")
