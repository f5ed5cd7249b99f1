"""The listening in a world: people with tastes, their sessions over the last year, and what they play in them."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.random import Generator, default_rng

from features.offline.listening import LISTENERS_SCHEMA, LISTENS_SCHEMA
from features.offline.world_catalogue import (
    FAMILY,
    GENRES,
    MARKETS,
    SCENES,
    Array,
    Catalogue,
    WorldSettings,
    genre_sets,
    genre_weights,
    homes,
    market_lists,
    numbered,
    zipf,
)
from features.offline.world_tables import Progress, exact, open_table

CHUNK_LISTENERS, FAVOURITES, DAY_SECONDS = 20_000, 3, 86_400
TASTES_SCHEMA = pl.Schema({"user_id": pl.String(), "genres": pl.List(pl.String()), "weights": pl.List(pl.Float64())})


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """Listeners of one chunk; days count back from `until`."""

    genres: Array  # [listener, taste], -1 after the last
    weights: Array  # [listener, taste], falling, their sum 1
    home: Array  # market [listener]
    age: Array  # days since the account began, whole [listener]
    allow_explicit: Array  # [listener]
    favourites: Array  # creators [listener, taste, favourite]


def write_listening(folder: Path, catalogue: Catalogue, settings: WorldSettings, progress: Progress) -> tuple[int, int]:
    """Write listeners, their tastes and their listens; give the number of listens and of plays."""
    allowed = np.array([[not some or market in some for market in MARKETS] for some in market_lists(settings.seed)])
    listens = plays = 0
    with (
        open_table(folder / "listeners.parquet", LISTENERS_SCHEMA) as listeners,
        open_table(folder / "hidden" / "tastes.parquet", TASTES_SCHEMA) as tastes,
    ):
        for part, first in enumerate(range(0, settings.listeners, CHUNK_LISTENERS)):
            count = min(CHUNK_LISTENERS, settings.listeners - first)
            rng = default_rng([settings.seed, 5, part])
            people, ids = _people(rng, catalogue, settings.seed, count), numbered("u", first, count)
            heard = _heard(rng, catalogue, settings, people, allowed)
            frame = _listens_frame(heard, catalogue, ids, settings.until)
            with open_table(folder / "listens" / f"part-{part:05}.parquet", LISTENS_SCHEMA) as writer:
                writer.write_table(exact(frame, LISTENS_SCHEMA))
            listeners.write_table(exact(_listeners_frame(people, ids, settings.until), LISTENERS_SCHEMA))
            tastes.write_table(exact(_tastes_frame(people, ids), TASTES_SCHEMA))
            listens, plays = listens + frame.height, plays + int(frame["plays"].sum())
            progress("listeners", first + count, settings.listeners)
    return listens, plays


def _people(rng: Generator, catalogue: Catalogue, seed: int, count: int) -> People:
    peopled = np.diff(catalogue.by_genre.starts) > 0  # a small world has no artist for some genres
    weights = genre_weights(seed) * np.where(np.array(FAMILY) == "talk", 0.4, 1.0) * peopled
    genres = genre_sets(rng, weights, rng.choice([2, 3, 4], count, p=[0.4, 0.4, 0.2]))
    share = np.where(genres >= 0, rng.gamma(1.5, size=genres.shape) + 0.1, 0)
    share = -np.sort(-share, axis=1)
    home = homes(rng, count)
    cell = np.broadcast_to(np.maximum(genres, 0)[:, :, None], (*genres.shape, FAVOURITES))
    scene = rng.integers(0, SCENES, (*genres.shape, 1))
    widely = catalogue.by_genre.pick(cell, rng.random(cell.shape), scene)
    nearby = catalogue.by_home.pick(cell * len(MARKETS) + home[:, None, None], rng.random(cell.shape))
    return People(
        genres=genres,
        weights=share / share.sum(axis=1, keepdims=True),
        home=home,
        age=np.minimum(20 + rng.exponential(900, count), 4000).astype(np.int64),
        allow_explicit=rng.random(count) < 0.95,
        favourites=np.where((rng.random(cell.shape) < 0.2) & (nearby >= 0), nearby, widely),
    )


def _heard(
    rng: Generator, catalogue: Catalogue, settings: WorldSettings, people: People, allowed: Array
) -> pl.DataFrame:
    """Draw every play of a chunk's listeners: listener, item (row), plays and second (before `until`)."""
    count = people.home.size
    # 1.4 events per row that is asked for, since some repeat a row and some are dropped below: measured, 59 rows for 60
    # at 20,000 items, 69 at 1,000,000, where fewer repeat.
    events = 3 + rng.gamma(2.0, settings.listens_per_listener * 0.7, count).astype(np.int64)
    who = np.arange(count).repeat(events)
    begins = rng.random(who.size) < 1 / 8
    begins[np.cumsum(events) - events] = True
    first = np.flatnonzero(begins)
    session, owner = np.cumsum(begins) - 1, who[first]
    below = rng.random(first.size)[:, None] > np.cumsum(people.weights, axis=1)[owner]
    taste = np.minimum(below.sum(axis=1), (people.genres >= 0).sum(axis=1)[owner] - 1)[session]
    ago = rng.random(first.size) ** 1.7 * np.minimum(people.age, 365)[owner] * DAY_SECONDS
    second = np.minimum(-ago[session].astype(np.int64) + (np.arange(who.size) - first[session]) * 240, -1)
    item = _chosen(rng, catalogue, people, who, taste)
    day, home = second // DAY_SECONDS, people.home[who]
    heard = (catalogue.opens[item] <= day) & (day < catalogue.closes[item]) & allowed[catalogue.markets[item], home]
    heard &= people.allow_explicit[who] | ~catalogue.explicit[item]
    plays = rng.geometric(0.6, who.size)
    return pl.DataFrame({"listener": who, "item": item, "plays": plays, "second": second}).filter(pl.Series(heard))


