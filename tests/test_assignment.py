"""Assignment: the known answers of the hash, the order of evaluation, and what listeners may rely on."""

import json
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import mmh3
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ranking.experiments.applying import EMPTY, apply
from ranking.experiments.assignment import Assigner, Audience, Reason, bucket_of
from ranking.experiments.book import Book
from ranking.experiments.owners import holder
from ranking.experiments.spec import BUCKETS, Spec, read_spec
from ranking.params import INDEX

USERS = [f"u{number:07}" for number in range(100_000)]
ANYBODY = Audience()
NOBODY_FORCED: dict[str, Any] = {}
PARAMS = ("affinity_weight", "popularity_weight", "freshness_weight", "novelty_weight")


def experiment(key: str, layer: str = "l0", **fields: Any) -> dict[str, Any]:
    """An experiment of two arms, served to all of its reservation."""
    param = PARAMS[int(layer[1:])]
    arms = [{"key": "control"}, {"key": "treatment", "params": {param: 0.5}}]
    return {"key": key, "layer": layer, "reserved": 0.5, "ramp": 1.0, "arms": arms, **fields}


def spec_of(*experiments: dict[str, Any], layers: int = 2, **fields: Any) -> Spec:
    """A spec of experiments in layers of one param each."""
    made = [{"id": f"l{number}", "params": [PARAMS[number]]} for number in range(layers)]
    return read_spec(json.dumps({"layers": made, "experiments": experiments, **fields}))


def book_of(*experiments: dict[str, Any], **fields: Any) -> Book:
    """A first book."""
    return apply(EMPTY, spec_of(*experiments, **fields), seed=1)


def outcome(book: Book, user: str, audience: Audience = ANYBODY) -> tuple[str, str]:
    """What the first layer comes to: reason and arm."""
    found = Assigner(book).outcomes(user, audience, {})[0]
    return found.reason.value, found.arm


def arms_of(book: Book, users: list[str] = USERS) -> list[dict[str, tuple[str, str]]]:
    """Each listener's experiment and arm, by layer."""
    assigner = Assigner(book)
    found = []
    for user in users:
        assigned = assigner.assign(user, ANYBODY, NOBODY_FORCED)
        assert len({one.layer for one in assigned}) == len(assigned)
        found.append({one.layer: (one.experiment, one.arm) for one in assigned})
    return found


def test_the_bucket_is_that_of_confidence() -> None:
    """The known answer of Spotify Confidence's resolver."""
    assert bucket_of("MegaSalt-confidence-test", "roug", BUCKETS) == 567_493


def test_the_hash_is_murmur3_x64_128() -> None:
    """SMHasher's verification value: hashes of 0 to 255 bytes, each with its own seed, hashed again."""
    hashes = b"".join(mmh3.hash_bytes(bytes(range(size)), 256 - size, True) for size in range(256))
    assert int.from_bytes(mmh3.hash_bytes(hashes, 0, True)[:4], "little") == 0x6384BA69


@pytest.mark.parametrize("unit", ["", "u" * 129, "ü" * 65])
def test_who_has_no_usable_id_gets_defaults(unit: str) -> None:
    """A unit is 1 to 128 bytes of UTF-8, as given."""
    book = book_of(experiment("a", reserved=1.0), experiment("b", "l1", reserved=1.0))
    found = Assigner(book).outcomes(unit, ANYBODY, {})
    assert [(one.reason, one.arm) for one in found] == [(Reason.UNIT_KEY_ERROR, "")] * 2
    assert Assigner(book).assign("u" * 128, ANYBODY, {})


def test_a_unit_is_not_normalised() -> None:
    """Composed and decomposed letters are two listeners."""
    assert bucket_of("s", "\u00fc", BUCKETS) != bucket_of("s", "u\u0308", BUCKETS)


def test_the_order_of_evaluation() -> None:
    """Override, allow-list, holdout, allocation, ramp, targeting, arm: the first that applies decides."""
    held: dict[str, Any] = {"holdouts": [{"id": "all", "share": 1.0}]}
    named: dict[str, Any] = {"allow_list": {"me": "treatment"}}
    fussy: dict[str, Any] = {"targeting": {"markets": ["GB"]}}
    full: dict[str, Any] = {"reserved": 1.0}
    assert outcome(book_of(experiment("a", **full, **named, **fussy), **held), "me") == ("allow_list", "treatment")
    assert outcome(book_of(experiment("a", **full, **fussy), **held), "me") == ("holdout", "")
    assert outcome(book_of(experiment("a", reserved=1e-6, **fussy)), "me") == ("not_allocated", "")
    assert outcome(book_of(experiment("a", **{**full, "ramp": 0.0}, **fussy)), "me") == ("not_ramped", "")
    assert outcome(book_of(experiment("a", **full, **fussy)), "me") == ("not_targeted", "")
    assert outcome(book_of(experiment("a", **full)), "me")[0] == "bucket"
    assigner = Assigner(book_of(experiment("a", **full, **named), **held))
    forced = assigner.forced("a", "control")
    assert forced is not None
    assert assigner.assign("me", ANYBODY, {"l0": forced}) == (forced,)
    assert forced.reason is Reason.OVERRIDE


