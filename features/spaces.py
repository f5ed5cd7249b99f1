"""What Redis says of each embedding space: which of its listeners are loaded, and whether all are."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

import redis

from features.errors import Unavailable
from features.keys import Keys
from features.state import known_fields

DISK_MS: Final = 10_000  # Redis may take so long to write what it was sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What Redis holds of one embedding space, as written beside it."""

    parts: tuple[str, ...] = ()  # of the records artefact, loaded whole
    complete: bool = False
    listeners: int = 0
    touched_at: float = 0.0  # unix seconds, by a publish that has not moved the pointer yet; 0: none is under way

    def to_bytes(self) -> bytes:
        """The space as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, raw: bytes | str) -> "Space":
        """Reads what `to_bytes` wrote; what cannot be read is a space of which nothing is known."""
        try:
            said = known_fields(cls, json.loads(raw))
            return cls(**{**said, "parts": tuple(said.get("parts", ()))})
        except (ValueError, TypeError, AttributeError):
            return cls()


def read_space(client: redis.Redis, keys: Keys, space_id: str) -> Space:
    """What Redis holds of a space."""
    raw = client.hget(keys.spaces, space_id)
    assert not hasattr(raw, "__await__")
    return Space() if raw is None else Space.from_bytes(raw)


def write_space(client: redis.Redis, keys: Keys, space_id: str, space: Space) -> None:
    """Says what Redis holds of a space."""
    client.hset(keys.spaces, space_id, space.to_bytes())


def write_space_to_disk(client: redis.Redis, keys: Keys, space_id: str, space: Space) -> bool:
    """Says what Redis holds of a space, and waits until that and all that was written before is on Redis' disk.

    False where Redis keeps no append-only file, or is older than 7.2 and cannot say.

    Raises:
        Unavailable: Redis does not come to write it.
    """
    pipe = client.pipeline(transaction=False)  # on one connection: Redis waits for what that one sent
    pipe.hset(keys.spaces, space_id, space.to_bytes())
    pipe.waitaof(1, 0, DISK_MS)
    wrote, said = pipe.execute(raise_on_error=False)
    if isinstance(wrote, redis.RedisError):
        raise wrote
    if isinstance(said, redis.ResponseError):
        return False
    if isinstance(said, redis.RedisError):
        raise said
    if int(said[0]) < 1:
        raise Unavailable(f"Redis has not written its append-only file within {DISK_MS // 1000} s; publish again")
    return True


def complete_spaces(said: Mapping[bytes | str, bytes | str]) -> frozenset[str]:
    """The spaces of which Redis holds every listener, from its hash of spaces."""
    return frozenset(
        name if isinstance(name, str) else name.decode() for name, raw in said.items() if Space.from_bytes(raw).complete
    )
