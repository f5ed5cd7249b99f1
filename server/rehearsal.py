"""Serves a made-up listener before real ones: a first request waits for nothing to be compiled or mapped."""

import time
from collections.abc import Iterable

import numpy as np

from features.errors import SnapshotRefused
from features.listeners import ListenerRecord, decode, encode
from features.snapshot import Snapshot
from ranking.home import assemble
from ranking.surfaces import Surface
from ranking.types import HomeQuery


def rehearse(snapshot: Snapshot, surfaces: Iterable[Surface]) -> None:
    """One page of each surface, for a listener at the centre of the first segment who plays what is popular.

    Raises:
        SnapshotRefused: a page cannot be made of this snapshot.
    """
    manifest, columns = snapshot.manifest, snapshot.columns
    played = columns["item_key"][columns["popular"][0][columns["popular"][0] >= 0][:8]]
    record = ListenerRecord(
        vector=columns["segment_mean"][0].astype(np.float16),
        total_plays=len(played),
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
    frame = encode(record, snapshot.space_id)
    queries = tuple(HomeQuery(user_id="rehearsal", surface=surface, now=0) for surface in surfaces)
    listeners = decode(
        [frame] * len(queries), space_id=snapshot.space_id, dimension=manifest.dimension, genres=len(manifest.genres)
    )
    try:
        assemble(queries, listeners, snapshot, clock=time.perf_counter)
    except Exception as error:
        raise SnapshotRefused(f"no page can be made of it: {error!r}") from error
