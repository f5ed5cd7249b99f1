"""Listening tables: what is clean passes untouched, what is bad is told by reason, and nothing is lost."""

import math
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import ListeningError
from features.offline import listening
from features.offline.listening import COLUMNS, ListeningData, open_listening

Rows: TypeAlias = list[dict[str, Any]]

EXACT = (listening.ITEMS_SCHEMA, listening.LISTENS_SCHEMA, listening.LISTENERS_SCHEMA)
SCHEMAS = dict(zip(COLUMNS, EXACT, strict=True))
AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
ITEM = (
    {"item_id": "t:1", "kind": "album", "title": 'Say "hi", twice', "subtitle": "Björk", "image_uri": "https://a/1.jpg"}
    | {"genres": ["drum and bass", "r&b"], "popularity": 0.5, "released": date(1997, 9, 22), "explicit": True}
    | {"markets": ["GB", "IS"], "artist_id": "ar1", "album_id": "al1", "recording_id": "r1"}
    | {"available_from": AT, "available_until": AT.replace(year=2030)}
)
LISTEN = {"user_id": "u_1.a-B", "item_id": "t:1", "plays": 3, "last_played_at": AT}
LISTENER = {"user_id": "u_1.a-B", "market": "IS", "created_at": AT, "allow_explicit": False}
GOOD: dict[str, dict[str, Any]] = {"items": ITEM, "listens": LISTEN, "listeners": LISTENER}
BAD: dict[tuple[str, str], dict[str, str]] = {
    ("items", "item_id"): dict.fromkeys(["t 1", "t" * 129, "tü", "t\ufffd"], "is not 1-128") | {"": "is missing"},
    ("items", "title"): dict.fromkeys(["x" * 513, "ü" * 257], "is longer than 512 bytes"),
    ("items", "subtitle"): {"x" * 513: "is longer than 512 bytes"},
    ("items", "image_uri"): {"x" * 2049: "is longer than 2048 bytes"},
    ("items", "genres"): {"pop|" + "x" * 129: "has one above 128 bytes"},
    ("items", "kind"): {"song": "is none of track, album"},
    ("items", "popularity"): {"much": "is not of type Float64"}
    | dict.fromkeys(["-1", "nan", "inf"], "is negative or not finite"),
    ("items", "released"): {"1997-13-01": "is not of type Date"},
    ("items", "explicit"): {"perhaps": "is not of type Boolean"},
    ("items", "markets"): {"GB|is": "are not all ISO 3166-1 alpha-2", "GB|XX": "are not all ISO 3166-1 alpha-2"},
    ("items", "available_from"): dict.fromkeys(["soon", "177786372100000000"], "is not of type Datetime"),
    ("items", "available_until"): {"2026-05-04T03:02:01Z": "is not after available_from"},
    ("listens", "user_id"): {"u:1": "is not 1-128", "": "is missing"},
    ("listens", "plays"): dict.fromkeys(["abc", "1.5", "9" * 20], "is not of type Int64")
    | dict.fromkeys(["0", "-3", "2147483648"], "is not 1 to 2147483647"),
    ("listens", "last_played_at"): dict.fromkeys(["1989-12-31", "2101-01-01"], "is not in 1990 to 2100"),
    ("listeners", "market"): {"Iceland": "is not ISO 3166-1 alpha-2", "UK": "is not ISO 3166-1 alpha-2"},
    ("listeners", "created_at"): {"once": "is not of type Datetime"},
    ("listeners", "allow_explicit"): {"2": "is not of type Boolean"},
}
CASES = [(*place, value, reason) for place, values in BAD.items() for value, reason in values.items()]


def write(folder: Path, **tables: Rows | pl.DataFrame | str | bytes) -> ListeningData:
    """A directory with one good row in `items` and in `listens`, unless told otherwise; text is a CSV file."""
    folder.mkdir(exist_ok=True)
    for table, rows in ({"items": [ITEM], "listens": [LISTEN]} | tables).items():
        if isinstance(rows, str | bytes):
            (folder / f"{table}.csv").write_bytes(rows.encode() if isinstance(rows, str) else rows)
        else:
            frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(rows, schema=SCHEMAS[table])
            frame.write_parquet(folder / f"{table}.parquet")
    return open_listening(folder)


def read(data: ListeningData, table: str) -> pl.DataFrame:
    """A whole table."""
    frames: list[pl.DataFrame] = [SCHEMAS[table].to_frame(), *getattr(data, table)()]
    return pl.concat(frames)


def told(data: ListeningData) -> list[tuple[str, int]]:
    """What is reported, without tables and examples."""
    return [(reason, count) for _, reason, count, _ in data.report.rows()]


