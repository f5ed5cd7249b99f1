"""Pages with promotion: what is drawn for them, and the rules that they must keep."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ranking.offers import FADED_S, SCORE, SOURCES, Promotions, bonus, faded, indexed, market_bit, open_campaigns
from ranking.params import INDEX
from ranking.surfaces import PROMOTABLE
from ranking.types import Fate, Home, HomeQuery, Shelf, TracedLine
from tests.slates import ABSURD
from tests.test_home import NOW

CAMPAIGNS: Final = 40
ITEMS: Final = 2000  # of the small world
AGES: Final = (0, 900, 1800, FADED_S - 1, FADED_S, 10**7, -1000)


def offered(queries: int, rows: Sequence[int], **columns: Any) -> Promotions:
    """Every item of `rows` promoted in full to every listener, each by a campaign of its own.

    Columns are those of a score, of a campaign, or of a query.
    """
    scores, campaigns = np.zeros(len(rows), SCORE), open_campaigns(len(rows))
    scores["row"], scores["campaign"], scores["score"], scores["segment"] = sorted(rows), np.arange(len(rows)), 1, -1
    campaigns["fades"], campaigns["confirmed"] = True, NOW
    asked = {"allowed": np.ones(queries, np.bool_), "segment": np.zeros(queries, np.int64)}
    asked["plays"] = np.full(queries, 1000)
    for name, column in columns.items():
        for records in (scores, campaigns):
            if name in (records.dtype.names or ()):
                records[name] = column
    own = {name: columns.get(name, column) for name, column in asked.items()}
    return indexed(scores, campaigns, max([*rows, ITEMS - 1]) + 1)._replace(**own)


def draw_promotions(rng: np.random.Generator, queries: int, items: int) -> Promotions:
    """Few items, many or all, in up to three campaigns each, with scores of any kind, rules and feeds of any."""
    rows = np.concatenate([np.flatnonzero(rng.random(items) < rng.choice([0.01, 0.2, 1])) for _ in range(3)])
    scores, campaigns = np.zeros(len(rows), SCORE), open_campaigns(CAMPAIGNS)
    scores["row"], scores["campaign"] = rows, rng.integers(-1, CAMPAIGNS + 1, len(rows))
    scores["segment"] = np.where(rng.random(len(rows)) < 0.5, -1, rng.integers(0, 4, len(rows)))
    with np.errstate(over="ignore", invalid="ignore"):
        drawn = np.where(rng.random(len(rows)) < 0.3, rng.choice(ABSURD, len(rows)), rng.random(len(rows)) * 1.5)
        scores["score"] = drawn
    campaigns["payer"], campaigns["fades"] = rng.integers(0, 8, CAMPAIGNS), rng.random(CAMPAIGNS) < 0.7
    campaigns["confirmed"] = NOW - rng.choice(AGES, CAMPAIGNS, p=[0.5, 0.2, 0.1, 0.05, 0.05, 0.05, 0.05])
    campaigns["since"] = NOW + rng.choice([-5, 0, 5], CAMPAIGNS, p=[0.8, 0.1, 0.1])
    campaigns["until"] = NOW + rng.choice([-5, 0, 5], CAMPAIGNS, p=[0.1, 0.1, 0.8])
    campaigns["plays"] = rng.choice([0, 500], CAMPAIGNS, p=[0.8, 0.2])
    for name in ("segments", "sources", "markets"):
        bits = rng.integers(0, 2**64, campaigns[name].shape, np.uint64)
        campaigns[name] |= bits
        some = rng.random(CAMPAIGNS) < 0.2
        campaigns[name][some] = bits[some]
    return indexed(scores, campaigns, items)._replace(
        allowed=rng.random(queries) < 0.85,
        segment=rng.integers(0, 5, queries),
        plays=rng.integers(0, 1000, queries),
    )


def same(one: object, other: object) -> bool:
    """Whether two values are equal in every field, to the last bit."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if is_dataclass(one) and type(one) is type(other):  # its own == compares arrays by truth, which they lack
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other or (one != one and other != other))  # noqa: PLR0124  # nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a page was made of."""

    query: HomeQuery
    number: int  # in its batch
    promotions: Promotions
    columns: Mapping[str, NDArray[Any]]  # of the snapshot


