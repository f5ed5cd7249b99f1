"""The experiment book: what may be applied, what may follow what, and what a reader refuses; each with its path."""

import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from features.errors import BookRefused, InvalidInput
from ranking.experiments.applying import EMPTY, apply
from ranking.experiments.book import Book, digest_of, moved, read_book, read_ledger
from ranking.experiments.owners import MAX_BLOB, holder, live, pack, unpack
from ranking.experiments.spec import BUCKETS, MAX_JSON, Spec, read_spec

Said = dict[str, Any]


def said() -> Said:
    """A good spec: two layers, two experiments in the first and one in the second."""
    arms = [{"key": "control"}, {"key": "lower", "params": {"mmr_lambda": 0.5}}]
    other = [{"key": "control"}, {"key": "file", "params": {"page_order": "file", "row_decay": 0.9}}]
    return {
        "layers": [
            {"id": "variety", "params": ["diversity", "mmr_lambda", "artist_cap"]},
            {"id": "page", "params": ["page_order", "row_decay"]},
        ],
        "holdouts": [{"id": "year", "share": 0.01}],
        "experiments": [
            {"key": "mmr", "layer": "variety", "reserved": 0.2, "ramp": 0.5, "arms": arms},
            {"key": "cap", "layer": "variety", "reserved": 0.1, "ramp": 1.0, "arms": arms},
            {"key": "order", "layer": "page", "reserved": 0.3, "ramp": 0.1, "arms": other},
        ],
    }


def spec(change: Callable[[Said], object] = lambda _: None) -> Spec:
    """The good spec, changed."""
    made = json.loads(json.dumps(said()))  # no two arms are one object
    change(made)
    return read_spec(json.dumps(made))


@pytest.fixture(scope="module")
def book() -> Book:
    """The book of the good spec."""
    return apply(EMPTY, spec(), seed=7)


def put(path: str, value: Any) -> Callable[[Said], None]:
    """A change of one field, by its path."""

    def change(made: Said) -> None:
        *way, last = path.replace("[", ".").replace("]", "").split(".")
        at: Any = made
        for step in way:
            at = at[int(step) if step.isdigit() else step]
        at[int(last) if last.isdigit() else last] = value

    return change


FULL: Said = {"key": "full", "layer": "variety", "reserved": 0.8, "arms": [{"key": "a"}, {"key": "b"}]}
WRONG: dict[str, tuple[str, Any, str]] = {
    "an unknown field": ("experiments[0].goal", "x", "experiments[0].goal"),
    "an unknown param": ("experiments[1].arms[1].params.mmr", 1, "experiments[1].arms[1].params.mmr"),
    "a param out of range": ("experiments[2].arms[1].params.row_decay", 2, "experiments[2].arms[1].params.row_decay"),
    "a choice that is none": (
        "experiments[2].arms[1].params.page_order",
        "best",
        "experiments[2].arms[1].params.page_order",
    ),
    "a choice by number": ("experiments[2].arms[1].params.page_order", 1, "experiments[2].arms[1].params.page_order"),
    "a number as text": ("experiments[0].arms[1].params.mmr_lambda", "0.5", "experiments[0].arms[1].params.mmr_lambda"),
    "a truth value": ("experiments[0].arms[1].params.mmr_lambda", True, "experiments[0].arms[1].params.mmr_lambda"),
    "no number": ("experiments[0].arms[1].params.mmr_lambda", np.nan, "experiments[0].arms[1].params.mmr_lambda"),
    "another layer's param": (
        "experiments[0].arms[1].params.row_decay",
        0.9,
        "experiments[0].arms[1].params.row_decay",
    ),
    "a layer's unknown param": ("layers[0].params[1]", "mmr", "layers[0].params[1]"),
    "a param of two layers": ("layers[1].params[1]", "mmr_lambda", "layers[1].params[1]"),
    "two layers of one id": ("layers[1].id", "variety", "layers[1].id"),
    "an unknown layer": ("experiments[2].layer", "other", "experiments[2].layer"),
    "two experiments of one key": ("experiments[1].key", "mmr", "experiments[1].key"),
    "two arms of one key": ("experiments[0].arms[1].key", "control", "experiments[0].arms[1].key"),
    "one arm": ("experiments[0].arms", [{"key": "a"}], "experiments[0].arms"),
    "no weight": ("experiments[0].arms[0].weight", 0, "experiments[0].arms[0].weight"),
    "a weight of parts": ("experiments[0].arms[0].weight", 0.5, "experiments[0].arms[0].weight"),
    "a weight as text": ("experiments[0].arms[0].weight", "1", "experiments[0].arms[0].weight"),
    "nothing reserved": ("experiments[0].reserved", 0, "experiments[0].reserved"),
    "too much reserved": ("experiments[0].reserved", 1.1, "experiments[0].reserved"),
    "more than the layer has": ("experiments[1].reserved", 0.9, "experiments[1].reserved"),
    "a ramp beyond": ("experiments[0].ramp", 1.5, "experiments[0].ramp"),
    "a ramp below": ("experiments[0].ramp", -0.1, "experiments[0].ramp"),
    "no iteration": ("experiments[0].iteration", 0, "experiments[0].iteration"),
    "no market": ("experiments[0].targeting", {"markets": ["UK"]}, "experiments[0].targeting.markets[0]"),
    "no segment": ("experiments[0].targeting", {"segments": [32]}, "experiments[0].targeting.segments[0]"),
    "no locale": ("experiments[0].targeting", {"locales": ["en_GB"]}, "experiments[0].targeting.locales[0]"),
    "targeting of what is not known": ("experiments[0].targeting", {"ages": [1]}, "experiments[0].targeting.ages"),
    "an allow-list of no arm": ("experiments[0].allow_list", {"me": "none"}, "experiments[0].allow_list.me"),
    "an allow-list of no user": ("experiments[0].allow_list", {"m e": "lower"}, "experiments[0].allow_list.m e"),
    "a holdout of no layer": ("holdouts[0].layers", ["none"], "holdouts[0].layers[0]"),
    "a holdout of nobody": ("holdouts[0].share", 0, "holdouts[0].share"),
    "a salt of ours": ("layers[0].salt", "mmr:1", "layers[0].salt"),
    "a key that is no name": ("experiments[0].key", "MMR 1", "experiments[0].key"),
}