@pytest.mark.parametrize(
    ("targeting", "in_", "out"),
    [
        ({"markets": ["GB", "DE"]}, Audience(market="DE"), Audience(market="FR")),
        ({"segments": [3]}, Audience(segment=3), Audience()),
        ({"devices": ["phone"]}, Audience(device="phone"), Audience(device="phones")),
        ({"locales": ["en"]}, Audience(locale="en-GB"), Audience(locale="eng")),
        ({"locales": ["en-GB"]}, Audience(locale="EN-gb"), Audience(locale="en")),
        ({"markets": ["GB"], "devices": ["tv"]}, Audience(market="GB", device="tv"), Audience(market="GB")),
    ],
)
def test_targeting(targeting: dict[str, Any], in_: Audience, out: Audience) -> None:
    """All that is said must hold; what is not known meets nothing."""
    book = book_of(experiment("a", reserved=1.0, targeting=targeting))
    assert outcome(book, "me", in_)[0] == "bucket"
    assert outcome(book, "me", out) == ("not_targeted", "")


def test_who_fails_targeting_is_offered_no_other_experiment() -> None:
    """Their bucket belongs to the experiment that they failed."""
    book = book_of(experiment("a", targeting={"markets": ["GB"]}), experiment("b"))
    found = Counter(outcome(book, user) for user in USERS[:2000])
    assert {reason for reason, _ in found} == {"not_targeted", "bucket"}
    assert 900 < found["not_targeted", ""] < 1100


def test_a_holdout_covers_its_layers_and_no_bucket_range() -> None:
    """Who is held out of one layer is drawn by a salt of the holdout's own, and is in the other layer's experiments."""
    share: dict[str, Any] = {"holdouts": [{"id": "quarter", "layers": ["l0"], "share": 0.25}]}
    book = book_of(experiment("a", reserved=1.0), experiment("b", "l1", reserved=1.0), **share)
    assert sum("l0" not in one for one in arms_of(book, USERS[:20_000])) == pytest.approx(5000, abs=250)
    assert all("l1" in one for one in arms_of(book, USERS[:1000]))


def test_an_arm_overrides_by_name_and_an_experiment_in_between_nothing() -> None:
    """The treatment sets its param, the control leaves the layer's default."""
    assigner = Assigner(book_of(experiment("a")))
    treatment, control = assigner.forced("a", "treatment"), assigner.forced("a", "control")
    assert treatment is not None
    assert control is not None
    assert treatment.overrides == ((INDEX["affinity_weight"], 0.5),)
    assert control.overrides == ()
    assert assigner.forced("a", "none") is None


def test_weights_are_kept_within_binomial_bounds() -> None:
    """Weights 1 to 3 to 6, of 100,000 listeners: each within four standard deviations; so is the reservation."""
    arms = [{"key": "a", "weight": 1}, {"key": "b", "weight": 3}, {"key": "c", "weight": 6}]
    found = arms_of(book_of(experiment("x", reserved=0.3, ramp=0.5, arms=arms)))
    counts = Counter(one["l0"][1] for one in found if one)
    for arm, share in (("a", 0.015), ("b", 0.045), ("c", 0.09)):
        assert abs(counts[arm] - share * len(USERS)) < 4 * (len(USERS) * share * (1 - share)) ** 0.5


def test_layers_with_one_salt_are_independent() -> None:
    """Membership by membership and arm by arm: over 60 account salts the p-values of chi-square are uniform."""
    drawn = book_of(experiment("a"), experiment("b", "l1"))
    memberships, arms = [], []
    for number in range(60):
        spec = spec_of(experiment("a"), experiment("b", "l1"), salt=f"account-{number}")
        book = replace(drawn, ledger=drawn.ledger.model_copy(update={"spec": spec}))
        table, inside = np.zeros((2, 2)), np.zeros((2, 2))
        for one in arms_of(book, USERS[number * 1500 : number * 1500 + 6000]):
            table[int("l0" in one), int("l1" in one)] += 1
            if len(one) == 2:
                inside[int(one["l0"][1] == "control"), int(one["l1"][1] == "control")] += 1
        memberships.append(stats.chi2_contingency(table, correction=False).pvalue)
        arms.append(stats.chi2_contingency(inside, correction=False).pvalue)
    assert stats.kstest(memberships, "uniform").pvalue > 0.01
    assert stats.kstest(arms, "uniform").pvalue > 0.01


