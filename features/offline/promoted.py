"""`mantel evaluate --promoted`: what promotion costs in relevance, and how much of it reaches listeners.

One item in twenty, drawn at random, is promoted in full, each by a campaign of its own; so what is promoted is no more
to anyone's taste than the rest, and targeted campaigns should cost less. The listeners are dealt out over twenty draws:
with one draw for all the figures hang on whether a popular item is in it (NDCG@20 -1.1 to 0.0 % in twelve draws). Every
listener's shelf of twenty unplayed
items, with relevance scaled over 500 candidates, is compared to the same shelf without promotion.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.offline.evaluate import DEPTH, Trial
from features.offline.relevance import PADDING, Difference, Floats, Ints, ndcg, paired

SURFACE: Final = "evaluation-promoted"
SHARE: Final = 0.05
DRAWS: Final = 20
CANDIDATES: Final = 500
STRENGTHS: Final[Mapping[str, Mapping[str, float]]] = {
    f"beta {beta:g}, page loss {loss:.0%}": {"promotion_beta": beta, "promotion_page_loss": loss}
    for beta, loss in ((0.05, 0.01), (0.07, 0.01), (0.1, 0.01), (0.1, 0.02), (0.2, 0.01))
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slates:
    """One listener's shelf: the rows of its items with promotion and without, and what it lost of its relevance."""

    rows: NDArray[np.int64]
    organic: NDArray[np.int64]
    promoted: int  # how many of the rows stand by promotion
    loss: float


Serve = Callable[[Mapping[str, float], Sequence[Ints]], Sequence[Slates]]
"""Params, and the promoted rows of each draw, dealt to the listeners in turn -> each listener's shelf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One line of the table: means over the listeners with test items."""

    name: str
    ndcg_20: Difference  # with promotion against without
    promoted: float  # items of a shelf that stand by promotion
    reached: float  # share of the shelves with any
    loss_mean: float
    loss_most: float


def surface_text(params: Mapping[str, float]) -> str:
    """A surfaces file with the one surface that is measured."""
    free = {"artist_cap": 0, "album_cap": 0, "artist_gap": 0, "page_artist_cap": 0, "impression_discount": 0, **params}
    return f"""\
[{SURFACE}]
dedupe = false
params = {{ {", ".join(f"{name} = {value}" for name, value in free.items())} }}

[[{SURFACE}.shelves]]
id = "unplayed"
source = "taste"
titles = {{ en = "Not played yet" }}
size = {DEPTH}
depth = {CANDIDATES}
minimum = 1
skip_played = true
"""


def costs(
    trial: Trial, serve: Serve, *, seed: int, strengths: Mapping[str, Mapping[str, float]] = STRENGTHS
) -> tuple[Cost, ...]:
    """Measures promotion at several strengths, with the same items promoted."""
    rng = np.random.default_rng(seed)
    count = round(SHARE * len(trial.rows))
    draws = [np.sort(rng.choice(trial.rows, count, replace=False)) for _ in range(DRAWS)]
    return tuple(_cost(trial, name, serve(params, draws)) for name, params in strengths.items())


def _cost(trial: Trial, name: str, slates: Sequence[Slates]) -> Cost:
    with_, without = (_relevance(trial, [getattr(one, which) for one in slates]) for which in ("rows", "organic"))
    judged = ~np.isnan(without)
    promoted = np.array([one.promoted for one in slates])[judged]
    loss = np.array([one.loss for one in slates])[judged]
    return Cost(
        name=name,
        ndcg_20=paired(with_, without),
        promoted=float(promoted.mean()),
        reached=float((promoted > 0).mean()),
        loss_mean=float(loss.mean()),
        loss_most=float(loss.max()),
    )


def _relevance(trial: Trial, shelves: Sequence[NDArray[np.int64]]) -> Floats:
    number = np.full(trial.snapshot.manifest.items, PADDING)
    number[trial.rows] = np.arange(len(trial.rows))
    ranked = np.full((len(shelves), DEPTH), PADDING, np.int64)
    for user, rows in enumerate(shelves):
        ranked[user, : len(rows)] = number[rows]
    return ndcg(ranked, trial.halves.test)
