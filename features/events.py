"""Events: what one is, and how it stands in a partition's stream until it is drained."""

import hashlib
import json
from dataclasses import astuple, dataclass
from typing import Any, Final

from features.keys import hash64
from features.recent_state import Did

KINDS: Final = {did.name.lower(): did for did in Did}
_PLAIN: Final = 1  # the version of entries without a slot, as they always were
_TRACKED: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Where a listener saw an item, as its tracking token says."""

    page: str  # the page's id, 16 hex digits
    at: int  # when the page was served, unix seconds
    shelf: int  # its place on the page, from 0
    place: int  # the item's on the shelf, from 0
    item_key: int
    arms: tuple[int, ...] = ()  # codes of the arms that the page was served with, `arm_code`


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a listener did with an item; what the client said has been validated."""

    event_id: str
    user_id: str
    did: Did
    item_id: str  # "": only its key is known, from where it was seen, and no snapshot that was served knew its id
    occurred_ms: int  # unix milliseconds, by the client's clock
    played_ms: int = 0  # 0: unknown
    session_id: str = ""
    whole_artist: bool = False  # of a hide
    seen: Seen | None = None  # None: not on a page, as far as anyone can prove

    @property
    def item_key(self) -> int:
        """The item's key."""
        return self.seen.item_key if self.seen is not None else hash64(self.item_id)

    @property
    def mark(self) -> bytes:
        """Tells events apart in 16 bytes: by listener and event id, so that no client silences another's events."""
        return hashlib.blake2b(f"{self.user_id}|{self.event_id}".encode(), digest_size=16).digest()

    def to_bytes(self) -> bytes:
        """The event as it stands in the stream: a JSON list, 90 bytes shorter than an object with names."""
        said = (
            _PLAIN if self.seen is None else _TRACKED,
            self.event_id,
            self.user_id,
            self.did.name.lower(),
            self.item_id,
            self.occurred_ms,
            self.played_ms,
            self.session_id,
            int(self.whole_artist),
            *(() if self.seen is None else astuple(self.seen)),
        )
        return json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Event":
        """Reads what `to_bytes` wrote.

        Raises:
            ValueError: it was not, or by another version.
        """
        try:
            version, event_id, user_id, kind, item_id, occurred_ms, played_ms, session_id, whole, *seen = json.loads(
                raw
            )
            if version not in {_PLAIN, _TRACKED}:
                raise ValueError(f"an event of version {version}")
            return cls(
                event_id=event_id,
                user_id=user_id,
                did=KINDS[kind],
                item_id=item_id,
                occurred_ms=occurred_ms,
                played_ms=played_ms,
                session_id=session_id,
                whole_artist=bool(whole),
                seen=_seen(seen) if version == _TRACKED else None,
            )
        except (TypeError, KeyError) as error:
            raise ValueError("not an event") from error


def _seen(said: list[Any]) -> Seen:
    page, at, shelf, place, item_key, arms = said
    return Seen(page=page, at=at, shelf=shelf, place=place, item_key=item_key, arms=tuple(arms))