def test_a_reservation_is_no_range() -> None:
    """A contiguous one would hold the same listeners in every layer that shares the salt."""
    held = np.flatnonzero(holder(book_of(experiment("a", reserved=0.1)).owners["l0"]))
    assert stats.kstest(held / BUCKETS, "uniform").pvalue > 0.01
    assert (np.diff(held) > 1).mean() == pytest.approx(0.9, abs=0.01)


def test_a_ramp_changes_no_arm_and_a_new_iteration_draws_anew() -> None:
    """Over 1, 5, 10, 25, 50 and 100 % nobody who is in it changes arm; another iteration is another draw."""
    users = USERS[:20_000]
    book = book_of(experiment("a", ramp=0.01))
    before = arms_of(book, users)
    for step in (0.05, 0.1, 0.25, 0.5, 1.0):
        book = apply(book, spec_of(experiment("a", ramp=step)), seed=2)
        after = arms_of(book, users)
        assert all(new == old for old, new in zip(before, after, strict=True) if old)
        before = after
    again = apply(book, spec_of(experiment("a", iteration=2)), seed=2)
    both = [(old, new) for old, new in zip(before, arms_of(again, users), strict=True) if old and new]
    assert not both  # its buckets rest for a book, and here it had half of them
    changed = [bucket_of("a:1", user, 2) != bucket_of("a:2", user, 2) for user in users]
    assert np.mean(changed) == pytest.approx(0.5, abs=0.02)


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_sequences_of_books_never_move_a_listener(seed: int) -> None:
    """100,000 listeners over random applications, ramps and conclusions.

    Nobody is in two experiments of a layer (`arms_of`), nobody changes arm while an experiment is running, and each
    serves as many listeners as its share says.
    """
    rng = np.random.default_rng(seed)
    book, number = EMPTY, 0
    running: dict[str, dict[str, Any]] = {}
    before = arms_of(book)
    for _ in range(5):
        for key in list(running):
            step = rng.integers(3)
            if step == 0:
                running[key]["ramp"] = float(min(1.0, running[key]["ramp"] + rng.uniform(0, 0.5)))
            elif step == 1 and not running[key].get("concluded"):
                running[key]["concluded"] = True
            elif running[key].get("concluded"):
                del running[key]
        taken: dict[str, float] = defaultdict(float)
        for one in running.values():
            taken[one["layer"]] += one["reserved"]
        for _ in range(int(rng.integers(1, 4))):
            layer, share = f"l{rng.integers(2)}", float(rng.uniform(0.02, 0.3))
            if taken[layer] + share < 0.95:
                taken[layer] += share
                number += 1
                running[f"e{number}"] = experiment(f"e{number}", layer, reserved=share, ramp=float(rng.random()))
        book = apply(book, spec_of(*running.values()), seed=int(rng.integers(2**32)))
        after = arms_of(book)
        for old, new in zip(before, after, strict=True):
            for layer, (key, arm) in old.items():
                assert key not in book.spec.running or new.get(layer) == (key, arm)
        served = Counter(key for one in after for key, _ in one.values())
        for key, serves in book.spec.running.items():
            share = serves.live_buckets / BUCKETS
            assert abs(served[key] - share * len(USERS)) <= 5 * (len(USERS) * share * (1 - share)) ** 0.5 + 1
        before = after


def test_params_of_a_page_are_read_with_those_of_its_arms() -> None:
    """Who read a surface's own would pass over experiments."""
    room = Path(__file__).parent.parent / "ranking"
    readers = {path.name for path in room.glob("*.py") if "surface.params" in path.read_text()}
    assert readers == {"assign.py"}


def test_assigning_a_listener_takes_microseconds() -> None:
    """100 experiments in 4 layers: on a quiet machine 5 us a listener; six times that passes, for a busy one."""
    made = [experiment(f"e{number}", f"l{number % 4}", reserved=0.04) for number in range(100)]
    assigner, seconds = Assigner(book_of(*made, layers=4)), []
    for start in range(0, 50_000, 5000):
        begun = time.thread_time()
        for user in USERS[start : start + 5000]:
            assigner.assign(user, ANYBODY, NOBODY_FORCED)
        seconds.append((time.thread_time() - begun) / 5000)
    assert np.median(seconds) < 30e-6
