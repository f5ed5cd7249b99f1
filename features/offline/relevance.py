"""Relevance of ranked items against held-out plays: the protocol, the metrics, the baselines and the paired difference.

No files and no server here. Everything is over the user and item rows of one `Split`; the score matrices [user, item]
are dense, so this is for data sets of the size of HetRec Last.fm (42 MB), not for a whole catalogue.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import t as student_t

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Plays: TypeAlias = csr_array[np.float32, tuple[int, int]]

MIN_ITEMS_PER_USER = 5
MIN_USERS_PER_ITEM = 5
ONE_IN = 5  # a fifth of a user's items, rounded down, is held out
PADDING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Who played what, divided into what a model may learn from and what it is judged on.

    Attributes:
        users: ids as given to `split` [user], ascending.
        items: ids as given to `split` [item], ascending.
        train: 1 where the user played the item and a model may know [user, item].
        test: 1 where the user played the item and a model must guess [user, item]; disjoint from `train`.
    """

    users: Ints
    items: Ints
    train: Plays
    test: Plays


@dataclass(frozen=True, slots=True, kw_only=True)
class Relevance:
    """One model's line in the table: means over the users who have held-out items."""

    model: str
    ndcg_10: float
    recall_10: float
    ndcg_20: float
    recall_20: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Mean of a metric's per-user differences, with the ends of its confidence interval.

    Attributes:
        mean: ours minus the reference, averaged over users, in units of the metric.
        low: lower end of the interval.
        high: upper end of the interval.
        reference: mean of the reference; the `relative_*` figures are shares of it.
    """

    mean: float
    low: float
    high: float
    reference: float

    @property
    def relative(self) -> float:
        """The mean difference as a share of the reference."""
        return self.mean / self.reference

    @property
    def relative_low(self) -> float:
        """The interval's lower end as a share of the reference."""
        return self.low / self.reference

    @property
    def relative_high(self) -> float:
        """The interval's upper end as a share of the reference."""
        return self.high / self.reference


# --- the protocol


def split(users: Ints, items: Ints, *, seed: int) -> Split:
    """Divide interactions [row] by the HetRec protocol: two filters, then a random fifth of each user's items is test.

    First users with fewer than 5 items are dropped, then items with fewer than 5 users, each once: 71,411 interactions,
    1,874 users and 2,828 artists on HetRec Last.fm, as RecPack's loader reports. A user whom the second filter leaves
    with fewer than 5 items stays, without test items. Depends on the set of interactions and the seed, not on the order
    of rows; repeated rows count once. ValueError where the two arrays do not align.
    """
    if users.shape != items.shape or users.ndim != 1:
        raise ValueError(f"users {users.shape} and items {items.shape} must be two arrays of one length")
    played = np.unique(np.stack([users, items], axis=1), axis=0)
    played = played[_at_least(played[:, 0], MIN_ITEMS_PER_USER)]
    played = played[_at_least(played[:, 1], MIN_USERS_PER_ITEM)]
    user_ids, user = np.unique(played[:, 0], return_inverse=True)
    item_ids, item = np.unique(played[:, 1], return_inverse=True)
    held_out = _held_out(user, seed=seed)
    shape = (user_ids.size, item_ids.size)
    return Split(
        users=user_ids,
        items=item_ids,
        train=_binary(user[~held_out], item[~held_out], shape),
        test=_binary(user[held_out], item[held_out], shape),
    )


def _at_least(ids: Ints, count: int) -> NDArray[np.bool_]:
    """Mark the rows whose id stands in at least `count` rows."""
    _, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] >= count)


