"""The trade-off's figures against plain independent computations; its surfaces through the loader of surfaces."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features.listeners import decode
from features.offline.cards import item_id_of
from features.offline.diversity import (
    PLAIN,
    VARIANTS,
    Variant,
    divergence,
    diversity,
    genre_mix,
    surfaces_text,
    trade_off,
)
from features.offline.evaluate import Trial
from features.offline.relevance import PADDING, Floats, Ints, Split, ndcg, paired
from features.snapshot import GENRES_PER_ITEM, Snapshot
from ranking.params import resolve
from ranking.surfaces import DEFAULT_SURFACES, load_surfaces

CASES = range(50)
ITEMS, GENRES = 40, 12


def some_pages(rng: np.random.Generator, users: int = 6) -> Ints:
    """Pages of up to twenty different items; the first user is shown nothing, the second one item."""
    ranked = np.full((users, 20), PADDING, np.int64)
    for user in range(users):
        size = user if user < 2 else int(rng.integers(2, 21))
        ranked[user, :size] = rng.permutation(ITEMS)[:size]
    return ranked


def some_genres(rng: np.random.Generator) -> NDArray[np.int16]:
    """Items of no genre to eight genres, `[item, 8]`."""
    genre = np.full((ITEMS, GENRES_PER_ITEM), -1, np.int16)
    for item in range(ITEMS):
        size = int(rng.integers(0, GENRES_PER_ITEM + 1))
        genre[item, :size] = rng.permutation(GENRES)[:size]
    return genre


def some_weights(rng: np.random.Generator, users: int = 6) -> NDArray[np.float32]:
    """Listeners of some genres, that do not add up to 1; the last is known by none."""
    weights = rng.random((users, GENRES), np.float32) * (rng.random((users, GENRES)) < 0.5)
    weights[:, 0] += 0.01
    weights[-1] = 0
    return weights


def shown(ranked: Ints) -> list[list[int]]:
    """List what each user is shown."""
    return [[item for item in row if item != PADDING] for row in ranked.tolist()]


def plain_diversity(page: Sequence[int], vectors: NDArray[np.float32]) -> float:
    """Compute intra-list diversity pair by pair."""
    distances = []
    for one, other in itertools.combinations(page, 2):
        a, b = vectors[one].tolist(), vectors[other].tolist()
        product = math.fsum(x * y for x, y in zip(a, b, strict=True))
        distances.append(1 - product / (math.hypot(*a) * math.hypot(*b)))
    return math.fsum(distances) / len(distances) if distances else math.nan


def plain_divergence(page: Sequence[int], genre: NDArray[np.int16], weights: Sequence[float]) -> float:
    """Compute the calibration divergence genre by genre, as its definition reads."""
    if not page or not any(weights):
        return math.nan
    given = [0.0] * GENRES
    for item in page:
        own = [one for one in genre[item].tolist() if one >= 0]
        total = sum(1 / rank for rank in range(1, len(own) + 1))
        for rank, one in enumerate(own, 1):
            given[one] += 1 / rank / total / len(page)
    wanted = [weight / math.fsum(weights) for weight in weights]
    return math.fsum(p * math.log(p / (0.99 * q + 0.01 * p)) for p, q in zip(wanted, given, strict=True) if p > 0)


class TestMetrics:
    @pytest.mark.parametrize("seed", CASES)
    def test_diversity_is_one_less_the_mean_cosine(self, seed: int) -> None:
        """Sums of unit vectors give what the pairs give; fewer than two items have none."""
        rng = np.random.default_rng(seed)
        ranked, vectors = some_pages(rng), rng.normal(size=(ITEMS, 8)).astype(np.float32)
        expected = [plain_diversity(page, vectors) for page in shown(ranked)]
        assert diversity(ranked, vectors) == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert diversity(ranked, 1000 * vectors) == pytest.approx(expected, abs=1e-6, nan_ok=True)

    def test_diversity_at_its_ends(self) -> None:
        """The same direction is 0, right angles are 1, opposites are 2, and a zero vector is like nothing."""
        vectors = np.array([[1, 0], [3, 0], [0, 2], [-1, 0], [0, 0]], np.float32)
        pairs = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [4, PADDING]])
        assert diversity(pairs, vectors) == pytest.approx([0, 1, 2, 1, math.nan], nan_ok=True)

    @pytest.mark.parametrize("seed", CASES)
    def test_divergence_is_as_defined(self, seed: int) -> None:
        """Matrices give what the genres give one by one, also for items and listeners without genres."""
        rng = np.random.default_rng(seed)
        ranked, genre, weights = some_pages(rng), some_genres(rng), some_weights(rng)
        expected = [
            plain_divergence(page, genre, own) for page, own in zip(shown(ranked), weights.tolist(), strict=True)
        ]
        found = divergence(ranked, genre_mix(genre, GENRES), weights)
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert (found[~np.isnan(found)] >= 0).all()

    def test_divergence_at_its_ends(self) -> None:
        """The listener's own mix is 0; a page of nothing that is wanted is the logarithm of 100."""
        mixes, weights = np.eye(3), np.array([[0.4, 0.4, 0.0]], np.float32)
        assert divergence(np.array([[0, 1]]), mixes, weights) == pytest.approx([0], abs=1e-12)
        assert divergence(np.array([[2, PADDING]]), mixes, weights) == pytest.approx([math.log(100)])


