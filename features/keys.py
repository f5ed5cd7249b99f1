"""The names of things in Redis, and the hash behind them.

The hash is the low half of MurmurHash3_x64_128 with seed 0. An item's key is the hash of its `item_id`; a listener's
partition is the hash of its `user_id` modulo 64. Every key of a listener carries the partition as a hash tag, so that
a script stays on one slot and Redis Cluster works unchanged.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import mmh3
import numpy as np
from numpy.typing import NDArray

PARTITIONS = 64
PLAN_S = 1800  # for so long a page can be turned
_ROUND_S = 600  # plans of so many seconds share a key
_ROUNDS = PLAN_S // _ROUND_S + 2  # names in turn: the first is free again when the last is used up
_PLANS = tuple(f"g{number}" for number in range(_ROUNDS))
_OF_LISTENER = ("s", "p", "i", "c", *_PLANS)  # every kind that is not of one embedding space: Forget erases them


def hash64(text: str | bytes) -> int:
    """The low 64 bits of MurmurHash3_x64_128 of the text's UTF-8, seed 0."""
    return int(mmh3.hash64(text, 0, signed=False)[0])


def item_keys(item_ids: Iterable[str]) -> NDArray[np.uint64]:
    """The stable keys of items, `[item] uint64`, in order."""
    hash_of = mmh3.hash64
    return np.fromiter((hash_of(item_id, 0, signed=False)[0] for item_id in item_ids), dtype=np.uint64)


def arm_code(experiment: str, iteration: int, arm: str) -> int:
    """The 32 bits that name an arm in tracking tokens and in the events that bring them back."""
    return hash64(f"{experiment}|{iteration}|{arm}") & 0xFFFFFFFF


def partition(user_id: str) -> int:
    """The listener's partition, 0-63."""
    return hash64(user_id) % PARTITIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Builds every Redis key under one prefix. User ids are validated before they come here."""

    prefix: str = "mantel"

    def listener(self, kind: str, user_id: str) -> str:
        """A listener's key of one kind.

        `r:<space_id>` a record of that space, `s` recent state, `p` preferences, `i` impressions, `c` caps, `g0` to
        `g4` plans of pages.
        """
        return f"{self.prefix}:{{{partition(user_id)}}}:{kind}:{user_id}"

    def record(self, user_id: str, space_id: str) -> str:
        """The key of a listener's record in one embedding space."""
        return self.listener(f"r:{space_id}", user_id)

    def state(self, user_id: str) -> str:
        """The key of a listener's recent state."""
        return self.listener("s", user_id)

    def impressions(self, user_id: str) -> str:
        """The key of what a listener was shown of late."""
        return self.listener("i", user_id)

    def stream(self, number: int) -> str:
        """The key of the event stream of one partition."""
        return f"{self.prefix}:{{{number}}}:stream"

    def seen(self, number: int, hour: int) -> str:
        """The key of the set of events that one partition took in an hour, counted since 1970."""
        return f"{self.prefix}:{{{number}}}:seen:{hour}"

    def preferences(self, user_id: str) -> str:
        """The key of a listener's preferences."""
        return self.listener("p", user_id)

    def plans(self, user_id: str, at: int) -> tuple[str, int]:
        """The key of the hash of a listener's plans made about a time, and when it may go; unix seconds.

        A few names in turn, not one for each plan: so whoever erases a listener knows them all.
        """
        turn = at // _ROUND_S
        return self.listener(_PLANS[turn % _ROUNDS], user_id), (turn + 1) * _ROUND_S + PLAN_S

    def all_of_listener(self, user_id: str, space_ids: Iterable[str]) -> list[str]:
        """Every key that a listener can have, with a record in each of these embedding spaces."""
        records = [self.record(user_id, space_id) for space_id in space_ids]
        return [*records, *(self.listener(kind, user_id) for kind in _OF_LISTENER)]

    def forgotten(self, number: int) -> str:
        """The key of the hash of a partition's tombstones: who was forgotten, and when."""
        return f"{self.prefix}:{{{number}}}:forgotten"

    def records_pattern(self, space_id: str) -> str:
        """A SCAN pattern that matches every record of one embedding space."""
        return f"{self.prefix}:{{*}}:r:{space_id}:*"

    @property
    def pointer(self) -> str:
        """The key of the pointer to the snapshot that is served."""
        return f"{self.prefix}:pointer"

    def book_pointer(self, kind: str) -> str:
        """The key of the pointer to the book of a kind that is in force."""
        return f"{self.prefix}:book:{kind}"

    def book(self, kind: str, digest: str) -> str:
        """The key of a book, or of a blob of one, by its digest."""
        return f"{self.prefix}:book:{kind}:{digest}"

    @property
    def confirmations(self) -> str:
        """The key of the hash of score feeds: id to the unix seconds of its last confirmation."""
        return f"{self.prefix}:{{promotions}}:confirmed"

    def placements(self, day: str) -> str:
        """The key of the hash that counts what promotion did on a day of UTC."""
        return f"{self.prefix}:{{promotions}}:placed:{day}"

    def counted(self, count: str) -> str:
        """The key that tells that a worker's count was added: one that is sent twice is added once."""
        return f"{self.prefix}:{{promotions}}:counted:{count}"

    @property
    def streams(self) -> str:
        """The key of the name of this Redis' event streams: ids in another Redis' streams mean other events."""
        return f"{self.prefix}:streams"

    @property
    def spaces(self) -> str:
        """The key of the hash that tells the state of each embedding space: `space_id` to JSON."""
        return f"{self.prefix}:spaces"
