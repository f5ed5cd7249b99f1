"""A worker's data plane: starting, keeping house, and stopping in order."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from features.event_store import EventStore, Recorded
from features.index import use_one_thread
from features.listener_store import ListenerStore
from features.page_store import Found, PageStore
from features.preference_store import PreferenceStore
from features.state import HEARTBEAT_STALE_S, Heartbeat, State
from server.admission import Admission
from server.batching import Batcher
from server.experiments import Experiments
from server.metrics import Metrics
from server.placements import Placements
from server.promotions import PromotionBooks
from server.pulse import BEAT_S, Pulse
from server.served import Served
from server.served_log import ServedLog
from server.settings import Settings
from server.signing import SigningFile
from server.snapshots import Snapshots
from server.transport import Transport

FIRST_BEATS_S: Final = 0.1  # between beats until it listens
_log = logging.getLogger("mantel.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlane:
    """A server with what it needs, on one event loop."""

    settings: Settings
    state: State
    transport: Transport
    store: ListenerStore
    preferences: PreferenceStore
    snapshots: Snapshots
    experiments: Experiments
    promotions: PromotionBooks
    placements: Placements
    batcher: Batcher[Any, Served]
    served_log: ServedLog
    event_store: EventStore
    event_batcher: Batcher[Any, Recorded]
    page_store: PageStore
    page_batcher: Batcher[Any, Found]
    reload_identities: Callable[[], None]
    signing: SigningFile
    metrics: Metrics
    admission: Admission  # of pages
    pulse: Pulse
    shared_port: bool  # other processes listen on it too

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set, then drains: NOT_SERVING, calls in flight to their end, Redis closed.

        Where housekeeping, batching or beating ends before, so does this, with its error: half a worker serves nobody.
        """
        use_one_thread()
        self.served_log.start()
        listening = asyncio.Event()
        work = (
            self._beat_on(time.time(), listening),
            self._live_on(listening),
            self.batcher.run(),
            self.event_batcher.run(),
            self.page_batcher.run(),
            self._keep_house(stop, listening),
            self._follow_books(stop),
            self.placements.run(stop),
        )
        tasks = [asyncio.create_task(one) for one in work]
        try:
            await _watch(tasks, stop)
            if listening.is_set():
                await self.transport.retire()
                await asyncio.sleep(self.settings.drain_s)  # load balancers look elsewhere before the port closes
                await self.transport.stop(self.settings.grace_s)
                await self.batcher.drain()
                await self.event_batcher.drain()
                await self.page_batcher.drain()
        finally:
            stop.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.transport.stop(0)
            self.metrics.flush()
            self.served_log.flush()
            await asyncio.to_thread(self.served_log.close)
            await self.store.close()
            await self.event_store.close()
            await self.page_store.close()
            await self.preferences.close()
            await self.experiments.close()
            await self.placements.end()
            await self.promotions.close()
            self.state.stop_beating(os.getpid())

    async def _keep_house(self, stop: asyncio.Event, listening: asyncio.Event) -> None:
        """Ends with `stop`: redis-py can swallow a cancellation that meets it waiting for an answer."""
        serving = False
        await self._refresh_books()  # before it listens: a page without its arms would be another page
        while not stop.is_set():
            await self._refresh()  # first: of workers that share a port only those that can answer shall listen on it
            loaded = self.snapshots.current is not None
            if not listening.is_set() and (loaded or not self.shared_port or not self.snapshots.refusal):
                await self.transport.start(serving=loaded)
                listening.set()
            elif loaded and not serving:
                await self.transport.set_serving(serving=True)
            serving = loaded
            await asyncio.sleep(self.settings.poll_s)

    async def _follow_books(self, stop: asyncio.Event) -> None:
        """Looks by itself: loading a snapshot of 10 million items takes longer than a book may wait."""
        while not stop.is_set():
            await asyncio.sleep(self.settings.poll_s)
            await self._refresh_books()

    async def _refresh_books(self) -> None:
        for book in (self.experiments, self.promotions):
            try:
                await book.refresh()
            except Exception:  # noqa: BLE001  # as below
                _log.exception("a book stays as it was")

    async def _refresh(self) -> None:
        try:
            self.reload_identities()
        except Exception:  # noqa: BLE001  # a worker serves on, whatever its housekeeping meets
            _log.exception("the principals stay as they were")
        try:
            self.signing.reload()
        except Exception:  # noqa: BLE001  # as above
            _log.exception("the signing keys stay as they were")
        try:
            await self.snapshots.refresh()
        except Exception:  # noqa: BLE001  # as above
            _log.exception("the snapshot stays as it was")
        with suppress(Exception):  # that the store is away, the look at the pointer has told
            self.metrics.streams_filled(await self.event_store.fullness())

    async def _live_on(self, listening: asyncio.Event) -> None:
        while True:
            self.pulse.beat(ready=listening.is_set())
            await asyncio.sleep(BEAT_S)

    async def _beat_on(self, started_at: float, listening: asyncio.Event) -> None:
        """Beats also while a large snapshot loads: what a living worker serves must not be collected."""
        while True:
            every_s = min(self.settings.poll_s, HEARTBEAT_STALE_S / 4 if listening.is_set() else FIRST_BEATS_S)
            snapshot = self.snapshots.current
            heartbeat = Heartbeat(
                pid=os.getpid(),
                digest="" if snapshot is None else snapshot.digest,
                started_at=started_at,
                seen_at=time.time(),
                refusal=self.snapshots.refusal,
                ready=listening.is_set(),
                experiment_book=self.experiments.version,
                book_refusal=self.experiments.refusal,
                promotion_book=self.promotions.version,
                promotion_refusal=self.promotions.refusal,
            )
            try:
                self.state.beat(heartbeat)
            except OSError:
                _log.exception("no heartbeat can be written")
            due = time.monotonic() + every_s
            await asyncio.sleep(every_s)
            self.metrics.lagged(max(0.0, time.monotonic() - due))
            self.metrics.admitted(self.admission.limit, self.admission.in_flight)


async def _watch(tasks: list[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Waits for `stop`; raises the error of a task that ends before."""
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((stopped, *tasks), return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        return
    stopped.cancel()
    ended = next(task for task in tasks if task.done())
    raise RuntimeError("a background task of the worker ended") from (None if ended.cancelled() else ended.exception())
