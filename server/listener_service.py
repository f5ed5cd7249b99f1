"""ListenerService: what listeners hid and chose, and being forgotten."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from features.errors import InvalidInput
from features.preference_store import PreferenceStore
from features.preferences import MAX_HIDDEN, Preferences, by_key
from protos.listeners.v1 import listeners_pb2
from server.guard import Call
from server.queries import wrong_ids, wrong_user_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerService:
    """Keeps preferences; what it answers to a change is on Redis' disk."""

    store: PreferenceStore

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
        changed = await self.store.change(request.user_id, lambda before: _changed(before, request))
        return listeners_pb2.UpdatePreferencesResponse(preferences=_told(changed))

    async def forget(self, request: listeners_pb2.ForgetRequest, _call: Call) -> listeners_pb2.ForgetResponse:
        """Erases all that is known of a listener, and keeps it from coming back."""
        _refuse(wrong_user_id(request.user_id))
        return listeners_pb2.ForgetResponse(erased_keys=await self.store.forget(request.user_id))


def _refuse(wrong: Iterable[tuple[str, str]]) -> None:
    if found := tuple(wrong):
        raise InvalidInput(*found)


def _wrong_change(request: listeners_pb2.UpdatePreferencesRequest) -> Iterable[tuple[str, str]]:
    yield from wrong_user_id(request.user_id)
    for field in ("hide_item_ids", "hide_artist_ids", "unhide_item_ids", "unhide_artist_ids"):
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


def _changed(before: Preferences, request: listeners_pb2.UpdatePreferencesRequest) -> Preferences:
    after = replace(
        before,
        hidden_items=_hidden("hide_item_ids", before.hidden_items, request.hide_item_ids, request.unhide_item_ids),
        hidden_artists=_hidden(
            "hide_artist_ids", before.hidden_artists, request.hide_artist_ids, request.unhide_artist_ids
        ),
    )
    if request.HasField("allow_explicit"):
        after = replace(after, allow_explicit=request.allow_explicit)
    if request.HasField("promotions_off"):
        after = replace(after, promotions_off=request.promotions_off)
    if request.HasField("discovery"):
        after = replace(after, discovery=request.discovery)
    return after


def _hidden(field: str, before: Sequence[str], hide: Sequence[str], unhide: Sequence[str]) -> tuple[str, ...]:
    shown = set(unhide)
    after = by_key([one for one in (*before, *hide) if one not in shown])
    if len(after) > MAX_HIDDEN:
        raise InvalidInput((field, f"would hide {len(after)}; at most {MAX_HIDDEN} can be hidden"))
    return tuple(after.values())


def _told(preferences: Preferences) -> listeners_pb2.Preferences:
    return listeners_pb2.Preferences(
        hidden_item_ids=preferences.hidden_items,
        hidden_artist_ids=preferences.hidden_artists,
        allow_explicit=preferences.allow_explicit,
        promotions_off=preferences.promotions_off,
        discovery=preferences.discovery,
    )
