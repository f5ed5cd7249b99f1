"""What became of an item, and why, as a person reads it: the fate, the rule, and the margin by which it lost."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

import numpy as np

from features.keys import hash64
from features.snapshot import FOREVER, Snapshot
from protos.home.v1 import home_pb2
from ranking.lines import SEARCHED
from ranking.params import DIVERSITY, INDEX
from ranking.surfaces import RESERVE, ShelfSpec, Surface
from ranking.types import Degraded, Fate, Home, TracedLine
from server.codec import item_id_of

UNKNOWN: Final = ("unknown", "retrieve", "the catalogue has no such item")
UNDRAWN: Final = ("no_line", "draw", "what fills this shelf (taste, plays, genres) is not known of the listener")
BLIND: Final = "nobody can say what the listener hid, so only popular and editorial shelves are served"
NARROWED: Final = "the deadline was too short for shelves that need a search"
UNFOUND: Final = ("not_retrieved", "retrieve", "it is not among the candidates of this shelf")
# fate -> the stage that marks it, and why, as a person reads it
SENTENCES: Final[Mapping[Fate, tuple[str, str]]] = {
    Fate.KEPT: ("layout", "it is in reserve: the shelf was full before its turn came"),
    Fate.SHOWN: ("layout", "it is shown"),
    Fate.PADDING: ("retrieve", "it is no candidate"),
    Fate.MARKET: ("filter", "it is not licensed in the listener's market"),
    Fate.UNAVAILABLE: ("filter", "it is outside its window of availability"),
    Fate.EXPLICIT: ("filter", "it is marked explicit, and that is not allowed here"),
    Fate.HIDDEN: ("filter", "the listener hid it or its artist"),
    Fate.EXCLUDED: ("filter", "the request excludes it"),
    Fate.PLAYED: ("filter", "the listener has played it, and the shelf shows only what they have not"),
    Fate.OFF_GENRE: ("filter", "it is not of the shelf's genre"),
    Fate.SAME_RECORDING: ("arrange", "another release of its recording scores better on this shelf"),
    Fate.CAPPED: ("arrange", "its artist or its album may have no more of the shelf"),
    Fate.DUPLICATE: ("layout", "it, or another release of it, stands on another shelf"),
    Fate.PAGE_CAPPED: ("layout", "its artist has its share of the page already"),
    Fate.THIN: ("layout", "its shelf had too few items left to be shown"),
    Fate.LATER: ("layout", "its shelf comes on a later page"),
    Fate.GAVE_WAY: ("promote", "it stood on its shelf, and gave its place to a promoted item"),
    Fate.OUTDRAWN: ("explore", "it stood on its shelf, in the place left to chance, and another was drawn"),
    Fate.PICKED: ("arrange", "it was chosen for its shelf"),
}
_STANDS: Final = (Fate.SHOWN, Fate.LATER)
# chosen for a line
_PICKS: Final = (*_STANDS, Fate.KEPT, Fate.DUPLICATE, Fate.PAGE_CAPPED, Fate.THIN, Fate.GAVE_WAY, Fate.OUTDRAWN)


def told(home: Home, snapshot: Snapshot, surface: Surface, item_id: str) -> Iterator[home_pb2.ItemFate]:
    """What became of one item, on each shelf of the surface."""
    row = int(snapshot.rows_of(np.array([hash64(item_id)], np.uint64))[0])
    if row < 0:
        yield _fate(item_id, *UNKNOWN)
        return
    lines = {line.spec.id: line for line in home.lines}
    for shelf in surface.shelves:
        line = lines.get(shelf.id)
        if line is None:
            yield _fate(item_id, *UNDRAWN[:2], f"{shelf.id}: {_undrawn(shelf, home)}")
        elif len(places := np.flatnonzero(line.rows == row)):
            yield _met(item_id, line, int(places[0]), home, snapshot)
        elif line.refused is not Fate.KEPT:
            yield _refused(item_id, row, line, home, snapshot)
        else:
            yield _fate(item_id, *UNFOUND[:2], f"{shelf.id}: {UNFOUND[2]}{_shortfall(line, row, snapshot)}")


def _undrawn(shelf: ShelfSpec, home: Home) -> str:
    if Degraded.BLOCKLIST_UNKNOWN in home.degraded:
        return BLIND
    narrowed = Degraded.DEADLINE_SHORT in home.degraded and shelf.source in SEARCHED
    return NARROWED if narrowed else UNDRAWN[2]


def dropped(home: Home, snapshot: Snapshot, item_ids: Iterable[str]) -> Iterator[home_pb2.ItemFate]:
    """What became of the caller's candidates that are not shown."""
    known = {int(key): item_id for key, item_id in ((hash64(one), one) for one in item_ids)}
    for line in home.lines:
        for place, row in enumerate(line.rows.tolist()):
            item_id = known.pop(int(snapshot.columns["item_key"][row]))
            if line.fate[place] != Fate.SHOWN:
                fate = Fate(line.fate[place])
                stage, sentence = SENTENCES[fate]
                filtered = stage == "filter"  # of caps, a thousand counts would take 20 ms
                detail = _detail(fate, line, place, home, snapshot) if filtered else ""
                yield _fate(item_id, fate.name.lower(), stage, "; ".join(filter(None, (sentence, detail))))
    for item_id in known.values():
        yield _fate(item_id, *UNKNOWN)