class TestSurfaces:
    def test_each_variant_is_evaluation_with_its_params(self, tmp_path: Path) -> None:
        """The file loads; but for the preset every surface is the `evaluation` that ships."""
        path = tmp_path / "surfaces.toml"
        path.write_text(surfaces_text())
        found = load_surfaces(path)
        (base,) = load_surfaces(DEFAULT_SURFACES)["evaluation"].shelves
        free = {
            "artist_cap": 0.0,
            "album_cap": 0.0,
            "artist_gap": 0.0,
            "page_artist_cap": 0.0,
            "impression_discount": 0.0,
        }
        assert list(found) == [variant.surface for variant in VARIANTS]
        for variant in VARIANTS:
            surface = found[variant.surface]
            (shelf,) = surface.shelves
            assert not surface.dedupe
            assert np.array_equal(shelf.params, resolve(free, variant.params))
            for name in ("source", "size", "minimum", "depth", "skip_played"):
                assert getattr(shelf, name) == getattr(base, name)
        assert np.array_equal(found[PLAIN.surface].shelves[0].params, base.params)

    def test_variants_are_named_after_method_and_strength(self) -> None:
        """A share by its hundredths, an exponent as it is, a pool behind."""
        params = {variant.surface: variant.params for variant in VARIANTS}
        assert params["evaluation-mmr-80"] == {"diversity": "mmr", "mmr_lambda": 0.8}
        assert params["evaluation-dpp-16"] == {"diversity": "dpp", "dpp_theta": 16.0}
        assert params["evaluation-calibration-40-pool-256"] == {
            "diversity": "calibration",
            "calibration_lambda": 0.4,
            "diversity_pool": 256,
        }


def item_of(snapshot: Snapshot, row: int) -> str:
    """The id of a row's item."""
    start, stop = snapshot.columns["card_offset"][row : row + 2].tolist()
    return item_id_of(bytes(snapshot.cards[start:stop]))


@pytest.fixture
def trial(snapshot: Snapshot, records: dict[str, bytes]) -> Trial:
    """The small world's first listeners with random test items; the last has none."""
    rng, users = np.random.default_rng(0), sorted(records)[:30]
    items = [item_of(snapshot, row) for row in range(200)]
    tested = rng.random((len(users), len(items))) < 0.1
    tested[-1] = False
    test = csr_array(tested.astype(np.float32))
    train = csr_array(np.zeros(tested.shape, np.float32))
    listeners = decode(
        [records[user] for user in users],
        space_id=snapshot.space_id,
        dimension=snapshot.manifest.dimension,
        genres=len(snapshot.manifest.genres),
    )
    halves = Split(users=np.arange(len(users)), items=np.arange(len(items)), train=train, test=test)
    return Trial(users=users, items=items, halves=halves, folder=Path("none"), snapshot=snapshot, listeners=listeners)


def test_trade_off_pairs_each_variant_with_plain(trial: Trial) -> None:
    """Means and differences over the listeners with test items are those of the metrics; plain differs by nothing."""
    other = Variant(name="other", params={"diversity": "mmr"})
    rng = np.random.default_rng(1)
    ranked = {
        variant.surface: np.array([rng.permutation(len(trial.items))[:20] for _ in trial.users])
        for variant in (PLAIN, other)
    }
    asked: list[str] = []

    def pages(surface: str) -> list[list[str]]:
        asked.append(surface)
        return [[trial.items[item] for item in row] for row in ranked[surface]]

    plain, changed = trade_off(trial, pages, (PLAIN, other))
    assert asked == [PLAIN.surface, other.surface]
    columns, weights = trial.snapshot.columns, trial.listeners.genre_weights
    mix = genre_mix(columns["genre"][trial.rows], weights.shape[1])
    metrics: dict[str, Callable[[Ints], Floats]] = {
        "ndcg_20": lambda page: ndcg(page, trial.halves.test),
        "diversity": lambda page: diversity(page, columns["vector"][trial.rows]),
        "divergence": lambda page: divergence(page, mix, weights),
    }
    for name, metric in metrics.items():
        ours, reference = metric(ranked[other.surface])[:-1], metric(ranked[PLAIN.surface])[:-1]
        assert getattr(changed, name).difference == paired(ours, reference)
        assert getattr(changed, name).mean == pytest.approx(ours.mean())
        assert getattr(plain, name).mean == pytest.approx(reference.mean())
        same = getattr(plain, name).difference
        assert (same.mean, same.low, same.high) == (0, 0, 0)
