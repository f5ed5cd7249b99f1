"""Scores candidates: what retrieval found, scaled per line, plus weighted terms of the item itself."""

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.snapshot import UNKNOWN_DAY, Snapshot
from ranking.history import DAY_S, History
from ranking.impressions import Seen, times_seen
from ranking.params import INDEX, Params
from ranking.types import Candidates, Fate, HomeQuery, Lines

_SAME: Final = 1e-6  # affinities nearer than this share of themselves differ by float32's noise: they are not spread
_AFFINITY: Final = INDEX["affinity_weight"]
_POPULARITY: Final = INDEX["popularity_weight"]
_FRESHNESS: Final = INDEX["freshness_weight"]
_HALF_LIFE: Final = INDEX["freshness_half_life_days"]
_NOVELTY: Final = INDEX["novelty_weight"]
_DISCOUNT, _FLOOR = INDEX["impression_discount"], INDEX["impression_floor"]
_CHOSEN: Final = frozenset({"history", "editorial", "given"})  # what was seen stands there for a reason of its own
_FILTERED: Final = (int(Fate.MARKET), int(Fate.OFF_GENRE))  # the fates of filters lie between


class Facts(NamedTuple):
    """What the terms are made of."""

    query: NDArray[np.int64]  # [line]
    params: Params  # [line, param]
    today: NDArray[np.int64]  # [query], days since 1970
    artists_start: NDArray[np.int64]  # [query + 1]; query q owns artists_start[q]:artists_start[q + 1]
    artists: NDArray[np.uint64]  # that the listeners play, ascending for each
    popularity: NDArray[np.float32]  # [item], as the columns below
    released: NDArray[np.int32]
    artist: NDArray[np.uint64]
    tires: NDArray[np.bool_]  # [line], whether what was seen sinks
    seen: Seen


def score(  # of the item, the line and the listener
    queries: tuple[HomeQuery, ...],
    lines: Lines,
    history: History,
    seen: Seen,
    snapshot: Snapshot,
    candidates: Candidates,
) -> Candidates:
    """The candidates with the score that orders each line: affinity, popularity, freshness and novelty, weighted.

    Each is 0-1. Affinity is scaled over what the line kept; what was found with no finite number gets none. What the
    listener saw and did not play loses a share of the sum: 1 - max(floor, exp(-discount * times)) of its size.
    """
    facts = facts_for(queries, lines, history, seen, snapshot)
    scores = np.full(candidates.scores.shape, -np.inf)
    _score(facts, candidates.rows, candidates.scores, candidates.fate, scores)
    return replace(candidates, scores=scores)


