"""The relevance protocol, its metrics and its baselines against independent computations and published figures."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from features.offline import relevance
from features.offline.relevance import Floats, Ints, Plays, Split

SEEDS = (0, 1, 2)
CASES = range(50)
BASELINES: dict[str, Callable[[Plays, int], Ints]] = {
    "popularity": relevance.popularity,
    "item_knn": relevance.item_knn,
    "ease": lambda train, k: relevance.ease(train, k, regularization=50.0),
}


@pytest.fixture(scope="session")
def plays(hetrec: Path) -> Ints:
    """Give every (user, artist) pair of the data set [row, 2]."""
    return np.loadtxt(hetrec / "user_artists.dat", dtype=np.int64, skiprows=1, usecols=(0, 1))


@pytest.fixture(scope="session")
def splits(plays: Ints) -> list[Split]:
    """Give one split per seed."""
    return [relevance.split(plays[:, 0], plays[:, 1], seed=seed) for seed in SEEDS]


def small_split(seed: int) -> Split:
    """Give a random world of 30 users and 20 items in which every user has at least 5."""
    rng = np.random.default_rng(seed)
    rows = [(user, item) for user in range(30) for item in rng.permutation(20)[: rng.integers(5, 18)]]
    users, items = np.array(rows, dtype=np.int64).T
    return relevance.split(users, items, seed=seed)


def unseen(train: Plays, user: int) -> list[int]:
    """List the items a user may be offered."""
    return sorted(set(range(train.shape[1])) - items_of(train, user))


def items_of(plays: Plays, user: int) -> set[int]:
    """Give the items of one user."""
    return set(plays.indices[plays.indptr[user] : plays.indptr[user + 1]].tolist())


def cells(plays: Plays) -> set[tuple[int, int]]:
    """Give the (user, item) cells that are not zero."""
    user, item = plays.nonzero()
    return set(zip(user.tolist(), item.tolist(), strict=True))


class TestSplit:
    def test_protocol_keeps_what_recpack_keeps(self, splits: list[Split]) -> None:
        """71,411 interactions, 1,874 users, 2,828 artists, 1,859 users to judge, whatever the seed."""
        for kept in splits:
            assert kept.train.nnz + kept.test.nnz == 71_411
            assert kept.train.shape == kept.test.shape == (kept.users.size, kept.items.size) == (1_874, 2_828)
            assert np.count_nonzero(np.diff(kept.test.indptr)) == 1_859

    def test_rows_are_the_original_ids(self, plays: Ints, splits: list[Split]) -> None:
        """Every cell of the two matrices, read back as ids, is an interaction that was given."""
        kept = splits[0]
        given = set(map(tuple, plays.tolist()))
        for part in (kept.train, kept.test):
            user, item = part.nonzero()
            assert given.issuperset(zip(kept.users[user].tolist(), kept.items[item].tolist(), strict=True))

    @pytest.mark.parametrize("seed", CASES)
    def test_a_fifth_rounded_down_is_test_and_nothing_is_in_both(self, seed: int) -> None:
        """Per user: floor(n / 5) items are held out, the rest is train, both binary."""
        kept = small_split(seed)
        train, test = np.diff(kept.train.indptr), np.diff(kept.test.indptr)
        assert np.array_equal(test, (train + test) // 5)
        assert cells(kept.train).isdisjoint(cells(kept.test))
        assert set(kept.train.data) == set(kept.test.data) == {1.0}

    def test_depends_on_the_seed_and_on_no_order_or_repetition(self, plays: Ints, splits: list[Split]) -> None:
        """Shuffled and partly repeated rows give the same split; another seed gives another."""
        rows = np.random.default_rng(7).permutation(np.concatenate([plays, plays[:100]]))
        again = relevance.split(rows[:, 0], rows[:, 1], seed=0)
        assert cells(again.test) == cells(splits[0].test)
        assert cells(again.train) == cells(splits[0].train)
        assert cells(splits[1].test) != cells(splits[0].test)

    def test_users_are_filtered_before_items_and_each_once(self) -> None:
        """A user with 4 items is gone, and with it the fifth user of an item; nobody is filtered again after that."""
        full = [(user, item) for user in range(5) for item in range(5)]
        thin = [(9, item) for item in range(4)]
        fifth_is_thin = [(user, 7) for user in (0, 1, 2, 3)] + [(9, 7)]
        users, items = np.array(full + thin[1:] + fifth_is_thin, dtype=np.int64).T
        kept = relevance.split(users, items, seed=0)
        assert kept.users.tolist() == [0, 1, 2, 3, 4]
        assert kept.items.tolist() == [0, 1, 2, 3, 4]

    def test_unaligned_arrays_are_refused(self) -> None:
        """Both shapes stand in the message."""
        with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
            relevance.split(np.arange(3), np.arange(2), seed=0)


def plain_ndcg(ranked: list[int], wanted: set[int]) -> float:
    """Compute NDCG as its definition reads."""
    gained = sum(1 / math.log2(place + 2) for place, item in enumerate(ranked) if item in wanted)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(len(ranked), len(wanted))))
    return gained / ideal if wanted else math.nan


def plain_recall(ranked: list[int], wanted: set[int]) -> float:
    """Compute recall as its definition reads."""
    return len(wanted.intersection(ranked)) / len(wanted) if wanted else math.nan


class TestMetrics:
    @pytest.mark.parametrize("seed", CASES)
    def test_equal_the_plain_definition(self, seed: int) -> None:
        """Random rankings, some cut short by padding, some users without test items."""
        rng = np.random.default_rng(seed)
        test = small_split(seed).test
        test.data[test.indptr[0] : test.indptr[1]] = 0
        test.eliminate_zeros()
        ranked = np.stack([rng.permutation(test.shape[1])[:12] for _ in range(test.shape[0])])
        ranked[np.arange(12) >= rng.integers(0, 13, (test.shape[0], 1))] = relevance.PADDING
        wanted = [items_of(test, user) for user in range(test.shape[0])]
        for metric, plain in ((relevance.ndcg, plain_ndcg), (relevance.recall, plain_recall)):
            expected = [plain(row, items) for row, items in zip(ranked.tolist(), wanted, strict=True)]
            np.testing.assert_allclose(metric(ranked, test), expected, rtol=1e-12)

    def test_perfect_ranking_gives_one(self, splits: list[Split]) -> None:
        """With a user's test items on top both metrics are 1, also where they are fewer or more than k."""
        test = splits[0].test
        ranked = np.full((test.shape[0], 20), relevance.PADDING, dtype=np.int64)
        for user in range(test.shape[0]):
            best = sorted(items_of(test, user))
            ranked[user, : len(best)] = best
        judged = np.diff(test.indptr) > 0
        for k in (1, 5, 20):
            np.testing.assert_allclose(relevance.ndcg(ranked[:, :k], test)[judged], 1.0)
        np.testing.assert_array_equal(relevance.recall(ranked, test)[judged], 1.0)
        assert np.isnan(relevance.ndcg(ranked, test)[~judged]).all()

    def test_rankings_that_do_not_fit_are_refused(self) -> None:
        """Too few items for the table, or other users than the split's: the message holds the numbers."""
        kept = small_split(0)
        ranked = relevance.popularity(kept.train, 10)
        with pytest.raises(ValueError, match="popularity ranks 10 items"):
            relevance.measure("popularity", ranked, kept.test)
        with pytest.raises(ValueError, match="29 users, the test split 30"):
            relevance.ndcg(ranked[1:], kept.test)