def best_offer(asked: Asked, shelf: Shelf, market: str, row: int) -> int:
    """The campaign that promotes an item most on a shelf, as plainly as can be said; -1: none."""
    promotions, number, best = asked.promotions, asked.number, (0.0, -1)
    beta, most = (shelf.spec.params[INDEX[f"promotion_{name}"]] for name in ("beta", "bonus"))
    bit, segment = market_bit(market), int(promotions.segment[number])
    for one in promotions.scores[promotions.scores["row"] == row]:
        if not 0 <= one["campaign"] < len(promotions.campaigns) or one["segment"] not in {-1, segment}:
            continue
        campaign = promotions.campaigns[one["campaign"]]
        if (
            promotions.allowed[number]
            and campaign["since"] <= NOW < campaign["until"]
            and campaign["plays"] <= promotions.plays[number]
            and int(campaign["segments"]) >> segment & 1
            and int(campaign["sources"]) >> SOURCES[shelf.spec.source] & 1
            and int(campaign["markets"][bit // 64]) >> bit % 64 & 1
        ):
            fresh = faded(NOW - campaign["confirmed"]) if campaign["fades"] else 1.0
            best = max(best, (bonus(one["score"], fresh, beta, most), -int(one["campaign"])))
    return -best[1] if best[0] > 0 else -1


def relevance(line: TracedLine) -> dict[int, float]:
    """Scores scaled over what the filters left."""
    left = ~np.isin(line.fate, range(Fate.MARKET, Fate.OFF_GENRE + 1)) & np.isfinite(line.scores)
    low, high = line.scores[left].min(), line.scores[left].max()
    scaled = (line.scores - low) / (high - low) if high > low else np.zeros(len(line.scores))
    return dict(zip(line.rows.tolist(), scaled.tolist(), strict=True))


def worth(rows: NDArray[np.int64], scaled: dict[int, float]) -> float:
    """Discounted relevance."""
    return sum(scaled[row] / math.log2(place + 2) for place, row in enumerate(rows.tolist()))


def check_shelf(shelf: Shelf, plain: Shelf, scaled: dict[int, float]) -> int:
    """The rules of one shelf; how many of its items stand by promotion."""
    params = {name: shelf.spec.params[place] for name, place in INDEX.items()}
    assert shelf.spec.id == plain.spec.id
    if shelf.inserted is None:
        assert same(shelf, plain)
        return 0
    told, size = shelf.inserted, len(shelf.rows)
    at = np.flatnonzero(told.campaign >= 0)
    ranks = told.organic_rank[at]
    assert shelf.spec.promotable
    assert shelf.spec.source in PROMOTABLE
    assert same(told.organic, plain.rows)
    assert len(set(shelf.rows.tolist())) == size == len(plain.rows)
    assert 0 < len(at) <= max(1, int(params["promotion_share"] * size + 1e-9))
    assert (at < ranks).all()
    assert (ranks < params["promotion_depth"] * size + 1e-9).all()
    assert (np.diff(at) >= int(params["promotion_gap"])).all()
    assert (at < 3).sum() <= int(params["promotion_first"])
    assert min(scaled[row] for row in shelf.rows[at].tolist()) >= params["promotion_floor"]
    lost = worth(plain.rows, scaled) - worth(shelf.rows, scaled)
    assert lost <= params["promotion_loss"] * worth(plain.rows, scaled) + 1e-12
    chance = np.flatnonzero(shelf.propensity < 1)
    assert same(shelf.propensity, plain.propensity)
    assert np.array_equal(shelf.rows[chance], plain.rows[chance])
    held = [*shelf.rows[at].tolist(), *shelf.rows[chance].tolist()]
    organic = [row for row in plain.rows.tolist() if row not in held]
    assert np.delete(shelf.rows, [*at, *chance]).tolist() == organic[: size - len(at) - len(chance)]
    stays = np.delete(told.organic_rank, at)
    assert np.array_equal(np.sort(stays), np.flatnonzero(np.isin(plain.rows, np.delete(shelf.rows, at))))
    assert len(chance) or (np.diff(stays) > 0).all()
    return len(at)


def check_page(asked: Asked, home: Home, plain: Home) -> int:
    """The rules of a page; how many of its items stand by promotion."""
    params = {name: asked.query.surface.params[place] for name, place in INDEX.items()}
    promotions, artist, items, promoted, before, after = asked.promotions, asked.columns["artist_key"], 0, 0, 0.0, 0.0
    lines = {line.spec.id: line for line in home.lines}
    held = [Counter[int]() for _ in range(3)]
    for shelf, organic in zip(home.shelves, plain.shelves, strict=True):
        scaled = relevance(lines[shelf.spec.id])
        promoted, items = promoted + check_shelf(shelf, organic, scaled), items + len(shelf.rows)
        if shelf.spec.promotable and shelf.spec.source in PROMOTABLE:
            before, after = before + worth(organic.rows, scaled), after + worth(shelf.rows, scaled)
        if shelf.inserted is not None:
            assert promoted <= int(params["promotion_page_share"] * items + 1e-9)
            assert before - after <= params["promotion_page_loss"] * before + 1e-12
            for row, campaign in zip(shelf.rows.tolist(), shelf.inserted.campaign.tolist(), strict=True):
                if campaign >= 0:
                    assert best_offer(asked, shelf, home.market, row) == campaign
                    payer = promotions.campaigns[campaign]["payer"]
                    for counter, key in zip(held, (artist[row], campaign, payer), strict=True):
                        counter[int(key)] += 1
    del held[0][0]
    for counter, name in zip(held, ("artist", "campaign", "payer"), strict=True):
        assert within(counter, params[f"promotion_{name}_cap"])
    check_organic_rules(asked, home, params)
    return promoted


def check_organic_rules(asked: Asked, home: Home, params: dict[str, float]) -> None:
    """Caps of each shelf and of the page, each recording once, and no candidate lost."""
    columns, rows = asked.columns, np.concatenate([np.empty(0, np.int64), *(shelf.rows for shelf in home.shelves)])
    assert within(count(columns["artist_key"][rows]), params["page_artist_cap"])
    assert not asked.query.surface.dedupe or len(set(columns["recording_key"][rows].tolist())) == len(rows)
    for shelf in home.shelves:
        assert within(count(columns["artist_key"][shelf.rows]), shelf.spec.params[INDEX["artist_cap"]])
        assert within(count(columns["album_key"][shelf.rows]), shelf.spec.params[INDEX["album_cap"]])
        assert len(set(columns["recording_key"][shelf.rows].tolist())) == len(shelf.rows)
    shown = Counter(row for line in home.lines for row in line.rows[line.fate == Fate.SHOWN].tolist())
    assert shown == Counter(rows.tolist())


def count(keys: NDArray[np.uint64]) -> Counter[int]:
    """How often each key stands; 0 is none."""
    return Counter(keys[keys > 0].tolist())


def within(held: Counter[int], cap: float) -> bool:
    """Whether no key stands more often than the cap; 0 is no cap."""
    return int(cap) == 0 or max(held.values(), default=0) <= int(cap)
