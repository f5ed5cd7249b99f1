"""A synthetic listening world with known answers: the same settings give the same bytes, at any size, in chunks.

Creators (artists, podcast shows) are popular by Zipf's law within their genres, their pieces (tracks, episodes) within
the creator. A listener has two to four tastes: genres with weights, and in each a few favourite creators out of one of
its scenes. A session is of one taste. The tastes are kept in `hidden/tastes.parquet`, where only tests look.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from pyarrow import parquet

from features.errors import ListeningError
from features.offline.listening import ITEMS_SCHEMA, LISTENERS_SCHEMA, LISTENS_SCHEMA

Array: TypeAlias = NDArray[Any]
Progress: TypeAlias = Callable[[str, int, int], None]

CHUNK_ITEMS, CHUNK_LISTENERS = 250_000, 20_000
TASTES, FAVOURITES, SCENES = 4, 3, 8
DAY_SECONDS, NEVER = 86_400, 1_000_000  # days from `until` beyond which nothing is
KINDS = {"artist": "ar", "podcast": "po", "album": "al", "playlist": "pl", "track": "t", "episode": "ep"}
FAMILIES = {
    "rock": "alternative rock, indie rock, classic rock, punk, metal, post-rock",
    "pop": "dance pop, synth-pop, dream pop, k-pop",
    "hip hop": "rap, trap, boom bap, grime",
    "electronic": "house, techno, ambient, drum and bass, trance, synthwave",
    "soul": "r&b, neo-soul, funk, disco, gospel",
    "jazz": "bebop, swing, jazz fusion, bossa nova",
    "classical": "baroque, romantic, minimalism, opera",
    "folk": "country, indie folk, bluegrass, singer-songwriter",
    "latin": "reggaeton, salsa, cumbia",
    "talk": "news, comedy, history, science, true crime, sport, technology, society",
}
EXPLICIT = {"hip hop": 0.4, "rock": 0.1, "pop": 0.08, "latin": 0.15, "talk": 0.1}
MARKETS = {
    "US": 30,
    "BR": 12,
    "GB": 11,
    "DE": 10,
    "MX": 8,
    "FR": 8,
    "JP": 6,
    "ES": 5,
    "SE": 4,
    "NG": 3,
    "IS": 2,
    "EE": 1,
}
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
SMALL_MARKETS = [number for number, share in enumerate(MARKETS.values()) if share <= 5]
OTHER_MARKET_LISTS = 50
TASTES_SCHEMA = pl.Schema({"user_id": pl.String(), "genres": pl.List(pl.String()), "weights": pl.List(pl.Float64())})
GENRES = [genre for genres in FAMILIES.values() for genre in genres.split(", ")]
FAMILY = [family for family, genres in FAMILIES.items() for _ in genres.split(", ")]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSettings:
    """What a world is made from; `listens_per_listener` is about the mean number of rows, `until` ends the last day."""

    seed: int = 7
    items: int = 20_000
    listeners: int = 5_000
    listens_per_listener: int = 60
    until: date = date(2026, 11, 1)

    def __post_init__(self) -> None:
        if self.items < 300 or self.listeners < 1 or self.listens_per_listener < 1 or self.seed < 0:
            raise ListeningError("a world needs 300 items, a listener, a listen for each, and a seed from 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSummary:
    """How much was written."""

    items: int
    listeners: int
    listens: int
    plays: int


def generate(out: Path, *, settings: WorldSettings, progress: Progress) -> WorldSummary:
    """Write a world, aside until it is whole; it replaces an older one in `out`, anything else is a ListeningError."""
    if out.exists() and not (out / "world.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise ListeningError(f"{out} holds something else than a world: name an empty or a new directory")
    aside = out.resolve().with_name(f".{out.resolve().name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    for folder in ("listens", "hidden"):
        (aside / folder).mkdir(parents=True)
    catalogue = _catalogue(settings)
    _write_items(aside, catalogue, settings, progress)
    listens, plays = _write_listening(aside, catalogue, settings, progress)
    summary = WorldSummary(items=settings.items, listeners=settings.listeners, listens=listens, plays=plays)
    told = {"settings": {**asdict(settings), "until": settings.until.isoformat()}, "counts": asdict(summary)}
    (aside / "world.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    return summary


# --- the catalogue: who makes what


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Members by cell, the most popular first: cell c holds `members[starts[c] : starts[c + 1]]`."""

    starts: Array
    members: Array

    def pick(self, cell: Array, u: Array, scene: Array | None = None) -> Array:
        """Draw from cells by Zipf's law with uniform u, then move into a scene where given; -1 from an empty cell."""
        size = self.starts[cell + 1] - self.starts[cell]
        place = _zipf(size, u)
        if scene is not None:
            place = np.minimum(place - place % SCENES + scene, size - 1)
        return np.where(size > 0, self.members[np.minimum(self.starts[cell] + place, self.members.size - 1)], -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The items by row in the order of KINDS, so that creators come first; days count from `until`.

    The last four columns [item] are filled while the items are written, and then say what could be played by whom.
    """

    bounds: Array  # first row of each kind, and the end
    ids: pl.Series  # [item]
    genres: Array  # [creator, 4], the main one first, then others or -1
    home: Array  # market [creator]
    local: Array  # shown at home only [creator]
    owner: Array  # creator [item]; for a playlist an artist of its genre
    albums: Array  # row of the first album [creator + 1]
    pieces: Array  # row of the first track or episode [creator + 1]
    by_genre: Lists  # creators
    by_home: Lists  # creators by genre and market
    playlists: Lists  # by genre
    opens: Array  # day of release
    closes: Array  # day from which it is gone
    explicit: Array
    markets: Array  # index into `_market_lists`


def _catalogue(settings: WorldSettings) -> Catalogue:
    rng = default_rng([settings.seed, 0])
    sizes = _sizes(settings.items)
    artists, shows = sizes["artist"], sizes["podcast"]
    rank = np.concatenate([rng.permutation(artists), rng.permutation(shows)])
    genres, home = _creator_genres(rng, settings.seed, artists, shows), _homes(rng, artists + shows)
    albums = np.append(_split(rng, sizes["album"], rank[:artists], least=0), np.zeros(shows, dtype=np.int64))
    tracks, episodes = _split(rng, sizes["track"], rank[:artists]), _split(rng, sizes["episode"], rank[artists:])
    bounds = np.cumsum([0, *(sizes[kind] for kind in KINDS)])
    lists = rng.integers(0, artists, sizes["playlist"])
    creators = np.arange(artists + shows)
    pieces = np.append(tracks, episodes)
    listed, column = np.nonzero(genres >= 0)
    genre = genres[listed, column]
    return Catalogue(
        bounds=bounds,
        ids=pl.concat(_numbered(prefix, 0, sizes[kind]) for kind, prefix in KINDS.items()),
        genres=genres,
        home=home,
        local=np.isin(home, SMALL_MARKETS) & (rng.random(home.size) < 0.2),
        owner=np.concatenate([creators, creators.repeat(albums), lists, creators.repeat(pieces)]).astype(np.int32),
        albums=bounds[2] + np.append(0, np.cumsum(albums)),
        pieces=bounds[4] + np.append(0, np.cumsum(pieces)),
        by_genre=_lists(genre, listed, rank, len(GENRES)),
        by_home=_lists(genre * len(MARKETS) + home[listed], listed, rank, len(GENRES) * len(MARKETS)),
        playlists=_lists(genres[lists, 0], bounds[3] + np.arange(lists.size), None, len(GENRES)),
        opens=np.full(settings.items, -NEVER, dtype=np.int32),
        closes=np.full(settings.items, NEVER, dtype=np.int32),
        explicit=np.zeros(settings.items, dtype=np.bool_),
        markets=np.zeros(settings.items, dtype=np.uint8),
    )


def _sizes(items: int) -> dict[str, int]:
    """Divide the items among the kinds."""
    sizes = {
        "artist": max(50, items // 25),
        "podcast": max(8, items // 200),
        "album": items // 10,
        "playlist": max(10, items // 50),
        "episode": items // 20,
    }
    return sizes | {"track": items - sum(sizes.values())}


def _numbered(prefix: str, first: int, count: int) -> pl.Series:
    """Give ids such as t0001234 or al000123."""
    return prefix + pl.int_range(first, first + count, eager=True).cast(pl.String).str.zfill(8 - len(prefix))


def _creator_genres(rng: Generator, seed: int, artists: int, shows: int) -> Array:
    weights, talk = _genre_weights(seed), np.array(FAMILY) == "talk"
    music = _genre_sets(rng, weights * ~talk, rng.choice([1, 2, 3], artists, p=[0.4, 0.4, 0.2]))
    return np.concatenate([music, _genre_sets(rng, weights * talk, np.ones(shows, dtype=np.int64))])


def _genre_weights(seed: int) -> Array:
    """How often each genre is anyone's: by Zipf's law with exponent 0.6 in an order of the seed's."""
    return (default_rng([seed, 1]).permutation(len(GENRES)) + 3.0) ** -0.6


def _genre_sets(rng: Generator, weights: Array, counts: Array) -> Array:
    """Draw sets of genres [row, 4], the main one first, the others mostly of its family, -1 after `counts`."""
    family = np.unique(FAMILY, return_inverse=True)[1]
    main = rng.choice(weights.size, counts.size, p=weights / weights.sum())
    near = np.where(family[main][:, None] == family, 8 * weights, weights).astype(np.float32)
    with np.errstate(divide="ignore"):
        turn = rng.standard_exponential(near.shape, dtype=np.float32) / near  # the first to ring is drawn by weight
    turn[np.arange(main.size), main] = -1
    order = np.argsort(turn, axis=1, kind="stable")[:, :TASTES]
    drawn = (np.arange(TASTES) < counts[:, None]) & np.isfinite(np.take_along_axis(turn, order, axis=1))
    return np.where(drawn, order, -1)


def _homes(rng: Generator, count: int) -> Array:
    shares = np.array(list(MARKETS.values()))
    return rng.choice(shares.size, count, p=shares / shares.sum())


def _split(rng: Generator, total: int, rank: Array, *, least: int = 1) -> Array:
    """Divide works among creators; the popular have more of them."""
    weights = (rank + 5.0) ** -0.4
    return np.asarray(least + rng.multinomial(total - least * rank.size, weights / weights.sum()))


def _lists(cell: Array, members: Array, rank: Array | None, cells: int) -> Lists:
    order = np.lexsort((members if rank is None else rank[members], cell))
    return Lists(starts=np.searchsorted(cell[order], np.arange(cells + 1)), members=members[order])


def _zipf(size: Array, u: Array) -> Array:
    """Draw places 0 to size - 1 by Zipf's law: uniform u makes place + 1 log-uniform."""
    return np.asarray(np.minimum(np.floor((size + 1.0) ** u) - 1, size - 1), dtype=np.int64)


def _market_lists(seed: int) -> list[list[str]]:
    """The lists of markets that items have: none (everywhere), each one alone, and others of 1 to 8."""
    rng, markets = default_rng([seed, 2]), sorted(MARKETS)
    some = [sorted(rng.choice(markets, rng.integers(1, 9), replace=False).tolist()) for _ in range(OTHER_MARKET_LISTS)]
    return [[], *([market] for market in MARKETS), *some]


# --- the items: names, dates, limits


def _write_items(folder: Path, catalogue: Catalogue, settings: WorldSettings, progress: Progress) -> None:
    bounds, midnight = catalogue.bounds, (settings.until - date(1970, 1, 1)).days
    titles = _head_titles(catalogue, settings.seed)
    genres = pl.Series([[GENRES[genre] for genre in row if genre >= 0] for row in catalogue.genres.tolist()])
    markets = pl.Series(_market_lists(settings.seed), dtype=pl.List(pl.String))
    with _writer(folder / "items.parquet", ITEMS_SCHEMA) as writer:
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
                writer.write_table(_arrow(frame, ITEMS_SCHEMA))
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


# --- the listening: people, sessions, plays


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """Listeners of one chunk; days count back from `until`."""

    genres: Array  # [listener, taste], -1 after the last
    weights: Array  # [listener, taste], falling, their sum 1
    home: Array  # market [listener]
    age: Array  # days since the account began, whole [listener]
    allow_explicit: Array  # [listener]
    favourites: Array  # creators [listener, taste, favourite]


def _write_listening(
    folder: Path, catalogue: Catalogue, settings: WorldSettings, progress: Progress
) -> tuple[int, int]:
    """Write listeners, their tastes and their listens; give the number of listens and of plays."""
    allowed = np.array([[not some or market in some for market in MARKETS] for some in _market_lists(settings.seed)])
    listens = plays = 0
    with (
        _writer(folder / "listeners.parquet", LISTENERS_SCHEMA) as listeners,
        _writer(folder / "hidden" / "tastes.parquet", TASTES_SCHEMA) as tastes,
    ):
        for part, first in enumerate(range(0, settings.listeners, CHUNK_LISTENERS)):
            count = min(CHUNK_LISTENERS, settings.listeners - first)
            rng = default_rng([settings.seed, 5, part])
            people, ids = _people(rng, catalogue, settings.seed, count), _numbered("u", first, count)
            heard = _heard(rng, catalogue, settings, people, allowed)
            frame = _listens_frame(heard, catalogue, ids, settings.until)
            with _writer(folder / "listens" / f"part-{part:05}.parquet", LISTENS_SCHEMA) as writer:
                writer.write_table(_arrow(frame, LISTENS_SCHEMA))
            listeners.write_table(_arrow(_listeners_frame(people, ids, settings.until), LISTENERS_SCHEMA))
            tastes.write_table(_arrow(_tastes_frame(people, ids), TASTES_SCHEMA))
            listens, plays = listens + frame.height, plays + int(frame["plays"].sum())
            progress("listeners", first + count, settings.listeners)
    return listens, plays


def _people(rng: Generator, catalogue: Catalogue, seed: int, count: int) -> People:
    peopled = np.diff(catalogue.by_genre.starts) > 0  # a small world has no artist for some genres
    weights = _genre_weights(seed) * np.where(np.array(FAMILY) == "talk", 0.4, 1.0) * peopled
    genres = _genre_sets(rng, weights, rng.choice([2, 3, 4], count, p=[0.4, 0.4, 0.2]))
    share = np.where(genres >= 0, rng.gamma(1.5, size=genres.shape) + 0.1, 0)
    share = -np.sort(-share, axis=1)
    home = _homes(rng, count)
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
    # 1.4 plays per row wanted: the rest repeats a row or is dropped below; measured at 20,000 items.
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
    piece = pieces + _zipf(catalogue.pieces[creator + 1] - pieces, rng.random(size))
    album_count = catalogue.albums[creator + 1] - albums
    album = albums + _zipf(album_count, rng.random(size))
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


# --- the files


def _midnight(until: date) -> pl.Expr:
    return pl.lit(datetime(until.year, until.month, until.day, tzinfo=UTC), LISTENS_SCHEMA["last_played_at"])


def _writer(path: Path, schema: pl.Schema) -> parquet.ParquetWriter:
    return parquet.ParquetWriter(path, _arrow(schema.to_frame(), schema).schema, compression="zstd")


def _arrow(frame: pl.DataFrame, schema: pl.Schema) -> Any:
    """Give a pyarrow table of exactly the schema's columns and types."""
    return frame.select(schema.names()).cast(schema).to_arrow(compat_level=pl.CompatLevel.oldest())
