"""Listening data: the tables `items`, `listens` and `listeners` of a directory, checked, in chunks of bounded memory.

A table is one file `<table>.parquet` or `<table>.csv`, or a folder `<table>/` of such parts, read in order of their
names. COLUMNS says what a column means and what stands for an absent one; a null counts as absent; other columns are
not read. In CSV, fields are stripped, an empty field is null, lists are separated by `|`, and a time is ISO 8601 or
whole seconds since 1970. A time without a zone is UTC. Rows that break a rule are dropped and counted under the first
one they break. Not looked for, since that takes the whole table: repeated rows, and listens of unknown items. Rows that
tell of before their listener was forgotten are left out: by `last_played_at` of a listen, `created_at` of a listener.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pandera.polars as pandera
import polars as pl
import pyarrow as pa
from pandera.errors import SchemaErrors
from pyarrow import csv, parquet

from features.errors import ListeningError
from features.markets import ISO_3166
from features.offline.forgotten import FILE, Forgotten, read_forgotten, remembered
from features.offline.rejections import EXAMPLES, Rejections

KINDS = ("track", "album", "artist", "playlist", "podcast", "episode", "audiobook")
TEXT, TEXTS, TIME = pl.String(), pl.List(pl.String()), pl.Datetime("us", "UTC")
CHUNK_ROWS = {"items": 500_000, "listens": 1_000_000, "listeners": 1_000_000}
EXAMPLE_LETTERS = 80
UNKNOWN, NONE = pl.lit(None), pl.lit([], TEXTS)
TIME_FORMS = ("%FT%T%.f%#z", "%FT%T%.f", "%F")
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: its exact type, its meaning, whether it must be there, and what stands for an absent value."""

    dtype: pl.DataType
    means: str
    required: bool = False
    absent: pl.Expr = UNKNOWN