def as_text(table: str, rows: Rows) -> pl.DataFrame:
    """Rows as they stand in CSV: lists by `|`, times in ISO 8601."""
    frame = pl.DataFrame(rows, schema=SCHEMAS[table])
    lists = (pl.col(name).list.join("|") for name, dtype in frame.schema.items() if dtype == pl.List(pl.String))
    times = (pl.col(name).dt.strftime("%FT%T%.6fZ") for name, dtype in frame.schema.items() if dtype == pl.Datetime)
    return pl.read_csv(frame.with_columns(*lists, *times).write_csv().encode(), infer_schema=False)


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_clean_row_passes_untouched(tmp_path: Path, table: str) -> None:
    """A row that keeps every rule comes back equal, in the exact schema, and nothing is reported."""
    data = write(tmp_path, listeners=[LISTENER])
    assert read(data, table).schema == SCHEMAS[table]
    assert read(data, table).rows(named=True) == [GOOD[table]]
    assert told(data) == []


@pytest.mark.parametrize("table", SCHEMAS)
def test_csv_tells_the_same_as_parquet(tmp_path: Path, table: str) -> None:
    """The same rows, absent values among them, are read alike from both formats."""
    required = {name: f"{name}2" for name, column in COLUMNS[table].items() if column.required}
    rows = [GOOD[table], dict.fromkeys(GOOD[table]) | required]
    parquet = write(tmp_path / "a", **{table: rows})
    csv = write(tmp_path / "b", **{table: as_text(table, rows).write_csv()})
    assert read(csv, table).equals(read(parquet, table))
    assert told(csv) == told(parquet) == []


@pytest.mark.parametrize("table", SCHEMAS)
def test_an_absent_column_means_what_is_stated(tmp_path: Path, table: str) -> None:
    """With the required columns alone every other column holds its stated value; a null cell means the same."""
    required = {name: GOOD[table][name] for name, column in COLUMNS[table].items() if column.required}
    absent = write(tmp_path / "absent", **{table: pl.DataFrame([required])})
    null = write(tmp_path / "null", **{table: [dict.fromkeys(GOOD[table]) | required]})
    stated = {
        "items": ITEM
        | dict.fromkeys(["popularity", "released", "available_from", "available_until"])
        | dict.fromkeys(["subtitle", "image_uri", "artist_id", "album_id", "recording_id"], "")
        | {"kind": "track", "title": "t:1", "genres": [], "markets": [], "explicit": False},
        "listens": LISTEN | {"plays": 1, "last_played_at": None},
        "listeners": LISTENER | {"market": "", "created_at": None, "allow_explicit": True},
    }[table]
    assert read(absent, table).rows(named=True) == read(null, table).rows(named=True) == [stated]


@pytest.mark.parametrize("text", ["03:02:01Z", "05:02:01+02:00", "03:02:01.000", "03:02:01"])
@pytest.mark.parametrize("between", ["T", " "])
def test_a_time_in_csv_is_iso_8601(tmp_path: Path, text: str, between: str) -> None:
    """One moment has many spellings; without a zone it is UTC."""
    data = write(tmp_path, items=f"item_id,available_from\nt1,2026-05-04{between}{text}\n")
    assert read(data, "items")["available_from"].to_list() == [AT]


@pytest.mark.parametrize("dtype", [pl.Datetime("ns"), pl.Datetime("ms", "Europe/Berlin"), pl.Int64(), pl.String()])
def test_a_time_may_have_any_unit_or_zone_or_be_epoch_seconds(tmp_path: Path, dtype: pl.DataType) -> None:
    """Nanoseconds without a zone, another zone and whole seconds since 1970 are the same moment."""
    seconds = pl.Series([int(AT.timestamp())])
    moment = pl.Series([AT]).cast(dtype) if isinstance(dtype, pl.Datetime) else seconds.cast(dtype)
    data = write(tmp_path, listens=pl.DataFrame({"user_id": ["u1"], "item_id": ["t1"], "last_played_at": moment}))
    assert read(data, "listens")["last_played_at"].to_list() == [AT]


def test_parts_are_read_in_order_of_their_names(tmp_path: Path) -> None:
    """A folder of Parquet and CSV parts is one table, in the order of the parts' names."""
    (tmp_path / "listens").mkdir()
    for name in ("part-2", "part-0"):
        pl.DataFrame({"user_id": [name], "item_id": ["t1"]}).write_parquet(tmp_path / "listens" / f"{name}.parquet")
    (tmp_path / "listens" / "part-1.csv").write_text("item_id,user_id\nt1,part-1\n")
    pl.DataFrame([ITEM]).write_parquet(tmp_path / "items.parquet")
    assert read(open_listening(tmp_path), "listens")["user_id"].to_list() == ["part-0", "part-1", "part-2"]


def test_chunks_are_bounded_and_complete(tmp_path: Path) -> None:
    """2.5 million listens come in chunks of at most a million; the table that is not there has none."""
    data = write(tmp_path, listens=pl.select(user_id=pl.lit("u1").repeat_by(2_500_000).explode(), item_id=pl.lit("t1")))
    heights = [frame.height for frame in data.listens()]
    assert sum(heights) == 2_500_000
    assert max(heights) <= 1_000_000
    assert list(data.listeners()) == []


