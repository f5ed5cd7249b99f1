"""The pointer: which published snapshot is served. It moves last, whole, and only forward in sequence."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

import redis

from features.errors import WrongState
from features.keys import Keys
from features.state import known_fields

HISTORY: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A snapshot that is or was served."""

    digest: str
    space_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """What is served now, and what was before, the latest first."""

    digest: str
    space_id: str
    sequence: int
    published_at: float  # unix seconds
    before: tuple[Served, ...] = ()

    def to_bytes(self) -> bytes:
        """The pointer as JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, raw: bytes | str) -> "Pointer":
        """Reads what `to_bytes` wrote; raises ValueError where it is not that."""
        try:
            fields = known_fields(cls, json.loads(raw))
            before = tuple(Served(**known_fields(Served, served)) for served in fields["before"])
            return cls(**{**fields, "before": before})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no pointer: {error!r}") from error


def read_pointer(client: redis.Redis, keys: Keys) -> Pointer | None:
    """The pointer in Redis; None where nothing was published.

    Raises:
        WrongState: it cannot be read.
    """
    raw = client.get(keys.pointer)
    try:
        return None if raw is None else Pointer.from_bytes(raw)
    except ValueError as error:
        raise WrongState("the pointer in Redis cannot be read; publish a snapshot to write it anew") from error


def flip_pointer(
    client: redis.Redis, keys: Keys, served: Served, *, now: float, back_from: int | None = None
) -> Pointer:
    """Moves the pointer to a snapshot. Of two that race, both succeed, one after the other; an unreadable one is lost.

    `back_from`, the sequence of the pointer that was looked at, takes the snapshot off the history of what was served
    before, instead of adding the present one to it.

    Raises:
        WrongState: the pointer that was to be taken back has moved.
    """

    def move(pipe: redis.client.Pipeline) -> Pointer:
        old = _present(pipe.get(keys.pointer))
        if back_from is not None and (old is None or old.sequence != back_from):
            raise WrongState("the pointer moved meanwhile; look again")
        pointer = Pointer(
            digest=served.digest,
            space_id=served.space_id,
            sequence=1 if old is None else old.sequence + 1,
            published_at=now,
            before=_history(old, served, back=back_from is not None),
        )
        pipe.multi()
        pipe.set(keys.pointer, pointer.to_bytes())
        return pointer

    moved = client.transaction(move, keys.pointer, value_from_callable=True)  # type: ignore[arg-type]  # answers it
    assert isinstance(moved, Pointer)
    return moved


def _present(raw: bytes | str | None) -> Pointer | None:
    with suppress(ValueError):
        return None if raw is None else Pointer.from_bytes(raw)
    return None


def _history(old: Pointer | None, served: Served, *, back: bool) -> tuple[Served, ...]:
    if old is None:
        return ()
    before = tuple(past for past in old.before if past.digest != served.digest)
    if back or old.digest == served.digest:
        return before
    return (Served(digest=old.digest, space_id=old.space_id), *before)[:HISTORY]
