"""Drained events as Parquet parts by day, and which of them are there already."""

import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import polars as pl

from features.events import Event, Seen
from features.offline.artefact import PRIVATE
from features.state import sync_entry

ONCE: Final = timedelta(hours=48)
EVENTS: Final = pl.Schema(
    {
        "event_id": pl.String(),
        "user_id": pl.String(),
        "kind": pl.String(),
        "item_id": pl.String(),
        "item_key": pl.UInt64(),
        "occurred_at": pl.Datetime("ms", "UTC"),  # by the client's clock
        "played_ms": pl.Int64(),
        "session_id": pl.String(),
        "whole_artist": pl.Boolean(),
        "recorded_at": pl.Datetime("ms", "UTC"),  # by the clock of Redis
        "page_id": pl.String(),  # of the page where it was seen; null, as the next four: none that anyone can prove
        "served_at": pl.Datetime("ms", "UTC"),  # of the page, to the second
        "shelf": pl.Int16(),  # its place on the page, from 0
        "place": pl.Int16(),  # the item's on the shelf, from 0
        "arms": pl.List(pl.UInt32()),  # codes of the arms that the page was served with
    }
)
UNREADABLE: Final = pl.Schema({"stream": pl.Int64(), "id": pl.String(), "entry": pl.Binary()})
IDENTITY: Final = ("user_id", "event_id")
Entry = tuple[int, str, bytes]
"""An entry of a stream: the stream, the id, what it holds."""


def decode(entries: Iterable[Entry]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The events, `[event] EVENTS`, and what is none, `[entry] UNREADABLE`."""
    rows, strange = [], []
    for number, last, raw in entries:
        try:
            event = Event.from_bytes(raw)
        except ValueError:
            strange.append((number, last, raw))
            continue
        rows.append(
            (
                event.event_id,
                event.user_id,
                event.did.name.lower(),
                event.item_id,
                event.item_key,
                event.occurred_ms,
                event.played_ms,
                event.session_id,
                event.whole_artist,
                int(last.partition("-")[0]),
                *_where(event.seen),
            )
        )
    return pl.DataFrame(rows, EVENTS, orient="row"), pl.DataFrame(strange, UNREADABLE, orient="row")


def _where(seen: Seen | None) -> tuple[Any, ...]:
    """Where an item was seen, in the order of the columns."""
    if seen is None:
        return (None,) * 5
    return seen.page, seen.at * 1000, seen.shelf, seen.place, seen.arms


def seen(out: Path, found: pl.DataFrame) -> pl.DataFrame:
    """Who sent which events in the 48 hours before the oldest of these, `[event] IDENTITY`."""
    oldest: Any = found["recorded_at"].min() or datetime.now(UTC)
    since = oldest - ONCE
    first_day = f"day={(since - ONCE).date()}"  # what was recorded since may have occurred 48 hours before
    parts = [part for day in out.glob("day=*") if day.name >= first_day for part in day.glob("part-*.parquet")]
    frames = [pl.scan_parquet(part).filter(pl.col("recorded_at") >= since).select(IDENTITY) for part in parts]
    none = pl.DataFrame(schema={name: EVENTS[name] for name in IDENTITY})
    return pl.concat([none, *pl.collect_all(frames)])


def unseen(found: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """The events that were not seen, each once. The small table is hashed, the large one only passes by it."""
    once = found.unique(IDENTITY, keep="first", maintain_order=True)
    known = before.join(once.select(IDENTITY), on=IDENTITY, how="semi")
    return once.join(known, on=IDENTITY, how="anti", maintain_order="left")


def write_events(out: Path, events: pl.DataFrame) -> Iterator[str]:
    """Writes a part for each day; gives the days."""
    by_day = events.with_columns(day=pl.col("occurred_at").dt.strftime("%F")).partition_by(
        "day", as_dict=True, include_key=False
    )
    for (day,), rows in by_day.items():
        write_part(out / f"day={day}", rows.sort("recorded_at", maintain_order=True))
        yield str(day)


def write_part(folder: Path, rows: pl.DataFrame, name: str = "") -> None:
    """Writes a part that appears whole or not at all, and is on disk; one of the same name is replaced."""
    if rows.is_empty():
        return
    folder.mkdir(exist_ok=True, mode=PRIVATE)
    name = f"part-{name or uuid.uuid4().hex}.parquet"
    rows.write_parquet(folder / f".{name}")
    sync_entry(folder / f".{name}")
    (folder / f".{name}").rename(folder / name)
    sync_entry(folder)
    sync_entry(folder.parent)
