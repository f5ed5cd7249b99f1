"""`mantel evaluate --diversity`: what each way to diversify a page costs in relevance, and what it gains.

Every variant is a surface like `evaluation`, so what is measured is what is served. Beside NDCG@20 stand two figures:
intra-list diversity, which is 1 less the mean cosine of the page's pairs of item vectors, scaled to length 1; and the
calibration divergence of Steck 2018, KL(p||q~) with q~ = (1-a)q + a p and a = 0.01. There p is the listener's genre
weights as the record holds them, scaled to add up to 1, and q the mean of the shown items' own genres, where an item's
genres weigh 1, 1/2, 1/3 … in their order; an item without genres is of none.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features.offline.evaluate import DEPTH, Trial
from features.offline.relevance import PADDING, Difference, Floats, Ints, ndcg, paired

KEEP: Final = 0.01  # a of q~ = (1-a)q + a p

Pages = Callable[[str], Sequence[Sequence[str]]]  # a surface's name -> item ids, best first, of each listener in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to choose a page: a preset of params under a name."""

    name: str
    params: Mapping[str, float | str]

    @property
    def surface(self) -> str:
        """The surface that serves it."""
        return f"evaluation-{self.name}"


def _variants(method: str, param: str, *strengths: float) -> tuple[Variant, ...]:
    """A method at several strengths; a share is named by its hundredths."""
    return tuple(
        Variant(
            name=f"{method}-{strength * 100 if strength < 1 else strength:.0f}",
            params={"diversity": method, param: strength},
        )
        for strength in strengths
    )


PLAIN: Final = Variant(name="plain", params={"diversity": "plain"})
VARIANTS: Final = (
    PLAIN,
    *_variants("mmr", "mmr_lambda", 0.9, 0.8, 0.7, 0.5),
    *_variants("dpp", "dpp_theta", 16.0, 8.0, 4.0),
    *_variants("calibration", "calibration_lambda", 0.1, 0.3, 0.4, 0.5, 0.7, 0.9),
    *(
        Variant(
            name=f"calibration-40-pool-{pool}",
            params={"diversity": "calibration", "calibration_lambda": 0.4, "diversity_pool": pool},
        )
        for pool in (64, 256)  # above it is the default, 128
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One metric of a variant: its mean, and the paired difference from `plain` with its 95 % interval."""

    mean: float
    difference: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOff:
    """One variant's line in the table: means over the listeners with test items."""

    variant: Variant
    ndcg_20: Figure
    diversity: Figure  # intra-list; more is more diverse
    divergence: Figure  # calibration; less is nearer to the listener's own mix of genres


def surfaces_text(variants: Sequence[Variant] = VARIANTS) -> str:
    """A surfaces file with one surface per variant: twenty items that the listener has not played, without caps."""
    return "\n".join(_surface(variant) for variant in variants)


def _surface(variant: Variant) -> str:
    params = {"artist_cap": 0, "album_cap": 0, "artist_gap": 0, "page_artist_cap": 0, "impression_discount": 0}
    preset = ", ".join(f"{name} = {json.dumps(value)}" for name, value in (params | dict(variant.params)).items())
    return f"""\
[{variant.surface}]
dedupe = false
params = {{ {preset} }}

[[{variant.surface}.shelves]]
id = "unplayed"
source = "taste"
titles = {{ en = "Not played yet" }}
size = {DEPTH}
minimum = 1
skip_played = true
"""


def trade_off(trial: Trial, pages: Pages, variants: Sequence[Variant] = VARIANTS) -> tuple[TradeOff, ...]:
    """Measures every variant against `plain` on the same listeners; asks for each one's pages once, `plain` first."""
    plain = _measured(trial, pages(PLAIN.surface))
    found = []
    for variant in variants:
        own = plain if variant == PLAIN else _measured(trial, pages(variant.surface))
        figures = [
            Figure(mean=float(np.nanmean(ours)), difference=paired(ours, reference))
            for ours, reference in zip(own, plain, strict=True)
        ]
        found.append(TradeOff(variant=variant, ndcg_20=figures[0], diversity=figures[1], divergence=figures[2]))
    return tuple(found)


def _measured(trial: Trial, pages: Sequence[Sequence[str]]) -> tuple[Floats, Floats, Floats]:
    """NDCG@20, diversity and divergence of each listener with test items; nan for the others."""
    ranked, columns = trial.ranked(pages), trial.snapshot.columns
    relevance = ndcg(ranked, trial.halves.test)
    judged = np.where(np.isnan(relevance), np.nan, 0.0)
    genres = genre_mix(columns["genre"][trial.rows], len(trial.snapshot.manifest.genres))
    return (
        relevance,
        judged + diversity(ranked, columns["vector"][trial.rows]),
        judged + divergence(ranked, genres, trial.listeners.genre_weights),
    )


def diversity(ranked: Ints, vectors: NDArray[np.floating]) -> Floats:
    """1 less the mean cosine of the pairs of items that each user is shown, `[user]`; nan with fewer than two.

    `ranked` is `[user, k]`, `vectors` `[item, D]`; a zero vector is like nothing.
    """
    vectors = vectors.astype(np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(length > 0, length, 1)
    shown = _shown(ranked, len(unit))
    sums = np.asarray(shown @ unit)
    own = shown @ np.vecdot(unit, unit)  # |sum|^2 holds each pair twice and each item once
    pairs = np.diff(shown.indptr) * (np.diff(shown.indptr) - 1.0)
    return np.asarray(1 - (np.vecdot(sums, sums) - own) / np.where(pairs > 0, pairs, np.nan))


def genre_mix(genre: NDArray[np.int16], genres: int) -> Floats:
    """How much of each item is of each genre, `[item, genre]`, from its genres in order `[item, 8]`, -1 none."""
    item, place = np.nonzero(genre >= 0)
    mix = np.zeros((len(genre), genres))
    np.add.at(mix, (item, genre[item, place]), 1 / (place + 1))
    total = mix.sum(axis=1, keepdims=True)
    return np.asarray(mix / np.where(total > 0, total, 1))


def divergence(ranked: Ints, genres: Floats, weights: NDArray[np.floating]) -> Floats:
    """KL(p||q~) of each user, `[user]`; nan where the user is known by no genre or shown nothing.

    `ranked` is `[user, k]`, `genres` `[item, genre]` and `weights`, of which p is made, `[user, genre]`.
    """
    total = weights.sum(axis=1, keepdims=True, dtype=np.float64)
    wanted = weights / np.where(total > 0, total, np.nan)
    shown = _shown(ranked, len(genres))
    count = np.diff(shown.indptr)[:, None]
    given = (shown @ genres) / np.where(count > 0, count, np.nan)
    near = (1 - KEEP) * given + KEEP * wanted
    ratio = np.divide(wanted, near, out=np.ones_like(wanted), where=wanted != 0)
    return np.asarray((wanted * np.log(ratio)).sum(axis=1))


def _shown(ranked: Ints, items: int) -> csr_array[np.float64, tuple[int, int]]:
    """1 where a user is shown an item, `[user, item]`."""
    user, place = np.nonzero(ranked != PADDING)
    return csr_array((np.ones(len(user)), (user, ranked[user, place])), shape=(len(ranked), items))