def _met(item_id: str, line: TracedLine, place: int, home: Home, snapshot: Snapshot) -> home_pb2.ItemFate:
    fate = Fate(line.fate[place])
    stage, sentence = SENTENCES[fate]
    if fate is Fate.SHOWN:
        column = 1 + int((line.fate[:place] == Fate.SHOWN).sum())
        by_chance = line.rows[place] == line.explored
        odds = f"; chance puts it there with probability {line.propensity:.4f}" if by_chance else ""
        return _fate(item_id, "shown", stage, f"{line.spec.id}: it is shown, in place {column}{odds}")
    if fate is Fate.KEPT and np.isin(line.fate, _STANDS).sum() < line.spec.size:
        sentence = f"it stands behind the reserve: its shelf is filled from its first {RESERVE * line.spec.size} only"
    said = "".join(
        f"; {one}" for one in (_detail(fate, line, place, home, snapshot), _margin(fate, line, place)) if one
    )
    return _fate(item_id, fate.name.lower(), stage, f"{line.spec.id}: {sentence}{said}")


def _refused(item_id: str, row: int, line: TracedLine, home: Home, snapshot: Snapshot) -> home_pb2.ItemFate:
    """An item that was not found, and that a filter would have dropped."""
    stage, sentence = SENTENCES[line.refused]
    detail = _rule(line.refused, row, line, home, snapshot)
    said = "; ".join(filter(None, (sentence, detail)))
    return _fate(item_id, line.refused.name.lower(), stage, f"{line.spec.id}: {said}; nor is it among the candidates")


def _detail(fate: Fate, line: TracedLine, place: int, home: Home, snapshot: Snapshot) -> str:
    """What the rule looked at."""
    if fate is Fate.KEPT and line.scores[place] > line.scores[line.fate == Fate.SHOWN].min(initial=np.inf):
        method = DIVERSITY[int(line.spec.params[INDEX["diversity"]])]
        return "" if method == "plain" else f"{method} chose others before it"
    return _rule(fate, int(line.rows[place]), line, home, snapshot)


def _rule(fate: Fate, row: int, line: TracedLine, home: Home, snapshot: Snapshot) -> str:
    if fate is Fate.MARKET:
        return f"the market is {home.market or 'unknown'}"
    if fate is Fate.UNAVAILABLE:
        since, until = (int(snapshot.columns[name][row]) for name in ("available_from", "available_until"))
        told = f"from {_day(since)}" if since else "", f"until {_day(until)}" if until < FOREVER else ""
        return f"it is available {' '.join(filter(None, told))}"
    if fate is Fate.OFF_GENRE:
        return f"the genre is {snapshot.manifest.genres[line.subject]}"
    if fate is Fate.THIN:
        return f"it shows nothing with fewer than {line.spec.minimum}"
    return _rival(fate, row, line, home, snapshot)


