"""What is live while `mantel bench` measures: running experiments, and promotions open to a share of the listeners."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from features.errors import Unavailable
from features.listeners import decode
from features.snapshot import Snapshot
from features.state import Endpoints, State
from protos.experiments.v1 import experiments_pb2
from protos.home.v1 import home_pb2
from protos.promotions.v1 import promotions_pb2
from ranking.offers import MIN_PLAYS, SEGMENTS
from ranking.params import PARAMS
from server import calling

FOLLOW_S: Final = 60.0
LAYERS: Final = ("freshness_half_life_days", "impression_discount", "session_pull", "shelf_likeness")
"""A param for each layer: other values of it make another page, not another amount of work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """How much runs."""

    experiments: int
    campaigns: int
    items: int  # that each campaign promotes
    eligible: float  # share of the requests whose listeners campaigns are open to


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What is applied, and what it comes to."""

    live: Live
    experiments: experiments_pb2.Spec
    promotions: promotions_pb2.Spec
    eligible: float  # as it is: listeners are taken by whole segments


def books(live: Live, snapshot: Snapshot, frames: Sequence[bytes]) -> Books:
    """Books of that size over a catalogue; `frames` are the records of the listeners, one for each request."""
    segments, eligible = _segments(live.eligible, snapshot, frames)
    return Books(
        live=live,
        experiments=_experiments(live.experiments),
        promotions=_promotions(live, snapshot, segments),
        eligible=eligible if live.campaigns else 0.0,
    )


def apply(wanted: Books, state: State, endpoints: Endpoints) -> None:
    """Brings books into force on a server of a new state, and waits until every worker follows.

    Raises:
        Unavailable: one does not.
    """
    versions = ["", ""]
    if wanted.live.experiments:
        with calling.experiments(state, endpoints.control) as client:
            versions[0] = calling.said(client, lambda: client.apply_book(wanted.experiments, etag="")).book.version
    if wanted.live.campaigns:
        with calling.promotions(state, endpoints.control) as promoter:
            versions[1] = calling.said(promoter, lambda: promoter.apply_book(wanted.promotions, etag="")).book.version
    deadline = time.monotonic() + FOLLOW_S
    while any([beat.experiment_book, beat.promotion_book] != versions for beat in state.heartbeats()):
        if time.monotonic() > deadline:
            raise Unavailable(f"a worker does not follow the books of the bench within {FOLLOW_S:.0f} s")
        time.sleep(0.1)


def _segments(share: float, snapshot: Snapshot, frames: Sequence[bytes]) -> tuple[list[int], float]:
    """Segments that come to a share of the requests together, or little less, and what they come to."""
    manifest = snapshot.manifest
    listeners = decode(frames, space_id=snapshot.space_id, dimension=manifest.dimension, genres=len(manifest.genres))
    old = listeners.segment[(listeners.total_plays >= MIN_PLAYS) & (listeners.segment >= 0)]
    shares = np.bincount(old, minlength=SEGMENTS) / len(frames)
    present = np.flatnonzero(shares)
    order = present[np.argsort(-shares[present], kind="stable")].tolist()
    chosen, sum_ = list[int](), 0.0
    for segment in order:
        if sum_ + shares[segment] <= share:
            chosen.append(segment)
            sum_ += float(shares[segment])
    if not chosen:  # of few listeners; no segment at all would admit everybody
        chosen, sum_ = order[-1:] or [0], float(shares[order[-1]]) if order else 0.0
    return chosen, sum_


def _experiments(count: int) -> experiments_pb2.Spec:
    """Experiments that share out all listeners, a quarter of them in each layer."""
    spec, defaults = experiments_pb2.Spec(), {param.name: param.default for param in PARAMS}
    for place, name in enumerate(LAYERS[:count]):
        spec.layers.add(id=f"layer-{place}", params=[name])
    for number in range(count):
        place = number % len(spec.layers)
        beside = len(range(place, count, len(spec.layers)))
        one = spec.experiments.add(key=f"bench-{number}", layer=f"layer-{place}", reserved=1 / beside, ramp=1.0)
        one.arms.add(key="control")
        one.arms.add(key="more").params[LAYERS[place]].number_value = defaults[LAYERS[place]] * 1.25
    return spec


def _promotions(live: Live, snapshot: Snapshot, segments: Sequence[int]) -> promotions_pb2.Spec:
    """Campaigns of payers of their own, with items from all over the catalogue."""
    spec, items = promotions_pb2.Spec(), snapshot.manifest.items
    rows = np.linspace(0, items, live.campaigns * live.items, endpoint=False).astype(np.int64)
    starts = snapshot.columns["card_offset"]
    ids = [home_pb2.Item.FromString(snapshot.cards[starts[row] : starts[row + 1]]).item_id for row in rows.tolist()]
    for number in range(live.campaigns):
        campaign = spec.campaigns.add(id=f"bench-{number}", payer=f"Payer {number}", segments=segments)
        for item_id in dict.fromkeys(ids[number :: live.campaigns]):
            campaign.items.add(item_id=item_id, score=1.0)
    return spec
