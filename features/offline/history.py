"""The listening history: the table `listens` as one compressed sparse matrix, listener by item.

Listeners stand in the order of (partition, user_id), so the history, and all that is made from it, does not depend on
the order of the table's rows. The table streams through once; 20 bytes per listen stay, about 60 while they are sorted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.errors import ListeningError
from features.keys import PARTITIONS, item_keys
from features.offline.catalogue import Catalogue
from features.offline.listening import LISTENERS_SCHEMA, ListeningData
from features.offline.rejections import EXAMPLES, REPEATED

_DAY_SECONDS = 86_400
_IN_TIME = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Who played what; listener `u` owns the listens `start[u]:start[u + 1]`, ascending by item row, none repeated."""

    user_id: pl.Series  # [listener], by partition, then by itself
    start: NDArray[np.int64]  # [listener + 1]
    item: NDArray[np.int32]  # [listen], rows of the catalogue
    plays: NDArray[np.int64]  # [listen]
    seconds: NDArray[np.int64]  # [listen], unix time of the latest play, 0: unknown
    market: NDArray[np.int16]  # [listener], index into the catalogue's markets, -1: unknown
    created_day: NDArray[np.int64]  # [listener], days since 1970, 0: unknown
    allow_explicit: NDArray[np.bool_]  # [listener]
    forgotten_ms: NDArray[np.int64]  # [listener], unix time from which on this tells of who came back, 0: of all time

    @property
    def listeners(self) -> int:
        """How many listeners have at least one listen."""
        return len(self.start) - 1

    @property
    def now(self) -> int:
        """The unix time that all but the latest 0.1 % of the listens are before, and at least one; 0: none is known.

        The latest listen may be of a wrong clock, and one in 2099 would end the time of every item.
        """
        known = self.seconds[self.seconds > 0]
        rank = int(_IN_TIME * (len(known) - 1))
        return int(np.partition(known, rank)[rank]) if len(known) else 0

    @property
    def as_of(self) -> str:
        """The day of `now`, ISO 8601; empty where no time is known."""
        now = self.now
        return datetime.fromtimestamp(now, UTC).date().isoformat() if now else ""


def read_listeners(listening: ListeningData) -> pl.DataFrame:
    """The table `listeners`; no rows where there is none."""
    frames = list(listening.listeners())
    return pl.concat(frames) if frames else pl.DataFrame(schema=LISTENERS_SCHEMA)


def read_history(
    listening: ListeningData, catalogue: Catalogue, listeners: pl.DataFrame, progress: Callable[[int, int], None]
) -> History:
    """Reads the listens; those of unknown items are counted in the report, repeated ones are added up.

    Raises:
        ListeningError: no listen is of a known item.
    """
    known = pl.DataFrame(schema={"user_id": pl.String, "number": pl.UInt32})
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    read = 0
    for frame in listening.listens():
        rows = _item_rows(frame["item_id"], catalogue, listening)
        frame, rows = frame.filter(rows >= 0), rows[rows >= 0]  # noqa: PLW2901  # what remains of the chunk
        known = _with_new(known, frame["user_id"])
        number = frame.join(known, on="user_id", how="left", maintain_order="left")["number"].to_numpy()
        seconds = frame["last_played_at"].dt.epoch("s").fill_null(0).to_numpy()
        parts.append((number.astype(np.int64) << 32 | rows, frame["plays"].to_numpy(), seconds))
        read += frame.height
        progress(read, 0)
    if not known.height:
        raise ListeningError("the table listens has no usable row of a known item")
    users = known.with_columns(partition=pl.Series(item_keys(known["user_id"]) % PARTITIONS)).sort(
        "partition", "user_id"
    )
    place = np.empty(users.height, np.int64)
    place[users["number"].to_numpy()] = np.arange(users.height)
    pair, plays, seconds = _merged(parts, place)
    return History(
        user_id=users["user_id"],
        start=np.searchsorted(pair >> 32, np.arange(users.height + 1)),
        item=(pair & 0xFFFF_FFFF).astype(np.int32),
        plays=plays,
        seconds=seconds,
        **_traits(users["user_id"], listeners, catalogue, listening),
    )


def _item_rows(item_ids: pl.Series, catalogue: Catalogue, listening: ListeningData) -> NDArray[np.int32]:
    names = item_ids.unique()
    rows = catalogue.rows_of(names)
    if (rows < 0).any():
        strange = names.filter(rows < 0).sort()
        count = int(item_ids.is_in(strange.implode()).sum())
        listening.report.add("listens", "item_id is not in items", count, strange.head(EXAMPLES).to_list())
    return item_ids.replace_strict(names, pl.Series(rows), return_dtype=pl.Int32).to_numpy()


def _with_new(known: pl.DataFrame, user_ids: pl.Series) -> pl.DataFrame:
    new = user_ids.unique().to_frame("user_id").join(known, on="user_id", how="anti")
    numbers = pl.Series("number", np.arange(known.height, known.height + new.height, dtype=np.uint32))
    return pl.concat([known, new.with_columns(numbers)])


def _merged(
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]], place: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs `listener << 32 | item` ascending, with the sum of their plays and their latest time; empties `parts`."""
    pair, plays, seconds = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    parts.clear()
    pair = place[pair >> 32] << 32 | pair & 0xFFFF_FFFF
    order = np.argsort(pair)
    pair = pair[order]
    first = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]]))
    return pair[first], np.add.reduceat(plays[order], first), np.maximum.reduceat(seconds[order], first)


def _traits(
    user_ids: pl.Series, listeners: pl.DataFrame, catalogue: Catalogue, listening: ListeningData
) -> dict[str, NDArray[Any]]:
    """What the table `listeners` says of those who have listens; of a repeated user_id the first row stands."""
    once = listeners.unique("user_id", keep="first", maintain_order=True)
    if again := listeners.height - once.height:
        examples = listeners.filter(listeners["user_id"].is_duplicated())["user_id"].unique().sort()
        reason = f"user_id {REPEATED}"
        listening.report.add("listeners", reason, again, examples.head(EXAMPLES).to_list())
    rows = user_ids.to_frame("user_id").join(once, on="user_id", how="left", maintain_order="left")
    index = {name: place for place, name in enumerate(catalogue.markets)}
    day = (rows["created_at"].dt.epoch("s") // _DAY_SECONDS).fill_null(0).clip(0, 2**16 - 1)
    return {
        "market": rows["market"].replace_strict(index, default=-1, return_dtype=pl.Int16).to_numpy(),
        "created_day": day.to_numpy(),
        "forgotten_ms": listening.forgotten.when(user_ids).dt.epoch("ms").fill_null(0).to_numpy(),
        "allow_explicit": rows["allow_explicit"].fill_null(True).to_numpy(),
    }
