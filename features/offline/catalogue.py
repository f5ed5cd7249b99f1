"""The catalogue of a snapshot: the table `items` as columns and cards, in the order of item keys.

The table streams through once. Cards go to a spool file in the table's order and are gathered from there when the
order is known; only fixed-size columns stay in memory, about 90 bytes per item, until they can be mapped.
"""

import mmap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.errors import ListeningError
from features.keys import item_keys
from features.offline.artefact import write_columns
from features.offline.cards import KINDS, encode_cards, item_id_of
from features.offline.listening import ListeningData
from features.offline.rejections import EXAMPLES, REPEATED
from features.snapshot import CARDS, FOREVER, GENRES_PER_ITEM, UNKNOWN_DAY, Limit, market_words

MAX_GENRES: Final = 1024  # every served query carries one weight per genre
_BETWEEN: Final = "\x1f"  # stands in no name
_SPOOL: Final = "cards.spool"
_BLOCK: Final = 65_536

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """What is known of the items without any listens; `columns` are those of the snapshot format, ascending by key.

    `popularity` is as given (nan: not given), of any scale.
    """

    columns: Mapping[str, NDArray[Any]]
    genres: tuple[str, ...]
    markets: tuple[str, ...]

    @property
    def items(self) -> int:
        """How many items."""
        return len(self.columns["item_key"])

    def rows_of(self, item_ids: Iterable[str]) -> NDArray[np.int32]:
        """The rows of items, -1 where the catalogue has no such item."""
        keys, column = item_keys(item_ids), self.columns["item_key"]
        rows = np.minimum(np.searchsorted(column, keys), self.items - 1)
        return np.where(column[rows] == keys, rows, -1).astype(np.int32)

    @property
    def everywhere(self) -> NDArray[np.bool_]:
        """Which items list no market and so may be shown in any, `[item]`."""
        return np.asarray(~self.columns["market_bits"].any(axis=1))

    def allowed(self, market: int) -> NDArray[np.bool_]:
        """Which items may be shown in `markets[market]`, `[item]`."""
        bits = self.columns["market_bits"]
        own = bits[:, market // 64] >> np.uint64(market % 64) & np.uint64(1)
        return np.asarray((own != 0) | self.everywhere)


@dataclass(slots=True)
class _Lists:
    """The different lists that a list column holds, numbered by first sight: few, however many the items."""

    number: dict[str, int] = field(default_factory=dict)

    def numbers(self, column: pl.Series) -> NDArray[np.int32]:
        joined = column.list.join(_BETWEEN)
        different = joined.unique()
        for text in different:
            self.number.setdefault(text, len(self.number))
        numbers = joined.replace_strict(different, [self.number[text] for text in different], return_dtype=pl.Int32)
        return numbers.to_numpy()

    def names(self) -> list[list[str]]:
        return [text.split(_BETWEEN) if text else [] for text in self.number]


def write_catalogue(
    listening: ListeningData, folder: Path, *, markets: set[str], progress: Callable[[int, int], None]
) -> Catalogue:
    """Reads the items and writes the columns and cards that need no listens.

    `markets` are those of the listeners. Repeated item ids are counted in the report; the first stands.

    Raises:
        ListeningError: there is no item, or two item ids have the same key.
    """
    genre_lists, market_lists, parts = _Lists(), _Lists(), list[Columns]()
    read = 0
    with (folder / _SPOOL).open("w+b") as spool:
        for frame in listening.items():
            parts.append(_columns(frame, spool, genre_lists, market_lists))
            read += frame.height
            progress(read, 0)
        if not read:
            raise ListeningError("the table items has no usable row")
        raw = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        parts.clear()
        order = _write_cards(raw["item_key"], raw.pop("card_size"), spool, folder, listening)
    (folder / _SPOOL).unlink()
    columns = {name: column[order] for name, column in raw.items()}
    genres, genre = _genre_table(genre_lists.names(), columns.pop("genre_list"))
    names, bits = _market_table(market_lists.names(), markets)
    columns |= {"genre": genre, "market_bits": bits[columns.pop("market_list")]}
    columns["limits"] = _limits(columns, columns.pop("explicit"))
    popularity = columns.pop("popularity")
    write_columns(folder, columns)
    columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in columns}
    return Catalogue(columns=columns | {"popularity": popularity}, genres=genres, markets=names)


