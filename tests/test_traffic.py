"""What a load test asks, and when."""

import numpy as np
import pytest

from loadtest.arrivals import SHAPES, arrivals, preceded, shaped
from loadtest.script import RECORD_EVENTS, Script
from loadtest.traffic import EVENTS, NEXT, PAGE, PREFETCH, Mix, draw
from protos.events.v1 import events_pb2
from protos.home.v1 import home_pb2
from tests.generated import LISTENERS, page, script


def test_arrivals_are_poisson_at_the_asked_rate() -> None:
    """Gaps are exponential: their spread is their mean, and they know nothing of each other."""
    due = arrivals(shaped("constant", rate=500.0, duration=100.0), np.random.default_rng(7))
    gaps = np.diff(due)
    assert due.size == pytest.approx(50_000, abs=4 * 50_000**0.5)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert (gaps > gaps.mean()).mean() == pytest.approx(np.exp(-1), abs=0.01)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.02


@pytest.mark.parametrize("name", SHAPES)
def test_arrivals_follow_the_shape(name: str) -> None:
    """In every tenth of the time as many calls are due as the rate adds up to there."""
    shape = shaped(name, rate=1000.0, duration=50.0, peak=3.0)
    due = arrivals(shape, np.random.default_rng(3))
    assert np.all(np.diff(due) >= 0)
    assert due[0] >= 0
    assert due[-1] <= 50.0
    fine = np.linspace(0, 50, 50_001)[:-1] + 0.0005
    rate = np.interp(fine, shape.seconds, shape.rates)
    expected = np.histogram(fine, 10, (0, 50), weights=rate)[0] * 0.001
    counted = np.histogram(due, 10, (0, 50))[0]
    assert np.all(np.abs(counted - expected) < 5 * expected**0.5 + 5)


def test_a_warm_up_goes_before_at_the_first_rate() -> None:
    """A shape is the same after its warm-up."""
    shape = preceded(shaped("ramp", rate=100.0, duration=10.0), 5.0)
    assert shape.duration == 15.0
    assert np.interp([0.0, 5.0, 15.0], shape.seconds, shape.rates).tolist() == [100.0, 100.0, 200.0]


def test_the_same_seed_asks_the_same() -> None:
    """Two runs of a seed ask the same requests in the same order; only ids of events say which run they are of."""

    def asked(seed: int, run: str) -> list[tuple[int, str, bytes]]:
        one, found = script(seed, run=run, mix=Mix(prefetch=0.1)), []
        for step in range(one.steps.due.size):
            call = one.ask(step)
            request = call.request
            if call.method == RECORD_EVENTS:
                events = events_pb2.RecordEventsRequest.FromString(request)
                for event in events.events:
                    assert event.event_id.startswith(f"{run}-")
                    event.ClearField("event_id")
                    event.ClearField("occurred_at")
                request = events.SerializeToString()
            else:
                one.answered(step, page(home_pb2.GetHomeRequest.FromString(request)))
            found.append((call.kind, call.method, request))
        return found

    first = asked(1, "a")
    assert {kind for kind, _, _ in first} == {PAGE, NEXT, PREFETCH, EVENTS}
    assert first == asked(1, "b")
    assert first != asked(2, "a")


def test_steps_follow_pages_that_were_looked_at() -> None:
    """A next page and events go on from a page of the same listener, a look before; shares are kept."""
    mix = Mix(events=0.2, next_pages=0.2, looking_s=(0.5, 3.0))
    steps = draw(mix, 1000, np.arange(20_000) / 100.0, np.random.default_rng(1))
    followers = np.flatnonzero(steps.follows >= 0)
    followed = steps.follows[followers]
    assert np.all(steps.due[followers] - steps.due[followed] >= 0.5)
    assert np.all(np.isin(steps.kind[followed], (PAGE, NEXT)))
    assert np.array_equal(steps.listener[followers], steps.listener[followed])
    shares = np.bincount(steps.kind, minlength=4) / steps.kind.size
    assert shares == pytest.approx([0.6, 0.2, 0.0, 0.2], abs=0.02)
    alone = draw(Mix(next_pages=1.0, events=0.0), 10, np.asarray([0.0, 0.1, 5.0]), np.random.default_rng(1))
    assert alone.kind.tolist() == [PAGE, PAGE, NEXT]  # nothing was shown before


def test_listeners_are_drawn_by_zipf() -> None:
    """The listener of rank r asks r times less than the first; strangers ask as often as they should."""
    steps = draw(Mix(events=0, next_pages=0, strangers=0.1), 1000, np.arange(200_000) / 100.0, np.random.default_rng(5))
    known = steps.listener[steps.listener < 1000]
    assert known.size / steps.listener.size == pytest.approx(0.9, abs=0.005)
    counts = np.bincount(known, minlength=1000)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.15)
    assert counts[:100].sum() / counts.sum() == pytest.approx(5.187 / 7.485, abs=0.01)  # of the harmonic numbers


def test_strangers_ask_where_nobody_is_known() -> None:
    """Without listeners all are strangers, some keener than others."""
    found = draw(Mix(), 0, np.arange(1000) / 100.0, np.random.default_rng(1))
    one = Script(found, Mix(), [], run="r")
    asked = [home_pb2.GetHomeRequest.FromString(one.ask(step).request).user_id for step in range(1000)]
    assert all(user_id.startswith("stranger-") for user_id in asked)
    assert 10 < asked.count("stranger-0") < 200


def test_a_page_without_an_answer_is_asked_for_again() -> None:
    """Where the page before brought nothing, its next page and its events become a first page of the same listener."""
    one = script(4, mix=Mix(events=0.3, next_pages=0.3))
    for step in np.flatnonzero(one.steps.follows >= 0)[:50]:
        call = one.ask(int(step))
        request = home_pb2.GetHomeRequest.FromString(call.request)
        assert call.kind == PAGE
        assert not request.page_token
        rank = int(one.steps.listener[step])
        assert request.user_id == LISTENERS[rank] if rank < len(LISTENERS) else request.user_id.startswith("stranger-")
