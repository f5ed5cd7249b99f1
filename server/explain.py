"""Explains a page: each stage's counts, the params with their origin, the terms of each score, the fate of an item."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from features.errors import InvalidInput
from features.keys import hash64
from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.params import INDEX, PARAMS, Params, Value, named, resolve
from ranking.score import item_terms
from ranking.surfaces import Surface
from ranking.types import Fate, Home, HomeQuery, Trace, TracedLine

UNKNOWN: Final = ("unknown", "retrieve", "the catalogue has no such item")
UNFOUND: Final = ("not_retrieved", "retrieve", "it is not among the candidates of this shelf")
# fate -> the stage that marks it, and why, as a person reads it
SENTENCES: Final[Mapping[Fate, tuple[str, str]]] = {
    Fate.KEPT: ("layout", "it is in reserve: the shelf was full before its turn came"),
    Fate.SHOWN: ("layout", "it is shown"),
    Fate.PADDING: ("retrieve", "it is no candidate"),
    Fate.MARKET: ("filter", "it is not licensed in the listener's market"),
    Fate.UNAVAILABLE: ("filter", "it is outside its window of availability"),
    Fate.EXPLICIT: ("filter", "it is marked explicit, and the listener does not allow that"),
    Fate.HIDDEN: ("filter", "the listener hid it"),
    Fate.EXCLUDED: ("filter", "the request excludes it"),
    Fate.PLAYED: ("filter", "the listener has played it, and the shelf shows only what they have not"),
    Fate.OFF_GENRE: ("filter", "it is not of the shelf's genre"),
    Fate.CAPPED: ("arrange", "its artist or its album has its share of the shelf already"),
    Fate.DUPLICATE: ("layout", "it stands on a shelf further up"),
    Fate.THIN: ("layout", "its shelf had too few items left to be shown"),
    Fate.PICKED: ("arrange", "it was chosen for its shelf"),
}


def stages(home: Home, trace: Trace) -> Iterator[home_pb2.StageTrace]:
    """What each stage took for the batch, and how many candidates of this page it marked with which fate."""
    for stage, seconds in trace.stages:
        fates = {fate.name.lower(): count for fate, count in home.fates.items() if SENTENCES[fate][0] == stage}
        yield home_pb2.StageTrace(stage=stage, micros=seconds * 1e6, fates=fates)


def params(surface: Surface) -> Iterator[home_pb2.ParamValue]:
    """The surface's params, and what its shelves set otherwise, each with where its value comes from."""
    defaults = resolve()
    for param in PARAMS:
        place = INDEX[param.name]
        origin = "default" if surface.params[place] == defaults[place] else "surface"
        yield home_pb2.ParamValue(name=param.name, value=named(param, surface.params[place]), origin=origin)
        for shelf in surface.shelves:
            if shelf.params[place] != surface.params[place]:
                value = named(param, shelf.params[place])
                yield home_pb2.ParamValue(name=f"{shelf.id}.{param.name}", value=value, origin="shelf")


def scores(home: Home, snapshot: Snapshot, query: HomeQuery) -> Iterator[home_pb2.ScoreTerms]:
    """The terms of every shown item's score; they add up to it."""
    for shelf in home.shelves:
        terms = item_terms(shelf.rows, shelf.scores, shelf.spec.params, query.now, snapshot)
        for place, row in enumerate(shelf.rows.tolist()):
            told = {name: float(values[place]) for name, values in terms.items()}
            yield home_pb2.ScoreTerms(shelf_id=shelf.spec.id, item_id=item_id_of(snapshot, row), terms=told)


def fates(home: Home, snapshot: Snapshot, item_id: str) -> Iterator[home_pb2.ItemFate]:
    """What became of one item, on each shelf that the page could have had."""
    row = int(snapshot.rows_of(np.array([hash64(item_id)], np.uint64))[0])
    if row < 0:
        yield _fate(item_id, *UNKNOWN)
        return
    for line in home.lines:
        places = np.flatnonzero(line.rows == row)
        if len(places):
            yield _met(item_id, line, int(places[0]))
        else:
            yield _fate(item_id, UNFOUND[0], UNFOUND[1], f"{line.spec.id}: {UNFOUND[2]}")


def item_id_of(snapshot: Snapshot, row: int) -> str:
    """The id of a row's item, from its card."""
    start, stop = snapshot.columns["card_offset"][row : row + 2].tolist()
    return home_pb2.Item.FromString(snapshot.cards[start:stop]).item_id


def what_if(query: HomeQuery, settings: Mapping[str, str]) -> HomeQuery:
    """The query with params set on every shelf.

    Raises:
        InvalidInput: naming the param that is unknown or outside its range.
    """
    wanted = {name: _value(text) for name, text in settings.items()}
    try:
        resolve(wanted)
    except ValueError as error:
        raise InvalidInput(("set_params", str(error))) from error
    surface = query.surface
    shelves = tuple(replace(shelf, params=_set(shelf.params, wanted)) for shelf in surface.shelves)
    return replace(query, surface=replace(surface, shelves=shelves, params=_set(surface.params, wanted)))


def _set(values: Params, wanted: Mapping[str, Value]) -> Params:
    changed, resolved = values.copy(), resolve(wanted)
    places = [INDEX[name] for name in wanted]
    changed[places] = resolved[places]
    return changed


def _value(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text


def _met(item_id: str, line: TracedLine, place: int) -> home_pb2.ItemFate:
    fate = Fate(line.fate[place])
    stage, sentence = SENTENCES[fate]
    margin = ""
    shown = line.scores[line.fate == Fate.SHOWN]
    if fate is Fate.KEPT and len(shown):
        margin = f"; its score {line.scores[place]:.3f} is {shown.min() - line.scores[place]:.3f} below the last shown"
    return _fate(item_id, fate.name.lower(), stage, f"{line.spec.id}: {sentence}{margin}")


def _fate(item_id: str, fate: str, stage: str, text: str) -> home_pb2.ItemFate:
    return home_pb2.ItemFate(item_id=item_id, fate=fate, stage=stage, text=text)


def dropped(home: Home, snapshot: Snapshot, item_ids: Iterable[str]) -> Iterator[home_pb2.ItemFate]:
    """What became of the caller's candidates that are not shown."""
    known = {int(key): item_id for key, item_id in ((hash64(one), one) for one in item_ids)}
    for line in home.lines:
        for place, row in enumerate(line.rows.tolist()):
            item_id = known.pop(int(snapshot.columns["item_key"][row]))
            if line.fate[place] != Fate.SHOWN:
                stage, sentence = SENTENCES[Fate(line.fate[place])]
                yield _fate(item_id, Fate(line.fate[place]).name.lower(), stage, sentence)
    for item_id in known.values():
        yield _fate(item_id, *UNKNOWN)