def _columns(frame: pl.DataFrame, spool: IO[bytes], genre_lists: _Lists, market_lists: _Lists) -> Columns:
    key = item_keys(frame["item_id"])
    kind = frame["kind"].replace_strict(KINDS, return_dtype=pl.UInt8)
    texts = (frame[name] for name in ("title", "subtitle", "image_uri"))
    cards = encode_cards(zip(frame["item_id"], kind, *texts, frame["explicit"], strict=True))
    spool.write(b"".join(cards))
    return {
        "item_key": key,
        "card_size": np.fromiter(map(len, cards), np.int64, len(cards)),
        "kind": kind.to_numpy(),
        "popularity": frame["popularity"].fill_null(np.nan).to_numpy(),
        "released": frame["released"].cast(pl.Int32).fill_null(UNKNOWN_DAY).to_numpy(),
        "explicit": frame["explicit"].to_numpy(),
        "artist_key": _own_key(frame["artist_id"], np.where(kind == KINDS["artist"], key, 0)),
        "album_key": _own_key(frame["album_id"], np.where(kind == KINDS["album"], key, 0)),
        "recording_key": _own_key(frame["recording_id"], key),
        "available_from": frame["available_from"].dt.epoch("s").fill_null(0).to_numpy(),
        "available_until": frame["available_until"].dt.epoch("s").fill_null(FOREVER).to_numpy(),
        "genre_list": genre_lists.numbers(frame["genres"]),
        "market_list": market_lists.numbers(frame["markets"].list.unique().list.sort()),
    }


def _limits(columns: Columns, explicit: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Which limits each item has, of Limit."""
    _, which, count = np.unique(columns["recording_key"], return_inverse=True, return_counts=True)
    timed = (columns["available_from"] > 0) | (columns["available_until"] < FOREVER)
    has = {
        Limit.MARKETS: columns["market_bits"].any(axis=1),
        Limit.EXPLICIT: explicit,
        Limit.WINDOW: timed,
        Limit.SHARED: count[which] > 1,
    }
    limits = np.zeros(len(explicit), np.uint8)
    for limit, found in has.items():
        limits[found] |= np.uint8(limit)
    return limits


def _own_key(ids: pl.Series, absent: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The key that each id names, `absent` where there is none; an artist is its own artist, an album its own album."""
    return np.where((ids == "").to_numpy(), absent, item_keys(ids)).astype(np.uint64)


def _write_cards(
    keys: NDArray[np.uint64], sizes: NDArray[np.int64], spool: IO[bytes], folder: Path, listening: ListeningData
) -> NDArray[np.int64]:
    """Writes the cards ascending by key, and gives that order without repeated items, `[item]` rows of the table."""
    spool.flush()
    ends = np.cumsum(sizes)
    order = np.argsort(keys, kind="stable")
    with mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) as cards, (folder / CARDS).open("wb") as out:

        def card(row: int) -> bytes:
            return cards[ends[row] - sizes[row] : ends[row]]

        again = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1
        for one, other in zip(order[again - 1], order[again], strict=True):
            if (first := item_id_of(card(one))) != (second := item_id_of(card(other))):
                raise ListeningError(f"items {first} and {second} have the same key {keys[one]}; rename one of them")
        if len(again):
            examples = [item_id_of(card(row)) for row in order[again[:EXAMPLES]]]
            listening.report.add("items", f"item_id {REPEATED}", len(again), examples)
        order = np.delete(order, again)
        for block in range(0, len(order), _BLOCK):
            out.write(b"".join([card(row) for row in order[block : block + _BLOCK].tolist()]))
    write_columns(folder, {"card_offset": np.concatenate([[0], np.cumsum(sizes[order])])})
    return order


def _genre_table(lists: list[list[str]], numbers: NDArray[np.int32]) -> tuple[tuple[str, ...], NDArray[np.int16]]:
    """The genres ascending, and each item's, `[item, GENRES_PER_ITEM]`; beyond MAX_GENRES those of fewest items go."""
    items: dict[str, int] = {}
    for names, count in zip(lists, np.bincount(numbers, minlength=len(lists)).tolist(), strict=True):
        for name in names:
            items[name] = items.get(name, 0) + count
    genres = tuple(sorted(sorted(items, key=lambda name: (-items[name], name))[:MAX_GENRES]))
    index = {name: place for place, name in enumerate(genres)}
    table = np.full((len(lists), GENRES_PER_ITEM), -1, np.int16)
    for row, names in enumerate(lists):
        kept = list(dict.fromkeys(index[name] for name in names if name in index))[:GENRES_PER_ITEM]
        table[row, : len(kept)] = kept
    return genres, table[numbers]


def _market_table(lists: list[list[str]], more: set[str]) -> tuple[tuple[str, ...], NDArray[np.uint64]]:
    """The markets ascending, and the bits of each different list of markets, `[list, word]`."""
    markets = tuple(sorted(more.union(*lists)))
    index = {name: place for place, name in enumerate(markets)}
    bits = np.zeros((len(lists), market_words(len(markets))), np.uint64)
    for row, names in enumerate(lists):
        for name in names:
            bits[row, index[name] // 64] |= np.uint64(1) << np.uint64(index[name] % 64)
    return markets, bits
