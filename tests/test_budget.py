"""The time of a batch: what it is predicted to cost, and what its stages get of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranking.surfaces import DEFAULT_SURFACES, load_surfaces
from ranking.types import HomeQuery
from server.budget import ANSWER_S, NARROWED, SMOOTHING, SPIKE, Budget, Costs

HOME = load_surfaces(DEFAULT_SURFACES)["home"]
SHELVES = len(HOME.shelves)
PAGE = HomeQuery(user_id="u", surface=HOME, now=0)
SECONDS = st.floats(1e-6, 100)
WORK = st.floats(0.25, 800)


def learned(*batches: tuple[float, float]) -> Costs:
    """Costs after some batches."""
    costs = Costs()
    for work, seconds in batches:
        costs.learn(work, seconds)
    return costs


def budget(page_s: float, *, stretch: float = 1.0, batch_s: float = 1.0, read_s: float = 0.01) -> Budget:
    """A budget where a page alone has used so much for ever, and taken `stretch` times as long."""
    found = Budget(batch_s=batch_s, read_s=read_s)
    for _ in range(300):
        found.learn(SHELVES, used_s=page_s, passed_s=stretch * page_s)
    return found


def test_a_line_is_learned() -> None:
    """Batches of all sizes with a fixed part and one for each shelf: both are found, within 2 %."""
    costs = learned(*((work, 0.003 + 0.0002 * work) for _ in range(30) for work in (9, 72, 144, 18, 2)))
    for work in (9, 144):
        assert costs.of(work) == pytest.approx(0.003 + 0.0002 * work, rel=0.02)
    assert costs.fits(0.0318) == pytest.approx(144, rel=0.02)


def test_batches_all_alike_tell_their_own_cost() -> None:
    """Only what half as many take is guessed: less than they, more than half."""
    costs = learned(*[(9, 0.002)] * 100)
    assert costs.of(9) == pytest.approx(0.002, rel=0.01)
    assert 0.001 < costs.of(4.5) < 0.002


def test_a_batch_that_the_kernel_stopped_counts_little() -> None:
    """A second instead of two milliseconds: what comes is predicted to take a third longer, not fifty times."""
    costs = learned(*[(9, 0.002)] * 100)
    costs.learn(9, 1.0)
    assert costs.of(9) == pytest.approx(0.002 * (1 + SMOOTHING * (SPIKE - 1)), rel=0.02)


@given(batches=st.lists(st.tuples(WORK, SECONDS), max_size=60), work=WORK, more=SECONDS)
def test_more_work_never_costs_less(batches: list[tuple[float, float]], work: float, more: float) -> None:
    """Whatever was learned: costs are above zero and rise with the work, and what fits into them is the work."""
    costs = learned(*batches)
    assert 0 < costs.of(work) < costs.of(work + more + 0.001)
    assert costs.fits(costs.of(work)) == pytest.approx(work, rel=1e-6)


@given(
    batches=st.lists(st.tuples(WORK, SECONDS, SECONDS), max_size=60),
    work=WORK,
    left=st.floats(-10, 100),
    read_s=SECONDS,
)
def test_no_budget_is_negative(
    batches: list[tuple[float, float, float]], work: float, left: float, read_s: float
) -> None:
    """Nor is the wait for listeners longer than its setting, or than the last of the callers can wait."""
    found = Budget(batch_s=1.0, read_s=read_s)
    for before, used, passed in batches:
        found.learn(before, used_s=used, passed_s=passed)
    assert 0 <= found.for_read(work, left) <= read_s
    assert found.for_read(work, left) <= max(0, left - ANSWER_S)


def test_listeners_are_waited_for_as_long_as_narrowed_pages_have_time_left() -> None:
    """Of pages of 40 ms."""
    found, two = budget(0.04, read_s=0.5), 2 * SHELVES
    assert found.for_read(two, 0.2) == pytest.approx(0.2 - found.takes(NARROWED * two))
    assert found.for_read(two, 9.0) == 0.5
    assert found.for_read(two, 0.01) == 0


@pytest.mark.parametrize("stretch", [1.0, 3.0])
def test_who_cannot_wait_for_whole_pages_is_narrowed(stretch: float) -> None:
    """And nobody else; where others take the core away, pages take longer than they use."""
    found = budget(0.04, stretch=stretch)
    whole_s = found.takes(2 * SHELVES)
    narrowed = found.narrowed([PAGE, PAGE], [whole_s - 0.001, whole_s])
    assert [query.narrow for query in narrowed] == [True, False]
    assert narrowed[1] is PAGE
    assert found.takes(SHELVES) == pytest.approx(stretch * 0.04 + ANSWER_S, rel=0.01)


@pytest.mark.parametrize("stretch", [1.0, 3.0])
def test_a_batch_has_room_for_what_its_bound_and_its_first_deadline_allow(stretch: float) -> None:
    """Its bound counts what pages use, the deadline what they take; a narrowed page is a part of a whole one."""
    found = budget(0.01, stretch=stretch, batch_s=0.1)
    assert found.room(9.0) == budget(0.01, batch_s=0.1).room(9.0)
    assert found.takes(found.room(0.05)) == pytest.approx(0.05)
    assert found.work(replace(PAGE, narrow=True)) == NARROWED * found.work(PAGE)
