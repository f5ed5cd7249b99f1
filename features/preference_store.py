"""Reads, changes and erases what listeners wish, in Redis; what is answered is on its disk."""

from collections.abc import Callable
from typing import Final

import redis.asyncio
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import Unavailable, WrongState
from features.forgetting import FORGET, tombstone
from features.keys import Keys, partition
from features.preferences import Preferences, decode_preferences, encode_preferences

DISK_MS: Final = 4_000  # Redis may take so long to write what it was sent; it does so once a second
TIMEOUT_S: Final = 5.0  # of one reply, the wait for the disk included
CONNECTIONS: Final = 16  # each of them waits for the disk by itself: changes of so many listeners at once
ATTEMPTS: Final = 100  # of a change that others of the same listener overtake: one always gets through, so 100 can meet

# Puts a frame where what was read still stands; an empty string stands for no frame.
_EXCHANGE: Final = """
local now = redis.call('GET', KEYS[1]) or ''
if now ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


class PreferenceStore:
    """The door to Redis of ListenerService; not on the way of pages, so it may wait for the disk."""

    def __init__(self, url: str, keys: Keys) -> None:
        """Connects on first use."""
        self._keys = keys
        self._client = redis.asyncio.Redis.from_pool(
            redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=TIMEOUT_S,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        )

    async def read(self, user_id: str) -> Preferences:
        """A listener's preferences.

        Raises:
            WrongState: they cannot be read.
            Unavailable: Redis does not answer.
        """
        try:
            return _decode(await self._client.get(self._keys.preferences(user_id)) or b"")
        except (redis.exceptions.RedisError, OSError) as error:
            raise Unavailable("preferences cannot be reached; try again") from error

    async def change(self, user_id: str, changed: Callable[[Preferences], Preferences]) -> Preferences:
        """Puts what `changed` makes of a listener's preferences in their place; changes at once lose nothing.

        Raises:
            WrongState: they cannot be read, and so stay as they are: a new list would show what the old one hid.
            Unavailable: Redis does not answer, does not come to write it, or others keep changing them.
        """
        key = self._keys.preferences(user_id)
        try:
            async with self._client.client() as one:  # one connection: Redis waits for what that one sent
                for _ in range(ATTEMPTS):
                    frame = await one.get(key) or b""
                    wish = changed(_decode(frame))
                    if await one.eval(_EXCHANGE, 1, key, frame, encode_preferences(wish)):
                        await _on_disk(one)
                        return wish
        except (redis.exceptions.RedisError, OSError) as error:
            raise Unavailable("preferences cannot be changed now; try again") from error
        raise Unavailable("others keep changing these preferences; try again")

    async def forget(self, user_id: str) -> int:
        """Erases every key of a listener and leaves a tombstone; answers how many keys there were.

        The tombstone comes first: a publish at the same time sees it, or has named its embedding space before. It is
        renewed as the keys are erased, so that what is erased is what came before it.

        Raises:
            Unavailable: Redis does not answer, or does not come to write it; ask again until it does.
        """
        try:
            async with self._client.client() as one:
                kept, mark = self._keys.forgotten(partition(user_id)), tombstone(user_id)
                await one.eval(FORGET, 1, kept, mark)
                spaces = [_text(name) for name in await one.hkeys(self._keys.spaces)]
                known = self._keys.all_of_listener(user_id, spaces)
                erased = int(await one.eval(FORGET, 1 + len(known), kept, *known, mark))
                await _on_disk(one)
                return erased
        except (redis.exceptions.RedisError, OSError) as error:
            raise Unavailable("the listener is not forgotten yet; try again") from error

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose()


def _decode(frame: bytes | str) -> Preferences:
    assert isinstance(frame, bytes)
    found = decode_preferences(frame) if frame else Preferences()
    if found is None:
        raise WrongState("the listener's preferences cannot be read, and stay as they are; Forget erases them")
    return found


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode()


async def _on_disk(client: redis.asyncio.Redis) -> None:
    """Waits until what this connection wrote is on Redis' disk.

    A Redis older than 7.2, or without an append-only file, cannot say: its `appendfsync` has the last word.

    Raises:
        Unavailable: Redis does not come to write it.
    """
    try:
        said = await client.waitaof(1, 0, DISK_MS)
    except redis.exceptions.ResponseError:
        return
    if int(said[0]) < 1:
        raise Unavailable("Redis has not come to write it to its disk; try again")
