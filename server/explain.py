"""Explains a page: each stage's counts, the params with their origin, the terms of each score, the fate of an item."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import numpy as np

from features.errors import InvalidInput
from features.keys import hash64
from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.params import INDEX, PARAMS, Params, Value, named, resolve
from ranking.surfaces import Surface
from ranking.types import Fate, Home, HomeQuery, Trace, TracedLine

UNKNOWN: Final = ("unknown", "retrieve", "the catalogue has no such item")
UNDRAWN: Final = ("no_line", "draw", "this shelf cannot be filled for this listener")
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
    Fate.SAME_RECORDING: ("arrange", "a better release of the same recording is on the shelf or in its reserve"),
    Fate.CAPPED: ("arrange", "its artist or its album has its share of the shelf already"),
    Fate.DUPLICATE: ("layout", "it, or another release of it, stands on another shelf"),
    Fate.PAGE_CAPPED: ("layout", "its artist has its share of the page already"),
    Fate.THIN: ("layout", "its shelf had too few items left to be shown"),
    Fate.LATER: ("layout", "its shelf comes on a later page"),
    Fate.PICKED: ("arrange", "it was chosen for its shelf"),
}


def stages(home: Home, trace: Trace) -> Iterator[home_pb2.StageTrace]:
    """What each stage took for the batch, and how many candidates of this page it marked with which fate."""
    for stage, seconds in trace.stages:
        fates = {fate.name.lower(): count for fate, count in home.fates.items() if SENTENCES[fate][0] == stage}
        yield home_pb2.StageTrace(stage=stage, micros=seconds * 1e6, fates=fates)


def params(surface: Surface) -> Iterator[home_pb2.ParamValue]:
    """The surface's params, and what its shelves have otherwise, each with where its value comes from."""
    for param in PARAMS:
        place = INDEX[param.name]
        value, origin = named(param, surface.params[place]), surface.origins.get(param.name, "default")
        yield home_pb2.ParamValue(name=param.name, value=value, origin=origin)
        for shelf in surface.shelves:
            if shelf.params[place] != surface.params[place]:
                value, origin = named(param, shelf.params[place]), shelf.origins.get(param.name, "default")
                yield home_pb2.ParamValue(name=f"{shelf.id}.{param.name}", value=value, origin=origin)


def scores(home: Home, snapshot: Snapshot) -> Iterator[home_pb2.ScoreTerms]:
    """The terms of every shown item's score, from the top of the page; they add up to it."""
    lines = {line.spec.id: line for line in home.lines}
    for shelf in home.shelves:
        line = lines[shelf.spec.id]
        for place in np.flatnonzero(line.fate == Fate.SHOWN).tolist():
            told = {name: float(values[place]) for name, values in line.terms.items()}
            item_id = item_id_of(snapshot, int(line.rows[place]))
            yield home_pb2.ScoreTerms(shelf_id=shelf.spec.id, item_id=item_id, terms=told)


def fates(home: Home, snapshot: Snapshot, surface: Surface, item_id: str) -> Iterator[home_pb2.ItemFate]:
    """What became of one item, on each shelf of the surface."""
    row = int(snapshot.rows_of(np.array([hash64(item_id)], np.uint64))[0])
    if row < 0:
        yield _fate(item_id, *UNKNOWN)
        return
    lines = {line.spec.id: line for line in home.lines}
    for shelf in surface.shelves:
        line = lines.get(shelf.id)
        if line is None:
            yield _fate(item_id, *UNDRAWN[:2], f"{shelf.id}: {UNDRAWN[2]}")
        elif len(places := np.flatnonzero(line.rows == row)):
            yield _met(item_id, line, int(places[0]), home, snapshot)
        else:
            short = "" if np.isnan(line.missed_by) else f"; {line.missed_by:.3f} more affinity would have brought it in"
            yield _fate(item_id, *UNFOUND[:2], f"{shelf.id}: {UNFOUND[2]}{short}")


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
    origins = dict.fromkeys(wanted, "request")
    shelves = tuple(
        replace(shelf, params=_set(shelf.params, wanted), origins={**shelf.origins, **origins})
        for shelf in surface.shelves
    )
    changed = replace(surface, params=_set(surface.params, wanted), origins={**surface.origins, **origins})
    return replace(query, surface=replace(changed, shelves=shelves))


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


def _met(item_id: str, line: TracedLine, place: int, home: Home, snapshot: Snapshot) -> home_pb2.ItemFate:
    fate = Fate(line.fate[place])
    stage, sentence = SENTENCES[fate]
    said = "".join(
        f"; {one}" for one in (_detail(fate, line, place, home, snapshot), _margin(fate, line, place)) if one
    )
    return _fate(item_id, fate.name.lower(), stage, f"{line.spec.id}: {sentence}{said}")


def _detail(fate: Fate, line: TracedLine, place: int, home: Home, snapshot: Snapshot) -> str:
    """What the rule looked at."""
    row = int(line.rows[place])
    if fate is Fate.MARKET:
        return f"the market is {home.market or 'unknown'}"
    if fate is Fate.UNAVAILABLE:
        since, until = (int(snapshot.columns[name][row]) for name in ("available_from", "available_until"))
        return f"it is available from {_day(since)} until {_day(until)}"
    if fate is Fate.THIN:
        return f"it shows nothing with fewer than {line.spec.minimum}"
    if fate in {Fate.DUPLICATE, Fate.SAME_RECORDING}:
        return _twin(row, home.lines if fate is Fate.DUPLICATE else (line,), snapshot)
    if fate in {Fate.CAPPED, Fate.PAGE_CAPPED}:
        return _artist(row, home.lines if fate is Fate.PAGE_CAPPED else (line,), snapshot)
    return ""


def _twin(row: int, lines: Iterable[TracedLine], snapshot: Snapshot) -> str:
    """Where the item, or another release of its recording, stands."""
    recording = snapshot.columns["recording_key"]
    for line in lines:
        for place in np.flatnonzero(recording[line.rows] == recording[row]).tolist():
            other = int(line.rows[place])
            if line.fate[place] in {Fate.SHOWN, Fate.LATER}:
                return f"{'it' if other == row else item_id_of(snapshot, other)} is on {line.spec.id}"
    return ""


def _artist(row: int, lines: Iterable[TracedLine], snapshot: Snapshot) -> str:
    """How many items of its artist are shown."""
    artist = snapshot.columns["artist_key"]
    shown = sum(int((artist[line.rows[line.fate == Fate.SHOWN]] == artist[row]).sum()) for line in lines)
    return f"{shown} by its artist are shown" if artist[row] else ""


def _margin(fate: Fate, line: TracedLine, place: int) -> str:
    """By how much it lost: its score against those that are shown."""
    shown = np.sort(line.scores[line.fate == Fate.SHOWN])
    if fate is Fate.SHOWN or not len(shown) or not np.isfinite(line.scores[place]):
        return ""
    own = float(line.scores[place])
    if own < shown[0]:
        return f"its score {own:.3f} is {shown[0] - own:.3f} below the lowest shown"
    rank = 1 + int((shown > own).sum())
    return f"by its score {own:.3f} alone it would stand in place {rank}"


def _day(at: int) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return "ever"


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
