"""Surfaces are data: which shelves a page has, what fills them, how deep and how large. A new surface needs no code."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.errors import InvalidInput
from features.keys import item_keys

SOURCES: Final = ("taste", "popular", "editorial")
DEFAULT_SURFACES: Final = Path(__file__).with_name("surfaces.toml")
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,63}")
_SURFACE_FIELDS: Final = {"dedupe", "shelves"}
_SHELF_FIELDS: Final = {"id", "source", "titles", "size", "minimum", "depth", "skip_played", "items"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfSpec:
    """One shelf of a surface."""

    id: str
    source: str  # of SOURCES
    titles: Mapping[str, str]  # locale -> heading; "en" is always there
    size: int = 12  # how many items it shows
    minimum: int = 4  # with fewer it is dropped
    depth: int = 256  # how many candidates it starts from
    skip_played: bool = False  # shows only what the listener has not played
    item_keys: Mapping[str, NDArray[np.uint64]]  # editorial: market ("" = any other) -> item keys, best first

    def title(self, locale: str) -> str:
        """The heading in a locale, else in its language, else in English."""
        return self.titles.get(locale) or self.titles.get(locale.partition("-")[0]) or self.titles["en"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """One surface: its shelves from the top."""

    name: str
    shelves: tuple[ShelfSpec, ...]
    dedupe: bool = True  # an item appears once on the page


def load_surfaces(path: Path) -> Mapping[str, Surface]:
    """Reads a surfaces file.

    Raises:
        InvalidInput: naming the file, the line where the surface or shelf stands, and what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except OSError as error:
        raise InvalidInput((str(path), f"cannot be read: {error.strerror}")) from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput((str(path), f"is not TOML: {error}")) from error
    return {name: _surface(name, table, _Source(path=path, text=text)) for name, table in tables.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where a surface is written, for errors that name the line."""

    path: Path
    text: str

    def wrong(self, mark: str, what: str) -> InvalidInput:
        lines = self.text.splitlines()
        number = next((n for n, line in enumerate(lines, 1) if mark in line), 1)
        return InvalidInput((f"{self.path}:{number}", what))


def _surface(name: str, table: Any, source: _Source) -> Surface:
    if not isinstance(table, dict) or not _NAME.fullmatch(name):
        raise source.wrong(name, f"{name!r} must be a table named in lower-case letters, digits and hyphens")
    if odd := set(table) - _SURFACE_FIELDS:
        raise source.wrong(min(odd), f"{name}: unknown field {min(odd)!r}; known are {sorted(_SURFACE_FIELDS)}")
    shelves = tuple(_shelf(name, shelf, source) for shelf in table.get("shelves", ()))
    ids = [shelf.id for shelf in shelves]
    if not shelves:
        raise source.wrong(name, f"{name}: has no shelves")
    if repeated := {shelf_id for shelf_id in ids if ids.count(shelf_id) > 1}:
        raise source.wrong(min(repeated), f"{name}: the shelf id {min(repeated)!r} stands twice")
    return Surface(name=name, shelves=shelves, dedupe=_typed(table, "dedupe", bool, True, name, source))


def _shelf(surface: str, table: Any, source: _Source) -> ShelfSpec:
    shelf_id = table.get("id") if isinstance(table, dict) else None
    if not isinstance(shelf_id, str) or not _NAME.fullmatch(shelf_id):
        raise source.wrong(surface, f"{surface}: a shelf needs an id of lower-case letters, digits and hyphens")
    where, mark = f"{surface}.{shelf_id}", f'"{shelf_id}"'
    if odd := set(table) - _SHELF_FIELDS:
        raise source.wrong(mark, f"{where}: unknown field {min(odd)!r}; known are {sorted(_SHELF_FIELDS)}")
    kind = table.get("source")
    if kind not in SOURCES:
        raise source.wrong(mark, f"{where}: source must be one of {', '.join(SOURCES)}")
    titles = table.get("titles")
    if not isinstance(titles, dict) or "en" not in titles:
        raise source.wrong(mark, f'{where}: titles must hold at least "en"')
    if (kind == "editorial") != ("items" in table):
        raise source.wrong(mark, f"{where}: items belong to editorial shelves, and only to them")
    items = table.get("items", {})
    for market, ids in items.items():
        if len(set(ids)) < len(ids):
            raise source.wrong(mark, f"{where}: an item stands twice in the row of market {market!r}")
    spec = ShelfSpec(
        id=shelf_id,
        source=kind,
        titles={str(locale): str(title) for locale, title in titles.items()},
        size=_within(table, "size", 12, (1, 200), where, source),
        minimum=_within(table, "minimum", 4, (1, 200), where, source),
        depth=_within(table, "depth", 256, (1, 2000), where, source),
        skip_played=_typed(table, "skip_played", bool, False, where, source),
        item_keys={str(market): item_keys(map(str, ids)) for market, ids in items.items()},
    )
    if not spec.minimum <= spec.size <= spec.depth:
        raise source.wrong(mark, f"{where}: minimum <= size <= depth must hold")
    return spec


def _typed(table: Mapping[str, Any], name: str, kind: type, default: Any, where: str, source: _Source) -> Any:
    value = table.get(name, default)
    if type(value) is not kind:
        raise source.wrong(name, f"{where}: {name} must be {kind.__name__}")
    return value


def _within(
    table: Mapping[str, Any], name: str, default: int, bounds: tuple[int, int], where: str, source: _Source
) -> int:
    value: int = _typed(table, name, int, default, where, source)
    if not bounds[0] <= value <= bounds[1]:
        raise source.wrong(name, f"{where}: {name} must be {bounds[0]} to {bounds[1]}")
    return value
