"""The scores of campaigns as a table: Parquet or CSV with campaign, item_id, score, and perhaps segment."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from features.errors import InvalidInput

_NEEDED = {"campaign": pl.String, "item_id": pl.String, "score": pl.Float64}


def read_scores(path: Path) -> Iterator[tuple[str, str, float, int | None]]:
    """The rows of a table: campaign, item id, score, segment (None: of all).

    Raises:
        InvalidInput: the file cannot be read, lacks a column, has one of another type, or a row lacks a value.
    """
    try:
        csv = path.suffix == ".csv"
        table = pl.read_csv(path, schema_overrides=_NEEDED) if csv else pl.read_parquet(path)
        segment = pl.col("segment") if "segment" in table.columns else pl.lit(None)
        columns = (
            *(pl.col(name).cast(kind) for name, kind in _NEEDED.items()),
            segment.cast(pl.Int32).alias("segment"),
        )
        table = table.select(columns)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidInput((str(path), f"cannot be read: {error}")) from error
    empty = table.select(pl.any_horizontal(pl.col(*_NEEDED).is_null())).to_series()
    if empty.any():
        raise InvalidInput((str(path), f"row {int(empty.arg_max() or 0) + 1} lacks a campaign, an item_id or a score"))
    yield from table.iter_rows()
