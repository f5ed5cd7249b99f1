"""Surfaces are data: which shelves a page has, what fills them, how deep and how large. A new surface needs no code.

A param takes its value from the last of these that sets it: the default, the preset, the preset's part for what fills
the shelf, the surface, the shelf.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import model_validator as validator

from features.errors import InvalidInput
from features.keys import item_keys
from features.markets import ISO_3166
from ranking.params import PARAMS, Params, Value, resolve

DEFAULT_SURFACES: Final = Path(__file__).with_name("surfaces.toml")

RESERVE: Final = 3
"""Picks per place on a shelf, since shelves share their best: with 2, 4 % of listeners lost picked-for-you to it."""

MOST_SHELVES: Final = 50
MOST_SUBJECTS: Final = 4  # of a listener's anchors or genres, how many may have a shelf

Source = Literal["taste", "discover", "genre", "neighbours", "history", "popular", "newest", "editorial"]
CODES: Final[Mapping[str, int]] = {name: code for code, name in enumerate((*get_args(Source), "given"))}
"""Sources as numbers, for columns: comparing and finding names took 20 us a batch, and takes 5."""

PROMOTABLE: Final = frozenset({"taste", "discover", "genre", "popular", "newest"})
"""Sources whose shelves may hold promoted items: never what the listener, an editor or a caller chose."""

EXPLORABLE: Final = PROMOTABLE | {"neighbours"}
"""Sources whose shelves may give a place to chance, for the same reason."""

Why = Literal[Source, "similar", "everywhere"]  # what a reason speaks of: what fills the shelf, a query item, no market


Reasons = Mapping[Why, Mapping[str, str]]  # of Why -> locale in lower case -> phrase, with "{0}" for the argument


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place of a shelf that exploration may fill."""

    place: int  # from 1
    pool: int  # of so many items at most, the organic one among them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShelfSpec:
    """One shelf of a surface; equal to itself only, so that what is made for it can be kept by it."""

    id: str
    source: Source | Literal["given"]  # given: the caller's own candidates, never in a file
    titles: Mapping[str, str]  # locale in lower case -> heading; "en" is always there
    size: int = 12  # how many items it shows
    minimum: int = 4  # with fewer it is dropped
    depth: int = 256  # how many candidates it starts from
    skip_played: bool = False  # shows only what the listener has not played
    pinned: bool = False  # stands on top, whatever the others are worth
    promotable: bool = True  # promoted items may be inserted; of the sources in PROMOTABLE only
    nth: int = 1  # which of the listener's genres, or of the items played most
    explore: Slot | None = None  # the place that chance may fill, in the share of sessions that exploration_share says
    params: Params = field(default_factory=resolve)
    origins: Mapping[str, str] = field(default_factory=dict)  # param -> what set it; absent: the default stands
    reasons: Reasons = field(default_factory=dict)
    item_keys: Mapping[str, NDArray[np.uint64]]  # editorial: market ("" = any other) -> item keys, best first


def spoken(texts: Mapping[str, str], locale: str) -> str:
    """The text in a locale, else in the next wider one (zh-Hant-TW, zh-Hant, zh), else in English, else none."""
    for tag in _wider(locale):
        if tag in texts:
            return texts[tag]
    return ""


@lru_cache(maxsize=1024)
def _wider(locale: str) -> tuple[str, ...]:
    words = locale.lower().split("-")
    return (*("-".join(words[:count]) for count in range(len(words), 0, -1)), "en")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """One surface: its shelves from the top."""

    name: str
    shelves: tuple[ShelfSpec, ...]
    dedupe: bool = True  # a recording appears once on the page
    deadline_s: float = math.inf  # of calls, where theirs is not shorter
    params: Params = field(default_factory=resolve)
    origins: Mapping[str, str] = field(default_factory=dict)
    reasons: Reasons = field(default_factory=dict)