@pytest.mark.parametrize(("table", "column", "value", "reason"), CASES)
def test_a_bad_row_is_counted_once_with_its_reason_and_example(
    tmp_path: Path, table: str, column: str, value: str, reason: str
) -> None:
    """The row is told by its ids and the value as it stood, if not too long; the good rows around it stay."""
    good = as_text(table, [GOOD[table]])
    bad = good.with_columns(pl.lit(value or None).alias(column))
    data = write(tmp_path, **{table: pl.concat([good, bad, good]).write_csv()})
    assert read(data, table).rows(named=True) == [GOOD[table], GOOD[table]]
    [(where, why, count, [example])] = data.report.rows()
    assert (where, count) == (table, 1)
    assert why.startswith(f"{column} {reason}")
    assert example.startswith(f"{table}.csv: ")
    assert f"{column}={value[:80]}" in example
    assert len(example) < 500


@settings(max_examples=25, deadline=None)
@given(cases=st.lists(st.sampled_from([case for case in CASES if case[0] == "items"]), max_size=30))
def test_kept_and_rejected_are_all_that_was_read(
    tmp_path_factory: pytest.TempPathFactory, cases: list[tuple[str, str, str, str]]
) -> None:
    """Whatever is wrong and however often, each row is kept or counted, with at most five examples a reason."""
    good = as_text("items", [ITEM])
    bad = [good.with_columns(pl.lit(value or None).alias(column)) for _, column, value, _ in cases]
    data = write(tmp_path_factory.mktemp("w"), items=pl.concat([good, *bad, good]).write_csv())
    assert read(data, "items").height == 2
    assert sum(count for _, count in told(data)) == len(bad)
    assert all(len(examples) == min(count, 5) for _, _, count, examples in data.report.rows())


def test_rows_that_cannot_be_read_cost_only_themselves(tmp_path: Path) -> None:
    """A CSV row with too few or many fields, an id that is no UTF-8, and 2.5 plays are told, and the file goes on."""
    data = write(tmp_path, listens=b"user_id,item_id,plays\nu1,t1,1\nu2,t1\nu3,t1,1,1\n\xff4,t1,1\nu5,t1,1\n")
    assert read(data, "listens")["user_id"].to_list() == ["u1", "u5"]
    assert [count for _, count in told(data)] == [2, 1]
    floats = write(
        tmp_path / "b", listens=pl.DataFrame({"user_id": "a", "item_id": "t1", "plays": [2.0, 2.5, math.nan]})
    )
    assert read(floats, "listens")["plays"].to_list() == [2]
    assert told(floats) == [("plays is not of type Int64", 2)]


def test_texts_of_the_greatest_length_pass(tmp_path: Path) -> None:
    """512 bytes of title and subtitle, 2,048 of an address, 128 of a genre."""
    longest = {"title": "x" * 512, "subtitle": "ü" * 256, "image_uri": "x" * 2048, "genres": ["x" * 128]}
    data = write(tmp_path, items=[ITEM | longest])
    assert read(data, "items").rows(named=True) == [ITEM | longest]
    assert told(data) == []


@pytest.mark.parametrize(("table", "column"), [("items", "item_id"), ("listens", "user_id"), ("listeners", "user_id")])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_missing_column_is_refused_by_name(tmp_path: Path, table: str, column: str, suffix: str) -> None:
    """The error names the file and the column, before anything is read."""
    frame = pl.DataFrame({name: ["x"] for name in GOOD[table] if name != column})
    with pytest.raises(ListeningError, match=rf"{table}\.{suffix} has no column {column}"):
        write(tmp_path, **{table: frame if suffix == "parquet" else frame.write_csv()})


def test_a_missing_or_double_table_is_refused_by_name(tmp_path: Path) -> None:
    """Without a required table the error says how to add it; which of two is meant is not guessed."""
    with pytest.raises(ListeningError, match=r"no table items: add items\.parquet or \.csv"):
        open_listening(tmp_path)
    write(tmp_path)
    with pytest.raises(ListeningError, match=r"listens twice"):
        write(tmp_path, listens="user_id,item_id\n")


def test_a_file_is_named_where_it_cannot_be_read(tmp_path: Path) -> None:
    """A foreign file is refused when opened; damaged pages, or a type that cannot become the stated one, when read."""
    odd = write(tmp_path / "odd", listens=pl.DataFrame({"user_id": ["a"], "item_id": ["t"], "plays": [[1]]}))
    damaged, path = write(tmp_path / "damaged"), tmp_path / "damaged" / "listens.parquet"
    path.write_bytes(path.read_bytes()[:4] + bytes(56) + path.read_bytes()[60:])
    for data in (odd, damaged):
        with pytest.raises(ListeningError, match=r"listens\.parquet cannot be read as listens"):
            list(data.listens())
    for content in (b"", b"PAR1 and no more", b"user_id,item_id\n"):
        path.write_bytes(content)
        with pytest.raises(ListeningError, match=r"listens\.parquet cannot be read"):
            open_listening(path.parent)


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    """It is the same for the same tables wherever they are, and changes with a row or a table; other files are none."""
    digest = write(tmp_path / "a").digest()
    (tmp_path / "a" / "notes.txt").write_text("no table")
    assert open_listening(tmp_path / "a").digest() == write(tmp_path / "b").digest() == digest
    assert write(tmp_path / "c", listens=[LISTEN, LISTEN]).digest() != digest
    assert write(tmp_path / "d", listeners=[]).digest() != digest
