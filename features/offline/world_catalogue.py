"""The catalogue of a world: who makes what, in which genres, how popular and for which markets."""

from dataclasses import dataclass
from datetime import date
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from features.errors import ListeningError

Array: TypeAlias = NDArray[Any]

TASTES, SCENES = 4, 8
NEVER = 1_000_000  # days from `until` beyond which nothing is
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
SMALL_MARKETS = [number for number, share in enumerate(MARKETS.values()) if share <= 5]
OTHER_MARKET_LISTS = 50
GENRES = [genre for genres in FAMILIES.values() for genre in genres.split(", ")]
LEAST = {"seed": 0, "items": 300, "listeners": 1, "listens_per_listener": 1}
FAMILY = [family for family, genres in FAMILIES.items() for _ in genres.split(", ")]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSettings:
    """What a world is made from; `listens_per_listener` is about the mean number of rows, `until` ends the last day."""

    seed: int = 7
    items: int = 20_000
    listeners: int = 5_000
    listens_per_listener: int = 60
    until: date = date(2026, 11, 1)

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if (value := getattr(self, name)) < least:
                raise ListeningError(f"a world's {name} must be at least {least}, not {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Members by cell, the most popular first: cell c holds `members[starts[c] : starts[c + 1]]`."""

    starts: Array
    members: Array

    def pick(self, cell: Array, u: Array, scene: Array | None = None) -> Array:
        """Draw from cells by Zipf's law with uniform u, then move into a scene where given; -1 from an empty cell."""
        size = self.starts[cell + 1] - self.starts[cell]
        place = zipf(size, u)
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
    markets: Array  # index into `market_lists`


def draw_catalogue(settings: WorldSettings) -> Catalogue:
    """Draw the catalogue from seed and number of items alone; its last four columns are still blank."""
    rng = default_rng([settings.seed, 0])
    sizes = _sizes(settings.items)
    artists, shows = sizes["artist"], sizes["podcast"]
    rank = np.concatenate([rng.permutation(artists), rng.permutation(shows)])
    genres, home = _creator_genres(rng, settings.seed, artists, shows), homes(rng, artists + shows)
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
        ids=pl.concat(numbered(prefix, 0, sizes[kind]) for kind, prefix in KINDS.items()),
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


def numbered(prefix: str, first: int, count: int) -> pl.Series:
    """Give ids such as t0001234 or al000123."""
    return prefix + pl.int_range(first, first + count, eager=True).cast(pl.String).str.zfill(8 - len(prefix))


def _creator_genres(rng: Generator, seed: int, artists: int, shows: int) -> Array:
    weights, talk = genre_weights(seed), np.array(FAMILY) == "talk"
    music = genre_sets(rng, weights * ~talk, rng.choice([1, 2, 3], artists, p=[0.4, 0.4, 0.2]))
    return np.concatenate([music, genre_sets(rng, weights * talk, np.ones(shows, dtype=np.int64))])


def genre_weights(seed: int) -> Array:
    """How often each genre is anyone's: by Zipf's law with exponent 0.6 in an order of the seed's."""
    return (default_rng([seed, 1]).permutation(len(GENRES)) + 3.0) ** -0.6


def genre_sets(rng: Generator, weights: Array, counts: Array) -> Array:
    """Draw sets of genres [row, 4], the main one first, the others mostly of its family, -1 after `counts`."""
    family = np.unique(FAMILY, return_inverse=True)[1]
    main = rng.choice(weights.size, counts.size, p=weights / weights.sum())
    near = np.where(family[main][:, None] == family, 8 * weights, weights).astype(np.float32)
    turn = rng.standard_exponential(near.shape, dtype=np.float32)
    turn = np.divide(turn, near, out=np.full_like(turn, np.inf), where=near > 0)  # the first to ring is drawn by weight
    turn[np.arange(main.size), main] = -1
    order = np.argsort(turn, axis=1, kind="stable")[:, :TASTES]
    drawn = (np.arange(TASTES) < counts[:, None]) & np.isfinite(np.take_along_axis(turn, order, axis=1))
    return np.where(drawn, order, -1)


def homes(rng: Generator, count: int) -> Array:
    """Draw home markets by their shares."""
    shares = np.array(list(MARKETS.values()))
    return rng.choice(shares.size, count, p=shares / shares.sum())


def _split(rng: Generator, total: int, rank: Array, *, least: int = 1) -> Array:
    """Divide works among creators; the popular have more of them."""
    weights = (rank + 5.0) ** -0.4
    return np.asarray(least + rng.multinomial(total - least * rank.size, weights / weights.sum()))


def _lists(cell: Array, members: Array, rank: Array | None, cells: int) -> Lists:
    order = np.lexsort((members if rank is None else rank[members], cell))
    return Lists(starts=np.searchsorted(cell[order], np.arange(cells + 1)), members=members[order])


def zipf(size: Array, u: Array) -> Array:
    """Draw places 0 to size - 1 by Zipf's law: uniform u makes place + 1 log-uniform."""
    return np.asarray(np.minimum(np.floor((size + 1.0) ** u) - 1, size - 1), dtype=np.int64)


def market_lists(seed: int) -> list[list[str]]:
    """The lists of markets that items have: none (everywhere), each one alone, and others of 1 to 8."""
    rng, markets = default_rng([seed, 2]), sorted(MARKETS)
    some = [sorted(rng.choice(markets, rng.integers(1, 9), replace=False).tolist()) for _ in range(OTHER_MARKET_LISTS)]
    return [[], *([market] for market in MARKETS), *some]
