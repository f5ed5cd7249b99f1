"""ListenerService: what listeners hid and chose, and being forgotten."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from features.errors import InvalidInput
from features.hiding import hide, show
from features.keys import hash64
from features.preference_store import PreferenceStore
from features.preferences import MAX_HIDDEN, Preferences
from protos.listeners.v1 import listeners_pb2
from server.guard import Call
from server.hides import Hides
from server.queries import wrong_ids, wrong_user_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerService:
    """Keeps preferences; what it answers to a change is on Redis' disk."""

    store: PreferenceStore
    hides: Hides
    now: Callable[[], float]

    async def get_preferences(
        self, request: listeners_pb2.GetPreferencesRequest, _call: Call
    ) -> listeners_pb2.GetPreferencesResponse:
        """A listener's preferences; of who never said anything, empty ones."""
        _refuse(wrong_user_id(request.user_id))
        found = await self.store.read(request.user_id)
        return listeners_pb2.GetPreferencesResponse(preferences=_told(found))

    async def update_preferences(
        self, request: listeners_pb2.UpdatePreferencesRequest, _call: Call
    ) -> listeners_pb2.UpdatePreferencesResponse:
        """Preferences after a change."""
        _refuse(_wrong_change(request))
        changed = await self.store.change(request.user_id, lambda before: self._changed(before, request))
        return listeners_pb2.UpdatePreferencesResponse(preferences=_told(changed))

    async def forget(self, request: listeners_pb2.ForgetRequest, _call: Call) -> listeners_pb2.ForgetResponse:
        """Erases all that is known of a listener, and keeps it from coming back."""
        _refuse(wrong_user_id(request.user_id))
        return listeners_pb2.ForgetResponse(erased_keys=await self.store.forget(request.user_id))

    def _changed(self, before: Preferences, request: listeners_pb2.UpdatePreferencesRequest) -> Preferences:
        through = set(request.unhide_artists_of_item_ids)
        artists = [*map(hash64, request.unhide_artist_ids), *self.hides.artists_of(request.unhide_artists_of_item_ids)]
        artists += [artist for artist, item_id in before.hidden_through if item_id in through]
        items = map(hash64, request.unhide_item_ids)
        after = show(before, items, set(artists) - {0}, at_ms=int(self.now() * 1000))
        return _chosen(_hidden(after, request), request)


_LISTS: Final = (
    "hide_item_ids",
    "hide_artist_ids",
    "unhide_item_ids",
    "unhide_artist_ids",
    "unhide_artists_of_item_ids",
)


def _refuse(wrong: Iterable[tuple[str, str]]) -> None:
    if found := tuple(wrong):
        raise InvalidInput(*found)


def _wrong_change(request: listeners_pb2.UpdatePreferencesRequest) -> Iterable[tuple[str, str]]:
    yield from wrong_user_id(request.user_id)
    for field in _LISTS:
        yield from wrong_ids(field, getattr(request, field))
    yield from _both("hide_item_ids", request.hide_item_ids, request.unhide_item_ids)
    yield from _both("hide_artist_ids", request.hide_artist_ids, request.unhide_artist_ids)
    if request.HasField("discovery") and not 0 <= request.discovery <= 1:
        yield "discovery", "must be 0, all familiar, to 1, all new"


def _both(field: str, hide: Sequence[str], unhide: Sequence[str]) -> Iterable[tuple[str, str]]:
    shown = set(unhide)
    for number, one in enumerate(hide):
        if one in shown:
            yield f"{field}[{number}]", f"stands in un{field} too"


def _hidden(before: Preferences, request: listeners_pb2.UpdatePreferencesRequest) -> Preferences:
    after = hide(before, request.hide_item_ids, request.hide_artist_ids)
    artists = len(after.hidden_artists) + len(after.hidden_through)
    for field, count in (("hide_item_ids", len(after.hidden_items)), ("hide_artist_ids", artists)):
        if count > MAX_HIDDEN:
            raise InvalidInput((field, f"would hide {count}; at most {MAX_HIDDEN} can be hidden"))
    return after


def _chosen(after: Preferences, request: listeners_pb2.UpdatePreferencesRequest) -> Preferences:
    if request.HasField("allow_explicit"):
        after = replace(after, allow_explicit=request.allow_explicit)
    if request.HasField("promotions_off"):
        after = replace(after, promotions_off=request.promotions_off)
    if request.HasField("discovery"):
        after = replace(after, discovery=request.discovery)
    return after


def _told(preferences: Preferences) -> listeners_pb2.Preferences:
    return listeners_pb2.Preferences(
        hidden_item_ids=preferences.hidden_items,
        hidden_artist_ids=preferences.hidden_artists,
        hidden_artists_of_item_ids=[item_id for _, item_id in preferences.hidden_through],
        allow_explicit=preferences.allow_explicit,
        promotions_off=preferences.promotions_off,
        discovery=preferences.discovery,
    )
