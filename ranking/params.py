"""Every tunable of a request: name, range, default, unit, meaning. Experiments override them by name.

The params of a line are one vector in the order of this table, a batch's are a matrix `[line, param]`, and a stage
reads its columns: params are never branches, so a batch mixes experiments and surfaces.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Params = NDArray[np.float64]  # [param], or a batch's [line, param]


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """One tunable."""

    name: str
    default: float
    low: float
    high: float
    unit: str
    meaning: str
    choices: tuple[str, ...] = ()  # values by name, in the order of their numbers
    of_page: bool = False  # set on a surface only: a shelf of its own value would mean nothing

    @property
    def whole(self) -> bool:
        """Whether it counts things."""
        return self.unit in {"items", "candidates"}


PARAMS: Final = (
    Param(
        name="affinity_weight",
        default=1.0,
        low=0.0,
        high=4.0,
        unit="score",
        meaning="of the affinity that retrieval found, which is scaled to 0-1 on each shelf",
    ),
    Param(
        name="popularity_weight",
        default=0.0,
        low=-2.0,
        high=2.0,
        unit="score",
        meaning="of an item's popularity, 0-1; below zero it is a penalty",
    ),
    Param(
        name="freshness_weight",
        default=0.0,
        low=-2.0,
        high=2.0,
        unit="score",
        meaning="of an item's freshness: 1 on the day of release, halved every freshness_half_life_days",
    ),
    Param(
        name="freshness_half_life_days",
        default=30.0,
        low=1.0,
        high=3650.0,
        unit="days",
        meaning="after which a release counts as half as fresh",
    ),
    Param(
        name="novelty_weight",
        default=0.0,
        low=-2.0,
        high=2.0,
        unit="score",
        meaning="of an item's novelty: 1 where the listener plays nothing by its artist, else 0",
    ),
    Param(
        name="recency_half_life_days",
        default=14.0,
        low=0.1,
        high=3650.0,
        unit="days",
        meaning="after which a listen counts half for what a listener plays now",
    ),
    Param(
        name="discovery_noise",
        default=0.5,
        low=0.0,
        high=4.0,
        unit="share of the vector's length",
        meaning="by which a discover shelf's query leaves the listener's direction: mean cosine 1 / sqrt(1 + noise^2)",
    ),
    Param(
        name="impression_discount",
        default=0.25,
        low=0.0,
        high=4.0,
        unit="exponent",
        meaning="of the score of what the listener saw n times in 7 days and did not play: times exp(-discount * n)",
    ),
    Param(
        name="impression_floor",
        default=0.3,
        low=0.05,
        high=1.0,
        unit="factor",
        meaning="that the score of what was seen keeps, however often that was",
    ),
    Param(
        name="exploration_share",
        default=0.05,
        low=0.0,
        high=1.0,
        unit="share",
        meaning="of sessions in which a shelf's exploration place, where it names one, is given to chance",
    ),
    Param(
        name="exploration_floor",
        default=0.3,
        low=0.0,
        high=1.0,
        unit="relevance",
        meaning="that an item needs to be drawn for an exploration place, where the shelf's runs from 0 to 1",
    ),
    Param(
        name="diversity",
        default=0.0,
        low=0.0,
        high=3.0,
        unit="choice",
        meaning="how a line's picks are chosen: plain, mmr, dpp or calibration",
        choices=("plain", "mmr", "dpp", "calibration"),
    ),
    Param(
        name="diversity_pool",
        default=128.0,
        low=16.0,
        high=2000.0,
        unit="candidates",
        meaning="the best by score, from which picks are chosen",
    ),
    Param(
        name="mmr_lambda",
        default=0.8,
        low=0.0,
        high=1.0,
        unit="share",
        meaning="of relevance against unlikeness to the picks before; 1 is by score",
    ),
    Param(
        name="dpp_theta",
        default=16.0,
        low=0.0,
        high=1000.0,
        unit="exponent",
        meaning="how much relevance counts against unlikeness; the larger, the nearer to by score",
    ),
    Param(
        name="calibration_lambda",
        default=0.4,
        low=0.0,
        high=1.0,
        unit="share",
        meaning="of nearness to the listener's own mix of genres against relevance; 0 is by score",
    ),
    Param(
        name="artist_cap",
        default=2.0,
        low=0.0,
        high=200.0,
        unit="items",
        meaning="at most of one artist on a shelf; 0 is no cap",
    ),
    Param(
        name="album_cap",
        default=1.0,
        low=0.0,
        high=200.0,
        unit="items",
        meaning="at most of one album on a shelf; 0 is no cap",
    ),
    Param(
        name="artist_gap",
        default=1.0,
        low=0.0,
        high=20.0,
        unit="items",
        meaning="at least between two of one artist, as far as none of them falls as a duplicate",
    ),
    Param(
        name="genre_lean",
        default=0.5,
        low=0.0,
        high=1.0,
        unit="share",
        meaning="how far the query of a genre shelf leans from the genre's centroid to the listener",
    ),
    Param(
        name="shelf_weight",
        default=1.0,
        low=0.0,
        high=10.0,
        unit="factor",
        meaning="of what a shelf is worth where the order of shelves is chosen",
    ),
    Param(
        name="page_order",
        default=0.0,
        low=0.0,
        high=1.0,
        unit="choice",
        meaning="below the pinned shelves: attention, by what each is worth there, or file, as the surface lists them",
        choices=("attention", "file"),
        of_page=True,
    ),
    Param(
        name="row_decay",
        default=0.85,
        low=0.1,
        high=1.0,
        unit="factor",
        meaning="of attention from each shelf to the next below",
        of_page=True,
    ),
    Param(
        name="column_decay",
        default=0.9,
        low=0.1,
        high=1.0,
        unit="factor",
        meaning="of attention from each item of a shelf to the next",
        of_page=True,
    ),
    Param(
        name="shelf_likeness",
        default=0.1,
        low=0.0,
        high=10.0,
        unit="worth",
        meaning="taken from what a shelf is worth, times its cosine to the page above it",
        of_page=True,
    ),
    Param(
        name="session_pull",
        default=0.3,
        low=0.0,
        high=2.0,
        unit="share of the vector's length",
        meaning="by which a like or a complete in the session draws the listener's vector and genres to the item's",
        of_page=True,
    ),
    Param(
        name="session_push",
        default=1.0,
        low=0.0,
        high=2.0,
        unit="share of the vector's length",
        meaning="by which an early skip drives the vector from the item, times their cosine: 1 leaves none of it",
        of_page=True,
    ),
    Param(
        name="session_lean",
        default=0.02,
        low=0.0,
        high=1.0,
        unit="share",
        meaning="by which vector and genres lean back to the listener's own after each event",
        of_page=True,
    ),
    Param(
        name="page_artist_cap",
        default=8.0,
        low=0.0,
        high=1000.0,
        unit="items",
        meaning="at most of one artist on the page; 0 is no cap",
        of_page=True,
    ),
    Param(
        # One item in twenty promoted at random, HetRec, 12 times 20 draws over three splits: 0.07 places 1.17 items on
        # a shelf of 20 (1.11-1.23) for 0.34 % of NDCG@20 (95 % of means: 0.25-0.42); 0.1 places 1.33 for 0.65 %.
        name="promotion_beta",
        default=0.07,
        low=0.0,
        high=0.2,
        unit="relevance",
        meaning="added to that of a promoted item with the full score 1, where the shelf's runs from 0 to 1",
    ),
    Param(
        name="promotion_bonus",
        default=0.2,
        low=0.0,
        high=0.2,
        unit="relevance",
        meaning="at most added to that of a promoted item, whatever the score and the beta",
    ),
    Param(
        name="promotion_share",
        default=0.1,
        low=0.0,
        high=0.5,
        unit="share",
        meaning="of a shelf's items that may stand by promotion, rounded down, but one at least; 0 is none",
    ),
    Param(
        name="promotion_first",
        default=1.0,
        low=0.0,
        high=3.0,
        unit="items",
        meaning="at most by promotion among the first three of a shelf",
    ),
    Param(
        name="promotion_gap",
        default=3.0,
        low=2.0,
        high=20.0,
        unit="items",
        meaning="at least from one item that stands by promotion to the next on its shelf",
    ),
    Param(
        name="promotion_depth",
        default=3.0,
        low=1.0,
        high=3.0,
        unit="shelves",
        meaning="from so many times a shelf's length of its organic order items may be promoted",
    ),
    Param(
        name="promotion_floor",
        default=0.3,
        low=0.0,
        high=1.0,
        unit="relevance",
        meaning="that an item needs to be promoted, where the shelf's runs from 0 to 1",
    ),
    Param(
        name="promotion_loss",
        default=0.02,
        low=0.0,
        high=0.1,
        unit="share",
        meaning="of a shelf's relevance, discounted by place, that promotion may cost",
    ),
    Param(
        name="promotion_page_loss",
        default=0.01,
        low=0.0,
        high=0.1,
        unit="share",
        meaning="of the relevance of a page's shelves, from the top down to each, that promotion may cost",
        of_page=True,
    ),
    Param(
        name="promotion_page_share",
        default=0.1,
        low=0.0,
        high=0.5,
        unit="share",
        meaning="of a page's items, from the top down to each shelf, that may stand by promotion, rounded down",
        of_page=True,
    ),
    Param(
        name="promotion_artist_cap",
        default=1.0,
        low=0.0,
        high=1000.0,
        unit="items",
        meaning="at most of one artist that stand on the page by promotion; 0 is no cap",
        of_page=True,
    ),
    Param(
        name="promotion_campaign_cap",
        default=2.0,
        low=0.0,
        high=1000.0,
        unit="items",
        meaning="at most of one campaign that stand on the page by promotion; 0 is no cap",
        of_page=True,
    ),
    Param(
        name="promotion_payer_cap",
        default=3.0,
        low=0.0,
        high=1000.0,
        unit="items",
        meaning="at most of one payer that stand on the page by promotion; 0 is no cap",
        of_page=True,
    ),
    Param(
        name="promotion_rest_days",
        default=21.0,
        low=0.0,
        high=3650.0,
        unit="days",
        meaning="after a play in which an item is not promoted to its listener; a play of unknown day counts as recent",
        of_page=True,
    ),
)
Value = float | str  # a choice may be given by name
DIVERSITY: Final = next(param.choices for param in PARAMS if param.name == "diversity")
INDEX: Final[Mapping[str, int]] = {param.name: place for place, param in enumerate(PARAMS)}


def resolve(*presets: Mapping[str, Value]) -> Params:
    """The defaults, overridden by each preset in turn.

    Raises:
        ValueError: naming the param that is unknown or outside its range.
    """
    values = np.array([param.default for param in PARAMS])
    for preset in presets:
        for name, value in preset.items():
            if name not in INDEX:
                raise ValueError(f"{name} is no param; known are {', '.join(INDEX)}")
            values[INDEX[name]] = _number(PARAMS[INDEX[name]], value)
    return values


def _number(param: Param, value: Value) -> float:
    if param.choices:
        if value not in param.choices:
            raise ValueError(f"{param.name} must be one of {', '.join(param.choices)}")
        return float(param.choices.index(str(value)))
    if isinstance(value, str) or not param.low <= value <= param.high:
        raise ValueError(f"{param.name} must be {param.low:g} to {param.high:g}")
    if param.whole and value != int(value):
        raise ValueError(f"{param.name} must be a whole number")
    return value


def named(param: Param, value: float) -> str:
    """A value as a person writes it: a choice by its name."""
    return param.choices[int(value)] if param.choices else f"{value:g}"
