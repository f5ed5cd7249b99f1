"""Insertion into one shelf: by hand, against a plain one, and no rule broken whatever is asked for."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ranking.insertion import Ranked, insert
from ranking.params import INDEX, resolve
from tests.slates import Case, broken_rules, draw_case, plain_insert, vector


def inserted(case: Case) -> tuple[list[int], list[int]]:
    """The slate and the promoted ranks, by the core."""
    slate, moved = insert(case.ranked, vector(case), vector(case), case.page())
    return slate.tolist(), np.flatnonzero(moved).tolist()


def shelf(relevance: list[float], bonus: dict[int, float], shown: int, **params: float) -> Case:
    """A shelf alone on its page, every item by an artist of its own; ten items stand above it."""
    count = len(relevance)
    own, nobody = np.arange(1, count + 1), np.zeros(count, np.uint64)
    plus = np.array([bonus.get(rank, 0.0) for rank in range(count)])
    ranked = Ranked(
        shown, np.array(relevance), plus, own, own.astype(np.uint64), nobody, own.astype(np.uint64), own, own, -1
    )
    values = resolve(params)
    return Case(
        ranked=ranked,
        params={name: float(values[place]) for name, place in INDEX.items()},
        others=[],
        once=True,
        above=(10, 5.0),
    )


FALLING = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45]


@pytest.mark.parametrize(
    ("bonus", "params", "slate"),
    [
        ({}, {}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({5: 0.07}, {}, [0, 1, 2, 3, 5, 4, 6, 7, 8, 9]),  # .82 stands before .8, and its own place closes
        ({11: 0.12}, {}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 11]),  # .57 is in the place of .55, which gives way
        ({5: 0.07, 9: 0.1}, {}, [0, 1, 2, 3, 5, 4, 6, 7, 8, 9]),  # one of ten is the share
        ({5: 0.07, 9: 0.11}, {"promotion_share": 0.2, "promotion_page_share": 0.2}, [0, 1, 2, 3, 5, 4, 6, 9, 7, 8]),
        ({5: 0.07, 6: 0.1}, {"promotion_share": 0.2, "promotion_page_share": 0.2}, [0, 1, 2, 3, 5, 4, 6, 7, 8, 9]),
        ({5: 0.07}, {"promotion_floor": 0.76}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({5: 0.07}, {"promotion_loss": 1e-4}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({3: 0.2}, {"promotion_first": 0, "promotion_loss": 0.1}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({11: 0.12}, {"promotion_depth": 1}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_what_a_person_would_insert(bonus: dict[int, float], params: dict[str, float], slate: list[int]) -> None:
    """Ten places; relevance falls by .05 from 1."""
    case = shelf(FALLING, bonus, 10, **params)
    assert inserted(case)[0] == slate
    assert plain_insert(case)[0] == slate


def test_insertion_is_the_plain_one() -> None:
    """On 2,000 shelves: the same slate, and the same ranks by promotion; on half of them something is."""
    rng = np.random.default_rng(1)
    moved = 0
    for number in range(2000):
        case = draw_case(rng)
        slate, promoted = plain_insert(case)
        assert inserted(case) == (slate, sorted(promoted)), number
        moved += len(promoted) > 0
    assert moved > 600


def test_no_rule_is_broken() -> None:
    """On 20,000 shelves with bonuses that are no numbers, infinite, 1e30, negative, on single items and on all."""
    rng = np.random.default_rng(2)
    moved = 0
    for number in range(20_000):
        case = draw_case(rng, absurd=True)
        slate, promoted = inserted(case)
        assert not broken_rules(case, slate, promoted), number
        moved += len(promoted)
    assert moved > 5000


def test_without_the_second_look_rules_break() -> None:
    """Of 4,000 shelves with room for several, some break causality or spacing where a trial is taken on trust."""
    rng = np.random.default_rng(3)
    broken: Counter[str] = Counter()
    roomy = {"promotion_share": 0.5, "promotion_page_share": 0.5, "promotion_loss": 0.1, "promotion_page_loss": 0.1}
    roomy |= {"promotion_gap": 3.0, "promotion_first": 3.0, "promotion_floor": 0.0}
    roomy |= {"promotion_artist_cap": 0.0, "promotion_campaign_cap": 0.0, "promotion_payer_cap": 0.0}
    for _ in range(4000):
        case = draw_case(rng)
        case = replace(case, params={**case.params, **roomy})
        broken.update(broken_rules(case, *plain_insert(case, checked=False)))
        assert not broken_rules(case, *inserted(case))
    assert broken["causality"] > 20, broken
    assert broken["artist gap"] > 20, broken


@pytest.mark.parametrize("nothing", [0.0, -1.0, math.nan, -math.inf])
def test_nothing_to_promote_changes_nothing(nothing: float) -> None:
    """The slate is the organic one, and nothing stands by promotion."""
    rng = np.random.default_rng(4)
    for _ in range(200):
        case = draw_case(rng)
        case = replace(case, ranked=case.ranked._replace(bonus=np.full(len(case.ranked.row), nothing)))
        assert inserted(case) == (list(range(case.ranked.shown)), [])
