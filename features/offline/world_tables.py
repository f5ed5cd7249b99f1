"""Tables of a world: Parquet files that are the same bytes for the same rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl
from pyarrow import parquet

Progress: TypeAlias = Callable[[str, int, int], None]


def open_table(path: Path, schema: pl.Schema) -> parquet.ParquetWriter:
    """Open a Parquet file for tables of a schema, each a row group."""
    return parquet.ParquetWriter(path, exact(schema.to_frame(), schema).schema, compression="zstd")


def exact(frame: pl.DataFrame, schema: pl.Schema) -> Any:
    """Give a pyarrow table of exactly the schema's columns and types."""
    return frame.select(schema.names()).cast(schema).to_arrow(compat_level=pl.CompatLevel.oldest())
