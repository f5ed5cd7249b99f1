"""Explains a page: each stage's counts, the params with their origin, the terms of each score, and what-ifs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from features.errors import InvalidInput
from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.experiments.assignment import Assignment
from ranking.params import INDEX, PARAMS, Value, named, resolve
from ranking.surfaces import ShelfSpec, Surface
from ranking.types import Fate, Home, HomeQuery, Trace
from server.codec import item_id_of
from server.fates import SENTENCES

Tuned = TypeVar("Tuned", Surface, ShelfSpec)


def stages(home: Home, trace: Trace) -> Iterator[home_pb2.StageTrace]:
    """What each stage took for the batch, and how many candidates of this page it marked with which fate."""
    for stage, seconds in trace.stages:
        fates = {fate.name.lower(): count for fate, count in home.fates.items() if SENTENCES[fate][0] == stage}
        yield home_pb2.StageTrace(stage=stage, micros=seconds * 1e6, fates=fates)


def params(
    surface: Surface,
    assignments: Sequence[Assignment] = (),
    fixed: frozenset[tuple[str, int]] = frozenset(),
) -> Iterator[home_pb2.ParamValue]:
    """The surface's params, and what its shelves have otherwise, each with where its value comes from.

    What an arm overrides stands for every shelf, but for what the request itself has `fixed`.
    """
    arms = {place: (one, value) for one in assignments for place, value in one.overrides if ("", place) not in fixed}
    for param in PARAMS:
        place = INDEX[param.name]
        value, origin = surface.params[place], surface.origins.get(param.name, "default")
        if place in arms:
            arm, value = arms[place]
            origin = f"{arm.experiment}/{arm.arm}"
        yield home_pb2.ParamValue(name=param.name, value=named(param, value), origin=origin)
        for shelf in surface.shelves:
            own = place not in arms or (shelf.id, place) in fixed
            if own and shelf.params[place] != value:
                origin = shelf.origins.get(param.name, "default")
                told = named(param, shelf.params[place])
                yield home_pb2.ParamValue(name=f"{shelf.id}.{param.name}", value=told, origin=origin)


def scores(home: Home, snapshot: Snapshot) -> Iterator[home_pb2.ScoreTerms]:
    """The terms of every shown item's score, from the top of the page; they add up to it."""
    lines = {line.spec.id: line for line in home.lines}
    for shelf in home.shelves:
        line = lines[shelf.spec.id]
        for place in np.flatnonzero(line.fate == Fate.SHOWN).tolist():
            told = {name: float(values[place]) for name, values in line.terms.items()}
            item_id = item_id_of(snapshot, int(line.rows[place]))
            yield home_pb2.ScoreTerms(shelf_id=shelf.spec.id, item_id=item_id, terms=told)


def what_if(query: HomeQuery, settings: Mapping[str, str]) -> HomeQuery:
    """The query with params set: by name on the surface and every shelf, as `SHELF.PARAM` on one; no arm changes those.

    Raises:
        InvalidInput: naming the param or shelf that is unknown, or the value outside its range.
    """
    surface, known = query.surface, {shelf.id for shelf in query.surface.shelves}
    of_all = {name: _value(text) for name, text in settings.items() if "." not in name}
    of_one: dict[str, dict[str, Value]] = {}
    for name, text in settings.items():
        shelf_id, dot, param = name.rpartition(".")
        if dot and shelf_id not in known:
            raise InvalidInput(("set_params", f"{shelf_id} is no shelf; there are {', '.join(sorted(known))}"))
        if dot:
            of_one.setdefault(shelf_id, {})[param] = _value(text)
    shelves = tuple(_with(shelf, {**of_all, **of_one.get(shelf.id, {})}) for shelf in surface.shelves)
    changed = replace(_with(surface, of_all), shelves=shelves)
    fixed = {(shelf_id, INDEX[name]) for shelf_id, values in ({"": of_all} | of_one).items() for name in values}
    return replace(query, surface=changed, fixed=query.fixed | fixed)


def _with(one: Tuned, wanted: Mapping[str, Value]) -> Tuned:
    try:
        resolved = resolve(wanted)
    except ValueError as error:
        raise InvalidInput(("set_params", str(error))) from error
    changed, places = one.params.copy(), [INDEX[name] for name in wanted]
    changed[places] = resolved[places]
    return replace(one, params=changed, origins={**one.origins, **dict.fromkeys(wanted, "request")})


def _value(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text
