"""Hides by event: kept in preferences before the event is acknowledged, so they outlive recent state."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from features.errors import WrongState
from features.events import Event
from features.hiding import Hide, hide_by_events
from features.keys import hash64
from features.preference_store import PreferenceStore
from features.preferences import MAX_HIDDEN, Preferences
from features.snapshot import Snapshot

FULL: Final = f"would hide more than {MAX_HIDDEN:,} of a listener: show some again, or hide whole artists"
UNREADABLE: Final = "the listener's preferences cannot be read, and stay as they are; Forget erases them"
GONE: Final = "item_id: the catalogue has the token's item no more: name it"
ALONE: Final = "item_id: no item of a known artist; the item alone is hidden"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What became of a hide."""

    refused: bool = False
    message: str = ""  # what is to be said of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Hides:
    """Puts what events hide into their listeners' preferences."""

    store: PreferenceStore
    snapshot: Callable[[], Snapshot | None]
    now: Callable[[], float]

    def artists_of(self, item_ids: Sequence[str]) -> list[int]:
        """The key of each item's artist; 0 where the item or its artist is not known."""
        return self._artists(map(hash64, item_ids))

    async def keep(self, events: Sequence[Event]) -> list[Kept]:
        """Keeps hides, in order, those of one listener in one change; sent again they change nothing.

        Raises:
            Unavailable: the store did not take them; some may be kept.
        """
        now_ms = int(self.now() * 1000)
        artists = self._artists(event.item_key for event in events)
        kept, of_listener = [Kept()] * len(events), defaultdict[str, list[tuple[int, Hide]]](list)
        for place, (event, artist) in enumerate(zip(events, artists, strict=True)):
            whole = event.whole_artist and artist > 0
            if not event.item_id:
                kept[place] = Kept(refused=True, message=GONE)
                continue
            hide = Hide(item_id=event.item_id, at_ms=min(event.occurred_ms, now_ms), artist=artist if whole else 0)
            kept[place] = Kept(message=ALONE if event.whole_artist and not whole else "")
            of_listener[event.user_id].append((place, hide))
        changes = (self._change(user, [hide for _, hide in hides]) for user, hides in of_listener.items())
        for hides, told in zip(of_listener.values(), await asyncio.gather(*changes), strict=True):
            for (place, _), why in zip(hides, told, strict=True):
                kept[place] = Kept(refused=True, message=why) if why else kept[place]
        return kept

    def _artists(self, keys: Iterable[int]) -> list[int]:
        """The key of each item's artist as the served snapshot knows it, else 0."""
        wanted, snapshot = np.fromiter(keys, np.uint64), self.snapshot()
        if snapshot is None:
            return [0] * len(wanted)
        rows = snapshot.rows_of(wanted)
        found: list[int] = np.where(rows >= 0, snapshot.columns["artist_key"][rows], 0).tolist()
        return found

    async def _change(self, user_id: str, hides: Sequence[Hide]) -> list[str]:
        """Why each hide is not kept, "" where it is."""
        fits: list[bool] = []

        def hidden(before: Preferences) -> Preferences:
            after, fits[:] = hide_by_events(before, hides)
            return after

        try:
            await self.store.change(user_id, hidden)
        except WrongState:
            return [f"user_id: {UNREADABLE}"] * len(hides)
        return ["" if well else f"kind: {FULL}" for well in fits]
