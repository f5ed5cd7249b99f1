"""The forgotten, offline: their tombstones as a table, and which rows tell of before.

A row tells of before where its time is not after the tombstone's, or is unknown. `forgotten.parquet` beside the tables
of a directory is read with them: a drain writes one, `mantel listeners forgotten --out` another for any place.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl
import redis

from features.errors import ListeningError
from features.forgetting import tombstone, tombstones
from features.keys import Keys
from features.offline.artefact import PRIVATE
from features.offline.rejections import FORGOTTEN, Rejections
from features.state import sync_entry

FILE: Final = "forgotten.parquet"
TIME: Final = pl.Datetime("ms", "UTC")
WHEN: Final = {"listens": "last_played_at", "listeners": "created_at"}
"""By table the time that a listener's row tells of."""
SCHEMA: Final = pl.Schema({"tombstone": pl.String(), "forgotten_at": TIME})


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """Who was forgotten, and when."""

    at: Mapping[str, int] = field(default_factory=dict)  # tombstone in hex -> unix milliseconds

    def since(self, seconds: float) -> "Forgotten":
        """Those who were forgotten at a time or later."""
        return Forgotten(at={mark: at for mark, at in self.at.items() if at >= seconds * 1000})

    def when(self, user_ids: pl.Series) -> pl.Series:
        """When the listener of each row was last forgotten; null: never."""
        found = {}
        for user in user_ids.unique() if self.at else ():
            if (at := self.at.get(tombstone(user).hex())) is not None:
                found[user] = at
        return moments(user_ids, found)

    def digest(self) -> bytes:
        """Tells sets of tombstones apart, however they were written."""
        return hashlib.sha256(repr(sorted(self.at.items())).encode()).digest()


def moments(user_ids: pl.Series, at: Mapping[str, int]) -> pl.Series:
    """Unix milliseconds by listener as a column of times; null where none is named."""
    if not at:
        return pl.repeat(None, len(user_ids), dtype=TIME, eager=True)
    return user_ids.replace_strict(list(at), list(at.values()), default=None, return_dtype=pl.Int64).cast(TIME)


def remembered(rows: pl.DataFrame, table: str, forgotten: Forgotten, report: Rejections) -> pl.DataFrame:
    """The rows of a table but those of before, which are counted; no example may name them."""
    if table not in WHEN or not forgotten.at:
        return rows
    at = forgotten.when(rows["user_id"])
    gone = at.is_not_null() & (rows[WHEN[table]] <= at).fill_null(value=True)
    if count := int(gone.sum()):
        report.add(table, FORGOTTEN, count, ())
    return rows.filter(~gone)


def all_forgotten(client: redis.Redis, keys: Keys) -> Forgotten:
    """Every tombstone of a store."""
    return Forgotten(at={mark.hex(): round(at * 1000) for mark, at in tombstones(client, keys)})


def read_forgotten(path: Path) -> Forgotten:
    """Reads what `write_forgotten` wrote.

    Raises:
        ListeningError: it is none.
    """
    try:
        rows = pl.read_parquet(path).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ListeningError(f"{path} cannot be read as tombstones: {error}") from error
    return Forgotten(at=dict(rows.with_columns(pl.col("forgotten_at").dt.epoch("ms")).iter_rows()))


def write_forgotten(path: Path, forgotten: Forgotten) -> None:
    """Writes the table; a reader sees the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
    rows = pl.DataFrame([*forgotten.at.items()], ["tombstone", "forgotten_at"], orient="row")
    aside = path.with_name(f".{path.name}")
    rows.cast(SCHEMA).sort("tombstone").write_parquet(aside)
    sync_entry(aside)
    aside.rename(path)
    sync_entry(path.parent)
