"""Shelves for promotion: drawn ones, the insertion written as plainly as can be, and the rules that it must keep."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from ranking.insertion import Ranked, Standing
from ranking.params import INDEX, PARAMS, Value, resolve
from tests.test_home import draw_value

Rng = np.random.Generator
ABSURD: Final = (math.nan, math.inf, -math.inf, 1e30, -1e30, -0.5, 0.0, 5e-324, 0.3, 1.0)
CAPS: Final = {"artist": "promotion_artist_cap", "campaign": "promotion_campaign_cap", "payer": "promotion_payer_cap"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shelf on a page, with its params by name."""

    ranked: Ranked
    params: dict[str, float]
    others: list[tuple[int, int, int]]  # (row, recording, artist) of what stands on the page's other shelves
    once: bool
    above: tuple[int, float]  # items and relevance of the shelves above

    def page(self) -> Standing:
        """The page, before promotion comes to the shelf."""
        own = [column[: self.ranked.shown].tolist() for column in (self.ranked.row, self.ranked.recording)]
        standing = [*zip(*own, self.ranked.artist[: self.ranked.shown].tolist(), strict=True), *self.others]
        row, recording, artist = zip(*standing, strict=True)
        most = np.zeros(len(standing), np.int64)
        return Standing(
            row=np.array(row, np.int64),
            recording=np.array(recording, np.uint64),
            artist=np.array(artist, np.uint64),
            once=self.once,
            artists=most.astype(np.uint64),
            campaigns=most.copy(),
            payers=most.copy(),
            counts=np.array([self.above[0], 0], np.int64),
            worth=np.full(2, self.above[1]),
        )


def draw_case(rng: Rng, *, absurd: bool = False) -> Case:
    """A shelf of up to 20 items and as much behind it as there may be; `absurd`: any bonuses."""
    shown = int(rng.integers(1, 21))
    count = shown + int(rng.integers(0, 2 * shown + 1))
    relevance = np.sort(rng.random(count) ** rng.uniform(0.3, 3))[::-1]
    if rng.random() < 0.3:  # diversified
        relevance = np.clip(relevance + rng.normal(0, rng.choice([0.05, 0.2]), count), 0, 1)
    if rng.random() < 0.2:  # tied
        relevance = np.round(relevance, 1)
    bonus = np.where(rng.random(count) < rng.choice([0.05, 0.3, 1]), rng.random(count) * 0.2, 0)
    if absurd:
        bonus = np.where(rng.random(count) < 0.7, rng.choice(ABSURD, count), bonus)
    width = int(rng.choice([4, 60]))
    artist, album = (rng.integers(0, width, count).astype(np.uint64) for _ in range(2))
    campaign, payer = rng.integers(0, 9, count), rng.integers(0, 5, count)
    recording = rng.permutation(200)[:count].astype(np.uint64)
    others = [(1000 + number, int(rng.integers(200)), int(rng.integers(width))) for number in range(rng.integers(40))]
    params = resolve({} if rng.random() < 0.3 else _draw_params(rng))
    held = int(rng.integers(shown)) if rng.random() < 0.3 else -1
    return Case(
        ranked=Ranked(
            shown, relevance.copy(), bonus, np.arange(count), artist, album, recording, campaign, payer, held
        ),
        params={name: float(params[place]) for name, place in INDEX.items()},
        others=others,
        once=bool(rng.random() < 0.7),
        above=(int(rng.integers(60)), float(rng.uniform(0, 20))),
    )


def _draw_params(rng: Rng) -> dict[str, Value]:
    drawn: dict[str, Value] = {
        param.name: draw_value(rng, param)
        for param in PARAMS
        if param.name.startswith("promotion_") and rng.random() < 0.6
    }
    for name in (*CAPS.values(), "artist_cap", "album_cap", "page_artist_cap", "artist_gap"):
        drawn[name] = int(rng.integers(4))
    return drawn


def vector(case: Case) -> Any:
    """The params of a case as the core has them."""
    return np.array([case.params[param.name] for param in PARAMS])


def worth(case: Case, slate: list[int]) -> float:
    """Discounted relevance."""
    total = 0.0
    for place, rank in enumerate(slate):
        total += float(case.ranked.relevance[rank]) / math.log2(place + 2)
    return total


def most(case: Case) -> int:
    """How many may stand by promotion."""
    share, shown = case.params["promotion_share"], case.ranked.shown
    own = max(1, math.floor(share * shown + 1e-9)) if share else 0
    return min(own, math.floor(case.params["promotion_page_share"] * (case.above[0] + shown) + 1e-9))