def _chosen(rng: Generator, catalogue: Catalogue, people: People, who: Array, taste: Array) -> Array:
    """Draw what is played [event]: a creator of the taste's genre, often a favourite, and an item of the creator."""
    size, genre, home = who.size, people.genres[who, taste], people.home[who]
    favourite = people.favourites[who, taste, (FAVOURITES * rng.random(size) ** 1.6).astype(np.int64)]
    nearby = catalogue.by_home.pick(genre * len(MARKETS) + home, rng.random(size))
    popular = catalogue.by_genre.pick(genre, rng.random(size))
    stray = rng.integers(0, catalogue.bounds[2], size)
    how = rng.random(size)
    creator = np.select([how < 0.5, (how < 0.6) & (nearby >= 0), how < 0.97], [favourite, nearby, popular], stray)
    pieces, albums = catalogue.pieces[creator], catalogue.albums[creator]
    piece = pieces + zipf(catalogue.pieces[creator + 1] - pieces, rng.random(size))
    album_count = catalogue.albums[creator + 1] - albums
    album = albums + zipf(album_count, rng.random(size))
    playlist = catalogue.playlists.pick(genre, rng.random(size))
    what = rng.random(size)
    return np.select(
        [(what < 0.06) & (album_count > 0), (what > 0.97) & (playlist >= 0), (what > 0.95) & (what <= 0.97)],
        [album, playlist, creator],
        piece,
    )


def _listens_frame(heard: pl.DataFrame, catalogue: Catalogue, ids: pl.Series, until: date) -> pl.DataFrame:
    rows = (
        heard.group_by("listener", "item").agg(pl.col("plays").sum(), pl.col("second").max()).sort("listener", "item")
    )
    return rows.select(
        user_id=ids.gather(rows["listener"]),
        item_id=catalogue.ids.gather(rows["item"]),
        plays=pl.col("plays"),
        last_played_at=_midnight(until) + pl.duration(seconds="second"),
    )


def _listeners_frame(people: People, ids: pl.Series, until: date) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": ids,
            "market": pl.Series(list(MARKETS)).gather(people.home),
            "age": people.age,
            "allow_explicit": people.allow_explicit,
        }
    ).with_columns(created_at=_midnight(until) - pl.duration(days="age"))


def _tastes_frame(people: People, ids: pl.Series) -> pl.DataFrame:
    counts = (people.genres >= 0).sum(axis=1).tolist()
    pairs = list(zip(people.genres.tolist(), people.weights.round(6).tolist(), counts, strict=True))
    genres = [[GENRES[genre] for genre in row[:count]] for row, _, count in pairs]
    return pl.DataFrame({"user_id": ids, "genres": genres, "weights": [row[:count] for _, row, count in pairs]})


def _midnight(until: date) -> pl.Expr:
    return pl.lit(datetime(until.year, until.month, until.day, tzinfo=UTC), LISTENS_SCHEMA["last_played_at"])
