"""Takes events in: once each, into their partition's stream and the listener's recent state, acknowledged when on disk.

A script does all of it for one partition in one atomic step. It only de-duplicates, appends and trims: entries are made
by the worker, and nothing in Redis is read as anything but bytes.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final

import redis.asyncio
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import Exhausted, MantelError, Unavailable
from features.events import Event
from features.keys import PARTITIONS, Keys, partition
from features.recent_state import ENTRY, Did, encode_entries, session_of

FIELD: Final = "e"  # of a stream's entry
STATE_ENTRIES: Final = 256
IMPRESSION_ENTRIES: Final = 512
SEEN_S: Final = 7200 + 3600  # the set of an hour is needed for two more
EVENTS_PER_SCRIPT: Final = 100  # 0.62 ms of Redis' time, for which a page may have to wait
LOOKED_AT: Final = 8  # of the streams at each look: all 64 hold up the event loop for as many replies
_LATER: Final = "retry with the same event ids"
_log = logging.getLogger("mantel.events")

# KEYS: stream, marks of this hour, marks of the hour before, then per event where its entry goes.
# ARGV: most entries of the stream, seconds that entries live, seconds that marks live, then per event its mark, what
# goes into the stream, its entry, and the bytes to which the string is trimmed when it has twice as many.
_SCRIPT: Final = """
if redis.call('XLEN', KEYS[1]) + #KEYS - 3 > tonumber(ARGV[1]) then return '' end
local told = {}
for n = 1, #KEYS - 3 do
  local mark, key = ARGV[4 * n], KEYS[n + 3]
  if redis.call('SISMEMBER', KEYS[2], mark) + redis.call('SISMEMBER', KEYS[3], mark) > 0 then
    told[n] = 'd'
  else
    redis.call('SADD', KEYS[2], mark)
    redis.call('XADD', KEYS[1], '*', 'e', ARGV[4 * n + 1])
    local size, bound = redis.call('APPEND', key, ARGV[4 * n + 2]), tonumber(ARGV[4 * n + 3])
    if size >= 2 * bound then redis.call('SET', key, redis.call('GETRANGE', key, -bound, -1)) end
    redis.call('EXPIRE', key, ARGV[2])
    told[n] = 'r'
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[3])
return table.concat(told)
"""

Recorded = list[bool] | MantelError
"""Of one call's events which are new, the others being known already; or why none of them is acknowledged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """How Redis stands before a batch is written."""

    script: str  # its name in Redis
    hour: int  # by the clock of Redis, which all workers share
    lengths: dict[int, int]  # of the streams concerned


