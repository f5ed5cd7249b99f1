"""The synthetic world: the same bytes again, whole, and with the structure that it says it has."""

import hashlib
import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.errors import WrongState
from features.offline import world_items, world_listening
from features.offline.listening import open_listening
from features.offline.world import WorldSettings, WorldSummary, generate

SMALL = WorldSettings(items=600, listeners=300, listens_per_listener=20)
MIDDLE = WorldSettings(items=5_000, listeners=1_500)


class World:
    """A generated world with its tables in memory."""

    def __init__(self, folder: Path, settings: WorldSettings) -> None:
        self.folder = folder
        self.calls: list[tuple[str, int, int]] = []
        self.summary = generate(folder, settings=settings, progress=lambda *call: self.calls.append(call))
        self.items = pl.read_parquet(folder / "items.parquet")
        self.listens = pl.read_parquet(folder / "listens" / "*.parquet")
        self.listeners = pl.read_parquet(folder / "listeners.parquet")
        self.tastes = pl.read_parquet(folder / "hidden" / "tastes.parquet")
        self.heard = self.listens.join(self.items, on="item_id").join(self.listeners, on="user_id")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world of 5,000 items and 1,500 listeners."""
    return World(tmp_path_factory.mktemp("world") / "W", MIDDLE)


def prints(folder: Path) -> dict[str, str]:
    """The sha256 of each file of a made."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- the files


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    """Every file of two runs is equal to the bit, the hidden truth included."""
    assert prints(World(tmp_path / "a", SMALL).folder) == prints(World(tmp_path / "b", SMALL).folder)


@pytest.mark.parametrize("changed", [{"seed": 8}, {"items": 601}, {"listeners": 301}, {"until": date(2026, 10, 31)}])
def test_other_settings_give_another_world(tmp_path: Path, changed: dict[str, int | date]) -> None:
    """Any setting changes the listens."""
    first, second = World(tmp_path / "a", SMALL), World(tmp_path / "b", replace(SMALL, **changed))  # type: ignore[arg-type]
    assert not first.listens.equals(second.listens)


def test_more_listeners_leave_the_items_as_they_are(tmp_path: Path) -> None:
    """The catalogue depends on seed and items alone."""
    first, second = World(tmp_path / "a", SMALL), World(tmp_path / "b", replace(SMALL, listeners=30))
    assert first.items.equals(second.items)


