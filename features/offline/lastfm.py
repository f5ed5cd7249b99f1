"""The HetRec 2011 Last.fm data set as listening data: artists become items, tags genres, weights plays.

Its files are tab-separated with a header and without quoting; lines end in LF or CRLF; `tags.dat` is ISO-8859-1, the
others are UTF-8. It tells no time of a play and no market, so these stay absent.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from features.errors import ListeningError
from features.offline.artefact import PRIVATE, aside
from features.offline.forgotten import read_forgotten
from features.offline.rejections import EXAMPLES, FORGOTTEN, Rejections

GENRES_PER_ARTIST = 8
LEAST_TIMES = 2  # a tag given once is one listener's opinion; it counts where the artist has no better
LEAST_ARTISTS = 5  # that have a tag at least twice, for it to be a genre: 367 of 11,940 tags are
MARK = "import.json"  # stands in a folder that an import wrote
ENCODINGS = {"tags.dat": "iso-8859-1"}
COLUMNS: dict[str, dict[str, pl.DataType]] = {
    "artists.dat": {"id": pl.Int64(), "name": pl.String(), "pictureURL": pl.String()},
    "user_artists.dat": {"userID": pl.Int64(), "artistID": pl.Int64(), "weight": pl.Int64()},
    "tags.dat": {"tagID": pl.Int64(), "tagValue": pl.String()},
    "user_taggedartists.dat": {"userID": pl.Int64(), "artistID": pl.Int64(), "tagID": pl.Int64()},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSummary:
    """How many rows were written, how many genres are in them, and which rows were left out."""

    items: int
    listeners: int
    listens: int
    genres: int
    report: Rejections


def convert(source: Path, out: Path, *, forgotten: Path | None = None) -> ImportSummary:
    """Read the `.dat` files in `source` and write listening tables to `out`: new, empty, or of an earlier import.

    Listeners of whom the file `forgotten` has a tombstone are left out: no row tells when it was.

    Raises:
        ListeningError: naming the file or column that is missing.
        WrongState: something else than an import stands at `out`.
    """
    report = Rejections()
    artists, plays, tags, given = (_read(source, name, report) for name in COLUMNS)
    if forgotten is not None:
        plays, given = (_remembered(one, forgotten, report) for one in (plays, given))
    artists = _keep(artists, "artists.dat", pl.col("id").is_first_distinct(), "id is repeated", report)
    known = pl.col("artistID").is_in(artists["id"].implode())
    plays = _keep(plays, "user_artists.dat", known, "artistID is not in artists.dat", report)
    plays = _keep(plays, "user_artists.dat", pl.col("weight") >= 1, "weight is not 1 or more", report)
    once = pl.struct("userID", "artistID").is_first_distinct()
    plays = _keep(plays, "user_artists.dat", once, "userID and artistID are repeated", report)
    given = _keep(given, "user_taggedartists.dat", known, "artistID is not in artists.dat", report)
    named = pl.col("tagID").is_in(tags["tagID"].implode())
    given = _keep(given, "user_taggedartists.dat", named, "tagID is not in tags.dat", report)
    genres = _genres(tags, given)
    tables = {"items": _items(artists, genres), "listens": _listens(plays), "listeners": _listeners(plays)}
    _write(out, tables)
    return ImportSummary(
        **{table: frame.height for table, frame in tables.items()},
        genres=genres["genres"].explode().n_unique(),
        report=report,
    )


def _read(source: Path, name: str, report: Rejections) -> pl.DataFrame:
    """Read the columns of a file that are used, without the rows that are too short, too long or not numbers."""
    path = source / name
    try:
        lines = path.read_text(encoding=ENCODINGS.get(name, "utf-8-sig"), errors="replace").split("\n")
    except OSError as error:
        raise ListeningError(f"{path} cannot be read: {error.strerror}") from error
    header, *rows = [line.rstrip("\r").split("\t") for line in lines if line.rstrip("\r")] or [[]]
    columns = COLUMNS[name]
    for column in columns:
        if column not in header:
            raise ListeningError(f"{path} has no column {column}; it has {header}")
    whole = [row for row in rows if len(row) == len(header)]
    broken = ["\t".join(row) for row in rows if len(row) != len(header)]
    if broken:
        report.add(name, f"row has not {len(header)} fields", len(broken), broken[:EXAMPLES])
    frame = pl.DataFrame(whole, schema=dict.fromkeys(header, pl.String), orient="row").select(columns.keys())
    for column, dtype in columns.items():
        read = pl.col(column).str.strip_chars().cast(dtype, strict=False)
        frame = _keep(frame, name, read.is_not_null(), f"{column} is not a whole number", report)
    return frame.select(pl.col(column).str.strip_chars().cast(dtype) for column, dtype in columns.items())


def _keep(frame: pl.DataFrame, table: str, rule: pl.Expr, reason: str, report: Rejections) -> pl.DataFrame:
    """Give the rows that keep a rule, and report the others."""
    bad = frame.filter(~rule)
    if bad.height:
        report.add(table, reason, bad.height, [str(row) for row in bad.head(EXAMPLES).rows(named=True)])
    return frame.filter(rule)


def _remembered(rows: pl.DataFrame, forgotten: Path, report: Rejections) -> pl.DataFrame:
    """Give the rows but those of the forgotten, and count these: no example may name them."""
    gone = read_forgotten(forgotten).when(rows["userID"].cast(pl.String)).is_not_null()
    if count := int(gone.sum()):
        report.add("user_artists.dat" if "weight" in rows.columns else "user_taggedartists.dat", FORGOTTEN, count, ())
    return rows.filter(~gone)


def _genres(tags: pl.DataFrame, given: pl.DataFrame) -> pl.DataFrame:
    """Choose genres [artistID, genres]: the tags an artist was given most, among those that enough artists have."""
    name = pl.col("tagValue").str.to_lowercase().str.replace_all(r"\s+", " ")
    counted = given.join(tags.select("tagID", name), on="tagID").group_by("artistID", "tagValue").len("times")
    often = counted.filter(pl.col("times") >= LEAST_TIMES).group_by("tagValue").len("artists")
    often = often.filter(pl.col("artists") >= LEAST_ARTISTS)
    # Of tags given equally often, the one that more artists have tells more to more listeners.
    ranked = counted.join(often, on="tagValue").sort(
        "artistID", "times", "artists", "tagValue", descending=[False, True, True, False]
    )
    first = pl.int_range(pl.len()).over("artistID") == 0
    kept = ranked.filter((pl.col("times") >= LEAST_TIMES) | first)
    return kept.group_by("artistID", maintain_order=True).agg(
        pl.col("tagValue").head(GENRES_PER_ARTIST).alias("genres")
    )


def _items(artists: pl.DataFrame, genres: pl.DataFrame) -> pl.DataFrame:
    item_id = pl.col("id").cast(pl.String)
    main = pl.col("genres").list.first()
    return artists.join(genres, left_on="id", right_on="artistID", how="left", maintain_order="left").select(
        item_id=item_id,
        kind=pl.lit("artist"),
        title=pl.col("name").replace("", None),
        subtitle=pl.when(main.is_null()).then(pl.lit("Artist")).otherwise("Artist · " + main),
        image_uri=pl.col("pictureURL"),
        genres=pl.col("genres").fill_null(pl.lit([], pl.List(pl.String))),
        artist_id=item_id,
    )


def _listens(plays: pl.DataFrame) -> pl.DataFrame:
    user_id, item_id = pl.col("userID").cast(pl.String), pl.col("artistID").cast(pl.String)
    return plays.select(user_id=user_id, item_id=item_id, plays="weight")


def _listeners(plays: pl.DataFrame) -> pl.DataFrame:
    return plays.select(user_id=pl.col("userID").cast(pl.String)).unique(maintain_order=True)


def _write(out: Path, tables: dict[str, pl.DataFrame]) -> None:
    with aside(out, mark=MARK, kind="import", mode=PRIVATE) as folder:
        for table, frame in tables.items():
            frame.write_parquet(folder / f"{table}.parquet")
        told = {"source": "HetRec 2011 Last.fm", "counts": {table: frame.height for table, frame in tables.items()}}
        (folder / MARK).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
