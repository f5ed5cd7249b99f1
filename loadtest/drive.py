"""The open loop: each call is sent when it is due, whatever became of those before it.

Users who wait for an answer before they ask again leave out of the measurement the calls that a slow server kept them
from making. Here a call that could not be sent in time counts from when it was due.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
import numpy as np

from loadtest import calls as calls_
from loadtest.calls import CALL, Calls
from loadtest.pacing import turns
from loadtest.script import GET_HOME, RECORD_EVENTS, Asked, Script
from loadtest.traffic import EVENTS, PREFETCH
from protos.client import Tls, asyncio_channel
from protos.events.v1 import events_pb2
from protos.home.v1 import home_pb2

PRIORITY: Final = ("x-mantel-priority", "prefetch")
CONNECT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to call, and how."""

    address: str
    token: str = field(default="", repr=False)
    tls: Tls | None = field(default=None, repr=False)
    connections: int = 8  # a server of several workers shares out connections, not calls
    timeout_s: float = 1.0

    def metadata(self, kind: int) -> tuple[tuple[str, str], ...]:
        """What every call of a kind carries."""
        bearer = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        return (*bearer, PRIORITY) if kind == PREFETCH else bearer


async def connect(target: Target) -> list[grpc.aio.Channel]:
    """Its connections, each of its own and open, with the published service config.

    Raises:
        TimeoutError: no connection comes about.
    """
    found = [asyncio_channel(target.address, target.tls, patient=True, alone=True) for _ in range(target.connections)]
    async with asyncio.timeout(CONNECT_S):
        await asyncio.gather(*(channel.channel_ready() for channel in found))
    return found


async def drive(channels: Sequence[grpc.aio.Channel], target: Target, script: Script, start: float) -> Calls:
    """Plays a script against a target from a moment of `time.monotonic` on; answers what became of each call."""
    line = _Line(channels, target, script, start)
    await line.send_all()
    return line.rows


class _Line:
    """One run: who is called, and what came back so far."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], target: Target, script: Script, start: float) -> None:
        self.rows: Calls = np.zeros(script.steps.due.size, CALL)
        self.rows["due"] = script.steps.due
        self._script, self._start, self._timeout_s = script, start, target.timeout_s
        self._metadata = [target.metadata(kind) for kind in range(EVENTS + 1)]
        # Answers stay bytes until their time is noted: parsing a page takes 50 us.
        self._callables: list[dict[str, Callable[..., Awaitable[bytes]]]] = [
            {method: channel.unary_unary(method) for method in (GET_HOME, RECORD_EVENTS)} for channel in channels
        ]

    async def send_all(self) -> None:
        """Sends each call when it is due, and waits for the last answer."""
        under_way: set[asyncio.Task[None]] = set()
        async for step, _, _ in turns(self.rows["due"], self._start):
            task = asyncio.create_task(self._call(step, self._script.ask(step)))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        if under_way:
            await asyncio.wait(under_way)

    async def _call(self, step: int, asked: Asked) -> None:
        row = self.rows[step]
        row["kind"] = asked.kind
        call = self._callables[step % len(self._callables)][asked.method]
        row["sent"] = time.monotonic() - self._start
        try:
            answer = await call(asked.request, timeout=self._timeout_s, metadata=self._metadata[asked.kind])
        except grpc.aio.AioRpcError as error:
            row["done"] = time.monotonic() - self._start
            row["code"] = calls_.number_of(error.code())
            return
        row["done"], row["bytes"] = time.monotonic() - self._start, len(answer)
        if asked.kind == EVENTS:
            calls_.note_outcomes(row, events_pb2.RecordEventsResponse.FromString(answer))
            return
        page = home_pb2.GetHomeResponse.FromString(answer)
        calls_.note_page(row, page)
        self._script.answered(step, page)
