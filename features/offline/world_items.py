"""The items of a world: names that nobody has, days of release, limits, written kind by kind in chunks."""

import re
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
from numpy.random import Generator, default_rng

from features.offline.listening import ITEMS_SCHEMA
from features.offline.world_catalogue import (
    FAMILY,
    GENRES,
    KINDS,
    MARKETS,
    NEVER,
    OTHER_MARKET_LISTS,
    TASTES,
    Array,
    Catalogue,
    WorldSettings,
    market_lists,
)
from features.offline.world_tables import Progress, exact, open_table

CHUNK_ITEMS = 250_000
EXPLICIT = {"hip hop": 0.4, "rock": 0.1, "pop": 0.08, "latin": 0.15, "talk": 0.1}
WORDS = {
    "adjective": "Golden Silent Broken Electric Hollow Crimson Distant Endless Velvet Wild Paper Frozen Burning "
    "Gentle Restless Hidden Lonely Bitter Sudden Ancient Holy Faded Little Second Open Heavy Tender Copper Blind",
    "noun": "River Mirror Garden Shadow Engine Harbour Window Letter Summer Winter Morning Ocean Mountain Satellite "
    "Fire Ghost Heart Station Bridge Lantern Desert Signal Feather Island Machine Forest Kingdom Thunder Highway "
    "Ribbon Orchard Compass Thread Avenue Sparrow Balcony Current Diamond Horizon Carousel Meadow Tide Motel Comet",
    "verb": "Leaving Chasing Calling Losing Finding Painting Breaking Holding Crossing Burying Following Remembering "
    "Counting Carrying Hiding Driving Forgetting Borrowing Watching Missing Turning Keeping Mending",
    "place": "Berlin Lisbon Memphis Kyoto Oslo Havana Dakar Naples Reykjavik Marseille Cardiff Tucson Odessa Lima",
    "time": "Midnight Sunday Tomorrow Noon Dawn Yesterday Friday October Tonight April Forever Dusk",
    "given": "Ada Milo Nina Oskar Lena Jonas Mara Theo Ines Caleb Yara Felix Noor Ruben Talia Hugo Amara Silas Kofi",
    "start": "Ka Lo Mi Ve Su Ar El To Bra Ci Do Fe Ga Ha Jo Ke Lu Ma No Or Pe Qui Ro Se Ta Ul Vo We Za",
    "middle": "ra ve lo ni da mo ri sa te ku la ne be go",
    "end": "n ra lis ton ck wen dor ta vik son mar no ya low ren sk berg va",
    "mood": "Deep Morning Late-Night Sunday Fresh Essential Rainy-Day Focus Workout Kitchen Road-Trip Acoustic",
}
PATTERNS = {
    "artist": "{given} {start}{middle}{end} | {start}{middle}{end} | {start}{middle}{middle2}{end} | {given} {noun}"
    " | The {adjective} {noun}s | {noun} {noun2} | {start}{middle}{end} & {given} | {adjective} {noun} Club | {place}",
    "podcast": "The {adjective} {genre} Show | {genre} with {given} {start}{end} | {verb} {genre} | {genre} {time}"
    " | The {noun}: {genre} | {adjective} {genre}",
    "playlist": "{mood} {genre} | {genre} for {time} | {genre} from {place} | {mood} {genre}: {noun}s | {genre} {noun}",
    "title": "{adjective} {noun} | {verb} the {noun} | {noun} of {place} | {time} in {place} | {verb} {given} | {noun}"
    " | The {noun} and the {noun2} | {adjective} {time} | No More {noun}s | {verb} {time} | {given}'s {noun} | {place}"
    " | All the {adjective} {noun}s | {verb} {place} | Under the {adjective} {noun} | {given} in {place}",
}


