"""Who is served which arm: murmur3 of salt and unit, one map of buckets per layer, an arm by the experiment's own salt.

Order of evaluation in each layer: override, allow-list, holdout, allocation, targeting, arm. Targeting comes after
allocation: who fails it gets the layer's defaults and is offered to no other experiment.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Final

from features.keys import arm_code, hash64
from ranking.experiments.book import Book
from ranking.experiments.owners import Owners
from ranking.experiments.spec import BUCKETS, Arm, Experiment, Layer, Targeting
from ranking.params import INDEX, resolve

MAX_UNIT: Final = 128  # bytes, of a user_id everywhere


class Reason(StrEnum):
    """Why a listener is served an arm, or a layer's defaults."""

    OVERRIDE = "override"  # an authorised caller forced it; not to be analysed
    ALLOW_LIST = "allow_list"  # the experiment names the listener; not to be analysed
    BUCKET = "bucket"
    UNIT_KEY_ERROR = "unit_key_error"
    HOLDOUT = "holdout"
    NOT_ALLOCATED = "not_allocated"  # nobody holds the bucket
    NOT_RAMPED = "not_ramped"  # its holder does not serve it yet
    NOT_TARGETED = "not_targeted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """What targeting looks at."""

    market: str = ""
    segment: int = -1  # -1: not known
    device: str = ""
    locale: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a layer comes to for a listener; without an arm its defaults."""

    layer: str
    reason: Reason
    experiment: str = ""
    arm: str = ""
    overrides: tuple[tuple[int, float], ...] = ()  # place of a param, its value
    code: int = 0  # of the arm, as tracking tokens carry it


def bucket_of(salt: str, unit: str, buckets: int) -> int:
    """The bucket of a unit: bits 4 and up of the low half of murmur3_x64_128 of `salt|unit`, modulo their number."""
    return (hash64(f"{salt}|{unit}") >> 4) % buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """One experiment, ready to be asked."""

    salt: str
    targeting: Targeting | None  # none: everybody
    uppers: tuple[int, ...]  # [arm], the buckets of an arm are those from the upper before up to its own
    arms: tuple[Assignment, ...]
    not_ramped: Assignment
    not_targeted: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """One layer with running experiments, ready to be asked."""

    id: str
    salt: str
    owners: Owners
    running: Mapping[int, _Running]  # by number
    allowed: Mapping[str, Assignment]  # user_id -> its arm
    held_out: Assignment
    not_allocated: Assignment
    no_unit: Assignment


class Assigner:
    """Assigns listeners by one book. Measured for 6 layers, 100 experiments and 5.5 arms each: 6 us a listener."""

    def __init__(self, book: Book) -> None:
        """Prepares every answer that there can be, so that assigning makes no objects of its own."""
        self.version = book.digest
        self._forced = {
            (key, arm.key): _assignment(one, arm, Reason.OVERRIDE)
            for key, one in book.spec.running.items()
            for arm in one.arms
        }
        self.experiments = frozenset(book.spec.running)
        self._layers = tuple(_open(book, layer) for layer in book.spec.layers if layer.id in book.owners)
        self._salts = tuple({layer.salt for layer in self._layers})
        every = frozenset(layer.id for layer in self._layers)
        self._holdouts = tuple(
            (f"{one.id}:holdout", round(one.share * BUCKETS), frozenset(one.layers) or every)
            for one in book.spec.holdouts
        )

    def forced(self, experiment: str, arm: str) -> Assignment | None:
        """The assignment that a caller asks for; none where there is no such arm."""
        return self._forced.get((experiment, arm))

    def assign(self, unit: str, audience: Audience, forced: Mapping[str, Assignment]) -> tuple[Assignment, ...]:
        """The arms that a listener is served, at most one of each layer; `forced` is by layer."""
        return tuple([one for one in self.outcomes(unit, audience, forced) if one.arm])

    def outcomes(self, unit: str, audience: Audience, forced: Mapping[str, Assignment]) -> list[Assignment]:
        """What every layer with running experiments comes to for a listener."""
        if not 1 <= len(unit.encode()) <= MAX_UNIT:
            return [forced.get(layer.id, layer.no_unit) for layer in self._layers]
        held: set[str] = set()
        for salt, upper, layers in self._holdouts:
            if bucket_of(salt, unit, BUCKETS) < upper:
                held |= layers
        drawn = {salt: bucket_of(salt, unit, BUCKETS) for salt in self._salts}
        return [
            forced.get(layer.id)
            or layer.allowed.get(unit)
            or (layer.held_out if layer.id in held else _of_bucket(layer, drawn[layer.salt], unit, audience))
            for layer in self._layers
        ]

    def buckets(self, unit: str) -> Mapping[str, int]:
        """A listener's bucket in every layer with running experiments."""
        return {layer.id: bucket_of(layer.salt, unit, BUCKETS) for layer in self._layers}


