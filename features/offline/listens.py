"""What drained events add to the table `listens`: plays by listener, item and day."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import polars as pl

from features.offline.artefact import PRIVATE
from features.state import sync_entry

LISTENS: Final = "listens"


def write_listens(out: Path, progress: Callable[[str, int, int], None]) -> int:
    """Writes the listens of every day that has got events since; answers how many rows."""
    days = [day for day in sorted(out.glob("day=*")) if _is_stale(day, _listens_of(day))]
    rows = 0
    for done, day in enumerate(days):
        progress(LISTENS, done, len(days))
        rows += _write_day(day, _listens_of(day))
    return rows


def _listens_of(day: Path) -> Path:
    return day.parent / LISTENS / f"{day.name.removeprefix('day=')}.parquet"


def _is_stale(day: Path, listens: Path) -> bool:
    newest = max((part.stat().st_mtime_ns for part in day.glob("part-*.parquet")), default=0)
    return newest > 0 and (not listens.exists() or newest >= listens.stat().st_mtime_ns)


def _write_day(day: Path, listens: Path) -> int:
    """A play and a complete of the same listening are one: what there are more of counts.

    What no served snapshot knew by its key when the event came has no id, and cannot be trained on.
    """
    plays, completes = ((pl.col("kind") == kind).sum() for kind in ("play", "complete"))
    rows = (
        pl.scan_parquet(sorted(day.glob("part-*.parquet")))
        .filter(pl.col("kind").is_in(["play", "complete"]) & (pl.col("item_id") != ""))
        .group_by("user_id", "item_id")
        .agg(plays=pl.max_horizontal(plays, completes).cast(pl.Int64), last_played_at=pl.col("occurred_at").max())
        .sort("user_id", "item_id")
        .collect()
    )
    listens.parent.mkdir(exist_ok=True, mode=PRIVATE)
    aside = listens.with_name(f".{listens.name}")
    rows.write_parquet(aside)
    sync_entry(aside)
    aside.rename(listens)
    sync_entry(listens.parent)
    return len(rows)
