"""Erasing from drained events and served pages what they say of listeners who were forgotten since.

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
FOLDERS: Final = ("", "pages/", "served/")  # of days
TIMES: Final = ("occurred_at", "recorded_at", "served_at")


def of_before(rows: pl.DataFrame, forgotten_at: pl.Series) -> pl.Series:
    """Which rows tell of a time before their listener was forgotten; `forgotten_at` as the rows."""
    gone = pl.repeat(False, len(rows), eager=True)
    for name in TIMES:
        if name in rows.columns:
            gone |= (rows[name] <= forgotten_at).fill_null(value=False)
    return gone


def without(events: pl.DataFrame, forgotten_at: dict[str, float]) -> pl.DataFrame:
    """The events but those of before; `forgotten_at` in unix seconds by listener."""
    at = {user: round(seconds * 1000) for user, seconds in forgotten_at.items()}
    return events.filter(~of_before(events, moments(events["user_id"], at))) if at else events


def erase(out: Path, forgotten: Forgotten, progress: Callable[[str, int, int], None]) -> int:
    """Erases from every day; answers how many rows."""
    days = [day for folder in FOLDERS for day in sorted(out.glob(f"{folder}day=*"))] if forgotten.at else []
    erased = 0
    for done, day in enumerate(days):
        progress(ERASE, done, len(days))
        erased += sum(_erase_from(part, forgotten) for part in sorted(day.glob("part-*.parquet")))
    return erased


def _erase_from(part: Path, forgotten: Forgotten) -> int:
    users = pl.scan_parquet(part).select(pl.col("user_id").unique()).collect()["user_id"]
    if not forgotten.when(users).is_not_null().any():  # most parts: one column was read
        return 0
    rows = pl.read_parquet(part, hive_partitioning=False)
    kept = rows.filter(~of_before(rows, forgotten.when(rows["user_id"])))
    if len(kept) < len(rows):
        aside = part.with_name(f".{part.name}")
        kept.write_parquet(aside)
        sync_entry(aside)
        aside.rename(part)
        sync_entry(part.parent)
    return len(rows) - len(kept)