def write_items(folder: Path, catalogue: Catalogue, settings: WorldSettings, progress: Progress) -> None:
    """Write `items.parquet` kind by kind and fill the blank columns of the catalogue."""
    bounds, midnight = catalogue.bounds, (settings.until - date(1970, 1, 1)).days
    titles = _head_titles(catalogue, settings.seed)
    genres = pl.Series([[GENRES[genre] for genre in row if genre >= 0] for row in catalogue.genres.tolist()])
    markets = pl.Series(market_lists(settings.seed), dtype=pl.List(pl.String))
    with open_table(folder / "items.parquet", ITEMS_SCHEMA) as writer:
        for kind, begin, end in zip(KINDS, bounds[:-1], bounds[1:], strict=True):
            for first in range(begin, end, CHUNK_ITEMS):
                rows = np.arange(first, min(first + CHUNK_ITEMS, end))
                rng = default_rng([settings.seed, 3, first])
                owner = catalogue.owner[rows]
                frame = _named(catalogue, kind, rows, titles, rng).with_columns(
                    genres=genres.gather(owner).list.head(1 if kind == "playlist" else TASTES),
                    artist_id=pl.lit("") if kind == "playlist" else catalogue.ids.gather(owner),
                )
                frame = frame.with_columns(**_dates(catalogue, kind, rows, frame["album"].to_numpy(), midnight, rng))
                _limit(catalogue, rows, rng)
                frame = frame.with_columns(
                    item_id=catalogue.ids.gather(rows),
                    kind=pl.lit(kind),
                    image_uri="https://img.mantel.example/" + catalogue.ids.gather(rows) + ".jpg",
                    popularity=pl.lit(None, pl.Float64()),
                    explicit=pl.Series(catalogue.explicit[rows]),
                    markets=markets.gather(catalogue.markets[rows]),
                    album_id=_ids_or_blank(catalogue, frame["album"].to_numpy()),
                )
                writer.write_table(exact(frame, ITEMS_SCHEMA))
                progress("items", int(rows[-1]) + 1, settings.items)


def _head_titles(catalogue: Catalogue, seed: int) -> pl.Series:
    """Name the creators and the albums, whose names appear with other items too."""
    rng = default_rng([seed, 4])
    artists, podcasts, albums = np.diff(catalogue.bounds)[:3]
    topics = _genre_names(catalogue, np.arange(artists, artists + podcasts))
    return pl.concat(
        [
            _phrases(rng, "artist", artists),
            _phrases(rng, "podcast", podcasts, genre=topics.str.to_titlecase()),
            _phrases(rng, "title", albums),
        ]
    )


def _named(catalogue: Catalogue, kind: str, rows: Array, titles: pl.Series, rng: Generator) -> pl.DataFrame:
    """Give titles, subtitles, recordings and the rows of albums (-1 for none) of items of one kind [row]."""
    owner = catalogue.owner[rows]
    by, genre, none = titles.gather(owner), _genre_names(catalogue, owner), np.full(rows.size, -1)
    if kind in {"track", "episode"}:
        return _named_pieces(catalogue, rows, titles, rng, single=0.02 if kind == "track" else 0)
    if kind == "playlist":
        title = _phrases(rng, "playlist", rows.size, genre=genre.str.to_titlecase())
    else:
        title = titles.gather(rows)
    return pl.DataFrame(
        {
            "title": title,
            "subtitle": by if kind == "album" else f"{kind.title()} · " + genre,
            "recording_id": _ids_or_blank(catalogue, none),
            "album": rows if kind == "album" else none,
        }
    )


def _named_pieces(catalogue: Catalogue, rows: Array, titles: pl.Series, rng: Generator, single: float) -> pl.DataFrame:
    """Name tracks or episodes [row]; a share `single` is the second issue of the recording before it."""
    owner = catalogue.owner[rows]
    place, title = rows - catalogue.pieces[owner], _phrases(rng, "title", rows.size)
    # In the same chunk as the first issue and of the same artist.
    again = (place > 0) & (np.arange(rows.size) > 0) & (rng.random(rows.size) < single)
    again[1:] &= ~again[:-1]
    albums = np.where(again, 0, catalogue.albums[owner + 1] - catalogue.albums[owner])
    album = np.where(albums > 0, catalogue.albums[owner] + place % np.maximum(albums, 1), -1)
    by = titles.gather(owner)
    on = titles.gather(np.maximum(album, 0)) + " · " + by
    return pl.DataFrame(
        {
            "title": (title.shift(1) + " (Single Version)").zip_with(pl.Series(again), title),
            "subtitle": on.zip_with(pl.Series(album >= 0), by),
            "recording_id": _ids_or_blank(catalogue, np.where(again, rows - 1, -1)),
            "album": album,
        }
    )


