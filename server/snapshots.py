"""The snapshot in service: a new one is loaded aside, verified, warmed and swapped in by one reference."""

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import redis.exceptions

from features.errors import SnapshotRefused
from features.index import use_one_thread
from features.listener_store import ListenerStore
from features.pointer import Pointer
from features.snapshot import Snapshot, load
from features.state import State, write_whole
from ranking.types import Degraded, Home
from server.metrics import Metrics

WARM_UP_QUERIES: Final = 256
_log = logging.getLogger("mantel.snapshots")


class Snapshots:
    """Holds the current snapshot and follows the pointer. A refusal keeps the old one, and is counted."""

    def __init__(self, state: State, store: ListenerStore, metrics: Metrics, *, max_age_s: float) -> None:
        """Holds nothing yet; `refresh` loads."""
        self._state = state
        self._store = store
        self._metrics = metrics
        self._max_age_s = max_age_s
        self._refused: Pointer | None = None
        self._published_at = 0.0
        self.current: Snapshot | None = None
        self.refusal = ""

    async def refresh(self) -> None:
        """Follows the pointer: Redis' own, else, before the first snapshot, the one that was last served well."""
        pointer = await self._pointer()
        if pointer is None or pointer == self._refused:
            return
        if self.current is not None and pointer.digest == self.current.digest:
            self._date(pointer)
            self._refused, self.refusal = None, ""
            return
        try:
            snapshot = await asyncio.to_thread(load_warm, self._state.snapshots / pointer.digest, pointer.digest)
        except Exception as error:  # noqa: BLE001  # whatever it is: closed to the new, and loaded once only
            self.refusal = str(error) if isinstance(error, SnapshotRefused) else repr(error)
            self._refused = pointer  # until it moves, were it to the same snapshot, repaired
            self._metrics.refused()
            _log.error("snapshot %s refused, the old one stays: %s", pointer.digest[:12], self.refusal)
            if self.current is None:
                await self._fall_back(pointer)
            return
        self._refused, self.refusal = None, ""
        self._swap(snapshot, pointer)

    def mark_stale(self, homes: tuple[Home, ...]) -> tuple[Home, ...]:
        """The pages, degraded where the snapshot is older than its maximum age."""
        if time.time() - self._published_at < self._max_age_s:
            return homes
        return tuple(replace(home, degraded=(*home.degraded, Degraded.SNAPSHOT_STALE)) for home in homes)

    async def _pointer(self) -> Pointer | None:
        try:
            pointer = await self._store.pointer()
        except (redis.exceptions.RedisError, OSError):
            pointer = None
        except (ValueError, TypeError, KeyError):
            _log.exception("the pointer in Redis cannot be read")
            pointer = None
        if pointer is None and self.current is None:
            return self._last_good()
        return pointer

    def _last_good(self) -> Pointer | None:
        try:
            return Pointer.from_bytes(self._state.pointer.read_bytes())
        except (OSError, ValueError, TypeError, KeyError):
            return None

    async def _fall_back(self, refused: Pointer) -> None:
        """At a start whose newest snapshot is refused, serves the last good one."""
        last = self._last_good()
        if last is None or last.digest == refused.digest:
            return
        try:
            snapshot = await asyncio.to_thread(load_warm, self._state.snapshots / last.digest, last.digest)
        except Exception:  # noqa: BLE001  # as above
            _log.exception("the last good snapshot cannot be loaded either")
            return
        self._swap(snapshot, last)

    def _swap(self, snapshot: Snapshot, pointer: Pointer) -> None:
        self.current = snapshot
        self._date(pointer)
        self._metrics.swapped(snapshot.manifest.items)
        write_whole(self._state.pointer, pointer.to_bytes())
        _log.info("snapshot %s in service, %d items", snapshot.digest[:12], snapshot.manifest.items)

    def _date(self, pointer: Pointer) -> None:
        self._published_at = pointer.published_at
        self._metrics.published(pointer.published_at)


def load_warm(folder: Path, digest: str) -> Snapshot:
    """Loads a snapshot and touches its pages by searching, so that the first requests do not pay for it.

    Raises:
        SnapshotRefused: it does not verify, or is another than its name says.
    """
    use_one_thread()
    snapshot = load(folder)
    if snapshot.digest != digest:
        raise SnapshotRefused(f"{folder.name[:12]}…: the manifest's digest is {snapshot.digest[:12]}…")
    vectors = snapshot.columns["vector"]
    rows = np.linspace(0, len(vectors) - 1, num=min(WARM_UP_QUERIES, len(vectors))).astype(np.int64)
    for start in range(0, len(rows), 16):
        snapshot.retriever.search(np.ascontiguousarray(vectors[rows[start : start + 16]]), 64)
    return snapshot