COLUMNS: Mapping[str, Mapping[str, Column]] = {
    "items": {
        "item_id": Column(dtype=TEXT, means="the item", required=True),
        "kind": Column(dtype=TEXT, means="one of KINDS; absent = track", absent=pl.lit("track")),
        "title": Column(dtype=TEXT, means="first line; absent = the item_id", absent=pl.col("item_id")),
        "subtitle": Column(dtype=TEXT, means="second line; absent = none", absent=pl.lit("")),
        "image_uri": Column(dtype=TEXT, means="address of a picture; absent = none", absent=pl.lit("")),
        "genres": Column(dtype=TEXTS, means="main genre first; absent = unknown", absent=NONE),
        "popularity": Column(dtype=pl.Float64(), means="more is more popular; absent = derived from plays"),
        "released": Column(dtype=pl.Date(), means="first day out; absent = unknown"),
        "explicit": Column(dtype=pl.Boolean(), means="explicit content; absent = it is not", absent=pl.lit(False)),
        "markets": Column(dtype=TEXTS, means="ISO 3166-1 alpha-2; absent or none = everywhere", absent=NONE),
        "artist_id": Column(dtype=TEXT, means="its artist or show; absent = none", absent=pl.lit("")),
        "album_id": Column(dtype=TEXT, means="its album; absent = none", absent=pl.lit("")),
        "recording_id": Column(dtype=TEXT, means="one for all issues of it; absent = the item", absent=pl.lit("")),
        "available_from": Column(dtype=TIME, means="not shown before; absent = unlimited"),
        "available_until": Column(dtype=TIME, means="not shown from then on; absent = unlimited"),
    },
    "listens": {
        "user_id": Column(dtype=TEXT, means="the listener", required=True),
        "item_id": Column(dtype=TEXT, means="what was played", required=True),
        "plays": Column(dtype=pl.Int64(), means="how often; absent = once", absent=pl.lit(1)),
        "last_played_at": Column(dtype=TIME, means="the latest play; absent = unknown"),
    },
    "listeners": {
        "user_id": Column(dtype=TEXT, means="the listener", required=True),
        "market": Column(dtype=TEXT, means="home, ISO 3166-1 alpha-2; absent = unknown", absent=pl.lit("")),
        "created_at": Column(dtype=TIME, means="when the account began; absent = unknown"),
        "allow_explicit": Column(dtype=pl.Boolean(), means="may be shown it; absent = yes", absent=pl.lit(True)),
    },
}
ITEMS_SCHEMA, LISTENS_SCHEMA, LISTENERS_SCHEMA = (
    pl.Schema({name: column.dtype for name, column in columns.items()}) for columns in COLUMNS.values()
)
# What must hold where a column has a value.
RULES: Mapping[str, tuple[pl.Expr, str]] = {
    "user_id": (pl.col("user_id").str.contains("^[A-Za-z0-9_.-]{1,128}$"), "is not 1-128 of A-Z a-z 0-9 _ . -"),
    "item_id": (pl.col("item_id").str.contains("^[A-Za-z0-9_.:-]{1,128}$"), "is not 1-128 of A-Z a-z 0-9 _ . : -"),
    "kind": (pl.col("kind").is_in(KINDS), f"is none of {', '.join(KINDS)}"),
    "title": (pl.col("title").str.len_bytes() <= 512, "is longer than 512 bytes"),
    "subtitle": (pl.col("subtitle").str.len_bytes() <= 512, "is longer than 512 bytes"),
    "image_uri": (pl.col("image_uri").str.len_bytes() <= 2048, "is longer than 2048 bytes"),
    "genres": (pl.col("genres").list.eval(pl.element().str.len_bytes() <= 128).list.all(), "has one above 128 bytes"),
    "plays": (pl.col("plays").is_between(1, 2**31 - 1), "is not 1 to 2147483647"),
    "popularity": (pl.col("popularity").is_between(0, 1e300), "is negative or not finite"),
    "last_played_at": (pl.col("last_played_at").dt.year().is_between(1990, 2100), "is not in 1990 to 2100"),
    "markets": (pl.col("markets").list.eval(pl.element().is_in(ISO_3166)).list.all(), "are not all ISO 3166-1 alpha-2"),
    "market": (pl.col("market").is_in({"", *ISO_3166}), "is not ISO 3166-1 alpha-2"),
    "available_until": (pl.col("available_until") > pl.col("available_from"), "is not after available_from"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningData:
    """The tables of one directory; `report` fills while they are read, and a second pass counts afresh."""

    directory: Path
    files: Mapping[str, Sequence[Path]]
    forgotten: Forgotten = field(default_factory=Forgotten)
    report: Rejections = field(default_factory=Rejections)

    def items(self) -> Iterator[pl.DataFrame]:
        """Give the clean items in file order, in chunks of at most 500,000 rows of ITEMS_SCHEMA."""
        return self._clean("items")

    def listens(self) -> Iterator[pl.DataFrame]:
        """Give the clean listens in file order, in chunks of at most 1,000,000 rows of LISTENS_SCHEMA."""
        return self._clean("listens")

    def listeners(self) -> Iterator[pl.DataFrame]:
        """Give the clean listeners in file order, as LISTENERS_SCHEMA; none where there is no such table."""
        return self._clean("listeners")

    def digest(self) -> str:
        """Give the sha256, in hex, of the names and contents of the tables' files, and of who is left out of them."""
        total = hashlib.sha256(self.forgotten.digest() if self.forgotten.at else b"")
        for path in chain(*self.files.values()):
            total.update(f"{path.relative_to(self.directory).as_posix()}\n".encode())
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def _clean(self, table: str) -> Iterator[pl.DataFrame]:
        self.report.begin(table)
        for path in self.files[table]:
            try:
                for raw in _chunks(path, table, self.report):
                    rows = _sift(raw, table, path.name, self.report)
                    yield remembered(rows, table, self.forgotten, self.report)
            except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
                raise ListeningError(f"{path} cannot be read as {table}: {error}") from error


def open_listening(directory: Path, forgotten: Path | None = None) -> ListeningData:
    """Find the tables; ListeningError names the table, column or file that is missing or unreadable.

    `forgotten` is a file of tombstones, by default the one that stands beside the tables.
    """
    files = {table: _files(directory, table) for table in COLUMNS}
    for table, columns in COLUMNS.items():
        if table != "listeners" and not files[table]:
            raise ListeningError(f"{directory} has no table {table}: add {table}.parquet or .csv, or a folder of parts")
        for path in files[table]:
            names = _names(path)
            for name in (name for name, column in columns.items() if column.required and name not in names):
                raise ListeningError(f"{path} has no column {name}; {table} cannot do without; it has {names}")
    named = forgotten or directory / FILE
    gone = read_forgotten(named) if forgotten or named.exists() else Forgotten()
    return ListeningData(directory=directory, files=files, forgotten=gone)


def _files(directory: Path, table: str) -> list[Path]:
    folder, files = directory / table, (directory / f"{table}.parquet", directory / f"{table}.csv")
    found = [path for path in (*files, folder) if path.exists()]
    if len(found) > 1:
        raise ListeningError(f"{directory} has {table} twice, {found[0].name} and {found[1].name}: keep one")
    return found if found != [folder] else sorted([*folder.glob("*.parquet"), *folder.glob("*.csv")])


def _names(path: Path) -> list[str]:
    try:
        if path.suffix == ".parquet":
            return list(parquet.read_schema(path).names)
        tolerant = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
        return list(csv.open_csv(path, parse_options=tolerant).schema.names)
    except (pa.ArrowException, OSError) as error:
        raise ListeningError(f"{path} cannot be read: {error}") from error


def _chunks(path: Path, table: str, report: Rejections) -> Iterator[pl.DataFrame]:
    """Read the known columns as they stand in the file; from CSV all as text."""
    names = [name for name in _names(path) if name in COLUMNS[table]]
    if path.suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            yield from (pl.DataFrame(batch) for batch in file.iter_batches(CHUNK_ROWS[table], columns=names))
        return

    def skip(row: csv.InvalidRow) -> str:
        report.read(table, 1)
        report.add(table, f"row has not {row.expected_columns} fields", 1, [f"{path.name}: {_short(row.text)}"])
        return "skip"

    parsing = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)
    # As bytes, since one that is no UTF-8 shall cost its row and not the file.
    converting = csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.binary()))
    for batch in csv.open_csv(path, csv.ReadOptions(block_size=1 << 25), parsing, converting):
        yield from pl.DataFrame([_text(column) for column in pl.DataFrame(batch)]).iter_slices(CHUNK_ROWS[table])


