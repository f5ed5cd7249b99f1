"""Hiding and showing again: what changes in a listener's preferences, by word and by event.

Events come late: from a phone that was offline, or behind the undo of the very hide that they tell of. So what is shown
again is remembered with its time for as long as events are taken, and a hide that occurred before it changes nothing.
Clocks are compared as they stand: the client's of the event, though never later than the event came, and the server's
of the undo.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from features.keys import hash64
from features.preferences import MAX_HIDDEN, Preferences, by_key

SHOWN_MS: Final = 49 * 3_600_000  # events are taken for 48 hours
Marks = tuple[tuple[int, int], ...]
"""Key and unix milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hide:
    """What an event hides."""

    item_id: str
    at_ms: int  # when it occurred, before it came
    artist: int = 0  # the key of the item's artist, who is hidden instead, with all their items; 0: the item alone


def hide(before: Preferences, items: Sequence[str], artists: Sequence[str]) -> Preferences:
    """With these items and artists hidden, however many they become."""
    item_keys, artist_keys = by_key(items).keys(), by_key(artists).keys()
    return replace(
        before,
        hidden_items=tuple(by_key((*before.hidden_items, *items)).values()),
        hidden_artists=tuple(by_key((*before.hidden_artists, *artists)).values()),
        hidden_through=tuple(pair for pair in before.hidden_through if pair[0] not in artist_keys),
        shown_items=tuple(mark for mark in before.shown_items if mark[0] not in item_keys),
        shown_artists=tuple(mark for mark in before.shown_artists if mark[0] not in artist_keys),
    )


def show(before: Preferences, items: Iterable[int], artists: Iterable[int], *, at_ms: int) -> Preferences:
    """With these items and artists, by their keys, hidden no more, nor by events that occurred before."""
    item_keys, artist_keys = set(items), set(artists)
    return replace(
        before,
        hidden_items=tuple(one for one in before.hidden_items if hash64(one) not in item_keys),
        hidden_artists=tuple(one for one in before.hidden_artists if hash64(one) not in artist_keys),
        hidden_through=tuple(pair for pair in before.hidden_through if pair[0] not in artist_keys),
        shown_items=_marked(before.shown_items, item_keys, at_ms),
        shown_artists=_marked(before.shown_artists, artist_keys, at_ms),
    )


def hide_by_events(before: Preferences, hides: Sequence[Hide]) -> tuple[Preferences, list[bool]]:
    """With what events hide, in whatever order and however often they come; and which of them fit.

    Where as many are hidden as can be, more are not taken: to drop the oldest would show it again.
    """
    items, artists, through = by_key(before.hidden_items), by_key(before.hidden_artists), dict(before.hidden_through)
    shown_items, shown_artists = dict(before.shown_items), dict(before.shown_artists)
    fits = []
    for one in hides:
        key = one.artist or hash64(one.item_id)
        shown_ms = (shown_artists if one.artist else shown_items).get(key, -1)
        known = key in artists or key in through if one.artist else key in items
        room = (len(artists) + len(through) if one.artist else len(items)) < MAX_HIDDEN
        fits.append(known or room or one.at_ms <= shown_ms)
        if known or not room or one.at_ms <= shown_ms:
            continue
        if one.artist:
            through[key] = one.item_id
        else:
            items[key] = one.item_id
    after = replace(
        before, hidden_items=tuple(dict(sorted(items.items())).values()), hidden_through=tuple(sorted(through.items()))
    )
    return after, fits


def _marked(before: Marks, keys: set[int], at_ms: int) -> Marks:
    """The latest marks, as many as can be hidden; an undo that comes before its hide is marked too."""
    lasting = {key: at for key, at in before if at > at_ms - SHOWN_MS} | dict.fromkeys(keys, at_ms)
    latest = sorted(lasting.items(), key=lambda mark: -mark[1])[:MAX_HIDDEN]
    return tuple(sorted(latest))
