"""Reads a batch of listeners from Redis in one round trip."""

from typing import Any

import redis.asyncio
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.keys import Keys
from features.listeners import Known, Listeners, decode
from features.pointer import Pointer
from features.snapshot import Snapshot


class ListenerStore:
    """The serving path's door to Redis: it never retries and never waits longer than it was told.

    redis-py's own defaults (ten retries, timeouts of 5 s) turn a silent Redis into a wait of seconds.
    """

    def __init__(self, url: str, keys: Keys, *, timeout_s: float) -> None:
        """Connects on first use; `timeout_s` bounds connecting and each reply."""
        self._keys = keys
        self._client = redis.asyncio.Redis.from_pool(
            redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=4,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        )

    async def read(self, user_ids: list[str], snapshot: Snapshot) -> Listeners:
        """The listeners of one batch, `[user_id]`; what goes wrong is told row by row and never raised."""
        manifest, missing = snapshot.manifest, Known.STRANGER
        try:
            frames: list[Any] = await self._client.mget(
                [self._keys.record(user, manifest.space_id) for user in user_ids]
            )
        except (redis.exceptions.TimeoutError, TimeoutError):
            frames, missing = [None] * len(user_ids), Known.LATE
        except (redis.exceptions.RedisError, OSError):
            frames, missing = [None] * len(user_ids), Known.DOWN
        return decode(
            frames,
            space_id=snapshot.space_id,
            dimension=manifest.dimension,
            genres=len(manifest.genres),
            missing=missing,
        )

    async def pointer(self) -> Pointer | None:
        """The pointer to the served snapshot; None where nothing was published.

        Raises:
            redis.exceptions.RedisError, OSError: the store cannot be reached.
            ValueError, TypeError: the pointer cannot be read.
        """
        raw = await self._client.get(self._keys.pointer)
        return None if raw is None else Pointer.from_bytes(raw)

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose()
