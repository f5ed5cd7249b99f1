"""Serves a made-up listener before real ones: a first request waits for nothing to be compiled or mapped."""

import time
from collections.abc import Collection
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.compiled import one_at_a_time
from features.errors import SnapshotRefused
from features.listeners import ListenerRecord, decode, encode
from features.recent_state import Did, encode_entry
from features.snapshot import Snapshot
from ranking.filters import permitted
from ranking.history import DAY_S
from ranking.home import assemble
from ranking.offers import MIN_PLAYS, SCORE, Promotions, indexed, offered_to, open_campaigns
from ranking.params import INDEX, resolve
from ranking.promotions.spec import Mark
from ranking.surfaces import ShelfSpec, Surface
from ranking.types import HomeQuery
from server.codec import encode_home
from server.signing import SigningKey
from server.tracking import stamp

_STAMP: Final = stamp(SigningKey(id=0, secret=b"", signs_from=0), page="00" * 8, at=0, user_id="", arms=())
_CAMPAIGNS: Final = (Mark(id="", payer="", why={}),)


def rehearse(snapshot: Snapshot, surfaces: Collection[Surface]) -> None:
    """Pages of each surface, for listeners of every kind: known by a record, by recent plays, by both, not at all.

    All else that is popular is promoted, some was seen and every shelf that names a place for it explores.

    Raises:
        SnapshotRefused: a page cannot be made of this snapshot.
    """
    manifest, columns = snapshot.manifest, snapshot.columns
    popular = columns["popular"][0][columns["popular"][0] >= 0].astype(np.int64)
    played = columns["item_key"][popular[:8]]
    record = ListenerRecord(
        vector=columns["segment_mean"][0].astype(np.float16),
        total_plays=MIN_PLAYS,
        segment=0,
        market="",
        allow_explicit=True,
        created_day=0,
        recent_keys=played,
        recent_days=np.zeros(len(played), np.uint16),
        recent_plays=np.ones(len(played), np.uint16),
        genre_index=np.arange(min(2, len(manifest.genres)), dtype=np.uint16),
        genre_weight=np.full(min(2, len(manifest.genres)), 0.5, np.float16),
    )
    frame, state = encode(record, snapshot.space_id), b"".join(encode_entry(Did.LIKE, int(key), at=0) for key in played)
    seen = b"".join(encode_entry(Did.IMPRESSION, int(key), at=0) for key in columns["item_key"][popular[8:16]])
    known = ((frame, None), (frame, state), (None, state), (None, None), (frame[:-1], None))
    queries = tuple(
        HomeQuery(user_id="rehearsal", surface=surface, now=DAY_S, traced=number == 0, given=played, shelves=number % 2)
        for surface in (*map(_exploring, surfaces), _given(surfaces))
        for number in range(len(known))
    )
    promotions = _promoted(popular, manifest.items)
    try:
        with one_at_a_time():
            for number, query in enumerate(queries):
                record_, state_ = known[number % len(known)]
                listeners = decode(
                    [record_],
                    states=[state_],
                    impressions=[seen],
                    space_id=snapshot.space_id,
                    dimension=manifest.dimension,
                    genres=len(manifest.genres),
                )
                offered = offered_to(promotions, listeners)
                (home,), _ = assemble((query,), listeners, snapshot, promotions=offered, clock=time.perf_counter)
                encode_home(replace(home, campaigns=_CAMPAIGNS), snapshot, locale="", request_id="", stamp=_STAMP)
        permitted(popular, snapshot, market="", allow_explicit=True, now=0)
    except Exception as error:
        raise SnapshotRefused(f"no page can be made of it: {error!r}") from error


def _exploring(surface: Surface) -> Surface:
    """The surface, each of its places for exploration given to chance."""
    sure = resolve({"exploration_share": 1.0, "exploration_floor": 0.0})
    places = [INDEX["exploration_share"], INDEX["exploration_floor"]]
    shelves = []
    for spec in surface.shelves:
        params = spec.params.copy()
        params[places] = sure[places]
        shelves.append(replace(spec, params=params))
    return replace(surface, shelves=tuple(shelves))


def _given(surfaces: Collection[Surface]) -> Surface:
    """A surface of a caller's own candidates."""
    spec = ShelfSpec(id="given", source="given", titles={"en": ""}, minimum=1, item_keys={})
    return replace(next(iter(surfaces)), shelves=(spec,))


def _promoted(rows: NDArray[np.int64], items: int) -> Promotions:
    """Items that are promoted in full."""
    scores = np.zeros(len(rows), SCORE)
    scores["row"], scores["score"], scores["segment"] = rows, 1, -1
    return indexed(scores, open_campaigns(1), items)
