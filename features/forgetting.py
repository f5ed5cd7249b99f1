"""Who asked to be forgotten: a tombstone outlives all that it erased, and keeps it from coming back.

It concerns what was known before. A listener who comes back is a stranger: what they do and wish from then on is new
and counts, but what older logs and artefacts say of them stays out: whoever loads or drains asks `forgotten` first, who
has no Redis at hand reads a file of tombstones. The tombstone of a user id is the first 16 bytes of its SHA-256, so the
store keeps no list of names of those who left. Its time is by the clock of Redis, as the ids of recorded events are.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

import redis

from features.keys import PARTITIONS, Keys, partition

# Erases KEYS[2] and on, and notes in KEYS[1] when: an event comes wholly before it, or wholly after.
FORGET: Final = """
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], string.format('%s.%03d', now[1], math.floor(now[2] / 1000)))
if #KEYS == 1 then return 0 end
return redis.call('UNLINK', unpack(KEYS, 2))
"""
_PER_TRIP: Final = 1000


def tombstone(user_id: str) -> bytes:
    """What stands for a user id among the forgotten."""
    return hashlib.sha256(user_id.encode()).digest()[:16]


def forgotten(client: redis.Redis, keys: Keys, user_ids: Iterable[str]) -> dict[str, float]:
    """When each of these listeners was last forgotten, in unix seconds; who never was is left out."""
    of_partition: dict[int, list[str]] = {}
    for user in user_ids:
        of_partition.setdefault(partition(user), []).append(user)
    pipe = client.pipeline(transaction=False)
    for number in of_partition:
        pipe.exists(keys.forgotten(number))
    some = [number for number, there in zip(of_partition, pipe.execute(), strict=True) if there]
    for number in some:
        pipe.hmget(keys.forgotten(number), [tombstone(user) for user in of_partition[number]])
    return {
        user: float(at)
        for number, found in zip(some, pipe.execute(), strict=True)
        for user, at in zip(of_partition[number], found, strict=True)
        if at is not None
    }


def tombstones(client: redis.Redis, keys: Keys) -> Iterator[tuple[bytes, float]]:
    """Every tombstone with its time in unix seconds; one that is renewed meanwhile may come with either time."""
    for number in range(PARTITIONS):
        for mark, at in client.hscan_iter(keys.forgotten(number), count=_PER_TRIP):
            yield mark, float(at)