def _rival(fate: Fate, row: int, line: TracedLine, home: Home, snapshot: Snapshot) -> str:
    """Which others it lost to."""
    if fate is Fate.DUPLICATE:
        return _twin(row, home.lines, snapshot)
    if fate is Fate.SAME_RECORDING:
        return _better(row, line, snapshot)
    if fate is Fate.CAPPED:
        return _share(row, line, snapshot)
    if fate is Fate.PAGE_CAPPED:
        return f"the page holds {_count('artist_key', row, home.lines, _STANDS, snapshot)} by its artist"
    return ""


def _twin(row: int, lines: Iterable[TracedLine], snapshot: Snapshot) -> str:
    """Where the item, or another release of its recording, stands."""
    recording = snapshot.columns["recording_key"]
    for line in lines:
        for place in np.flatnonzero(recording[line.rows] == recording[row]).tolist():
            other = int(line.rows[place])
            if line.fate[place] in _STANDS:
                return f"{'it' if other == row else item_id_of(snapshot, other)} is on {line.spec.id}"
    return ""


def _better(row: int, line: TracedLine, snapshot: Snapshot) -> str:
    """The release that the line has of the item's recording, and what became of it."""
    recording = snapshot.columns["recording_key"]
    for place in np.flatnonzero(recording[line.rows] == recording[row]).tolist():
        if (fate := Fate(line.fate[place])) in {*_PICKS, Fate.CAPPED}:
            return f"that is {item_id_of(snapshot, int(line.rows[place]))}, whose fate is {fate.name.lower()}"
    return ""


def _share(row: int, line: TracedLine, snapshot: Snapshot) -> str:
    """Which cap the item met; where none, the spacing left it no place."""
    for cap, column, whose in (
        ("artist_cap", "artist_key", "by its artist"),
        ("album_cap", "album_key", "of its album"),
    ):
        chosen, most = _count(column, row, (line,), _PICKS, snapshot), int(line.spec.params[INDEX[cap]])
        if 0 < most <= chosen:
            return f"shelf and reserve hold {chosen} {whose}"
    return f"artist_gap {line.spec.params[INDEX['artist_gap']]:g} keeps it from the others by its artist"


def _count(column: str, row: int, lines: Iterable[TracedLine], fates: tuple[Fate, ...], snapshot: Snapshot) -> int:
    """How many items of its artist or album met one of some fates."""
    keys = snapshot.columns[column]
    return sum(int((keys[line.rows[np.isin(line.fate, fates)]] == keys[row]).sum()) for line in lines if keys[row])


def _shortfall(line: TracedLine, row: int, snapshot: Snapshot) -> str:
    """Why it was not found, where a search was made."""
    if line.spec.source == "neighbours" and row == line.subject:
        return "; the shelf is about it"
    if line.spec.source == "neighbours" and not snapshot.columns["plays"][row]:
        return "; an item that nobody has played is no neighbour"
    if np.isnan(line.missed_by):
        return ""
    if line.missed_by > 0:
        return f"; {line.missed_by:.3f} more affinity would have brought it in"
    return "; its affinity would do: the index passed over it"


def _margin(fate: Fate, line: TracedLine, place: int) -> str:
    """By how much it lost: its score against those that are shown; ties go to the lower row."""
    shown = line.fate == Fate.SHOWN
    if fate is Fate.SHOWN or not shown.any() or not np.isfinite(line.scores[place]):
        return ""
    own, others = float(line.scores[place]), line.scores[shown]
    rank = 1 + int(((others > own) | ((others == own) & (line.rows[shown] < line.rows[place]))).sum())
    if rank > len(others):
        return f"its score {own:.3f} is {others.min() - own:.3f} below the lowest shown"
    return f"by its score {own:.3f} alone it would stand in place {rank}"


def _day(at: int) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return "ever"


def _fate(item_id: str, fate: str, stage: str, text: str) -> home_pb2.ItemFate:
    return home_pb2.ItemFate(item_id=item_id, fate=fate, stage=stage, text=text)