def _dates(
    catalogue: Catalogue, kind: str, rows: Array, album: Array, midnight: int, rng: Generator
) -> dict[str, pl.Expr]:
    """Draw when items come out and are shown, and note it in the catalogue; `midnight` is the day number of `until`."""
    if kind in {"artist", "podcast", "playlist"}:
        return dict.fromkeys(("released", "available_from", "available_until"), pl.lit(None))
    years = 3 if kind == "episode" else 12
    day = np.maximum(30 - rng.gamma(1.2, years / 1.2 * 365, rows.size), -70 * 365).astype(np.int32)
    day = np.where((album >= 0) & (kind != "album"), catalogue.opens[np.maximum(album, 0)], day)
    gone = np.where((rng.random(rows.size) < 0.015) & (day < -365), rng.integers(-300, 400, rows.size), NEVER)
    catalogue.opens[rows], catalogue.closes[rows] = day, gone
    timed = (day > 0) | (rng.random(rows.size) < 0.03)
    released = pl.Series(day + midnight, dtype=pl.Int32()).cast(pl.Date())
    time = ITEMS_SCHEMA["available_from"]
    return {
        "released": pl.lit(released),
        "available_from": pl.when(pl.Series(timed)).then(released).cast(time),
        "available_until": pl.when(pl.Series(gone < NEVER))
        .then(pl.Series(np.where(gone < NEVER, gone, 0) + midnight, dtype=pl.Int32()))
        .cast(pl.Date())
        .cast(time),
    }


def _limit(catalogue: Catalogue, rows: Array, rng: Generator) -> None:
    """Draw which items are explicit and where they may be shown, and note it in the catalogue."""
    owner = catalogue.owner[rows]
    shares = np.array([EXPLICIT.get(family, 0.01) for family in FAMILY])
    some = 1 + len(MARKETS) + rng.integers(0, OTHER_MARKET_LISTS, rows.size)
    limited = np.where(rng.random(rows.size) < 0.08, some, 0)
    catalogue.markets[rows] = np.where(catalogue.local[owner], 1 + catalogue.home[owner], limited)
    catalogue.explicit[rows] = rng.random(rows.size) < shares[catalogue.genres[owner, 0]]


def _genre_names(catalogue: Catalogue, creators: Array) -> pl.Series:
    return pl.Series(GENRES).gather(catalogue.genres[creators, 0])


def _ids_or_blank(catalogue: Catalogue, rows: Array) -> pl.Series:
    ids = catalogue.ids.gather(np.maximum(rows, 0))
    return ids.zip_with(pl.Series(rows >= 0), pl.Series([""]))


def _phrases(rng: Generator, kind: str, count: int, **given: pl.Series) -> pl.Series:
    """Draw phrases from the patterns of a kind; `given` fills slots that are not drawn from WORDS."""
    patterns, slot = PATTERNS[kind].split(" | "), re.compile(r"{(\w+)}")
    drawn = {}
    for name in dict.fromkeys(slot.findall(PATTERNS[kind])):
        if name not in given:
            words = pl.Series(WORDS[name.rstrip("2")].split())
            drawn[name] = words.gather(rng.integers(0, len(words), count))
    which = rng.integers(0, len(patterns), count)
    phrase = pl.coalesce(
        pl.when(pl.col("which") == number).then(pl.format(slot.sub("{}", pattern), *slot.findall(pattern)))
        for number, pattern in enumerate(patterns)
    )
    return pl.DataFrame({"which": which, **drawn, **given}).select(phrase).to_series()
