"""What is offered for promotion to each listener, and how much relevance it adds.

A campaign is open to a listener or not, whatever stands on the page; so that is found out once for each query of a
batch, when a score of it is first met. Where several campaigns promote an item, the one that adds most does, the first
of equals.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.listeners import Known, Listeners
from ranking.history import DAY_S
from ranking.params import INDEX, Params
from ranking.surfaces import PROMOTABLE

FULL_S: Final = 900  # so long after its last confirmation a feed counts in full
FADED_S: Final = 3600  # and from then on it does not count
MIN_PLAYS: Final = 20  # nothing is promoted to new listeners
SEGMENTS: Final = 32
NO_MARKET: Final = 26 * 26  # the bit of who has none, behind those of all pairs of letters
FOREVER: Final = 2**62
SOURCES: Final = {source: number for number, source in enumerate(sorted(PROMOTABLE))}  # the bit of each
_BETA, _MOST, _REST = (INDEX[f"promotion_{name}"] for name in ("beta", "bonus", "rest_days"))
_BLOCKS: Final = 1 << 17  # 512 kB at most: up to so many items each has a block of its own
_SIEVE: Final = 4096  # places that tell most rows from those played; a power of two
_CLOSED, _OPEN, _NOTED = 0, 1, 2  # what is known of a campaign and a query

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Records = NDArray[Any]  # of one of the following; one array where a tuple of columns would cost 80 ns to hand on

SCORE: Final = np.dtype([("row", "i4"), ("campaign", "i4"), ("score", "f4"), ("segment", "i1")], align=True)
"""What one campaign gives one item, 0-1, for listeners of one segment; -1: of all."""

CAMPAIGN: Final = np.dtype(
    [
        ("payer", "i8"),
        ("fades", "?"),  # with its feed; the others have their window only
        ("confirmed", "i8"),  # unix seconds of its feed's last confirmation
        ("since", "i8"),  # unix seconds, as below
        ("until", "i8"),
        ("plays", "i8"),  # that a listener must have
        ("segments", "u8"),  # a bit for each; SEGMENTS for listeners of none
        ("sources", "u8"),  # a bit for each source of shelves
        ("markets", "u8", (NO_MARKET // 64 + 1,)),  # a bit for each
    ],
    align=True,
)


class Promotions(NamedTuple):
    """What may be promoted to a batch of listeners."""

    allowed: Flags  # [query], whether anything: not to new listeners, nor to those who do not want it
    segment: Ints  # [query]; SEGMENTS: unknown
    plays: Ints  # [query], of all time
    block: Ints  # [row >> shift, and one more], where its scores begin
    shift: int
    scores: Records  # [score] SCORE, by row, then by campaign
    campaigns: Records  # [campaign] CAMPAIGN
    segments: np.uint64  # a bit for each that any campaign is for


class Audience(NamedTuple):
    """What decides whether an offer stands."""

    first: Ints  # [query + 1], the lines of each
    promotable: Flags  # [line]
    source: Ints  # [line], the bit of what fills it
    shown: Ints  # [line], how many items
    params: Params  # [line, param]
    page_params: Params  # [query, param]
    now: Ints  # [query], unix seconds
    market: Ints  # [query], its bit
    start: Ints  # [query + 1]; query q owns start[q]:start[q + 1] of the columns below
    played: Ints  # rows
    day: Ints  # of the latest play, since 1970; 0: unknown


class Offers(NamedTuple):
    """What promotes the picks of a batch, and which campaigns could have."""

    campaign: Ints  # [line, pick]; -1: none
    bonus: Floats  # [line, pick]
    eligible: Ints  # query << 32 | campaign, each once


class _Asking(NamedTuple):
    """Who is asked for, and on what shelf."""

    query: int
    now: int
    market: int
    segment: int
    plays: int
    source: int
    beta: float
    most: float


def indexed(scores: Records, campaigns: Records, items: int) -> Promotions:
    """Promotions of a catalogue of so many items, for no listener yet."""
    shift = max(0, int(items).bit_length() - _BLOCKS.bit_length() + 1)
    scores = scores[np.lexsort((scores["campaign"], scores["row"]))]
    block = np.searchsorted(scores["row"] >> shift, np.arange((max(items - 1, 0) >> shift) + 2))
    nobody = np.empty(0, np.int64)
    segments = np.bitwise_or.reduce(campaigns["segments"], initial=0)
    return Promotions(np.empty(0, np.bool_), nobody, nobody, block, shift, scores, campaigns, segments)


def open_campaigns(count: int) -> Records:
    """Campaigns that are open to everybody for ever, each of a payer of its own."""
    campaigns = np.zeros(count, CAMPAIGN)
    campaigns["payer"], campaigns["until"] = np.arange(count), FOREVER
    for bits in ("segments", "sources", "markets"):
        campaigns[bits] = np.uint64(2**64 - 1)
    return campaigns


def offered_to(promotions: Promotions, listeners: Listeners) -> Promotions:
    """The promotions as they stand to a batch of listeners, as read.

    Nothing to who has no record, or fewer than 20 plays, or whose wishes cannot be read or do not allow it, or in whose
    segment no campaign is.
    """
    wishes = listeners.wishes
    known = (listeners.known == Known.RECORD) & (listeners.total_plays >= MIN_PLAYS)
    segment = np.where((listeners.segment >= 0) & (listeners.segment < SEGMENTS), listeners.segment, SEGMENTS)
    reached = (promotions.segments >> segment.astype(np.uint64) & np.uint64(1)).astype(np.bool_)
    return promotions._replace(
        allowed=known & reached & ~wishes.promotions_off & ~wishes.unreadable & ~listeners.blind,
        segment=segment,
        plays=listeners.total_plays,
    )


def market_bit(market: str) -> int:
    """The bit of a market; of what is none that of who has none."""
    if len(market) != 2 or not "AA" <= market <= "ZZ" or not "A" <= market[1] <= "Z":
        return NO_MARKET
    return 26 * (ord(market[0]) - ord("A")) + ord(market[1]) - ord("A")


@compiled
def offer(promotions: Promotions, audience: Audience, rows: Ints, picks: Ints) -> Offers:
    """What promotes each of a batch's picks."""
    campaigns, bonuses = np.full(picks.shape, -1, np.int64), np.zeros(picks.shape)
    known, fresh = np.full(len(promotions.campaigns), -1, np.int64), np.empty(len(promotions.campaigns))
    eligible, found = np.empty(64, np.int64), 0
    for query in range(len(audience.first) - 1):
        if not promotions.allowed[query]:
            continue
        now, rest = audience.now[query], audience.page_params[query, _REST]
        played = audience.played[audience.start[query] : audience.start[query + 1]]
        day = audience.day[audience.start[query] : audience.start[query + 1]]
        sieve = _sieve(played)
        for line in range(audience.first[query], audience.first[query + 1]):
            if not audience.promotable[line] or audience.shown[line] == 0:
                continue
            asking = _asking(promotions, audience, query, line)
            for pick in range(picks.shape[1]):
                if picks[line, pick] < 0:
                    break
                row = rows[line, picks[line, pick]]
                offers = _of_row(promotions.block, promotions.shift, promotions.scores, row)
                if not len(offers) or (sieve[row & (_SIEVE - 1)] and not _rested(played, day, row, now, rest)):
                    continue
                if found + len(offers) > len(eligible):
                    eligible = np.concatenate((eligible, np.empty(len(eligible) + len(offers), np.int64)))
                campaigns[line, pick], bonuses[line, pick], found = _best(
                    offers, promotions.campaigns, asking, known, fresh, eligible, found
                )
    return Offers(campaigns, bonuses, eligible[:found])