@pytest.mark.parametrize(("where", "value", "path"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_by_its_path(where: str, value: Any, path: str) -> None:
    """At write: InvalidInput with the path of that field first; what follows from it may come behind."""
    with pytest.raises(InvalidInput) as refused:
        apply(EMPTY, spec(put(where, value)), seed=1)
    assert refused.value.violations[0][0] == path


def test_a_listener_on_two_lists_of_a_layer_is_refused() -> None:
    """Of the second one the path."""

    def change(made: Said) -> None:
        for one in made["experiments"]:
            one["allow_list"] = {"me": "control"}

    with pytest.raises(InvalidInput) as refused:
        apply(EMPTY, spec(change), seed=1)
    assert [path for path, _ in refused.value.violations] == ["experiments[1].allow_list.me"]


def test_a_spec_that_is_too_large_or_no_json_is_refused() -> None:
    """The size is looked at first."""
    for raw in (b" " * (MAX_JSON + 1), b"{", b"[]", b"\xff"):
        with pytest.raises(InvalidInput, match="spec"):
            read_spec(raw)


FOLLOWS: dict[str, tuple[Callable[[Said], object], str]] = {
    "a reservation that shrinks": (put("experiments[0].reserved", 0.1), "experiments[0].reserved"),
    "a ramp that shrinks": (put("experiments[0].ramp", 0.4), "experiments[0].ramp"),
    "a running experiment taken out": (lambda made: made["experiments"].pop(), "experiments"),
    "an arm that changes": (put("experiments[0].arms[1].params.mmr_lambda", 0.6), "experiments[0].arms"),
    "a weight that changes": (put("experiments[0].arms[1].weight", 2), "experiments[0].arms"),
    "targeting that changes": (put("experiments[0].targeting", {"markets": ["GB"]}), "experiments[0].targeting"),
    "an account salt that changes": (put("salt", "other"), "layers[0].salt"),
    "a layer's salt that changes": (put("layers[1].salt", "other"), "layers[1].salt"),
    "a holdout that shrinks": (put("holdouts[0].share", 0.005), "holdouts[0].share"),
    "a holdout of other layers": (put("holdouts[0].layers", ["page"]), "holdouts[0].layers"),
}


@pytest.mark.parametrize(("change", "path"), FOLLOWS.values(), ids=FOLLOWS)
def test_what_may_not_follow_is_named_by_its_path(book: Book, change: Callable[[Said], object], path: str) -> None:
    """Nothing that would move a listener follows a book."""
    with pytest.raises(InvalidInput) as refused:
        apply(book, spec(change), seed=1)
    assert path in [found for found, _ in refused.value.violations]


def test_an_experiment_that_moves_to_another_layer_is_refused(book: Book) -> None:
    """Its listeners were drawn in the first."""

    def change(made: Said) -> None:
        made["layers"][1]["params"] += ["mmr_lambda"]
        made["layers"][0]["params"].remove("mmr_lambda")
        made["experiments"] = [{**made["experiments"][0], "layer": "page"}, *made["experiments"][1:]]
        made["experiments"][1]["concluded"] = True
        made["experiments"][1]["arms"] = [{"key": "a"}, {"key": "b"}]

    with pytest.raises(InvalidInput) as refused:
        apply(book, spec(change), seed=1)
    assert [path for path, _ in refused.value.violations] == ["experiments[0].layer"]


def test_what_was_drawn_stays_drawn(book: Book) -> None:
    """A ramp and a larger reservation only add, whatever the seed; what does not change keeps its array."""

    def wider(made: Said) -> None:
        made["experiments"][0] |= {"ramp": 0.8, "reserved": 0.4}

    after = apply(book, spec(wider), seed=99)
    number = book.ledger.numbers["mmr"]
    old, new = book.owners["variety"], after.owners["variety"]
    assert not ((holder(old) == number) & (holder(new) != number)).any()
    assert not (live(old, number) & ~live(new, number)).any()
    assert int((holder(new) == number).sum()) == 400_000
    assert int(live(new, number).sum()) == 320_000
    assert after.ledger.owners["page"] == book.ledger.owners["page"]
    assert moved(book, after) == []
    assert [path for path, _ in moved(after, book)] == ["experiments.mmr"]


def test_concluding_returns_the_buckets_after_a_rest(book: Book) -> None:
    """They are free in the next book; no new experiment takes them in the one that concludes."""

    def conclude(made: Said) -> None:
        made["experiments"][0]["concluded"] = True

    def replaced(made: Said) -> None:
        conclude(made)
        made["experiments"].append(FULL)

    with pytest.raises(InvalidInput) as refused:
        apply(book, spec(replaced), seed=1)
    assert [path for path, _ in refused.value.violations] == ["experiments[3].reserved"]
    concluded = apply(book, spec(conclude), seed=1)
    assert not (holder(concluded.owners["variety"]) == book.ledger.numbers["mmr"]).any()
    after = apply(concluded, spec(replaced), seed=1)
    assert int((holder(after.owners["variety"]) == after.ledger.numbers["full"]).sum()) == 800_000


def test_what_was_concluded_comes_back_as_another_iteration_only(book: Book) -> None:
    """Also after it was taken out: the book remembers."""
    concluded = apply(book, spec(put("experiments[2].concluded", value=True)), seed=1)
    gone = apply(concluded, spec(lambda made: made["experiments"].pop()), seed=1)
    for before in (concluded, gone):
        with pytest.raises(InvalidInput) as refused:
            apply(before, spec(), seed=1)
        assert [path for path, _ in refused.value.violations] == ["experiments[2].iteration"]
        again = apply(before, spec(put("experiments[2].iteration", 2)), seed=1)
        assert again.spec.running["order"].salt == "order:2"


def test_the_same_spec_makes_the_same_book(book: Book) -> None:
    """Applying twice changes nothing; the same seed draws the same."""
    assert apply(book, spec(), seed=8) is book
    assert apply(EMPTY, spec(), seed=7).digest == book.digest
    assert apply(EMPTY, spec(), seed=8).digest != book.digest


def test_a_book_is_read_as_it_was_written(book: Book) -> None:
    """Its JSON is canonical and its name the SHA-256 of it."""
    ledger = read_ledger(book.raw, book.digest)
    found = read_book(book.raw, ledger, book.blobs)
    assert found.digest == book.digest == hashlib.sha256(book.raw).hexdigest()
    assert json.dumps(json.loads(book.raw), sort_keys=True, separators=(",", ":")).encode() == book.raw
    assert all(np.array_equal(found.owners[layer], array) for layer, array in book.owners.items())


def ledger_with(book: Book, path: str, value: Any) -> bytes:
    """The book's JSON with one field changed."""
    made = json.loads(book.raw)
    put(path, value)(made)
    return json.dumps(made).encode()


POISON: dict[str, tuple[str, Any, str]] = {
    "a type": ("spec.experiments[0].reserved", "0.2", "spec.experiments[0].reserved"),
    "NaN": ("spec.experiments[0].arms[1].params.mmr_lambda", np.nan, "mmr_lambda"),
    "infinity": ("spec.experiments[0].ramp", np.inf, "spec.experiments[0].ramp"),
    "an unknown param": ("spec.experiments[0].arms[1].params.boost", 1, "params.boost"),
    "an unknown field": ("spec.experiments[0].boost", 1, "boost"),
    "another format": ("format", 2, "format"),
    "overlapping owners": ("numbers.cap", 1, "overlaps"),
    "a number of nobody": ("numbers.none", 9, "numbers.none"),
    "a number beyond": ("numbers.mmr", 40_000, "numbers.mmr"),
    "a layer without an array": ("owners", {}, "owners.variety: is missing"),
    "a digest that is none": ("owners.variety", "00", "owners.variety"),
    "an iteration that was never": ("spec.experiments[0].iteration", 9, "iterations.mmr"),
}


@pytest.mark.parametrize(("where", "value", "told"), POISON.values(), ids=POISON)
def test_poisoned_json_is_refused(book: Book, where: str, value: Any, told: str) -> None:
    """At read, under its right name: BookRefused with the path."""
    raw = ledger_with(book, where, value)
    with pytest.raises(BookRefused) as refused:
        read_ledger(raw, digest_of(raw))
    assert told in str(refused.value)


def test_json_that_is_too_large_altered_or_none_is_refused(book: Book) -> None:
    """The size before anything else, then the name."""
    for raw, digest, told in (
        (b"[" * 10_000_000, "", "larger than 1,048,576 bytes"),
        (book.raw + b" ", book.digest, "not what its name says"),
        (b"[" * 100_000, digest_of(b"[" * 100_000), "spec"),
        (b"\xff", digest_of(b"\xff"), "spec"),
    ):
        with pytest.raises(BookRefused, match=told):
            read_ledger(raw, digest)


def test_poisoned_owners_are_refused(book: Book) -> None:
    """Missing, altered, too long, too short, a bomb, or other buckets than the JSON says."""
    good = book.owners["variety"]
    stray, fewer = good.copy(), good.copy()
    stray[np.flatnonzero(good == 0)[0]] = 2 * 77
    fewer[np.flatnonzero(good == 2 * book.ledger.numbers["mmr"])[0]] = 0
    bomb = zlib.compress(bytes(200_000_000), 9)
    for blob, told in (
        (b"", "the blob is missing or altered"),
        (b"no zlib", "no compressed array"),
        (pack(good)[:-9], "does not hold 1,000,000 buckets"),
        (zlib.compress(bytes(2 * BUCKETS + 2)), "does not hold"),
        (bomb, "does not hold"),
        (pack(stray), "1 of 1,000,000 buckets are of no running experiment"),
        (pack(fewer), "mmr holds 199,999 buckets and serves 100,000"),
    ):
        assert len(blob) <= MAX_BLOB
        raw = ledger_with(book, "owners.variety", digest_of(blob) if blob else "0" * 64)
        ledger = read_ledger(raw, digest_of(raw))
        with pytest.raises(BookRefused) as refused:
            read_book(raw, ledger, {**book.blobs, digest_of(blob): blob})
        assert f"owners.variety: {told}" in str(refused.value)


def test_a_full_layer_of_many_experiments_fits_its_blob() -> None:
    """The worst case of compression: every bucket of another of 200 experiments, half of them live."""
    arms = [{"key": "a"}, {"key": "b"}]
    many = [{"key": f"e{n}", "layer": "l", "reserved": 0.005, "ramp": 0.5, "arms": arms} for n in range(200)]
    made = {"layers": [{"id": "l", "params": ["mmr_lambda"]}], "experiments": many}
    (blob,) = apply(EMPTY, read_spec(json.dumps(made)), seed=1).blobs.values()
    assert len(blob) <= MAX_BLOB
    assert int((unpack(blob) == 0).sum()) == 0