class TestModels:
    @pytest.mark.parametrize(
        ("name", "published"),
        [
            ("popularity", (0.0869, 0.0845, 0.1058, 0.1218)),
            ("item_knn", (0.2518, 0.2306, 0.2964, 0.3216)),
            ("ease", (0.2657, 0.2475, 0.3137, 0.3448)),
        ],
    )
    def test_baselines_give_their_known_figures(
        self, splits: list[Split], name: str, published: tuple[float, ...]
    ) -> None:
        """NDCG@10, R@10, NDCG@20 and R@20 as means of three seeds, within 0.004."""
        lines = [relevance.measure(name, BASELINES[name](kept.train, 20), kept.test) for kept in splits]
        means = np.mean([(line.ndcg_10, line.recall_10, line.ndcg_20, line.recall_20) for line in lines], axis=0)
        np.testing.assert_allclose(means, published, atol=0.004)

    @pytest.mark.parametrize("name", BASELINES)
    @pytest.mark.parametrize("seed", SEEDS)
    def test_no_train_item_and_no_repetition_is_ranked(self, name: str, seed: int) -> None:
        """Asked for more than there is, a model ranks exactly what the user has not played, then pads."""
        train = small_split(seed).train
        ranked = BASELINES[name](train, 25)
        assert ranked.shape == (train.shape[0], 25)
        for user in range(train.shape[0]):
            offered = unseen(train, user)
            assert sorted(ranked[user, : len(offered)].tolist()) == offered
            assert (ranked[user, len(offered) :] == relevance.PADDING).all()

    def test_no_train_item_is_ranked_on_real_data(self, splits: list[Split]) -> None:
        """Of 1,874 lists of 20 not one holds an item its listener is known to play."""
        assert not relevance.recall(relevance.popularity(splits[0].train, 20), splits[0].train).any()

    @pytest.mark.parametrize("seed", CASES)
    def test_exact_is_brute_force(self, seed: int) -> None:
        """The ranking is that of sorting every unseen item by a dot product computed alone; norms count."""
        rng = np.random.default_rng(seed)
        train = small_split(seed).train
        users = rng.standard_normal((train.shape[0], 8)).astype(np.float32)
        items = (rng.standard_normal((train.shape[1], 8)) * rng.uniform(0.1, 3, (train.shape[1], 1))).astype(np.float32)
        ranked = relevance.exact(users, items, train, 5)
        for user, vector in enumerate(users):
            scores = {
                item: math.fsum((vector * items[item].astype(np.float64)).tolist()) for item in unseen(train, user)
            }
            expected = sorted(scores, key=lambda item: -scores[item])[:5]
            assert ranked[user, : len(expected)].tolist() == expected

    def test_ties_break_by_item_row(self) -> None:
        """With all scores equal the unseen items stand in ascending order."""
        train = small_split(3).train
        ranked = relevance.exact(np.zeros((train.shape[0], 2)), np.ones((train.shape[1], 2)), train, 4)
        for user in range(train.shape[0]):
            offered = unseen(train, user)[:4]
            assert ranked[user, : len(offered)].tolist() == offered