@compiled
def _asking(promotions: Promotions, audience: Audience, query: int, line: int) -> _Asking:
    return _Asking(
        query,
        audience.now[query],
        audience.market[query],
        promotions.segment[query],
        promotions.plays[query],
        audience.source[line],
        audience.params[line, _BETA],
        audience.params[line, _MOST],
    )


@compiled
def _best(  # noqa: PLR0913, PLR0917  # one by one: see Records
    offers: Records, campaigns: Records, asking: _Asking, known: Ints, fresh: Floats, eligible: Ints, found: int
) -> tuple[int, float, int]:
    """The campaign that adds most to an item, and how much; what is eligible for the first time is noted.

    `known` holds for each campaign four times the query that it was last met in, and whether it is open to that.
    """
    best, most = -1, 0.0
    for one in offers:
        campaign = one.campaign
        if not 0 <= campaign < len(known) or (one.segment >= 0 and one.segment != asking.segment):
            continue
        if known[campaign] >> 2 != asking.query:
            fresh[campaign] = freshness(campaigns[campaign], asking)
            known[campaign] = 4 * asking.query + (_OPEN if fresh[campaign] > 0 else _CLOSED)
        if known[campaign] & 3 == _CLOSED or not campaigns[campaign].sources >> np.uint64(asking.source) & np.uint64(1):
            continue
        plus = bonus(one.score, fresh[campaign], asking.beta, asking.most)
        if plus > 0 and known[campaign] & 3 == _OPEN:
            known[campaign] = 4 * asking.query + _NOTED
            eligible[found] = asking.query << 32 | campaign
            found += 1
        if plus > most:
            best, most = campaign, plus
    return best, most, found