def _held_out(user: Ints, *, seed: int) -> NDArray[np.bool_]:
    """Mark a random fifth, rounded down, of each user's rows; `user` is dense and ascending."""
    counts = np.bincount(user)
    shuffled = np.lexsort((np.random.default_rng(seed).random(user.size), user))
    place = np.arange(user.size) - np.repeat(np.cumsum(counts) - counts, counts)
    marks = np.zeros(user.size, dtype=np.bool_)
    marks[shuffled] = place < (counts // ONE_IN)[user]
    return marks


def _binary(user: Ints, item: Ints, shape: tuple[int, int]) -> Plays:
    return csr_array((np.ones(user.size, dtype=np.float32), (user, item)), shape=shape)


# --- the metrics


def ndcg(ranked: Ints, test: Plays) -> Floats:
    """Give each user's NDCG at k = the columns of `ranked` [user, k]; nan for a user without test items.

    Gains are binary, the discount of place p (from 0) is 1 / log2(p + 2), the ideal has min(k, test items) hits on top
    (Jarvelin and Kekalainen 2002; equal to pytrec_eval's `ndcg_cut`). `PADDING` is a miss.
    """
    discount = 1 / np.log2(np.arange(ranked.shape[1]) + 2)
    ideal = np.concatenate([[np.nan], np.cumsum(discount)])
    return np.asarray(_hits(ranked, test) @ discount / ideal[np.minimum(_sizes(test), ranked.shape[1])])


def recall(ranked: Ints, test: Plays) -> Floats:
    """Give each user's share of test items among the ranked [user, k]; nan for a user without test items.

    The divisor is all test items, also where they outnumber k (the convention of trec_eval and ranx).
    """
    sizes = _sizes(test)
    return np.asarray(_hits(ranked, test).sum(axis=1) / np.where(sizes > 0, sizes, np.nan))


def measure(model: str, ranked: Ints, test: Plays) -> Relevance:
    """Average the four printed metrics of one model over the users with test items; `ranked` is [user, at least 20]."""
    if ranked.shape[1] < 20:
        raise ValueError(f"{model} ranks {ranked.shape[1]} items per user; the table needs 20")
    return Relevance(
        model=model,
        ndcg_10=float(np.nanmean(ndcg(ranked[:, :10], test))),
        recall_10=float(np.nanmean(recall(ranked[:, :10], test))),
        ndcg_20=float(np.nanmean(ndcg(ranked[:, :20], test))),
        recall_20=float(np.nanmean(recall(ranked[:, :20], test))),
    )


def paired(ours: Floats, reference: Floats, *, confidence: float = 0.95) -> Difference:
    """Compare two models' per-user metric [user] on the same users by Student's t on the differences.

    The interval speaks of other users of the same split, not of other splits. Users without test items (nan in both)
    are left out. ValueError where the two were not measured on the same users.
    """
    if ours.shape != reference.shape or not np.array_equal(np.isnan(ours), np.isnan(reference)):
        raise ValueError("the two models were not measured on the same users")
    judged = ~np.isnan(reference)
    gaps = ours[judged] - reference[judged]
    mean = float(gaps.mean())
    half = float(student_t.ppf((1 + confidence) / 2, gaps.size - 1) * gaps.std(ddof=1) / np.sqrt(gaps.size))
    return Difference(mean=mean, low=mean - half, high=mean + half, reference=float(reference[judged].mean()))


def _hits(ranked: Ints, test: Plays) -> NDArray[np.bool_]:
    """Mark the ranked items [user, k] that are test items of their user."""
    if ranked.shape[0] != test.shape[0]:
        raise ValueError(f"ranked has {ranked.shape[0]} users, the test split {test.shape[0]}")
    user, item = test.nonzero()
    width = test.shape[1] + 1  # one column more, where the padding falls on nobody's item
    keys = np.arange(test.shape[0])[:, None] * width + np.where(ranked == PADDING, test.shape[1], ranked)
    return np.isin(keys, user * width + item)


def _sizes(test: Plays) -> Ints:
    return np.diff(test.indptr).astype(np.int64)


# --- the models to compare with: each ranks k items per user [user, k], none from `train`


def popularity(train: Plays, k: int) -> Ints:
    """Rank by the number of users who played an item, the same for everyone."""
    return _rank(np.tile(train.sum(axis=0), (train.shape[0], 1)), train, k)


def item_knn(train: Plays, k: int, *, neighbours: int = 100, shrink: float = 10.0) -> Ints:
    """Rank by summed cosine of an item's nearest `neighbours` that the user played.

    Similarity is c_ij / (sqrt(c_i c_j) + shrink) over shared users, each item keeping its own nearest (Ferrari Dacrema
    et al. 2019, RecSys2019_DeepLearning_Evaluation).
    """
    together = _together(train)
    norms = np.sqrt(np.diag(together))
    similarity = together / (np.outer(norms, norms) + shrink)
    np.fill_diagonal(similarity, 0.0)
    far = np.argsort(-similarity, axis=0, kind="stable")[neighbours:]
    np.put_along_axis(similarity, far, 0.0, axis=0)
    return _rank(np.asarray(train @ similarity), train, k)


def ease(train: Plays, k: int, *, regularization: float) -> Ints:
    """Rank by EASE: the item-to-item least squares with a zero diagonal, in closed form.

    B = I - P diag(1 / P_jj), P = (X'X + regularization I)^-1 (Steck 2019, arXiv 1905.03375, algorithm 1).
    """
    inverse = np.linalg.inv(_together(train) + regularization * np.eye(train.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return _rank(np.asarray(train @ weights), train, k)


def exact(user_vectors: NDArray[np.floating], item_vectors: NDArray[np.floating], train: Plays, k: int) -> Ints:
    """Rank by inner product of vectors [user, d] and [item, d] with every item compared: what an index approximates."""
    return _rank(user_vectors.astype(np.float64) @ item_vectors.astype(np.float64).T, train, k)


def _together(train: Plays) -> Floats:
    """Count the users who played both items [item, item]."""
    return (train.T @ train).toarray().astype(np.float64)


def _rank(scores: NDArray[np.floating], train: Plays, k: int) -> Ints:
    """Give the k best items per user [user, k] by descending score, then item row; padded where too few are left."""
    scores = scores.copy()
    scores[train.nonzero()] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    left = np.take_along_axis(scores, best, axis=1) > -np.inf
    ranked = np.full((train.shape[0], k), PADDING, dtype=np.int64)
    ranked[:, : best.shape[1]] = np.where(left, best, PADDING)
    return ranked