def load_surfaces(path: Path, preset: str = "") -> Mapping[str, Surface]:
    """Reads a surfaces file; a preset that is named here stands in place of the surfaces' own.

    Raises:
        InvalidInput: naming for each mistake the file and line, the field, and what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        file = _File.model_validate(tomllib.loads(text))
    except OSError as error:
        raise InvalidInput((str(path), f"cannot be read: {error.strerror}")) from error
    except ValidationError as error:
        raise InvalidInput(*(_violation(path, text, one["loc"], one["msg"]) for one in error.errors())) from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise InvalidInput((str(path), f"is not TOML: {error}")) from error
    known = ", ".join(file.presets) or "none"
    if preset and preset not in file.presets:
        raise InvalidInput(("preset", f"{preset!r} is not in {path}; there are {known}"))
    if odd := [name for name, table in file.surfaces.items() if table.preset not in {"", *file.presets}]:
        raise InvalidInput(*(_violation(path, text, (name, "preset"), f"unknown; there are {known}") for name in odd))
    return {name: _surface(name, table, preset or table.preset, file) for name, table in file.surfaces.items()}


def _unrepeated(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise ValueError("an item stands twice")
    return values


def _market(value: str) -> str:
    if value and value not in ISO_3166:
        raise ValueError("must be an ISO 3166-1 alpha-2 code, or empty for all others")
    return value


def _preset(values: dict[str, Value]) -> dict[str, Value]:
    resolve(values)
    return values


def _of_shelf(values: dict[str, Value]) -> dict[str, Value]:
    if of_page := [param.name for param in PARAMS if param.of_page and param.name in values]:
        raise ValueError(f"{of_page[0]} is of the whole page: set it on the surface")
    return values


_Preset = Annotated[dict[str, Value], AfterValidator(_preset)]
_ShelfPreset = Annotated[_Preset, AfterValidator(_of_shelf)]
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
_Heading = Annotated[str, StringConstraints(min_length=1)]
_ItemId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
_Market = Annotated[str, AfterValidator(_market)]
_Row = Annotated[list[_ItemId], Field(min_length=1), AfterValidator(_unrepeated)]


class _Table(BaseModel):
    """A table of the file as it is written: nothing is converted, nothing unknown passes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


_WITH_ARGUMENT: Final = frozenset({"genre", "neighbours", "popular"})  # what "{0}" in a title stands for


class _SlotTable(_Table):
    place: int = Field(ge=1, le=200)
    pool: int = Field(ge=2, le=600)


class _ShelfTable(_Table):
    id: _Name
    source: Source
    titles: dict[str, _Heading]
    size: int = Field(default=12, ge=1, le=200)
    minimum: int | None = Field(default=None, ge=1, le=200)
    depth: int = Field(default=256, ge=1, le=2000)
    skip_played: bool = False
    pinned: bool = False
    promotable: bool | None = None
    nth: int = Field(default=1, ge=1, le=MOST_SUBJECTS)
    explore: _SlotTable | None = None
    params: _ShelfPreset = {}
    items: dict[_Market, _Row] | None = Field(default=None, min_length=1)

    @validator(mode="after")
    def _hangs_together(self) -> Self:
        if "en" not in self.titles:
            raise ValueError('titles must hold at least "en"')
        if not self.least <= self.size <= self.depth:
            raise ValueError("minimum <= size <= depth must hold")
        if self.source == "editorial" and self.items is None:
            raise ValueError("an editorial shelf needs items")
        if self.source != "editorial" and self.items is not None:
            raise ValueError("items belong to editorial shelves only")
        if self.nth > 1 and self.source not in {"genre", "neighbours"}:
            raise ValueError("nth counts genres and the items played most: it belongs to genre and neighbours")
        holes = {hole for title in self.titles.values() for hole in re.findall(r"\{.*?\}", title)}
        if holes - ({"{0}"} if self.source in _WITH_ARGUMENT else set()):
            raise ValueError(f"titles hold {min(holes)}: only {{0}} is filled, where there is a genre, item or market")
        if self.promotable and self.source not in PROMOTABLE:
            raise ValueError(f"only what is filled by {', '.join(sorted(PROMOTABLE))} is promotable")
        if self.explore is not None and self.source not in EXPLORABLE:
            raise ValueError(f"only what is filled by {', '.join(sorted(EXPLORABLE))} may explore")
        if self.explore is not None and self.explore.place > self.size:
            raise ValueError(f"explore names place {self.explore.place} of {self.size}")
        if self.explore is not None and self.explore.pool > self.reserve + 1:
            raise ValueError(f"explore draws from at most {self.reserve + 1}: the reserve and what stands there")
        return self

    @property
    def least(self) -> int:
        """The minimum: where none is given, 4, or 1 for what editors chose by hand."""
        return self.minimum or (1 if self.source == "editorial" else 4)

    @property
    def reserve(self) -> int:
        """How many picks wait behind a full shelf."""
        return (RESERVE - 1) * self.size

    @property
    def slot(self) -> Slot | None:
        """The place that chance may fill."""
        return None if self.explore is None else Slot(place=self.explore.place, pool=self.explore.pool)


