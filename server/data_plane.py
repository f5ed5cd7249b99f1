"""A worker's data plane: starting, keeping house, and stopping in order."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from features.errors import MantelError
from features.index import use_one_thread
from features.listener_store import ListenerStore
from features.state import HEARTBEAT_STALE_S, Heartbeat, State
from server.batching import Batcher
from server.home_service import Served
from server.metrics import Metrics
from server.settings import Settings
from server.snapshots import Snapshots
from server.transport import Transport

_log = logging.getLogger("mantel.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlane:
    """A server with what it needs, on one event loop."""

    settings: Settings
    state: State
    transport: Transport
    store: ListenerStore
    snapshots: Snapshots
    batcher: Batcher[Any, Served]
    reload_identities: Callable[[], None]
    metrics: Metrics

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set, then drains: NOT_SERVING, calls in flight to their end, Redis closed."""
        use_one_thread()
        beats = asyncio.create_task(self._beat_on(time.time()))
        await self._refresh()  # first: of workers that share a port only those that can answer shall listen on it
        batches = asyncio.create_task(self.batcher.run())
        await self.transport.start(serving=self.snapshots.current is not None)
        house = asyncio.create_task(self._keep_house(stop))
        await stop.wait()
        await self.transport.retire()
        await asyncio.sleep(self.settings.drain_s)  # load balancers look elsewhere before the port closes
        await self.transport.stop(self.settings.grace_s)
        await self.batcher.drain()
        for task in (house, batches, beats):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.store.close()
        self.state.stop_beating(os.getpid())

    async def _keep_house(self, stop: asyncio.Event) -> None:
        """Ends with `stop`: redis-py can swallow a cancellation that meets it waiting for an answer."""
        serving = self.snapshots.current is not None
        while not stop.is_set():
            await asyncio.sleep(self.settings.poll_s)
            await self._refresh()
            if not serving and self.snapshots.current is not None:
                serving = True
                await self.transport.set_serving(serving=True)

    async def _refresh(self) -> None:
        try:
            self.reload_identities()
        except MantelError:
            _log.exception("the principals stay as they were")
        try:
            await self.snapshots.refresh()
        except Exception:  # noqa: BLE001  # a worker serves on, whatever its housekeeping meets
            _log.exception("the snapshot stays as it was")

    async def _beat_on(self, started_at: float) -> None:
        """Beats also while a large snapshot loads: what a living worker serves must not be collected."""
        every_s = min(self.settings.poll_s, HEARTBEAT_STALE_S / 4)
        while True:
            snapshot = self.snapshots.current
            heartbeat = Heartbeat(
                pid=os.getpid(),
                digest="" if snapshot is None else snapshot.digest,
                started_at=started_at,
                seen_at=time.time(),
                refusal=self.snapshots.refusal,
            )
            try:
                self.state.beat(heartbeat)
            except OSError:
                _log.exception("no heartbeat can be written")
            due = time.monotonic() + every_s
            await asyncio.sleep(every_s)
            self.metrics.lagged(max(0.0, time.monotonic() - due))
