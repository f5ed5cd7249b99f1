"""Capacity by h2load, nghttp2's load generator in C: what our own generator finds, another one shall find too.

h2load sees HTTP only, where a gRPC call that fails is a success like any other; so answers are counted by the server.
It sends one request again and again: each of its processes asks for another listener.
"""

import asyncio
import re
import shutil
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from loadtest import machine
from loadtest.contest import Plan, Progress
from loadtest.generator import Target, closed

PROCESSES: Final = 8
_HANDLED: Final = re.compile(
    r'^grpc_server_handled_total\{.*?grpc_code="(\w+)".*?grpc_method="GetHome".*?\} (\S+)', re.MULTILINE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A server of ours, as both generators load it."""

    name: str
    target: Target
    headers: Sequence[tuple[str, str]]
    pids: frozenset[int]
    metrics: str  # HOST:PORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a server answered; medians over rounds."""

    name: str
    in_flight: int
    rate: float  # pages per second that ended as OK, by the server's count
    cpu_us: float  # of the server, each
    own_rate: float  # of our own generator, in the same rounds
    own_cpu_us: float
    statuses: Mapping[str, int]  # of h2load's calls, all rounds
    others: float  # the larger share that others took of the server's core


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    rate: float
    cpu_us: float
    own_rate: float
    own_cpu_us: float
    statuses: Counter[str]
    others: float


def found() -> bool:
    """Whether h2load is on PATH."""
    return shutil.which("h2load") is not None


async def capacity(
    servers: Sequence[Loaded], path: str, plan: Plan, *, core: int, progress: Progress
) -> tuple[Capacity, ...]:
    """Loads each server by h2load and by our own generator, in turns; a round that warms up is not counted."""
    in_flight = max(plan.in_flight)
    turns: list[list[_Turn]] = [[] for _ in servers]
    for number in range(plan.rounds + 1):
        progress(*(("rounds", number - 1, plan.rounds) if number else ("warm-up", 0, 1)))
        seconds = plan.seconds if number else plan.warm_up_s
        for turn in range(len(servers)):
            place = (number + turn) % len(servers)
            one = servers[place]
            counted, elapsed, cpu_s, others = await _by_h2load(one, path, in_flight, seconds, core)
            before = sum(map(machine.spent, one.pids))
            own = await closed(one.target, in_flight=in_flight, seconds=seconds)
            own_cpu_s = sum(map(machine.spent, one.pids)) - before
            if number:
                turns[place].append(
                    _Turn(
                        rate=counted["OK"] / elapsed,
                        cpu_us=1e6 * cpu_s / max(1, counted["OK"]),
                        own_rate=own.rate,
                        own_cpu_us=1e6 * own_cpu_s / max(1, len(own.latencies)),
                        statuses=counted,
                        others=others,
                    )
                )
    return tuple(_capacity(one.name, in_flight, own) for one, own in zip(servers, turns, strict=True))


async def _by_h2load(
    one: Loaded, path: str, in_flight: int, seconds: float, core: int
) -> tuple[Counter[str], float, float, float]:
    """One load: calls ended by status, seconds, CPU seconds of the server, and the share that others took.

    h2load goes on after its time until what is under way has ended, so the seconds are those of the clock.
    """
    processes = min(PROCESSES, in_flight)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(number) for number in range(processes)]
        for file, request in zip(files, one.target.requests, strict=False):
            file.write_bytes(b"\0" + len(request).to_bytes(4) + request)
        before, read = _counted(one.metrics), machine.read(one.pids, core)
        began = time.perf_counter()
        running = [
            await asyncio.create_subprocess_exec(
                *_words(one, path, in_flight // processes, seconds, file),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            for file in files
        ]
        for process in running:
            await process.wait()
        elapsed = time.perf_counter() - began
    await asyncio.sleep(0.2)  # the last calls are counted
    after = machine.read(one.pids, core)
    return _counted(one.metrics) - before, elapsed, after.processes - read.processes, machine.others_share(read, after)


def _words(one: Loaded, path: str, streams: int, seconds: float, file: Path) -> list[str]:
    headers = (("te", "trailers"), ("content-type", "application/grpc"), *one.headers)
    own = [word for name, value in headers for word in ("-H", f"{name}: {value}")]
    size = ["-c", "1", "-m", str(max(1, streams)), "-D", f"{1000 * seconds:.0f}ms", "-w", "30", "-W", "30"]
    return ["h2load", *size, "-d", str(file), *own, f"http://{one.target.host}:{one.target.port}{path}"]


def _counted(metrics: str) -> Counter[str]:
    """How many calls for pages have ended, by status."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:  # our own
        return Counter({code: int(float(count)) for code, count in _HANDLED.findall(answer.read().decode())})


def _capacity(name: str, in_flight: int, turns: Sequence[_Turn]) -> Capacity:
    return Capacity(
        name=name,
        in_flight=in_flight,
        rate=median(one.rate for one in turns),
        cpu_us=median(one.cpu_us for one in turns),
        own_rate=median(one.own_rate for one in turns),
        own_cpu_us=median(one.own_cpu_us for one in turns),
        statuses=dict(sum((one.statuses for one in turns), Counter[str]())),
        others=median(one.others for one in turns),
    )
