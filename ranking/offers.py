"""What is offered for promotion to each listener, and how much relevance it adds."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranking.compiled import compiled
from ranking.history import DAY_S
from ranking.params import INDEX, Params

FULL_S: Final = 900  # so long after its last confirmation a feed counts in full
FADED_S: Final = 3600  # and from then on it does not count
_BETA, _MOST, _REST = (INDEX[f"promotion_{name}"] for name in ("beta", "bonus", "rest_days"))

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Promotions(NamedTuple):
    """What may be promoted to a batch of listeners; listeners who are offered the same share a part of the scores."""

    allowed: Flags  # [query], whether anything: not to new listeners, nor to those who do not want it
    part: Ints  # [query], which part of the scores; -1: none
    start: Ints  # [part + 1]; part p owns start[p]:start[p + 1] of the columns below
    row: Ints  # ascending in each part
    score: NDArray[np.float64]  # 0-1
    campaign: Ints
    payer: Ints  # [campaign]
    confirmed: Ints  # [campaign], unix seconds of its feed's last confirmation


class Audience(NamedTuple):
    """What decides whether an offer stands."""

    query: Ints  # [line]
    promotable: Flags  # [line]
    shown: Ints  # [line], how many items
    params: Params  # [line, param]
    page_params: Params  # [query, param]
    now: Ints  # [query], unix seconds
    start: Ints  # [query + 1]; query q owns start[q]:start[q + 1] of the columns below
    played: Ints  # rows
    day: Ints  # of the latest play, since 1970; 0: unknown


@compiled
def offer(promotions: Promotions, audience: Audience, rows: Ints, picks: Ints, offers: Ints) -> int:
    """Notes for each pick which score promotes it, `[line, pick]`; how many picks it does."""
    found = 0
    for line in range(len(audience.query)):
        query = audience.query[line]
        part, now = promotions.part[query], audience.now[query]
        wanted = promotions.allowed[query] and audience.promotable[line] and audience.shown[line] > 0
        if not wanted or not 0 <= part < len(promotions.start) - 1:
            continue
        first, last = promotions.start[part], promotions.start[part + 1]
        params, rest = audience.params[line], audience.page_params[query, _REST]
        own, played = promotions.row[first:last], slice(audience.start[query], audience.start[query + 1])
        for pick in range(picks.shape[1]):
            if picks[line, pick] < 0:
                break
            row = rows[line, picks[line, pick]]
            at = np.searchsorted(own, row)
            if at == len(own) or own[at] != row or bonus(promotions, first + at, now, params) <= 0:
                continue
            if not _rests(audience.played[played], audience.day[played], row, now // DAY_S, rest):
                offers[line, pick] = first + at
                found += 1
    return found


@compiled
def bonus(promotions: Promotions, number: int, now: int, params: Params) -> float:
    """clip(beta * score * freshness of the feed, 0, the most).

    0 where the score is no number or not above 0, its campaign is unknown, or its feed was confirmed in the future.
    """
    score, campaign = promotions.score[number], promotions.campaign[number]
    if not (np.isfinite(score) and score > 0) or not 0 <= campaign < len(promotions.payer):
        return 0.0
    age = now - promotions.confirmed[campaign]
    fresh = 0.0 if age < -FULL_S else min(1.0, max(0.0, (FADED_S - age) / (FADED_S - FULL_S)))
    return float(min(params[_BETA] * min(score, 1.0) * fresh, params[_MOST]))


@compiled
def _rests(played: Ints, day: Ints, row: int, today: int, days: float) -> bool:
    """Whether the listener played an item of late; a play of unknown day is of late."""
    for play in range(len(played)):
        if played[play] == row:
            return bool((today - day[play] if day[play] > 0 else 0) < days)
    return False