def item_terms(
    facts: Facts, line: int, rows: NDArray[np.int64], scores: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """What the scores of a line's items are made of, `[item]` by name; affinity is what the other terms leave."""
    params, today, played = facts.params[line], facts.today[facts.query[line]], _played(facts, line)
    seen, times = _seen(facts, line)
    kept = np.array([_kept(times_seen(seen, times, row), params[_DISCOUNT], params[_FLOOR]) for row in rows])
    held = np.where(scores > 0, kept, 2 - kept)  # the score over what it would be, had the item not been seen
    fresh = [freshness(day, today, params[_HALF_LIFE]) for day in facts.released[rows]]
    told = {
        "popularity": params[_POPULARITY] * facts.popularity[rows].astype(np.float64),
        "freshness": params[_FRESHNESS] * np.array(fresh),
        "novelty": params[_NOVELTY] * np.array([novelty(artist, played) for artist in facts.artist[rows]]),
        "impressions": np.where(np.isfinite(scores), scores, 0) * (1 - 1 / held),
    }
    return {"affinity": scores - sum(told.values()), **told}


def facts_for(queries: tuple[HomeQuery, ...], lines: Lines, history: History, seen: Seen, snapshot: Snapshot) -> Facts:
    """What the terms of a batch's lines are made of; the artists played only where novelty counts."""
    columns, params = snapshot.columns, lines.params
    wanted = bool(params[:, _NOVELTY].any())
    owner = history.query if wanted else history.query[:0]
    artists = columns["artist_key"][history.row if wanted else history.row[:0]]
    order = np.lexsort((artists, owner))
    return Facts(
        query=lines.query,
        params=params,
        today=np.array([one.now // DAY_S for one in queries], np.int64),
        artists_start=np.searchsorted(owner, np.arange(len(queries) + 1)),
        artists=artists[order],
        popularity=columns["popularity"],
        released=columns["released"],
        artist=columns["artist_key"],
        tires=np.array([spec.source not in _CHOSEN for spec in lines.specs], np.bool_),
        seen=seen,
    )


@compiled
def _score(
    facts: Facts,
    rows: NDArray[np.int64],
    found: NDArray[np.float64],
    fate: NDArray[np.uint8],
    scores: NDArray[np.float64],
) -> None:
    for line in range(rows.shape[0]):
        low, high = np.inf, -np.inf
        for place in range(rows.shape[1]):
            if fate[line, place] == Fate.KEPT and np.isfinite(found[line, place]):
                low, high = min(low, found[line, place]), max(high, found[line, place])
        if low > high:
            continue
        span = high - low if high - low > _SAME * max(abs(high), abs(low)) else 1.0
        params = facts.params[line]
        popular, fresh, novel = params[_POPULARITY], params[_FRESHNESS], params[_NOVELTY]
        half_life, today, played = params[_HALF_LIFE], facts.today[facts.query[line]], _played(facts, line)
        discount, floor, (seen, times) = params[_DISCOUNT], params[_FLOOR], _seen(facts, line)
        for place in range(rows.shape[1]):
            row, affinity = rows[line, place], found[line, place]
            if fate[line, place] == Fate.PADDING or not np.isfinite(affinity):
                continue
            total = params[_AFFINITY] * (affinity - low) / span
            if popular != 0:
                total += popular * facts.popularity[row]
            if fresh != 0:
                total += fresh * freshness(facts.released[row], today, half_life)
            if novel != 0:
                total += novel * novelty(facts.artist[row], played)
            if len(seen) > 0:
                total -= (1 - _kept(times_seen(seen, times, row), discount, floor)) * abs(total)
            scores[line, place] = total


@compiled
def _played(facts: Facts, line: int) -> NDArray[np.uint64]:
    query = facts.query[line]
    return facts.artists[facts.artists_start[query] : facts.artists_start[query + 1]]


@compiled
def _seen(facts: Facts, line: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows whose impressions count on a line, ascending, and how many."""
    query, seen = facts.query[line], facts.seen
    first, last = seen.start[query], seen.start[query + 1] if facts.tires[line] else seen.start[query]
    return seen.row[first:last], seen.times[first:last]


@compiled
def _kept(times: int, discount: float, floor: float) -> float:
    """The share of its score's size that an item keeps after impressions."""
    return 1.0 if times == 0 else max(floor, np.exp(-discount * times))


@compiled
def relevance(scores: NDArray[np.float64], fate: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scores of some places scaled to 0-1 over what the filters left of a line; 0 where that is all alike."""
    low, high = np.inf, -np.inf
    for place in range(len(scores)):
        filtered = fate[place] == Fate.PADDING or _FILTERED[0] <= fate[place] <= _FILTERED[1]
        if not filtered and np.isfinite(scores[place]):
            low, high = min(low, scores[place]), max(high, scores[place])
    return (scores[places] - low) / (high - low) if high > low else np.zeros(len(places))


@compiled
def freshness(released: int, today: int, half_life: float) -> float:
    """1 on the day of release, halved every half-life; 0 where the day is unknown."""
    return 0.0 if released == UNKNOWN_DAY else 2.0 ** (-max(today - released, 0) / half_life)


@compiled
def novelty(artist: int, played: NDArray[np.uint64]) -> float:
    """1 where the listener plays nothing by the artist, or there is none; `played` are artists, ascending."""
    place = np.searchsorted(played, artist)
    return 0.0 if artist > 0 and place < len(played) and played[place] == artist else 1.0
