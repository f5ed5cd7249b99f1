"""Overload: beyond its knee a server shall answer as many pages in time as there, and refuse the rest at once.

Open loop, in rounds: a run at the knee, and one at a multiple of it, where a share is prefetches, to give way first.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from itertools import count
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from loadtest.contest_knee import Progress, highest
from loadtest.contest_verdict import Figure, Verdict
from loadtest.generator import Load, Target, opened

SEED: Final = 11
AT_MOST: Final = ("refused_p99_ms", "visible_p99_ms", "visible_refused")
Watched = Callable[[list[float]], AbstractContextManager[None]]  # adds what others took of the cores meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What became of calls; NaN: there were none."""

    offered: float  # calls a second
    in_time: float  # of these answered within the bound, a second
    refused: float  # share
    p50_ms: float  # of pages, from when they were due
    p99_ms: float
    refused_p50_ms: float  # of refusals, from when the call was sent
    refused_p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """What a server does at its knee and beyond it; medians over rounds."""

    knee: float  # calls a second
    at_knee: Calls
    beyond: Calls  # visible and prefetch together
    visible: Calls  # somebody waits for them
    prefetch: Calls
    failed: int  # neither answered nor refused, in all rounds
    late_ms: float  # how late the generator sent, at the 99th percentile
    busy: float  # share of its core that the generator used
    others: float  # the larger share that others took of either core


async def measure(
    visible: Target, prefetch: Target, rules: Mapping[str, Any], *, watched: Watched, progress: Progress
) -> Overload | None:
    """Searches the knee of calls that somebody waits for, and goes beyond it; None: the machine is not steady."""
    seeds, others, rounds = count(SEED), list[float](), list[tuple[Load, Load, Load]]()
    parts = ((visible, 1 - rules["prefetch"]), (prefetch, rules["prefetch"]))

    async def at(rate: float, seconds: float, *parts: tuple[Target, float]) -> list[Load]:
        for length in (rules["warm_up_s"], seconds):  # the limit is found anew at each rate
            running = (opened(one, rate=part * rate, seconds=length, seed=next(seeds)) for one, part in parts)
            loads = await asyncio.gather(*running)
        return loads

    async def probe(rate: float, seconds: float) -> Load:
        (load,) = await at(rate, seconds, (visible, 1.0))
        return load

    knee = await highest(probe, most=1000 / rules["work_ms"], rules=rules["knee"], progress=progress)
    if knee is None:
        return None
    for number in range(rules["rounds"]):
        progress("rounds", number, rules["rounds"])
        with watched(others):
            at_knee = await probe(knee, rules["seconds"])
            one, other = await at(rules["times"] * knee, rules["seconds"], *parts)
            rounds.append((at_knee, one, other))
    return summed(knee, rounds, others, in_time_s=rules["knee"]["p99_ms"] / 1000, seconds=rules["seconds"])


def summed(
    knee: float, rounds: Sequence[tuple[Load, Load, Load]], others: Sequence[float], *, in_time_s: float, seconds: float
) -> Overload:
    """What rounds come to, each of a run at the knee, and beyond it of what somebody waits for, and of prefetches."""
    loads = [load for one in rounds for load in one]

    def calls(*places: int) -> Calls:
        found = [_calls([one[place] for place in places], in_time_s, seconds) for one in rounds]
        return Calls(**{field.name: median(getattr(one, field.name) for one in found) for field in fields(Calls)})

    return Overload(
        knee=knee,
        at_knee=calls(0),
        beyond=calls(1, 2),
        visible=calls(1),
        prefetch=calls(2),
        failed=sum(load.failed for load in loads),
        late_ms=1000 * median(load.late_s for load in loads),
        busy=median(load.busy for load in loads),
        others=median(others),
    )


def judge(found: Overload, rules: Mapping[str, Any], limits: Mapping[str, float]) -> Verdict:
    """Whether the floors stand; `limits` are those beyond which a machine is too busy for a verdict."""
    values = {
        "goodput": found.beyond.in_time / max(1e-9, found.at_knee.in_time),
        "refused_p99_ms": found.beyond.refused_p99_ms,
        "visible_p99_ms": found.visible.p99_ms,
        "visible_refused": found.visible.refused / max(1e-9, found.prefetch.refused),
    }
    figures = tuple(
        Figure(name=name, value=value, floor=rules["floors"][name], aim=rules["aims"][name], at_most=name in AT_MOST)
        for name, value in values.items()
    )
    doubts = []
    if found.late_ms > rules["late_ms"]:
        doubts.append(f"the generator sent {found.late_ms:.1f} ms late; the limit is {rules['late_ms']:g} ms")
    if found.busy > limits["generator"]:
        doubts.append(f"the generator used {found.busy:.0%} of its core; the limit is {limits['generator']:.0%}")
    if found.others > limits["others"]:
        doubts.append(f"others took {found.others:.0%} of a core; the limit is {limits['others']:.0%}")
    if found.failed:
        doubts.append(f"{found.failed} calls failed, neither answered nor refused")
    return Verdict(doubts=tuple(doubts), figures=figures)


def _calls(loads: Sequence[Load], in_time_s: float, seconds: float) -> Calls:
    answered = np.concatenate([load.latencies for load in loads])
    refused = np.concatenate([load.refused for load in loads])
    every = answered.size + refused.size + sum(load.failed for load in loads)
    p50, p99 = _quantiles_ms(answered)
    refused_p50, refused_p99 = _quantiles_ms(refused)
    return Calls(
        offered=every / seconds,
        in_time=np.count_nonzero(answered <= in_time_s) / seconds,
        refused=refused.size / every if every else np.nan,
        p50_ms=p50,
        p99_ms=p99,
        refused_p50_ms=refused_p50,
        refused_p99_ms=refused_p99,
    )


def _quantiles_ms(seconds: NDArray[np.float64]) -> tuple[float, float]:
    p50, p99 = 1000 * np.quantile(seconds, (0.5, 0.99)) if seconds.size else (np.nan, np.nan)
    return float(p50), float(p99)