def test_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks of 100 items and 50 listeners the world has the same counts and no id twice."""
    monkeypatch.setattr(world_items, "CHUNK_ITEMS", 100)
    monkeypatch.setattr(world_listening, "CHUNK_LISTENERS", 50)
    made = World(tmp_path / "W", SMALL)
    assert (made.items.height, made.listeners.height, made.tastes.height) == (600, 300, 300)
    assert len(list((made.folder / "listens").iterdir())) == 6
    assert made.items["item_id"].is_unique().all()
    assert made.listeners["user_id"].is_unique().all()
    assert made.calls[-1] == ("listeners", 300, 300)


def test_a_world_passes_every_check(made: World) -> None:
    """Read as listening data it gives what the summary says, and nothing is rejected."""
    data = open_listening(made.folder)
    plays = sum(int(frame["plays"].sum()) for frame in data.listens())
    counts = [sum(frame.height for frame in table()) for table in (data.items, data.listeners, data.listens)]
    items, listeners, listens = counts
    assert WorldSummary(items=items, listeners=listeners, listens=listens, plays=plays) == made.summary
    assert (items, listeners) == (MIDDLE.items, MIDDLE.listeners)
    assert data.report.rows() == []
    assert json.loads((made.folder / "world.json").read_text())["counts"]["listens"] == listens


def test_progress_runs_from_few_to_all(made: World) -> None:
    """Each stage is told with rising counts that end at its total."""
    for stage, total in (("items", MIDDLE.items), ("listeners", MIDDLE.listeners)):
        done = [done for name, done, of in made.calls if name == stage and of == total]
        assert done == sorted(done)
        assert done[-1] == total


def test_only_a_world_is_replaced(tmp_path: Path) -> None:
    """An older world makes room, an empty folder too; anything else stays as it is and is refused."""
    (tmp_path / "W").mkdir()
    World(tmp_path / "W", replace(SMALL, seed=1))
    second = World(tmp_path / "W", SMALL)
    assert prints(second.folder) == prints(World(tmp_path / "again", SMALL).folder)
    (tmp_path / "W" / "world.json").unlink()
    before = prints(tmp_path / "W")
    with pytest.raises(WrongState, match="is no world"):
        generate(tmp_path / "W", settings=SMALL, progress=lambda *_: None)
    assert prints(tmp_path / "W") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["W", "again"]


def test_a_world_is_for_its_owner_alone(made: World) -> None:
    """It is of people: nobody else may open its folder."""
    assert made.folder.stat().st_mode & 0o777 == 0o700


# --- the items


def test_every_id_that_is_named_exists(made: World) -> None:
    """Listens name items and listeners of the tables; items name artists, albums and recordings of theirs."""
    ids = set(made.items["item_id"])
    assert set(made.listens["item_id"]) <= ids
    assert set(made.listens["user_id"]) <= set(made.listeners["user_id"])
    for column in ("artist_id", "album_id", "recording_id"):
        assert set(made.items[column]) - {""} <= ids
    assert made.listens.select(pl.struct("user_id", "item_id").is_unique().all()).item()


def test_items_of_every_kind_have_plausible_names(made: World) -> None:
    """Each kind is there; titles and subtitles are not empty, hold no open slot, and vary."""
    assert set(made.items["kind"]) == {"artist", "podcast", "album", "playlist", "track", "episode"}
    assert made.items.select(pl.concat_str("title", "subtitle").str.contains(r"[{}]|^$").any()).item() is False
    assert (made.items["title"].str.len_chars() > 1).all()
    assert made.items["title"].n_unique() > 0.5 * made.items.height
    assert (made.items["genres"].list.len() > 0).all()
    assert made.items["genres"].explode().n_unique() >= 40


def test_a_second_issue_shares_title_artist_and_recording(made: World) -> None:
    """A small share of tracks are single versions that name the recording they repeat."""
    again = made.items.filter(pl.col("recording_id") != "")
    pairs = again.join(made.items, left_on="recording_id", right_on="item_id")
    assert 0.005 < again.height / made.items.height < 0.03
    assert (pairs["title"] == pairs["title_right"] + " (Single Version)").all()
    assert (pairs["artist_id"] == pairs["artist_id_right"]).all()


def test_about_a_tenth_of_the_items_is_limited_to_markets(made: World) -> None:
    """Most items are everywhere; limits name 1 to 8 markets; some artists are at home in one small market alone."""
    limits = made.items["markets"].list.len().to_numpy()
    assert 0.05 < (limits > 0).mean() < 0.2
    assert limits.max() == 8
    assert made.items.filter(kind="artist").select((pl.col("markets").list.len() == 1).any()).item()


# --- the listening


def test_nobody_hears_what_could_not_be_played(made: World) -> None:
    """No listen breaks a market, a release, an end of availability, or a wish for no explicit content."""
    home, day = pl.col("market"), pl.col("last_played_at")
    allowed = (pl.col("markets").list.len() == 0) | pl.col("markets").list.contains(home)
    assert made.heard.select(allowed.all()).item()
    assert made.heard.select((pl.col("released").is_null() | (pl.col("released") <= day.dt.date())).all()).item()
    assert made.heard.select((pl.col("available_until").is_null() | (day < pl.col("available_until"))).all()).item()
    assert made.heard.filter("explicit", ~pl.col("allow_explicit")).height == 0
    assert made.heard.select((pl.col("created_at") <= day).all()).item()


def test_plays_lie_in_the_last_year_and_more_of_them_late(made: World) -> None:
    """The latest plays are in the year before `until`, most of them in its last quarter."""
    ago = made.listens.select(pl.lit(MIDDLE.until).cast(pl.Datetime("us", "UTC")) - pl.col("last_played_at"))
    days = ago.to_series().dt.total_seconds().to_numpy() / 86_400
    assert days.min() > 0
    assert days.max() <= 366
    assert (days < 91).mean() > 0.5


def test_hidden_tastes_are_heard(made: World) -> None:
    """Most of what a listener plays is of the listener's genres, far more than of another listener's."""
    others = made.tastes.select("user_id", theirs=pl.col("genres").shift(1).fill_null(pl.col("genres").last()))
    known = made.tastes.select("user_id", mine="genres").join(others, on="user_id")
    heard = made.heard.join(known, on="user_id")
    share = {
        whose: heard.select(
            (pl.col("plays") * (pl.col("genres").list.set_intersection(whose).list.len() > 0)).sum()
            / pl.col("plays").sum()
        ).item()
        for whose in ("mine", "theirs")
    }
    assert share["mine"] > 0.9
    assert share["theirs"] < 0.35


def test_a_heavier_taste_is_heard_more(made: World) -> None:
    """Over listeners, the weight of the first taste goes with its share of the plays."""
    first = made.tastes.select("user_id", main=pl.col("genres").list.first(), weight=pl.col("weights").list.first())
    heard = made.heard.join(first, on="user_id")
    is_main = pl.col("genres").list.contains(pl.col("main"))
    shares = heard.group_by("user_id").agg(
        pl.col("weight").first(), share=(pl.col("plays") * is_main).sum() / pl.col("plays").sum()
    )
    assert np.corrcoef(shares["weight"], shares["share"])[0, 1] > 0.5


def test_weights_are_shares_of_two_to_four_tastes(made: World) -> None:
    """Weights fall and sum to 1; tastes of one listener are distinct."""
    weights, genres = made.tastes["weights"], made.tastes["genres"]
    assert np.allclose(weights.list.sum(), 1, atol=1e-5)
    assert set(weights.list.len()) == {2, 3, 4}
    assert (weights.list.sort(descending=True) == weights).all()
    assert (genres.list.n_unique() == weights.list.len()).all()


def test_artists_are_popular_by_zipf_within_their_genre(made: World) -> None:
    """Ranked within genres, log plays fall with log rank at a slope near -1."""
    tracks = made.heard.filter(kind="track").with_columns(genre=pl.col("genres").list.first())
    plays = tracks.group_by("genre", "artist_id").agg(pl.col("plays").sum())
    share = (pl.col("plays") / pl.col("plays").sum()).over("genre")
    rank = pl.col("plays").rank("ordinal", descending=True).over("genre")
    falling = plays.select("genre", rank=rank, share=share).group_by("rank").agg(pl.col("share").mean()).sort("rank")
    head = falling["share"].to_numpy()[:6]
    assert -1.3 < np.polyfit(np.log(np.arange(1, 7)), np.log(head), 1)[0] < -0.7


def test_listeners_return_to_favourites(made: World) -> None:
    """The three most played artists of a listener have far more of the plays than three of equal artists would."""
    played = made.heard.filter(kind="track").group_by("user_id", "artist_id").agg(pl.col("plays").sum())
    top = played.group_by("user_id").agg(
        share=pl.col("plays").top_k(3).sum() / pl.col("plays").sum(), even=3 / pl.len().clip(3)
    )
    assert top["share"].to_numpy().mean() > 2 * top["even"].to_numpy().mean()


def test_listens_are_about_as_many_as_asked(made: World) -> None:
    """The mean number of rows per listener is within a third of the setting, and listeners differ."""
    rows = made.listens.group_by("user_id").len()["len"].to_numpy()
    assert abs(made.listens.height / MIDDLE.listeners / MIDDLE.listens_per_listener - 1) < 1 / 3
    assert np.quantile(rows, 0.9) > 3 * np.quantile(rows, 0.1)