class TestPaired:
    def test_interval_covers_a_known_difference_as_often_as_it_says(self) -> None:
        """Of 1,000 samples with a true difference of 0.01 the 95 % interval holds it in 95 % (z = 4 either way)."""
        rng = np.random.default_rng(11)
        covered = 0
        for _ in range(1_000):
            reference: Floats = rng.random(200)
            found = relevance.paired(reference + rng.normal(0.01, 0.05, 200), reference)
            covered += found.low <= 0.01 <= found.high
        assert abs(covered - 950) < 4 * math.sqrt(1_000 * 0.95 * 0.05)

    def test_figures_by_hand(self) -> None:
        """Differences 0, .1, .2 about a reference of .5: mean .1, half width 4.3027 * .1 / sqrt(3)."""
        found = relevance.paired(np.array([0.4, 0.6, 0.8, math.nan]), np.array([0.4, 0.5, 0.6, math.nan]))
        half = 4.302653 * 0.1 / math.sqrt(3)
        assert found.mean == pytest.approx(0.1)
        assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half))
        assert found.reference == pytest.approx(0.5)
        assert found.relative == pytest.approx(0.2)
        assert (found.relative_low, found.relative_high) == pytest.approx((0.2 - 2 * half, 0.2 + 2 * half))

    def test_other_users_are_refused(self) -> None:
        """A user judged in only one of the two is an error, not a smaller sample."""
        with pytest.raises(ValueError, match="not measured on the same users"):
            relevance.paired(np.array([0.1, math.nan]), np.array([0.1, 0.2]))