def _of_bucket(layer: _Open, bucket: int, unit: str, audience: Audience) -> Assignment:
    entry = layer.owners.item(bucket)
    if not entry:
        return layer.not_allocated
    one = layer.running[entry >> 1]
    if not entry & 1:
        return one.not_ramped
    if one.targeting is not None and not _meets(audience, one.targeting):
        return one.not_targeted
    drawn = bucket_of(one.salt, unit, one.uppers[-1])
    return one.arms[bisect_right(one.uppers, drawn)]


def _meets(audience: Audience, wanted: Targeting) -> bool:
    return (
        (not wanted.markets or audience.market in wanted.markets)
        and (not wanted.segments or audience.segment in wanted.segments)
        and (not wanted.devices or audience.device in wanted.devices)
        and (not wanted.locales or _speaks(audience.locale.lower(), wanted.locales))
    )


def _speaks(locale: str, wanted: tuple[str, ...]) -> bool:
    return any(f"{locale}-".startswith(f"{one.lower()}-") for one in wanted)


def _open(book: Book, layer: Layer) -> _Open:
    own = {key: one for key, one in book.spec.running.items() if one.layer == layer.id}
    return _Open(
        id=layer.id,
        salt=book.spec.salt_of(layer),
        owners=book.owners[layer.id],
        running={book.ledger.numbers[key]: _running(one) for key, one in own.items()},
        allowed={
            user: next(_assignment(one, arm, Reason.ALLOW_LIST) for arm in one.arms if arm.key == wanted)
            for one in own.values()
            for user, wanted in one.allow_list.items()
        },
        held_out=Assignment(layer=layer.id, reason=Reason.HOLDOUT),
        not_allocated=Assignment(layer=layer.id, reason=Reason.NOT_ALLOCATED),
        no_unit=Assignment(layer=layer.id, reason=Reason.UNIT_KEY_ERROR),
    )


def _running(one: Experiment) -> _Running:
    everybody = one.targeting == Targeting()
    return _Running(
        salt=one.salt,
        targeting=None if everybody else one.targeting,
        uppers=tuple(accumulate(arm.weight for arm in one.arms)),
        arms=tuple(_assignment(one, arm, Reason.BUCKET) for arm in one.arms),
        not_ramped=Assignment(layer=one.layer, reason=Reason.NOT_RAMPED, experiment=one.key),
        not_targeted=Assignment(layer=one.layer, reason=Reason.NOT_TARGETED, experiment=one.key),
    )


def _assignment(one: Experiment, arm: Arm, reason: Reason) -> Assignment:
    values = resolve(arm.params)
    overrides = tuple((INDEX[name], float(values[INDEX[name]])) for name in arm.params)
    code = arm_code(one.key, one.iteration, arm.key)
    return Assignment(layer=one.layer, reason=reason, experiment=one.key, arm=arm.key, overrides=overrides, code=code)
