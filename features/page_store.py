"""Keeps and finds plans of pages in Redis: one round trip for whatever a worker keeps and looks for at once."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import Unavailable
from features.forgetting import tombstone
from features.keys import PLAN_S, Keys, partition

_log = logging.getLogger("mantel.pages")
_MINUTE_S: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A plan to be found, or with a frame to be kept."""

    user_id: str
    page: str
    at: int  # when its page was served, unix seconds
    frame: bytes | None = None  # None: to be found


Found = bytes | Unavailable | None
"""A plan's frame; None where there is none, or it was kept; or why nobody can say, or keep it."""


class PageStore:
    """The door to Redis of paging: it never retries and never waits longer than it was told."""

    def __init__(self, url: str, keys: Keys, *, timeout_s: float) -> None:
        """Connects on first use; `timeout_s` bounds connecting and each reply."""
        self._keys = keys
        self._client = redis.asyncio.Redis.from_pool(
            redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=2,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        )

    async def serve(self, wanted: Sequence[Wanted]) -> list[Found]:
        """Keeps and finds plans, in order; what goes wrong is told one by one and never raised.

        A plan of before its listener was forgotten is not found, also where it was kept after that.
        """
        pipe = self._client.pipeline(transaction=False)
        for one in wanted:
            name, goes = self._keys.plans(one.user_id, one.at)
            if one.frame is None:
                pipe.hget(name, one.page)
                pipe.hget(self._keys.forgotten(partition(one.user_id)), tombstone(one.user_id))
            else:
                pipe.hset(name, one.page, one.frame)
                pipe.expireat(name, goes)
        try:
            answers: list[Any] = await pipe.execute(raise_on_error=False)
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            _log.warning("plans of pages were not reached: %s", error)
            return [Unavailable("the page cannot be turned now; try again") for _ in wanted]
        pairs = zip(wanted, answers[::2], answers[1::2], strict=True)
        return [_told(one, first, second) for one, first, second in pairs]

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose()


class Allowance:
    """Bounds the bytes that a worker keeps in plans over the time that they live, to the minute."""

    def __init__(self, most: int) -> None:
        """Allows `most` bytes."""
        self._most = most
        self._kept = 0
        self._minutes: deque[tuple[int, int]] = deque()

    def take(self, size: int, now: int) -> bool:
        """Whether so many bytes more may be kept; if so they are counted."""
        minute = now // _MINUTE_S
        while self._minutes and self._minutes[0][0] <= minute - PLAN_S // _MINUTE_S:
            self._kept -= self._minutes.popleft()[1]
        if self._kept + size > self._most:
            return False
        last = self._minutes.pop()[1] if self._minutes and self._minutes[-1][0] == minute else 0
        self._minutes.append((minute, last + size))
        self._kept += size
        return True


def _told(one: Wanted, first: Any, second: Any) -> Found:
    for answer in (first, second):
        if isinstance(answer, Exception):
            _log.warning("a plan of a page was not reached: %s", answer)
            return Unavailable("the page cannot be turned now; try again")
    if one.frame is not None or first is None or (second is not None and float(second) >= one.at):
        return None
    return bytes(first)
