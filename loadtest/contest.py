"""Servers on one core, in turns, loaded from another: rounds, medians, CPU per request."""

import asyncio
import os
import signal
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from loadtest import machine
from loadtest.generator import Load, Target, closed

RULES: Final = Path(__file__).with_name("bench.toml")
SHELVES: Final = Path(__file__).with_name("bench_surfaces.toml")  # six of twelve items
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A server that runs, and how it is loaded."""

    name: str
    target: Target
    pids: frozenset[int]  # the processes that answer
    rests: bool = False  # stopped while others have their turn: it looks for work all the time


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    warm_up_s: float
    in_flight: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of a contestant with so many calls in flight; medians over rounds."""

    name: str
    in_flight: int
    rate: float  # answers per second
    spread: float  # of the rate: (highest - lowest) / median
    cpu_us: float  # of the server, per answer
    server_busy: float  # share of its core
    p50_ms: float
    p99_ms: float
    payload: float  # bytes of an answer
    failed: int  # in all rounds
    generator_busy: float
    others: float  # the larger share that others took of either core
    busiest: float  # share of the server's CPU that the busiest of its processes used


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    load: Load
    cpu_s: float
    busiest: float
    others: float


def rules() -> Mapping[str, Any]:
    """What the bench holds itself to."""
    return tomllib.loads(RULES.read_text())


def plan_of(name: str) -> Plan:
    """The plan of that name in the rules: `rounds` or `quick`."""
    return Plan(**rules()[name])


async def run(
    contestants: Sequence[Contestant],
    plan: Plan,
    *,
    cores: tuple[int, int],
    helpers: frozenset[int],
    progress: Progress,
) -> tuple[Row, ...]:
    """Loads every contestant in turn, round by round; a round that warms up is not counted.

    `helpers` are processes on the load's core that work for the servers, as Redis does.
    """
    cases = [(one, number) for number in plan.in_flight for one in contestants]
    turns: list[list[_Turn]] = [[] for _ in cases]
    for number in range(plan.rounds + 1):
        progress(*(("rounds", number - 1, plan.rounds) if number else ("warm-up", 0, 1)))
        for turn in range(len(cases)):
            place = (number + turn) % len(cases)  # nobody always follows the same other
            contestant, in_flight = cases[place]
            measured = await _turn(contestant, in_flight, plan.seconds if number else plan.warm_up_s, cores, helpers)
            if number:
                turns[place].append(measured)
    return tuple(_row(one.name, number, own) for (one, number), own in zip(cases, turns, strict=True))


async def _turn(
    contestant: Contestant, in_flight: int, seconds: float, cores: tuple[int, int], helpers: frozenset[int]
) -> _Turn:
    pids, near = (contestant.pids, frozenset({os.getpid(), *helpers}))
    if contestant.rests:
        _tell(pids, signal.SIGCONT)
    each = {pid: machine.spent(pid) for pid in pids}
    before = machine.read(pids, cores[0]), machine.read(near, cores[1])
    load = await closed(contestant.target, in_flight=in_flight, seconds=seconds)
    after = machine.read(pids, cores[0]), machine.read(near, cores[1])
    most = max(machine.spent(pid) - began for pid, began in each.items())
    await asyncio.sleep(0.05)  # what waits behind the responses is done before the next has its turn
    if contestant.rests:
        _tell(pids, signal.SIGSTOP)
    others = max(machine.others_share(one, two) for one, two in zip(before, after, strict=True))
    cpu_s = after[0].processes - before[0].processes
    return _Turn(load=load, cpu_s=cpu_s, busiest=min(1.0, most / max(1e-9, cpu_s)), others=others)


def _tell(pids: frozenset[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def _row(name: str, in_flight: int, turns: Sequence[_Turn]) -> Row:
    rates = [one.load.rate for one in turns]
    latencies = np.concatenate([one.load.latencies for one in turns])
    p50, p99 = np.quantile(latencies, (0.5, 0.99)) if len(latencies) else (np.nan, np.nan)
    middle = median(rates)
    return Row(
        name=name,
        in_flight=in_flight,
        rate=middle,
        spread=(max(rates) - min(rates)) / max(1e-9, middle),
        cpu_us=median(1e6 * one.cpu_s / max(1, len(one.load.latencies)) for one in turns),
        server_busy=median(one.cpu_s / one.load.seconds for one in turns),
        p50_ms=1000 * float(p50),
        p99_ms=1000 * float(p99),
        payload=median(one.load.payload for one in turns),
        failed=sum(one.load.failed for one in turns),
        generator_busy=median(one.load.busy for one in turns),
        others=median(one.others for one in turns),
        busiest=median(one.busiest for one in turns),
    )
