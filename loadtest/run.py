"""A run: processes that each play their part of the traffic, and what they measured, put together.

Each process leaves its rows (`<name>.npy`) and how busy it was (`<name>.json`) in a folder. Generators are fresh
interpreters, apart from the process that draws progress bars: `python -m loadtest.run`, the plan on standard input.
"""

import asyncio
import gc
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import uvloop
from pydantic import TypeAdapter

from loadtest.arrivals import Shape, arrivals, preceded
from loadtest.calls import Calls
from loadtest.drive import CONNECT_S, Target, connect, drive
from loadtest.script import Script
from loadtest.traffic import Mix, draw

SETTLE_S: Final = 0.2  # from the last process' word that it is ready to the first call
Tell = Callable[[str, int, int], None]


class RunFailed(Exception):
    """A generator did not come to its end; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run does. Its rate is that of all processes together."""

    target: Target
    shape: Shape
    warm_up_s: float
    mix: Mix
    listeners: Path  # user ids, one a line, who asks most first
    seed: int
    run: str  # names the run in event ids
    processes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run measured."""

    calls: Calls  # after the warm-up, by the time they were due; seconds count from the end of the warm-up
    seconds: float
    busy: tuple[float, ...]  # of each generator, the share of one core that it used
    closed: bool = False  # users who wait for an answer before they ask again


def play(plan: Plan, folder: Path, tell: Tell) -> Measured:
    """Runs a plan's generators from their connections to their last answer.

    Raises:
        RunFailed: one did not connect, or died.
    """
    with ExitStack() as stack:
        generators = [stack.enter_context(_generator(plan, number, folder)) for number in range(plan.processes)]
        try:
            for generator in generators:
                _expect(generator, "ready")
            start = time.monotonic() + SETTLE_S
            for generator in generators:
                _say(generator, f"{start}\n")
            _wait(generators, start, plan, tell)
        finally:
            for generator in generators:
                generator.kill()  # those that have ended do not mind
    return collect(folder, since=plan.warm_up_s, seconds=plan.shape.duration)


def collect(folder: Path, *, since: float, seconds: float, closed: bool = False) -> Measured:
    """What the processes left in a folder; calls that were due before `since` are left out.

    Closed users count from their first call on, which comes when Locust has started them.

    Raises:
        RunFailed: they left nothing.
    """
    parts = [np.load(path) for path in sorted(folder.glob("*.npy"))]
    if not parts:
        raise RunFailed("no generator measured anything")
    rows = np.concatenate(parts)
    if closed and rows.size:
        since += float(rows["due"].min())
    for column in ("due", "sent", "done"):
        rows[column] -= since
    rows = rows[(rows["due"] >= 0) & (rows["due"] < seconds)]
    busy = tuple(json.loads(path.read_bytes())["busy"] for path in sorted(folder.glob("*.json")))
    return Measured(calls=rows[np.argsort(rows["due"], kind="stable")], seconds=seconds, busy=busy, closed=closed)


def leave(folder: Path, name: str, rows: Calls, busy: float) -> None:
    """Leaves a process' part in a folder."""
    np.save(folder / f"{name}.npy", rows)
    (folder / f"{name}.json").write_text(json.dumps({"busy": busy}))


def cpu_seconds() -> float:
    """Processor time of this process so far, all its threads, gRPC's own included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def script_of(plan: Plan, number: int, listeners: Sequence[str]) -> Script:
    """What one of a plan's processes asks: Poisson processes together are one, of the sum of their rates."""
    rng = np.random.default_rng([plan.seed, number])
    rates = tuple(rate / plan.processes for rate in plan.shape.rates)
    due = arrivals(preceded(replace(plan.shape, rates=rates), plan.warm_up_s), rng)
    return Script(draw(plan.mix, len(listeners), due, rng), plan.mix, listeners, run=f"{plan.run}-{number}")


def _generator(plan: Plan, number: int, folder: Path) -> "subprocess.Popen[bytes]":
    generator = subprocess.Popen(
        [sys.executable, "-m", "loadtest.run", str(number), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    _say(generator, f"{TypeAdapter(Plan).dump_json(plan).decode()}\n")
    return generator


def _say(generator: "subprocess.Popen[bytes]", line: str) -> None:
    assert generator.stdin is not None
    generator.stdin.write(line.encode())
    generator.stdin.flush()


def _expect(generator: "subprocess.Popen[bytes]", word: str) -> None:
    assert generator.stdout is not None
    said = generator.stdout.readline().decode().strip()
    if said != word:
        raise RunFailed(said or "a generator died before it was ready")


def _wait(generators: "Sequence[subprocess.Popen[bytes]]", start: float, plan: Plan, tell: Tell) -> None:
    total = plan.warm_up_s + plan.shape.duration
    while any(generator.poll() is None for generator in generators):
        passed = max(time.monotonic() - start, 0.0)
        if passed < plan.warm_up_s:
            tell("warm-up", int(passed), int(plan.warm_up_s))
        else:
            tell("seconds", int(min(passed, total) - plan.warm_up_s), int(plan.shape.duration))
        time.sleep(0.2)
    if any(generator.returncode for generator in generators):
        raise RunFailed("a generator died during the run")


async def _generate(plan: Plan, number: int, folder: Path) -> None:
    """One generator: connects, says so, waits for the time to start, and leaves its part."""
    script = script_of(plan, number, plan.listeners.read_text().split())
    try:
        channels = await connect(plan.target)
    except TimeoutError:
        print(f"{plan.target.address} accepts no connection within {CONNECT_S:g} s", flush=True)
        return
    gc.freeze()
    print("ready", flush=True)
    start = float(await asyncio.to_thread(sys.stdin.readline))
    await asyncio.sleep(max(0.0, start - time.monotonic()))
    before = cpu_seconds()
    rows = await drive(channels, plan.target, script, start)
    busy = (cpu_seconds() - before) / (time.monotonic() - start)
    await asyncio.gather(*(channel.close() for channel in channels))
    leave(folder, f"{number}", rows, busy)


def main(number: str, folder: str) -> None:
    """Runs one generator to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who started this decides
    plan = TypeAdapter(Plan).validate_json(sys.stdin.readline())
    uvloop.run(_generate(plan, int(number), Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