def _text(raw: pl.Series) -> pl.Series:
    """Decode and strip a CSV column; empty is null, wrong UTF-8 becomes U+FFFD, which only free text accepts."""
    try:
        text = raw.cast(TEXT)
    except pl.exceptions.PolarsError:
        text = pl.Series(raw.name, [value.decode(errors="replace") for value in raw], dtype=TEXT)
    return text.str.strip_chars().replace("", None)


def _sift(raw: pl.DataFrame, table: str, file: str, report: Rejections) -> pl.DataFrame:
    """Give a chunk its columns and types, drop and count the rows that break a rule, and fill what is absent."""
    columns = COLUMNS[table]
    report.read(table, raw.height)
    raw = raw.with_columns(pl.lit(None, c.dtype).alias(name) for name, c in columns.items() if name not in raw.columns)
    typed = raw.select(_typed(pl.col(name), column.dtype, raw.schema[name]) for name, column in columns.items())
    unread = [(typed[name].is_null() & raw[name].is_not_null()).alias(f"{name}?") for name in columns]
    checks = pandera.DataFrameSchema({name: _checked(name, column) for name, column in columns.items()})
    try:
        checks.validate(typed.with_columns(unread), lazy=True)
    except SchemaErrors as errors:
        first = errors.failure_cases.unique("index", keep="first", maintain_order=True)
        for (name, says), rows in first.group_by("column", "check", maintain_order=True):
            seen = raw[rows["index"].head(EXAMPLES)].select(c for c in columns if columns[c].required or c == name)
            report.add(table, f"{name} {says}", rows.height, [_example(file, row) for row in seen.rows(named=True)])
        typed = typed.filter(~pl.int_range(pl.len()).is_in(first["index"].implode()))
    return typed.select(pl.col(name).fill_null(column.absent) for name, column in columns.items())


def _example(file: str, row: Mapping[str, object]) -> str:
    """Name a row by its ids and show the value that broke the rule."""
    return f"{file}: " + " ".join(f"{name}={'' if value is None else _short(value)}" for name, value in row.items())


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= EXAMPLE_LETTERS else f"{text[:EXAMPLE_LETTERS]}…"


def _checked(name: str, column: Column) -> pandera.Column:
    """State for pandera what a column must be, in the order in which a row's reason is looked for."""
    musts = [(~pl.col(f"{name}?"), f"is not of type {column.dtype.base_type()}")]
    musts += [(pl.col(name).is_not_null(), "is missing")] if column.required else []
    musts += [RULES[name]] if name in RULES else []
    checks = [pandera.Check(lambda it, holds=holds: it.lazyframe.select(holds), error=says) for holds, says in musts]
    return pandera.Column(column.dtype, checks, nullable=True)


def _typed(column: pl.Expr, dtype: pl.DataType, source: pl.DataType) -> pl.Expr:
    """Read a column as another type; what cannot be read is null."""
    if source.is_float() and dtype == pl.Int64():
        column = pl.when(column == column.floor()).then(column)
    seconds = column.cast(pl.Int64(), strict=False)
    epoch = pl.when(seconds.abs() < 10**11).then(seconds * 10**6).cast(TIME)  # beyond, the product could overflow
    plain = epoch if source.is_integer() and dtype == TIME else column.cast(dtype, strict=False)
    iso = column.str.replace(" ", "T", literal=True)
    times = (iso.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False) for form in TIME_FORMS)
    from_text: dict[pl.DataType, pl.Expr] = {
        TIME: pl.coalesce(*times, epoch),
        TEXTS: column.str.split("|").list.eval(pl.element().str.strip_chars().replace("", None)).list.drop_nulls(),
        pl.Date(): column.str.to_date("%F", strict=False),
        pl.Boolean(): column.str.to_lowercase().replace_strict(BOOLEANS, default=None, return_dtype=dtype),
    }
    return from_text.get(dtype, plain) if source == TEXT else plain