class EventStore:
    """The writing path's door to Redis: it never retries; event ids let the client do so."""

    def __init__(self, url: str, keys: Keys, *, timeout_s: float, stream_max: int, recent_s: int) -> None:
        """Connects on first use; `timeout_s` bounds connecting and each reply, `recent_s` is how long entries live."""
        self._keys, self._stream_max, self._recent_s = keys, stream_max, recent_s
        self._disk_ms = max(1, int(timeout_s * 1000))
        self._lengths, self._looked = [0] * PARTITIONS, 0  # of streams, and which are looked at next
        self._client = redis.asyncio.Redis.from_pool(
            redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=2,  # for the one batch that is under way, and the look at the streams
                timeout=timeout_s,
                socket_timeout=timeout_s * 1.2,  # so that a slow disk is told as such
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        )

    async def record(self, calls: Sequence[Sequence[Event]]) -> list[Recorded]:
        """Records a batch of calls in two round trips; what goes wrong is told call by call and never raised.

        A call with an event for a full stream is refused before any of it is recorded; only where the stream fills
        between the two round trips may some of it be, which a retry then finds known.
        """
        places = [[partition(event.user_id) for event in call] for call in calls]
        try:
            standing = await self._look(set(chain(*places)))
            fits = list(self._fitting(places, standing.lengths))
            fitting = [n for n, well in enumerate(fits) if well]
            events = [pair for n in fitting for pair in zip(places[n], calls[n], strict=True)]
            told = iter(await self._write(events, standing) if events else "")
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            _log.error("events were not recorded: %s", error)
            return [Unavailable(f"the store did not take the events; {_LATER}") for _ in calls]
        except Unavailable as error:
            _log.error("events were not acknowledged: %s", error)
            return [Unavailable(str(error)) for _ in calls]
        return [
            self._answer("".join(islice(told, len(call))) if well else " ")
            for call, well in zip(calls, fits, strict=True)
        ]

    async def fullness(self) -> float:
        """The share of its bound that the longest stream has reached, as far as was looked: at some of them each time.

        Raises:
            redis.exceptions.RedisError, OSError: the store cannot be reached.
        """
        pipe, begin = self._client.pipeline(transaction=False), self._looked
        for number in range(begin, begin + LOOKED_AT):
            pipe.xlen(self._keys.stream(number))
        self._lengths[begin : begin + LOOKED_AT] = await pipe.execute()
        self._looked = (begin + LOOKED_AT) % PARTITIONS
        return float(max(self._lengths)) / self._stream_max

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose()

    async def _look(self, partitions: Iterable[int]) -> _Standing:
        """Also loads the script, which costs less than to find out that Redis has been restarted."""
        numbers = sorted(partitions)
        pipe = self._client.pipeline(transaction=False)
        pipe.script_load(_SCRIPT)
        pipe.time()
        for number in numbers:
            pipe.xlen(self._keys.stream(number))
        script, (seconds, _), *lengths = await pipe.execute()
        return _Standing(script=script, hour=seconds // 3600, lengths=dict(zip(numbers, lengths, strict=True)))

    def _fitting(self, places: Sequence[Sequence[int]], lengths: dict[int, int]) -> Iterator[bool]:
        """Whether the streams have room for each call, after those before it."""
        planned = Counter(lengths)
        for call in places:
            more = Counter(call)
            fits = all(planned[number] + count <= self._stream_max for number, count in more.items())
            if fits:
                planned.update(more)
            yield fits

    async def _write(self, events: Sequence[tuple[int, Event]], standing: _Standing) -> list[str]:
        """What became of each event: `r` recorded, `d` known, a blank where its stream is full; on disk all of them.

        Raises:
            Unavailable: Redis did not say that it has them on its disk.
        """
        entries = _entries([event for _, event in events])
        owned: dict[int, list[int]] = defaultdict(list)
        for place, (number, _) in enumerate(events):
            owned[number].append(place)
        chunks = [
            (number, places[first : first + EVENTS_PER_SCRIPT])
            for number, places in owned.items()
            for first in range(0, len(places), EVENTS_PER_SCRIPT)
        ]
        pipe = self._client.pipeline(transaction=False)
        for number, places in chunks:
            written = [(events[place][1], entries[place]) for place in places]
            pipe.evalsha(standing.script, len(places) + 3, *self._words(number, standing.hour, written))
        pipe.waitaof(1, 0, self._disk_ms)
        *answers, on_disk = await pipe.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        await self._must_be_on_disk(on_disk)
        told = [" "] * len(events)
        for (_, places), answer in zip(chunks, answers, strict=True):
            for place, letter in zip(places, answer.decode(), strict=False):
                told[place] = letter
        return told

    def _words(self, number: int, hour: int, events: Sequence[tuple[Event, bytes]]) -> list[Any]:
        """The keys and arguments of one call of the script."""
        keys = [self._keys.stream(number), self._keys.seen(number, hour), self._keys.seen(number, hour - 1)]
        words: list[Any] = [self._stream_max, self._recent_s, SEEN_S]
        for event, entry in events:
            seen_only = event.did is Did.IMPRESSION
            keys.append(self._keys.impressions(event.user_id) if seen_only else self._keys.state(event.user_id))
            bound = (IMPRESSION_ENTRIES if seen_only else STATE_ENTRIES) * ENTRY.itemsize
            words += (event.mark, event.to_bytes(), entry, bound)
        return [*keys, *words]

    async def _must_be_on_disk(self, answer: Any) -> None:
        """Judges the answer to WAITAOF; a Redis older than it must write before each reply."""
        if not isinstance(answer, Exception):
            if answer[0] < 1:
                raise Unavailable(f"the store's disk was too slow; {_LATER}")
            return
        if "unknown command" not in str(answer):
            raise Unavailable("the store keeps no append-only file: its operator must set appendonly yes") from answer
        said = await self._client.config_get("append*")
        if (said.get("appendonly"), said.get("appendfsync")) != ("yes", "always"):
            raise Unavailable(
                "the store knows no WAITAOF: its operator must set appendonly yes and appendfsync always, or use "
                "Valkey, or Redis 7.2 or newer"
            ) from answer

    def _answer(self, told: str) -> Recorded:
        if " " in told:
            return Exhausted(f"a stream holds its {self._stream_max:,} events until it is drained; {_LATER}")
        return [letter == "r" for letter in told]


def _entries(events: Sequence[Event]) -> list[bytes]:
    return encode_entries(
        [
            (
                event.did,
                event.item_key,
                event.occurred_ms // 1000,
                session_of(event.session_id),
                event.played_ms // 1000,
            )
            for event in events
        ]
    )
