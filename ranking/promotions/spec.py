"""What a promoter writes: score feeds, campaigns, and what each campaign gives its items.

Each field of a feed or a campaign is checked here, and then, in `rules.py`, their sum. There are up to a million
scores, so they are columns.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, ValidationError

from features.keys import hash64
from ranking.written import Locale, Market, Name, Segment, Violation, Written, violations

MOST_FEEDS: Final = 1000
MOST_CAMPAIGNS: Final = 20_000
MOST_SCORES: Final = 1_000_000
ALL: Final = -1  # a score that is for every segment
LAST_S: Final = 253_402_300_799  # the end of the year 9999

_Payer = Annotated[str, StringConstraints(min_length=1, max_length=128)]
_Sentence = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Moment = Annotated[int, Field(ge=0, le=LAST_S)]
_Source = Literal["taste", "discover", "genre", "popular", "newest"]
Line = TypeVar("Line", bound=Written)


class Feed(Written):
    """A delivery of scores, whose payer pays by commission: it fades unless it is confirmed."""

    id: Name
    payer: _Payer


class Campaign(Written):
    """Items that are promoted for a time to some listeners; what is empty admits everybody."""

    id: Name
    feed: Name = ""  # that its scores come with; "": none, and it has a payer of its own
    payer: Annotated[str, StringConstraints(max_length=128)] = ""
    why: dict[Locale, _Sentence] = Field(default_factory=dict, max_length=16)  # by locale; none: a phrase of ours
    since: _Moment = 0  # unix seconds
    until: _Moment = 0  # unix seconds; 0: no end
    markets: tuple[Market, ...] = ()
    segments: tuple[Segment, ...] = ()
    minimum_plays: Annotated[int, Field(ge=0, le=2**31)] = 0  # that a listener must have
    shelves: tuple[_Source, ...] = ()  # what fills them


class Mark(NamedTuple):
    """What a listener is told of a campaign."""

    id: str
    payer: str
    why: Mapping[str, str]  # locale in lower case -> sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What campaigns give items, `[score]`, those of a campaign together and in the campaigns' order."""

    campaign: NDArray[np.int32]  # its number
    segment: NDArray[np.int8]  # of the listeners that it is for; ALL
    score: NDArray[np.float32]  # 0-1
    size: NDArray[np.int64]  # bytes of the item's id
    ids: bytes  # the items' ids, one after the other
    item_key: NDArray[np.uint64]

    def __len__(self) -> int:
        """How many."""
        return len(self.campaign)

    @property
    def item_ids(self) -> list[str]:
        """The items' ids."""
        return [one.decode(errors="replace") for one in _cut(self.ids, self.size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """All that is to be promoted."""

    feeds: tuple[Feed, ...]
    campaigns: tuple[Campaign, ...]
    scores: Scores


def scores_of(rows: Iterable[tuple[int, str, float, int]]) -> Scores:
    """Scores from rows of campaign number, item id, score and segment."""
    campaign, item_ids, score, segment = zip(*rows, strict=True) if (rows := list(rows)) else [()] * 4
    ids = [one.encode() for one in item_ids]
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and a mistake
        return scores_from(
            np.array(campaign, np.int32),
            np.clip(np.array(segment, np.int64), -128, 127).astype(np.int8),
            np.array(score, np.float64).astype(np.float32),
            np.fromiter(map(len, ids), np.int64, len(ids)),
            b"".join(ids),
        )


def scores_from(
    campaign: NDArray[np.int32],
    segment: NDArray[np.int8],
    score: NDArray[np.float32],
    size: NDArray[np.int64],
    ids: bytes,
) -> Scores:
    """Scores from their columns; the sizes add up to the length of the ids."""
    key = np.fromiter(map(hash64, _cut(ids, size)), np.uint64, len(size))
    return Scores(campaign=campaign, segment=segment, score=score, size=size, ids=ids, item_key=key)


def _cut(ids: bytes, size: NDArray[np.int64]) -> Iterator[bytes]:
    ends = np.cumsum(size).tolist()
    return (ids[first:last] for first, last in zip((0, *ends), ends, strict=False))


def read_lines(kind: type[Line], lines: Iterable[bytes], name: str, wrong: list[Violation]) -> tuple[Line, ...]:
    """Feeds or campaigns, each from its own JSON; mistakes are added to `wrong` with their path.

    One by one: a thread that reads 10,000 of them in one call holds up every other for as long.
    """
    found: list[Line] = []
    for number, line in enumerate(lines):
        try:
            found.append(kind.model_validate_json(line))
        except ValidationError as error:
            wrong.extend((f"{name}[{number}].{path}".rstrip("."), what) for path, what in violations(error))
    return tuple(found)
