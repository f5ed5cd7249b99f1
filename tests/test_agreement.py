"""How alike two rankings are: known values, bounds, and brute force by the definition."""

import random

import pytest

from server.agreement import overlap, rbo


def by_definition(one: list[int], other: list[int], p: float, depths: int = 2000) -> float:
    """(1 - p) sum p^(d - 1) A_d, with the agreement extrapolated as equation 32 of the paper does.

    Beyond the shorter ranking it goes on to agree as at its end with what the longer one goes on to show; beyond both
    the agreement stays what it was.
    """
    short, long = sorted((one, other), key=len)
    s, total, agreement = len(short), 0.0, 0.0
    at_s = len(set(short) & set(long[:s]))
    for depth in range(1, depths):
        if depth <= s:
            agreement = len(set(short[:depth]) & set(long[:depth])) / depth
        elif depth <= len(long):
            found = len(set(short) & set(long[:depth]))
            agreement = (found + at_s / s * (depth - s)) / depth
        total += (1 - p) * p ** (depth - 1) * agreement
    return total


@pytest.mark.parametrize(
    ("one", "other", "p", "expected"),
    [
        ("abcde", "abcde", 0.9, 1.0),
        ("abcde", "fghij", 0.9, 0.0),
        ("abcde", "bcdae", 0.9, 0.828),  # published with the implementations of Agarwal, and of rankmeasures
        ("", "", 0.9, 1.0),
        ("a", "", 0.9, 0.0),
    ],
)
def test_known_values(one: str, other: str, p: float, expected: float) -> None:
    """Alike is 1, nothing in common 0, and a published example comes out."""
    assert rbo(one, other, p) == pytest.approx(expected, abs=5e-4)


def test_agreement_is_that_of_the_paper() -> None:
    """Figure 5 of Webber, Moffat and Zobel: the average overlap of these two lists at depth 7 is .312."""
    one, other = "abcdefg", "zcavwxy"
    assert sum(overlap(one, other, k) for k in range(1, 8)) / 7 == pytest.approx(0.312, abs=5e-4)


def test_brute_force_agrees() -> None:
    """500 pairs of rankings, even and uneven, with much or little in common: the sum by definition is the same."""
    rng = random.Random(5)
    for _ in range(500):
        pool = range(rng.randrange(1, 40))
        one, other = (rng.sample(pool, rng.randrange(1, len(pool) + 1)) for _ in range(2))
        p = rng.choice([0.5, 0.9, 0.98])
        assert rbo(one, other, p) == pytest.approx(by_definition(one, other, p), abs=1e-9)
        assert rbo(one, other, p) == rbo(other, one, p)
        assert 0.0 <= rbo(one, other, p) <= 1.0 + 1e-12


def test_overlap_counts_what_both_have() -> None:
    """Of the first k; where both have fewer, of what the longer one has."""
    assert overlap([1, 2, 3, 4], [4, 3, 9, 1], 2) == 0.0
    assert overlap([1, 2, 3, 4], [4, 3, 9, 1], 4) == 0.75
    assert overlap([1, 2], [2], 10) == 0.5
    assert overlap([], [], 10) == 1.0