@compiled
def freshness(campaign: Any, asking: _Asking) -> float:
    """0 where a campaign is closed to a listener; else 1, or what its feed has not yet faded of that."""
    within = campaign.since <= asking.now < campaign.until and campaign.plays <= asking.plays
    market = campaign.markets[asking.market >> 6] >> np.uint64(asking.market & 63)
    segment = campaign.segments >> np.uint64(asking.segment)
    if not within or not market & segment & np.uint64(1):
        return 0.0
    return faded(asking.now - campaign.confirmed) if campaign.fades else 1.0


@compiled
def faded(age_s: int) -> float:
    """What is left of a feed so long after its last confirmation; of one confirmed in the future nothing."""
    return 0.0 if age_s < -FULL_S else min(1.0, max(0.0, (FADED_S - age_s) / (FADED_S - FULL_S)))


@compiled
def bonus(score: float | np.float32, fresh: float, beta: float, most: float) -> float:
    """clip(beta * score * freshness, 0, the most); 0 where the score is no number or not above 0."""
    return float(min(beta * min(score, 1.0) * fresh, most)) if np.isfinite(score) and score > 0 else 0.0


@compiled
def _of_row(block: Ints, shift: int, scores: Records, row: int) -> Records:
    """The scores of a row."""
    first, last = block[row >> shift], block[(row >> shift) + 1]
    end = last
    while shift > 0 and first < end:  # the first of them by halving
        middle = (first + end) >> 1
        if scores[middle].row < row:
            first = middle + 1
        else:
            end = middle
    end = first
    while end < last and scores[end].row == row:
        end += 1
    return scores[first:end]


@compiled
def _sieve(played: Ints) -> Flags:
    """Passes every row played, and few others."""
    sieve = np.zeros(_SIEVE, np.bool_)
    for row in played:
        sieve[row & (_SIEVE - 1)] = True
    return sieve


@compiled
def _rested(played: Ints, day: Ints, row: int, now: int, days: float) -> bool:
    """Whether the listener has not played an item of late; a play of unknown day is of late."""
    for play in range(len(played)):
        if played[play] == row:
            return bool((now // DAY_S - day[play] if day[play] > 0 else 0) >= days)
    return True
