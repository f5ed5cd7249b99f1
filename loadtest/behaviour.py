"""How simulated listeners behave: a hidden intent, attention that falls over the page, and feedback with some noise.

Pure: what is done depends on the page, the intent, the habits and a seed, and on nothing else. A listener looks at
items by attention, judges each by the intent, now and then wrongly, and acts on some of what they see.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

TRACK_S: Final = 200  # how long what is completed was heard
EARLY_S: Final = (3, 29)  # how long what is skipped early was heard, from and to
LATE_S: Final = (45, 150)
Page = Sequence[Sequence[str]]  # item ids: the shelves from the top, the items of each best first


class Kind(StrEnum):
    """What a listener does with an item; the names are those of the contract."""

    IMPRESSION = "IMPRESSION"
    PLAY = "PLAY"
    COMPLETE = "COMPLETE"
    SKIP = "SKIP"
    LIKE = "LIKE"
    HIDE = "HIDE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What listeners are like; all are shares."""

    row_decay: float = 0.85  # of attention, from each shelf to the next below
    column_decay: float = 0.9  # of attention, from each item of a shelf to the next
    noise: float = 0.1  # of judgements, which say the opposite of the intent
    plays: float = 0.6  # of what is seen and wanted
    likes: float = 0.25  # of what is played to its end
    tries: float = 0.3  # of what is seen and not wanted: started, and skipped
    early: float = 0.7  # of skips
    hides: float = 0.03  # of what is skipped early
    most: int = 2  # of items acted on, a count; then the page is left


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """One thing that a listener did with an item of a page."""

    kind: Kind
    item_id: str
    place: tuple[int, int]  # shelf and item, from 0
    heard_s: int = 0


class Visit(NamedTuple):
    """What came of one page."""

    deeds: list[Deed]  # in the order in which they were done
    shown: float  # share of the page's items that fit the intent; nan: an empty page
    seen: float  # the same of those that were looked at


def intent_for(
    page: Page,
    kinds: Mapping[str, Collection[str]],
    among: Sequence[str],
    rng: np.random.Generator,
    *,
    low: float,
    high: float,
) -> str:
    """A genre for a listener to be after: of those whose share of a page lies within bounds one at random.

    `kinds` are the genres of items by id, `among` the genres that may be chosen. Where none lies within, it is the one
    nearest to their middle: a page shows in part what its listener is after, so that there is something to learn.
    """
    items = [item for shelf in page for item in shelf]
    counts = [sum(genre in kinds.get(item, ()) for item in items) for genre in among]
    share = np.array(counts) / max(1, len(items))
    fits = np.flatnonzero((share >= low) & (share <= high))
    if not len(fits):
        return among[int(np.argmin(np.abs(share - (low + high) / 2)))]
    return among[int(rng.choice(fits))]


def visit(
    page: Page, intent: str, kinds: Mapping[str, Collection[str]], habits: Habits, rng: np.random.Generator
) -> Visit:
    """What a listener with an intent does with a page; `kinds` are the genres of items by id."""
    places = [(row, column) for row, shelf in enumerate(page) for column in range(len(shelf))]
    items = [item for shelf in page for item in shelf]
    fits = np.array([intent in kinds.get(item, ()) for item in items], np.bool_)
    drawn = rng.random((6, len(items)))
    seen = drawn[0] < _attention(places, habits)
    wanted = fits ^ (drawn[1] < habits.noise)
    acts = seen & (drawn[2] < np.where(wanted, habits.plays, habits.tries))
    seen &= np.cumsum(acts) - acts < habits.most
    acts &= seen
    deeds = []
    for at in np.flatnonzero(seen).tolist():
        item, place = items[at], places[at]
        deeds.append(Deed(kind=Kind.IMPRESSION, item_id=item, place=place))
        if acts[at]:
            likes, early, how_long = drawn[3:, at].tolist()
            done = _heard(likes, habits) if wanted[at] else _skipped(likes, early, how_long, habits)
            deeds += [Deed(kind=kind, item_id=item, place=place, heard_s=heard) for kind, heard in done]
    return Visit(deeds=deeds, shown=_mean(fits), seen=_mean(fits[seen]))


def _attention(places: Sequence[tuple[int, int]], habits: Habits) -> NDArray[np.float64]:
    """How likely each item is looked at, `[item]`."""
    row, column = np.array(places, np.float64).reshape(-1, 2).T
    attention: NDArray[np.float64] = habits.row_decay**row * habits.column_decay**column
    return attention


def _heard(likes: float, habits: Habits) -> list[tuple[Kind, int]]:
    liked = [(Kind.LIKE, 0)] if likes < habits.likes else []
    return [(Kind.PLAY, 0), (Kind.COMPLETE, TRACK_S), *liked]


def _skipped(hides: float, early: float, how_long: float, habits: Habits) -> list[tuple[Kind, int]]:
    """An item that was started and skipped; with what was skipped early a few listeners are done for good."""
    first, last = EARLY_S if early < habits.early else LATE_S
    skipped = [(Kind.PLAY, 0), (Kind.SKIP, first + int(how_long * (last - first + 1)))]
    return [*skipped, (Kind.HIDE, 0)] if early < habits.early and hides < habits.hides else skipped


def _mean(fits: NDArray[np.bool_]) -> float:
    return float(fits.mean()) if len(fits) else float("nan")