class _SurfaceTable(_Table):
    dedupe: bool = True
    deadline_ms: float = Field(default=math.inf, gt=0)
    preset: str = ""
    params: _Preset = {}
    shelves: list[_ShelfTable] = Field(min_length=1, max_length=MOST_SHELVES)

    @validator(mode="after")
    def _names_each_shelf_once(self) -> Self:
        ids = [shelf.id for shelf in self.shelves]
        if repeated := {one for one in ids if ids.count(one) > 1}:
            raise ValueError(f"the shelf id {min(repeated)!r} stands twice")
        return self


class _PresetTable(_Table):
    params: _Preset = {}
    sources: dict[Source, _ShelfPreset] = {}


class _File(BaseModel):
    """A whole file: two tables of its own, and every other one a surface."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    __pydantic_extra__: dict[_Name, _SurfaceTable] = Field(init=False)
    presets: dict[_Name, _PresetTable] = {}
    reasons: dict[Why, dict[str, _Heading]] = {}

    @property
    def surfaces(self) -> Mapping[str, _SurfaceTable]:
        """The surfaces by name."""
        return self.__pydantic_extra__

    @validator(mode="after")
    def _has_a_surface(self) -> Self:
        if not self.surfaces:
            raise ValueError("at least one surface must be there")
        return self


def _surface(name: str, table: _SurfaceTable, preset: str, file: _File) -> Surface:
    chosen = file.presets.get(preset, _PresetTable())
    layers = ((f"preset {preset}", chosen.params), ("surface", table.params))
    reasons = {why: _by_locale(texts) for why, texts in file.reasons.items()}
    return Surface(
        name=name,
        shelves=tuple(_shelf(shelf, layers, chosen, reasons) for shelf in table.shelves),
        dedupe=table.dedupe,
        deadline_s=table.deadline_ms / 1000,
        params=resolve(*(values for _, values in layers)),
        origins=_origins(*layers),
        reasons=reasons,
    )


def _shelf(
    table: _ShelfTable,
    page: tuple[tuple[str, Mapping[str, Value]], tuple[str, Mapping[str, Value]]],
    preset: _PresetTable,
    reasons: Reasons,
) -> ShelfSpec:
    general, surface = page
    layers = (general, (general[0], preset.sources.get(table.source, {})), surface, ("shelf", table.params))
    return ShelfSpec(
        id=table.id,
        source=table.source,
        titles=_by_locale(table.titles),
        size=table.size,
        minimum=table.least,
        depth=table.depth,
        skip_played=table.skip_played,
        pinned=table.pinned,
        promotable=table.source in PROMOTABLE if table.promotable is None else table.promotable,
        nth=table.nth,
        explore=table.slot,
        params=resolve(*(values for _, values in layers)),
        origins=_origins(*layers),
        reasons=reasons,
        item_keys={market: item_keys(ids) for market, ids in (table.items or {}).items()},
    )


def _origins(*layers: tuple[str, Mapping[str, Value]]) -> dict[str, str]:
    return {name: origin for origin, values in layers for name in values}


def _by_locale(texts: Mapping[str, str]) -> dict[str, str]:
    return {locale.lower(): text for locale, text in texts.items()}


def _violation(path: Path, text: str, place: Sequence[str | int], what: str) -> tuple[str, str]:
    """A mistake with its file and line, and the field as a path such as home.shelves[0].size."""
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".") or "surfaces"
    return f"{path}:{_line_of(text, place)}", f"{field}: {what.removeprefix('Value error, ')}"


def _line_of(text: str, place: Sequence[str | int]) -> int:
    """The line of a field in its own table, else of the table's header, else the first."""
    lines, names = text.splitlines(), [re.escape(str(step)) for step in place]
    shelf = next((step for step in place if isinstance(step, int)), None)
    rest = "" if shelf is None else ".shelves"
    headers = (re.compile(rf"\s*\[+\s*{'.'.join(names[:depth])}{rest}\s*\]") for depth in (2, 1))
    found = ([number for number, line in enumerate(lines, 1) if header.match(line)] for header in headers)
    heads = next(filter(None, found), [])
    if not heads:
        return next((number for number, line in enumerate(lines, 1) if names and re.match(rf"\s*{names[0]}", line)), 1)
    head = heads[min(shelf or 0, len(heads) - 1)]
    for number in range(head + 1, len(lines) + 1):
        if lines[number - 1].lstrip().startswith("["):
            break
        if any(re.match(rf'\s*"?{name}"?\s*=', lines[number - 1]) for name in names[1:]):
            return number
    return head
