"""From a book and what is to run next to the next book: draws for what is new, extends what grows, frees what ended."""

import numpy as np

from features.errors import InvalidInput
from ranking.experiments.book import Book, bind
from ranking.experiments.owners import Owners, holder, nobody, ramp, reserve
from ranking.experiments.rules import changes, mistakes
from ranking.experiments.spec import BUCKETS, MAX_JSON, Experiment, Spec

EMPTY = bind(Spec(), {}, {}, {}, 0)
"""The book before the first."""


def apply(previous: Book, spec: Spec, *, seed: int) -> Book:
    """The next book; the same one where nothing changes. What was drawn stays drawn.

    Buckets that come free rest for one book: workers change books at different moments, and in none of them shall a
    listener be in the new experiment on one worker while still in the old on another.

    Raises:
        InvalidInput: naming every field that breaks a rule.
    """
    if spec == previous.spec:
        return previous
    if wrong := [*mistakes(spec), *changes(previous.spec, spec, previous.ledger.iterations)]:
        raise InvalidInput(*wrong)
    numbers = _numbers(previous, spec)
    rng = np.random.default_rng(seed)
    owners = {}
    for layer in spec.layers:
        if any(one.layer == layer.id for one in spec.running.values()):
            owners[layer.id] = _drawn(previous, spec, layer.id, numbers, rng)
    latest = {one.key: one.iteration for one in spec.experiments}
    book = bind(spec, owners, numbers, {**previous.ledger.iterations, **latest}, seed)
    if len(book.raw) > MAX_JSON:
        raise InvalidInput(("spec", f"makes a book of more than {MAX_JSON:,} bytes of JSON"))
    return book


def goes_on(previous: Book, one: Experiment) -> bool:
    """Whether an experiment was running already, in this iteration."""
    old = previous.spec.running.get(one.key)
    return old is not None and old.iteration == one.iteration


def _numbers(previous: Book, spec: Spec) -> dict[str, int]:
    """Each running experiment's number; what goes on keeps its own, what is new gets the least that nobody had."""
    kept = {key: previous.ledger.numbers[key] for key, one in spec.running.items() if goes_on(previous, one)}
    taken = {*previous.ledger.numbers.values(), *kept.values()}
    free = (number for number in range(1, len(taken) + len(spec.running) + 1) if number not in taken)
    return {key: kept.get(key) or next(free) for key in spec.running}


def _drawn(previous: Book, spec: Spec, layer: str, numbers: dict[str, int], rng: np.random.Generator) -> Owners:
    """A layer's owner array."""
    before = previous.owners.get(layer, nobody())
    running = {number: one for number, one in enumerate(spec.experiments) if one.layer == layer and not one.concluded}
    going_on = [numbers[one.key] for one in running.values() if goes_on(previous, one)]
    owners = np.where(np.isin(holder(before), going_on), before, np.uint16(0))
    rested = (before == 0) | (owners != 0)
    for place, one in running.items():
        number = numbers[one.key]
        if not reserve(owners, number, one.reserved_buckets, rested, rng):
            free = int(np.count_nonzero((owners == 0) & rested)) / BUCKETS
            resting = int(np.count_nonzero(~rested)) / BUCKETS
            what = (
                f"of the layer {layer} {free:g} is free, and {resting:g} more after this book: apply it without first"
            )
            raise InvalidInput((f"experiments[{place}].reserved", what))
        ramp(owners, number, one.live_buckets, rng)
    owners.flags.writeable = False
    return owners
