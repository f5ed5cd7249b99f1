"""Listening tables of a few rows, written by hand, so that the right answer is known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from features.offline import listening

Row = Mapping[str, Any]


def write_tables(folder: Path, *, items: Sequence[Row], listens: Sequence[Row], listeners: Sequence[Row] = ()) -> Path:
    """Writes the tables as Parquet and gives their folder; a column that a row does not name is null."""
    folder.mkdir(parents=True, exist_ok=True)
    schemas = (listening.ITEMS_SCHEMA, listening.LISTENS_SCHEMA, listening.LISTENERS_SCHEMA)
    for name, rows, schema in zip(listening.COLUMNS, (items, listens, listeners), schemas, strict=True):
        pl.DataFrame([{column: row.get(column) for column in schema} for row in rows], schema=schema).write_parquet(
            folder / f"{name}.parquet"
        )
    return folder


def everyone_plays(users: Sequence[str], item_ids: Sequence[str], plays: int = 1) -> list[Row]:
    """A listen of each user with each item."""
    return [{"user_id": user, "item_id": item, "plays": plays} for user in users for item in item_ids]
