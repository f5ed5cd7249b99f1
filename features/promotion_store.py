"""What of promotion changes by the minute, in Redis: when score feeds were confirmed, and what campaigns came to.

Counts are one hash for each day of UTC, with a field for each campaign and measure. A worker sends each of its counts
under an id, until it is answered; a script adds it once, however often it comes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import Unavailable
from features.keys import Keys

MEASURES: Final = ("eligible", "pages", "placed")  # pages it could stand on; it stands on; items that stand there
KEPT_S: Final = 35 * 86_400
_COUNTED_S: Final = 3600  # for so long a count that is sent again is known
_MOST_FIELDS: Final = 3000  # of one call of the script, which holds up the store for a few ms
_SECONDS: Final = re.compile(rb"\d{1,12}")
_ADD: Final = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
for i = 3, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], 1, 'EX', ARGV[2])
return 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmations:
    """When feeds were last confirmed, in unix seconds; one that never was, or whose value is no time, is left out."""

    at: Mapping[str, int]
    unreadable: tuple[str, ...]  # what stands there is no time


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What promotion did on one day, as one worker counted it; it never changes, so it can be sent again."""

    id: str
    day: str  # of UTC, such as 2026-11-20
    fields: Mapping[str, int]  # campaign and measure, as `field_of` names them


def field_of(campaign: str, measure: str) -> str:
    """The field of a campaign's measure."""
    return f"{campaign}:{measure}"


class PromotionStore:
    """A worker's door; it waits no longer than it was told, and not on the connections for listeners."""

    def __init__(self, url: str, keys: Keys, *, timeout_s: float) -> None:
        """Connects on first use."""
        self._keys = keys
        self._client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    async def confirmations(self, feeds: Sequence[str]) -> Confirmations:
        """When feeds were last confirmed.

        Raises:
            Unavailable: the store cannot be reached.
        """
        if not feeds:
            return Confirmations(at={}, unreadable=())
        try:
            found: Any = await self._client.hmget(self._keys.confirmations, list(feeds))
        except redis.ResponseError:  # no hash
            return Confirmations(at={}, unreadable=tuple(feeds))
        except (redis.RedisError, OSError) as error:
            raise Unavailable("the store cannot be reached") from error
        return _confirmations(feeds, found)

    async def add(self, count: Count) -> None:
        """Adds a count, once however often it is sent.

        Raises:
            Unavailable: the store cannot be reached, or did not take it.
        """
        fields = list(count.fields.items())
        try:
            for start in range(0, len(fields), _MOST_FIELDS):
                some = [word for pair in fields[start : start + _MOST_FIELDS] for word in pair]
                keys = self._keys.placements(count.day), self._keys.counted(f"{count.id}:{start}")
                await self._client.eval(_ADD, 2, *keys, KEPT_S, _COUNTED_S, *some)
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"the store did not take a count: {error}") from error

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.aclose()


class PromotionLedger:
    """The control plane's door."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        """Works on a client that answers bytes."""
        self._client = client
        self._keys = keys

    def confirm(self, feeds: Iterable[str], *, at: int) -> None:
        """Notes that feeds are confirmed.

        Raises:
            Unavailable: the store cannot be reached, or holds something else in their place.
        """
        times = dict.fromkeys(feeds, at)
        try:
            if times:
                self._client.hset(self._keys.confirmations, mapping=times)  # type: ignore[arg-type]  # narrower in redis' stubs than it takes
        except redis.RedisError as error:
            raise Unavailable("the store did not take the confirmation") from error

    def confirmations(self, feeds: Sequence[str]) -> Confirmations:
        """When feeds were last confirmed.

        Raises:
            Unavailable: the store cannot be reached.
        """
        if not feeds:
            return Confirmations(at={}, unreadable=())
        try:
            found: Any = self._client.hmget(self._keys.confirmations, list(feeds))
        except redis.ResponseError:
            return Confirmations(at={}, unreadable=tuple(feeds))
        except redis.RedisError as error:
            raise Unavailable("the store cannot be reached") from error
        return _confirmations(feeds, found)

    def counts(self, day: str) -> dict[str, dict[str, int]]:
        """What campaigns came to on a day: campaign -> measure -> number.

        Raises:
            Unavailable: the store cannot be reached.
        """
        try:
            raw: Any = self._client.hgetall(self._keys.placements(day))
        except redis.RedisError as error:
            raise Unavailable("the store cannot be reached, or its counts cannot be read") from error
        found: dict[str, dict[str, int]] = {}
        for field, number in raw.items():
            campaign, _, measure = field.decode(errors="replace").rpartition(":")
            if measure in MEASURES:
                found.setdefault(campaign, {})[measure] = int(number)
        return found


def _confirmations(feeds: Sequence[str], raw: Sequence[bytes | None]) -> Confirmations:
    told = [(feed, value) for feed, value in zip(feeds, raw, strict=True) if value is not None]
    good = {feed: int(value) for feed, value in told if _SECONDS.fullmatch(value)}
    return Confirmations(at=good, unreadable=tuple(feed for feed, _ in told if feed not in good))