def plain_insert(case: Case, *, checked: bool = True) -> tuple[list[int], list[int]]:
    """The slate and the promoted ranks, step by step; not `checked`: a trial's spacing and order are not looked at."""
    ranked, params = case.ranked, case.params
    slate, promoted = list(range(ranked.shown)), list[int]()
    keys = (ranked.relevance + ranked.bonus).tolist()
    deep = min(int(params["promotion_depth"] * ranked.shown + 1e-9), len(keys))
    may = [rank for rank in range(deep) if ranked.bonus[rank] > 0 and rank != ranked.held]
    may = [rank for rank in may if ranked.relevance[rank] >= params["promotion_floor"]]
    for rank in sorted(may, key=lambda one: -keys[one]):
        at = [slate.index(one) for one in promoted]
        fixed = {*promoted, ranked.held}
        target = [p for p, one in enumerate(slate) if one not in fixed and ranked.relevance[one] < keys[rank]][:1]
        free = [
            place
            for place in range(target[0] if target else ranked.shown, ranked.shown)
            if place != ranked.held
            and all(abs(place - other) >= int(params["promotion_gap"]) for other in at)
            and (place >= 3 or sum(other < 3 for other in at) < int(params["promotion_first"]))
        ]
        if len(promoted) == most(case) or not free or rank in slate[: free[0] + 1]:
            continue
        gone = rank if rank in slate else next(iter(one for one in reversed(slate) if one not in fixed), -1)
        if gone < 0:
            continue
        trial = [one for one in slate if one not in {gone, ranked.held}]
        trial.insert(free[0] - (0 <= ranked.held < free[0]), rank)
        if ranked.held >= 0:
            trial.insert(ranked.held, ranked.held)
        broken = broken_rules(case, trial, [*promoted, rank])
        if not broken or (not checked and broken <= {"gap", "first three", "causality", "artist gap"}):
            slate, promoted = trial, [*promoted, rank]
    return slate, promoted


def broken_rules(case: Case, slate: list[int], promoted: list[int]) -> set[str]:
    """Which rules a slate breaks."""
    ranked, params, shown = case.ranked, case.params, case.ranked.shown
    at = sorted(slate.index(rank) for rank in promoted)
    now, organic = worth(case, slate), worth(case, list(range(shown)))
    kept = [rank for rank in range(shown) if rank not in {*promoted, ranked.held}]
    stay = [rank for rank in slate if rank not in {*promoted, ranked.held}]
    rules = {
        "length": len(slate) == shown == len(set(slate)),
        "organic order": stay == kept[: len(stay)],
        "held": ranked.held < 0 or slate[ranked.held] == ranked.held not in promoted,
        "share": len(promoted) <= most(case),
        "gap": all(second - first >= int(params["promotion_gap"]) for first, second in pairwise(at)),
        "first three": sum(place < 3 for place in at) <= int(params["promotion_first"]),
        "relevance": organic > 0 or not promoted,
        "causality": all(slate.index(rank) < rank for rank in promoted),
        "floor": all(ranked.relevance[rank] >= params["promotion_floor"] for rank in promoted),
        "depth": all(rank < params["promotion_depth"] * shown + 1e-9 for rank in promoted),
        "bonus": all(ranked.bonus[rank] > 0 for rank in promoted),
        "loss": not promoted or organic - now <= params["promotion_loss"] * organic + 1e-12,
        "page loss": not promoted or organic - now <= params["promotion_page_loss"] * (case.above[1] + organic) + 1e-12,
    }
    return {rule for rule, kept_ in rules.items() if not kept_} | _broken_caps(case, slate, promoted)


def _broken_caps(case: Case, slate: list[int], promoted: list[int]) -> set[str]:
    ranked, params = case.ranked, case.params
    broken = set()
    for name, cap in CAPS.items():
        keys = [int(getattr(ranked, name)[rank]) for rank in promoted]
        keys = [key for key in keys if key or name != "artist"]
        if int(params[cap]) and any(keys.count(key) > int(params[cap]) for key in keys):
            broken.add(cap)
    for name in ("artist", "album"):
        keys = [int(getattr(ranked, name)[rank]) for rank in slate]
        changed = {int(getattr(ranked, name)[rank]) for rank in promoted} - {0}
        if int(params[f"{name}_cap"]) and any(keys.count(key) > int(params[f"{name}_cap"]) for key in changed):
            broken.add(name)
    new = [rank for rank in promoted if rank >= ranked.shown]
    if case.once and {int(ranked.recording[rank]) for rank in new} & {other[1] for other in case.others}:
        broken.add("recording")
    artists = [int(ranked.artist[rank]) for rank in slate] + [other[2] for other in case.others]
    limit = int(params["page_artist_cap"])
    if limit and any(artists.count(key) > limit for key in {int(ranked.artist[rank]) for rank in new} - {0}):
        broken.add("page artist cap")
    gap = int(params["artist_gap"])
    for place in map(slate.index, promoted):
        near = [int(ranked.artist[rank]) for rank in slate[max(place - gap, 0) : place + gap + 1]]
        if near.count(int(ranked.artist[slate[place]]) or -1) > 1:
            broken.add("artist gap")
    return broken
