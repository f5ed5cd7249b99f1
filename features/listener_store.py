"""Reads a batch of listeners from Redis in one round trip."""

import asyncio
import logging
import math
import time
from typing import Any, Final

import redis.asyncio
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.keys import Keys
from features.listeners import Frames, Known
from features.pointer import Pointer
from features.snapshot import Snapshot
from features.spaces import complete_spaces

CONNECTIONS: Final = 4
ABANDONED: Final = CONNECTIONS - 1  # reads that hold a connection each; one is left for the look at the pointer
SLICE_S: Final = 0.001  # the finest that the timers of uvloop tell
LAST_TURNS: Final = 5  # of the event loop, for a reply that lies in the socket already
_log = logging.getLogger("mantel.store")


class ListenerStore:
    """The serving path's door to Redis: it never retries and never waits longer than it was told.

    A read that takes longer is abandoned and not cancelled: its connection would have to be made anew, and just then.

    redis-py's own defaults (ten retries, timeouts of 5 s) turn a silent Redis into a wait of seconds.
    """

    def __init__(self, url: str, keys: Keys, *, timeout_s: float) -> None:
        """Connects on first use; `timeout_s` bounds connecting and each reply."""
        self._keys = keys
        self._whole: frozenset[str] = frozenset()  # spaces of which Redis holds every listener, when last looked at
        self._told: dict[str, bool] = {}
        self._reads: set[asyncio.Task[Frames]] = set()  # under way, the abandoned among them
        self._client = redis.asyncio.Redis.from_pool(
            redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        )

    async def read(self, user_ids: list[str], snapshot: Snapshot, *, budget_s: float = math.inf) -> Frames:
        """What is stored of a batch of listeners, `[user_id]`; what goes wrong is told row by row and never raised.

        Nothing is read where the budget is too small for it, or where too many reads lie abandoned: who asks a silent
        store does not wait for it.
        """
        if math.isinf(budget_s):
            return await self._read(user_ids, snapshot)
        if budget_s < SLICE_S or len(self._reads) >= ABANDONED:
            return Frames.unread(len(user_ids), Known.LATE)
        reading = asyncio.create_task(self._read(user_ids, snapshot))
        self._reads.add(reading)
        reading.add_done_callback(self._reads.discard)
        return reading.result() if await _ends(reading, budget_s) else Frames.unread(len(user_ids), Known.LATE)

    async def _read(self, user_ids: list[str], snapshot: Snapshot) -> Frames:
        """Reads to the end.

        Who has no record is a stranger only where Redis says that it holds every listener of the space: one that lost
        its data answers quickly and knows nobody.
        """
        manifest = snapshot.manifest
        missing = Known.STRANGER if manifest.space_id in self._whole else Known.DOWN
        try:
            read: list[Any] = await self._client.mget(
                [self._keys.record(user, manifest.space_id) for user in user_ids]
                + [self._keys.state(user) for user in user_ids]
                + [self._keys.preferences(user) for user in user_ids]
                + [self._keys.impressions(user) for user in user_ids]
            )
        except (redis.exceptions.TimeoutError, TimeoutError):
            return Frames.unread(len(user_ids), Known.LATE)
        except (redis.exceptions.RedisError, OSError):
            self._whole = frozenset()  # it may come back without its data
            return Frames.unread(len(user_ids), Known.DOWN)
        size = len(user_ids)
        records, states, preferences, impressions = (read[part * size : (part + 1) * size] for part in range(4))
        return Frames(records=records, states=states, preferences=preferences, impressions=impressions, missing=missing)

    async def look(self, served: Snapshot | None) -> Pointer | None:
        """The pointer to the served snapshot; None where nothing was published.

        In the same round trip it learns which spaces Redis holds whole; a loss of the served one is told once.

        Raises:
            redis.exceptions.RedisError, OSError: the store cannot be reached.
            ValueError: the pointer cannot be read.
        """
        pipe = self._client.pipeline(transaction=False)
        pipe.get(self._keys.pointer)  # first: what it names was whole before
        pipe.hgetall(self._keys.spaces)
        try:
            raw, spaces = await pipe.execute()
        except (redis.exceptions.RedisError, OSError):
            self._tell("answers", holds=False)
            raise
        self._tell("answers", holds=True)
        self._whole = complete_spaces(spaces)
        if served is not None:
            whole = served.manifest.space_id in self._whole
            self._tell(f"holds every listener of space {served.manifest.space_id}", holds=whole)
        return None if raw is None else Pointer.from_bytes(raw)

    def _tell(self, what: str, *, holds: bool) -> None:
        """Logs what has changed; at first, that all is well goes without saying."""
        if self._told.get(what, True) != holds:
            _log.log(
                logging.INFO if holds else logging.ERROR, "the store %s: %s", what, "yes" if holds else "no longer"
            )
        self._told[what] = holds

    async def close(self) -> None:
        """Closes every connection."""
        for reading in self._reads:
            reading.cancel()
        await asyncio.gather(*self._reads, return_exceptions=True)
        await self._client.aclose()


async def _ends(reading: "asyncio.Task[Frames]", budget_s: float) -> bool:
    """Whether a read ends in time, of which little counts where others have the core and nothing where this thread has.

    While the event loop computes, as responses of the batch before, a reply that came long ago lies in its socket.
    """
    waited = 0.0
    while waited < budget_s:
        began, used = time.monotonic(), time.thread_time()
        await asyncio.wait((reading,), timeout=SLICE_S)
        if reading.done():
            return True
        waited += max(0.0, min(time.monotonic() - began, SLICE_S) - (time.thread_time() - used))
    for _ in range(LAST_TURNS):
        await asyncio.sleep(0)
    return reading.done()
