"""Load from one thread: a closed loop with so many calls in flight, or an open one at a rate."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtest.connections import Connection, Ending
from loadtest.pacing import turns

MOST_CONNECTIONS: Final = 8  # of a protocol that carries many calls on one
Connect = Callable[[], Connection]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to load, and with what."""

    host: str
    port: int
    connect: Connect
    requests: tuple[bytes, ...]  # sent in turn
    shares_connections: bool  # whether a connection carries many calls at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of a load."""

    seconds: float
    failed: int  # in a closed loop refused ones too
    latencies: Floats  # seconds, of every call that was answered; in an open loop from when it was due
    payload: float  # bytes of an answer, mean
    busy: float  # share of the time that the generator itself worked; near 1 it was the limit
    late_s: float  # how late it sent, at the 99th percentile; 0 in a closed loop
    refused: Floats = field(default_factory=partial(np.empty, 0))  # as latencies, from when sent; in an open loop only

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds


async def closed(target: Target, *, in_flight: int, seconds: float) -> Load:
    """Keeps so many calls in flight: the next is sent when one ends."""
    count = min(in_flight, MOST_CONNECTIONS) if target.shares_connections else in_flight
    connections = await _connected(target, count)
    requests, latencies = cycle(target.requests), list[float]()
    began, worked = time.monotonic(), time.thread_time()
    until, failed, over = began + seconds, 0, asyncio.get_running_loop().create_future()
    running = in_flight

    def call(connection: Connection) -> None:
        sent = time.monotonic()

        def done(ending: Ending) -> None:
            nonlocal failed, running
            now, answered = time.monotonic(), ending is Ending.ANSWERED
            if answered:
                latencies.append(now - sent)
            else:
                failed += 1
            if now < until and answered:
                call(connection)
                return
            running -= 1  # a connection that fails is not used again
            if not running and not over.done():
                over.set_result(None)

        connection.send(next(requests), done)

    for number in range(in_flight):
        call(connections[number % count])
    await over
    return _load(connections, began, worked, failed, np.array(latencies), late_s=0.0)


async def opened(target: Target, *, rate: float, seconds: float, seed: int, patience_s: float = 5.0) -> Load:
    """Sends by Poisson's law at a rate, whatever comes back; latency counts from when a call was due.

    What is not answered `patience_s` after the last was sent has failed.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, round(rate * seconds))
    due = np.cumsum(gaps)
    connections = await _connected(target, MOST_CONNECTIONS if target.shares_connections else 64)
    latencies, refused, late, failed = list[float](), list[float](), np.empty(len(due)), 0
    began, worked = time.monotonic(), time.thread_time()

    def call(connection: Connection, request: bytes, at: float) -> None:
        sent = time.monotonic()

        def done(ending: Ending) -> None:
            nonlocal failed
            now = time.monotonic()
            if ending is Ending.ANSWERED:
                latencies.append(now - at)
            elif ending is Ending.REFUSED:
                refused.append(now - sent)
            else:
                failed += 1

        connection.send(request, done)

    calls: Iterator[tuple[Connection, bytes]] = zip(cycle(connections), cycle(target.requests), strict=False)
    async for number, moment, late_s in turns(due, began):
        late[number] = late_s
        call(*next(calls), moment)
    ended = time.monotonic()
    while len(latencies) + len(refused) + failed < len(due) and time.monotonic() < ended + patience_s:  # noqa: ASYNC110  # no call tells when it is the last
        await asyncio.sleep(0.01)
    missing = len(due) - len(latencies) - len(refused) - failed
    late_p99 = float(np.quantile(late, 0.99))
    load = _load(connections, began, worked, failed + missing, np.array(latencies), late_p99)
    return replace(load, refused=np.array(refused))


async def _connected(target: Target, count: int) -> list[Connection]:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(target.connect, target.host, target.port) for _ in range(count)]  # type: ignore[type-var]  # every connection is a protocol of asyncio
    return [connection for _, connection in made]


def _load(
    connections: list[Connection], began: float, worked: float, failed: int, latencies: Floats, late_s: float
) -> Load:
    seconds = time.monotonic() - began
    busy = (time.thread_time() - worked) / seconds
    received = sum(connection.received for connection in connections)
    for connection in connections:
        connection.close()
    return Load(
        seconds=seconds,
        failed=failed,
        latencies=latencies,
        payload=received / max(1, len(latencies)),
        busy=busy,
        late_s=late_s,
    )
