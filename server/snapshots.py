"""The snapshot in service: a new one is loaded aside, verified, warmed and swapped in by one reference."""

import asyncio
import gc
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
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
from features.verified import verify_once
from ranking.types import Degraded, Home
from server.metrics import Metrics

WARM_UP_QUERIES: Final = 256
RETRY_S: Final = (1.0, 30.0)  # between tries of what may pass, doubling
_log = logging.getLogger("mantel.snapshots")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a snapshot is not taken. It stands until the pointer moves, the folder changes, or its time has come."""

    pointer: Pointer
    files: frozenset[tuple[str, int, int]]
    text: str
    wait_s: float  # infinite where the content is at fault, which does not pass
    until: float  # time.monotonic()

    def stands(self, pointer: Pointer, folder: Path) -> bool:
        """Whether loading would be in vain, or come too early."""
        return pointer == self.pointer and time.monotonic() < self.until and self.files == _files(folder)


class Snapshots:
    """Holds the current snapshot and follows the pointer. A refusal keeps the old one, and is counted."""

    def __init__(
        self,
        state: State,
        store: ListenerStore,
        metrics: Metrics,
        *,
        max_age_s: float,
        rehearse: Callable[[Snapshot], None],
    ) -> None:
        """Holds nothing yet; `refresh` loads, and rehearses before a snapshot serves."""
        self._rehearse = rehearse
        self._state = state
        self._store = store
        self._metrics = metrics
        self._max_age_s = max_age_s
        self._refused: Refusal | None = None
        self._told_absent = False
        self._published_at = 0.0
        self.current: Snapshot | None = None

    @property
    def refusal(self) -> str:
        """Why the snapshot that the pointer names is not served; "" where it is."""
        return "" if self._refused is None else self._refused.text

    async def refresh(self) -> None:
        """Follows the pointer: Redis' own, else, before the first snapshot, the one that was last served well."""
        pointer = await self._pointer()
        if pointer is None:
            return
        if self.current is not None and pointer.digest == self.current.digest:
            self._date(pointer)
            self._refused = None
            return
        folder = self._state.snapshots / pointer.digest
        if self._refused is not None and self._refused.stands(pointer, folder):
            return
        files = _files(folder)
        try:
            snapshot = await asyncio.to_thread(self._load, folder, pointer.digest)
        except Exception as error:  # noqa: BLE001  # whatever it is: closed to the new
            self._refuse(pointer, files, error)
            if self.current is None:
                await self._fall_back(pointer)
            return
        self._refused = None
        await self._swap(snapshot, pointer)

    def mark_stale(self, homes: tuple[Home, ...]) -> tuple[Home, ...]:
        """The pages, degraded where the snapshot is older than its maximum age."""
        if time.time() - self._published_at < self._max_age_s:
            return homes
        return tuple(replace(home, degraded=(*home.degraded, Degraded.SNAPSHOT_STALE)) for home in homes)

    async def _pointer(self) -> Pointer | None:
        try:
            pointer, answered = await self._store.look(self.current), True
        except (redis.exceptions.RedisError, OSError):
            pointer, answered = None, False
        except ValueError:
            _log.exception("the pointer in Redis cannot be read")
            pointer, answered = None, False
        if pointer is not None or self.current is not None:
            return pointer
        last = self._last_good()
        if answered and last is None and not self._told_absent:
            self._told_absent = True
            _log.warning("no snapshot is published yet; publish one with: mantel publish")
        return last

    def _last_good(self) -> Pointer | None:
        try:
            return Pointer.from_bytes(self._state.pointer.read_bytes())
        except (OSError, ValueError):
            return None

    def _refuse(self, pointer: Pointer, files: frozenset[tuple[str, int, int]], error: Exception) -> None:
        """Remembers a refusal; the same one again is neither counted nor logged."""
        before = self._refused if self._refused is not None and self._refused.pointer == pointer else None
        text, wait_s = str(error), math.inf
        if _may_pass(error):
            text = f"{text or repr(error)}; it is tried again"
            wait_s = RETRY_S[0] if before is None else min(RETRY_S[1], before.wait_s * 2)
        self._refused = Refusal(pointer=pointer, files=files, text=text, wait_s=wait_s, until=time.monotonic() + wait_s)
        if before is None or before.text != text:
            self._metrics.refused()
            _log.error("snapshot %s refused, the old one stays: %s", pointer.digest[:12], text)

    def _load(self, folder: Path, digest: str) -> Snapshot:
        snapshot = load_warm(folder, digest, self._state.verified(digest))
        self._rehearse(snapshot)
        return snapshot

    async def _fall_back(self, refused: Pointer) -> None:
        """At a start whose newest snapshot is refused, serves the last good one."""
        last = self._last_good()
        if last is None or last.digest == refused.digest:
            return
        try:
            snapshot = await asyncio.to_thread(self._load, self._state.snapshots / last.digest, last.digest)
        except Exception:  # noqa: BLE001  # as above
            _log.exception("the last good snapshot cannot be loaded either")
            return
        await self._swap(snapshot, last)

    async def _swap(self, snapshot: Snapshot, pointer: Pointer) -> None:
        try:  # first: who has served it once can start with it again
            await asyncio.to_thread(write_whole, self._state.pointer, pointer.to_bytes(), durable=True)
        except OSError:
            _log.exception("the pointer to the last good snapshot stays as it was")
        if self.current is None:
            gc.collect()
            gc.freeze()  # what is here by now stays: looking through it stopped all for 80 ms, now and then
        self.current = snapshot
        self._date(pointer)
        self._metrics.swapped(snapshot.manifest.items)
        _log.info("snapshot %s in service, %d items", snapshot.digest[:12], snapshot.manifest.items)

    def _date(self, pointer: Pointer) -> None:
        self._published_at = pointer.published_at
        self._metrics.published(pointer.published_at)


def _may_pass(error: Exception) -> bool:
    """Whether an error lies in this machine's state (no memory, no file handle, no folder yet), not in the content."""
    return not isinstance(error, SnapshotRefused) or isinstance(error.__cause__, OSError | MemoryError | RuntimeError)


def _files(folder: Path) -> frozenset[tuple[str, int, int]]:
    """What tells a folder's states apart: names, sizes and times."""
    try:
        found = [(path.name, path.stat()) for path in folder.iterdir()]
    except OSError:
        return frozenset()
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def load_warm(folder: Path, digest: str, note: Path) -> Snapshot:
    """Loads a snapshot and touches its pages by searching, so that the first requests do not pay for it.

    It is verified, unless `note` holds that it was and has not changed since.

    Raises:
        SnapshotRefused: it does not verify, or is another than its name says.
    """
    use_one_thread()
    snapshot = load(folder, partial(verify_once, note=note))
    if snapshot.digest != digest:
        raise SnapshotRefused(f"{folder.name[:12]}…: the manifest's digest is {snapshot.digest[:12]}…")
    vectors = snapshot.columns["vector"]
    rows = np.linspace(0, len(vectors) - 1, num=min(WARM_UP_QUERIES, len(vectors))).astype(np.int64)
    for start in range(0, len(rows), 16):
        snapshot.retriever.search(np.ascontiguousarray(vectors[rows[start : start + 16]]), 64)
    return snapshot
