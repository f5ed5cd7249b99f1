"""Simulated listeners by themselves: attention, noise, what is acted on, and when it happens."""

from collections import Counter
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from loadtest.behaviour import EARLY_S, LATE_S, Deed, Habits, Kind, Visit, intent_for, visit
from loadtest.listeners import REACH_S, Plan, Simulation, Visited, events_of, session_name, step_begins
from loadtest.summary import summary
from protos.home.v1 import home_pb2

SHELVES, ITEMS = 5, 12
PAGE = [[f"{shelf}-{item}" for item in range(ITEMS)] for shelf in range(SHELVES)]
KINDS = {
    item: {"rock"} if (shelf + place) % 2 else {"jazz"}
    for shelf, row in enumerate(PAGE)
    for place, item in enumerate(row)
}
EAGER = Habits(noise=0.0, plays=1.0, tries=1.0, most=1000)


def visits(habits: Habits, count: int = 400) -> list[Visit]:
    """Many visits to the same page, each of another seed."""
    return [visit(PAGE, "rock", KINDS, habits, np.random.default_rng(seed)) for seed in range(count)]


def acted(deeds: list[Deed]) -> dict[str, list[Kind]]:
    """What was done with each item besides looking at it."""
    found: dict[str, list[Kind]] = {}
    for deed in deeds:
        if deed.kind is not Kind.IMPRESSION:
            found.setdefault(deed.item_id, []).append(deed.kind)
    return found


def test_a_visit_depends_on_its_seed_alone() -> None:
    """The same seed does the same, another something else."""
    assert visits(Habits(), 20) == visits(Habits(), 20)
    assert len({str(one.deeds) for one in visits(EAGER, 20)}) == 20


def test_items_are_looked_at_by_attention() -> None:
    """As often as .85 to the power of the shelf times .9 to the power of the place says (z = 5)."""
    habits = replace(EAGER, plays=0.0, tries=0.0)
    counts = Counter(deed.place for one in visits(habits, 2000) for deed in one.deeds)
    for row in range(SHELVES):
        for column in range(ITEMS):
            share = 0.85**row * 0.9**column
            assert abs(counts[row, column] / 2000 - share) <= 5 * np.sqrt(share * (1 - share) / 2000)


def test_what_fits_is_played_and_what_does_not_is_skipped() -> None:
    """Without noise always; nothing is acted on that was not looked at; a skip says how long was heard."""
    for one in visits(EAGER, 100):
        looked = {deed.item_id for deed in one.deeds if deed.kind is Kind.IMPRESSION}
        for item, kinds in acted(one.deeds).items():
            assert item in looked
            assert kinds[:2] == [Kind.PLAY, Kind.COMPLETE if "rock" in KINDS[item] else Kind.SKIP]
        for deed in one.deeds:
            if deed.kind is Kind.SKIP:
                assert EARLY_S[0] <= deed.heard_s <= EARLY_S[1] or LATE_S[0] <= deed.heard_s <= LATE_S[1]


def test_noise_is_the_share_of_judgements_that_are_wrong() -> None:
    """Of what was acted on, z = 5."""
    judged = [
        (kinds[1] is Kind.COMPLETE) == ("rock" in KINDS[item])
        for one in visits(replace(EAGER, noise=0.3))
        for item, kinds in acted(one.deeds).items()
    ]
    assert abs(1 - np.mean(judged) - 0.3) <= 5 * np.sqrt(0.21 / len(judged))


def test_the_page_is_left_after_enough_items() -> None:
    """Nothing follows what was done with the last of them."""
    for one in visits(Habits(most=2)):
        done = acted(one.deeds)
        assert len(done) <= 2
        if len(done) == 2:
            assert one.deeds[-1].item_id == list(done)[-1]


def test_shares_are_of_what_fits() -> None:
    """Half of the page is rock; an empty page has no share and nothing is done with it."""
    assert {one.shown for one in visits(Habits(), 10)} == {0.5}
    nothing = visit([], "rock", KINDS, Habits(), np.random.default_rng(1))
    assert nothing.deeds == []
    assert np.isnan([nothing.shown, nothing.seen]).all()


def test_an_intent_is_one_that_the_page_shows_in_part() -> None:
    """Within the bounds where one is, else the nearest to their middle."""
    kinds = {item: {"all", f"shelf{item[0]}"} for row in PAGE for item in row}
    among = ["all", *(f"shelf{shelf}" for shelf in range(SHELVES))]
    drawn = {intent_for(PAGE, kinds, among, np.random.default_rng(n), low=0.1, high=0.3) for n in range(100)}
    assert drawn == set(among[1:])
    assert intent_for(PAGE, kinds, among, np.random.default_rng(1), low=0.85, high=0.95) == "all"


@pytest.mark.parametrize(("sessions", "steps"), [(1, 1), (1, 200), (2, 10), (20, 30)])
def test_all_events_lie_in_the_past_and_in_order(sessions: int, steps: int) -> None:
    """Within what a server takes, each step after the one before, sessions apart, ids that no other event has."""
    plan = Plan(began=1_793_491_200.0, seed=1, sessions=sessions, steps=steps)
    home = home_pb2.GetHomeResponse(shelves=[home_pb2.Shelf(items=[home_pb2.Item(item_id=item) for item in PAGE[0]])])
    done = visit(PAGE[:1], "rock", KINDS, EAGER, np.random.default_rng(1)).deeds
    events = []
    for session in range(sessions):
        for step in range(steps):
            name = session_name(1, "u", session)
            events += events_of(done, home, "u", name, plan, session=session, step=step)
    times = [event.occurred_at.ToMilliseconds() / 1000 for event in events]
    assert times == sorted(times)
    assert plan.began - REACH_S <= times[0]
    assert times[-1] < plan.began
    assert len({event.event_id for event in events}) == len(events)
    assert all(len(event.event_id) <= 64 for event in events)
    for session in range(1, sessions):
        assert step_begins(plan, session, 0)[0] - step_begins(plan, session - 1, steps - 1)[0] > 1800
    assert datetime.fromtimestamp(times[0]).year == 2026  # noqa: DTZ006  # a sanity check of the unit


def test_a_summary_tells_shares_by_steps_and_by_arms() -> None:
    """Empty pages count as pages, and in no mean; without any visit there is nothing to tell."""
    one = Visited(
        user_id="u",
        session=0,
        step=0,
        intent="rock",
        shown=0.5,
        seen=0.25,
        items=("a",),
        promoted=1,
        arms=("e=treatment",),
        degraded=False,
        seconds=0.01,
    )
    empty = replace(one, step=6, shown=float("nan"), seen=float("nan"), items=(), arms=(), promoted=0)
    later = replace(empty, step=5, shown=0.75, seen=1.0, items=("b",))
    told = summary(Simulation(visits=[one, later, empty], events={("play", "recorded"): 3}, errors={}))
    assert told["steps"] == [
        {"steps": "1-5", "pages": 1, "shown": 0.5, "seen": 0.25},
        {"steps": "6-7", "pages": 2, "shown": 0.75, "seen": 1.0},
    ]
    assert told["arms"] == [{"arm": "e=treatment", "pages": 1, "shown": 0.5, "seen": 0.25}]
    assert (told["pages"], told["empty"], told["promoted_seen"]) == (3, 1, 1)
    assert told["events"] == {"play": {"recorded": 3}}
    assert summary(Simulation(visits=[], events={}, errors={"GetHome UNAVAILABLE": 2}))["steps"] == []
