"""Erasing from drained events what they say of listeners who were forgotten since.

A part is rewritten whole and takes its own place, day by day, so a run that is killed leaves every part as it was or
without them, and the next one goes on. A part that nothing is left of stays, empty: by its time the listens of its day
are made anew. What lies in `unreadable/` names nobody that this version could find.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import polars as pl

from features.offline.forgotten import Forgotten, moments
from features.state import sync_entry

ERASE: Final = "erase"


def of_before(events: pl.DataFrame, forgotten_at: pl.Series) -> pl.Series:
    """Which events occurred, or were recorded, before their listener was forgotten; `forgotten_at` as the events."""
    gone = (events["occurred_at"] <= forgotten_at) | (events["recorded_at"] <= forgotten_at)
    return gone.fill_null(value=False)


def without(events: pl.DataFrame, forgotten_at: dict[str, float]) -> pl.DataFrame:
    """The events but those of before; `forgotten_at` in unix seconds by listener."""
    at = {user: round(seconds * 1000) for user, seconds in forgotten_at.items()}
    return events.filter(~of_before(events, moments(events["user_id"], at))) if at else events


def erase(out: Path, forgotten: Forgotten, progress: Callable[[str, int, int], None]) -> int:
    """Erases from every day; answers how many events."""
    days = sorted(out.glob("day=*")) if forgotten.at else []
    erased = 0
    for done, day in enumerate(days):
        progress(ERASE, done, len(days))
        erased += sum(_erase_from(part, forgotten) for part in sorted(day.glob("part-*.parquet")))
    return erased


def _erase_from(part: Path, forgotten: Forgotten) -> int:
    users = pl.scan_parquet(part).select(pl.col("user_id").unique()).collect()["user_id"]
    if not forgotten.when(users).is_not_null().any():  # most parts: one column was read
        return 0
    events = pl.read_parquet(part, hive_partitioning=False)
    kept = events.filter(~of_before(events, forgotten.when(events["user_id"])))
    if len(kept) < len(events):
        aside = part.with_name(f".{part.name}")
        kept.write_parquet(aside)
        sync_entry(aside)
        aside.rename(part)
        sync_entry(part.parent)
    return len(events) - len(kept)
