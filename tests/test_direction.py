"""Directions drawn around a listener's own: von Mises-Fisher, by formula and beside scipy's sampler."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from ranking.chance import uniform
from ranking.direction import concentration, normals, turn

KEYS = np.arange(20_000, dtype=np.uint64) * np.uint64(0x1234_5678_9ABC)


def turned(own: NDArray[np.float64], kappa: float, keys: NDArray[np.uint64] = KEYS) -> NDArray[np.float64]:
    """One draw around a vector for each key."""
    vectors = np.tile(own, (len(keys), 1))
    turn(vectors, np.full(len(keys), kappa), keys)
    return vectors


def mean_cosine(kappa: float, dimension: int) -> float:
    """The mean resultant length: a ratio of modified Bessel functions."""
    return float(special.ive(dimension / 2, kappa) / special.ive(dimension / 2 - 1, kappa))


@pytest.mark.parametrize(("dimension", "kappa"), [(64, 200.0), (2, 3.0), (3, 3.0), (16, 68.0), (128, 0.5), (64, 1e5)])
def test_directions_are_von_mises_fisher(dimension: int, kappa: float) -> None:
    """The mean cosine is that of the Bessel functions, the cosines are those of scipy's sampler, the length stays."""
    own = 3 * np.eye(dimension)[0]
    cosines = turned(own, kappa)[:, 0] / 3
    error = cosines.std() / np.sqrt(len(cosines))
    assert cosines.mean() == pytest.approx(mean_cosine(kappa, dimension), abs=4 * error + 1e-9)
    others = stats.vonmises_fisher(own / 3, kappa).rvs(len(cosines), random_state=1) @ own / 3  # type: ignore[arg-type]  # its stubs want an int
    assert stats.ks_2samp(cosines, others).pvalue > 1e-4
    assert np.linalg.norm(turned(own, kappa), axis=1) == pytest.approx(3)


def test_at_kappa_200_the_mean_cosine_is_854() -> None:
    """The published figure for 64 dimensions."""
    assert turned(np.eye(64)[0], 200.0)[:, 0].mean() == pytest.approx(0.854, abs=1e-3)


def test_no_direction_is_favoured() -> None:
    """What is perpendicular to the own vector has mean 0 and the same variance along every axis."""
    across = turned(np.eye(16)[3], 30.0)[:, np.arange(16) != 3]
    error = across.std() / np.sqrt(len(across))
    assert np.abs(across.mean(axis=0)).max() < 4.5 * error
    assert across.var(axis=0) == pytest.approx(across.var(), rel=0.05)


@pytest.mark.parametrize("dimension", [16, 64, 128])
@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0, 4.0])
def test_a_noise_means_the_same_spread_at_every_dimension(dimension: int, noise: float) -> None:
    """Mean cosine 1 / sqrt(1 + noise^2), within .003."""
    (kappa,) = concentration(np.array([noise]), dimension)
    assert mean_cosine(float(kappa), dimension) == pytest.approx(1 / np.sqrt(1 + noise**2), abs=0.003)


def test_without_noise_nothing_turns() -> None:
    """To the last bit; with next to none it ends, too."""
    own = np.random.default_rng(1).normal(size=64)
    kappa = concentration(np.array([0.0, 1e-200, 1e-9]), 64)
    vectors = np.tile(own, (3, 1))
    turn(vectors, kappa, KEYS[:3])
    assert np.array_equal(vectors[:2], np.tile(own, (2, 1)))
    assert vectors[2] == pytest.approx(own, abs=1e-3)
    nowhere = np.zeros((1, 64))
    turn(nowhere, np.array([1.0]), KEYS[:1])
    assert not nowhere.any()


def test_a_draw_is_its_keys_own() -> None:
    """The same whatever stands beside it, another for another key."""
    own = np.random.default_rng(2).normal(size=64)
    together = turned(own, 100.0, KEYS[:50])
    alone = np.concatenate([turned(own, 100.0, KEYS[number : number + 1]) for number in range(50)])
    assert np.array_equal(together, alone)
    assert len(np.unique(together[:, 0])) == 50


def test_numbers_are_uniform_and_normal() -> None:
    """By place of one key, and by key at one place; two keys do not go together."""
    by_place = [uniform(KEYS[5], place) for place in range(20_000)]
    by_key = [uniform(key, 7) for key in KEYS]
    for drawn in (by_place, by_key):
        assert stats.kstest(drawn, "uniform").pvalue > 1e-4
    noise = np.stack([normals(key, 64) for key in KEYS[:2000]])
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.01
