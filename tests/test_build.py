"""Building: the same again from the same data, listeners as the tables say, bad rows counted, all or nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features import snapshot as snapshot_format
from features.errors import ListeningError, WrongState
from features.keys import PARTITIONS, item_keys, partition
from features.listeners import Known, decode
from features.offline.artefact import aside
from features.offline.build import BuildReport, BuildSettings, build
from features.offline.records import halves
from features.snapshot import COLUMNS, MANIFEST, Snapshot, load, read_manifest
from protos.home.v1.home_pb2 import Item
from tests.conftest import quiet
from tests.tables import everyone_plays, write_tables

SMALL = BuildSettings(factors=16, iterations=5)  # those of the fixture `built`
COLUMN_FILES = [f"{name}.npy" for name in COLUMNS]


def built_from(data: Path, out: Path, **changed: Any) -> BuildReport:
    """Builds with few factors and no gate, since a handful of rows makes no good snapshot."""
    return build(data, out, settings=BuildSettings(factors=4, refuse=False, **changed), progress=quiet)


# --- the same again


def test_the_same_data_settings_and_seed_give_the_same_bytes_on_one_core(
    world: Path, built: Path, tmp_path: Path
) -> None:
    """Another process, bound to one core, gives the same digest and the same listener records."""
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from pathlib import Path; from features.offline.build import BuildSettings, build\n"
        f"settings = BuildSettings(factors={SMALL.factors}, iterations={SMALL.iterations})\n"
        f"build(Path({str(world)!r}), Path({str(tmp_path / 'again')!r}), settings=settings, progress=lambda *_: None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert read_manifest(tmp_path / "again")[1] == read_manifest(built)[1]
    records = "listeners/listeners.json"
    assert (tmp_path / "again" / records).read_bytes() == (built / records).read_bytes()


def test_the_order_of_rows_changes_nothing(world: Path, built: Path, tmp_path: Path) -> None:
    """Tables with their rows shuffled give the same files; only the digest of the data differs."""
    (tmp_path / "shuffled").mkdir()
    for name in ("items", "listens", "listeners"):
        source = world / name if (world / name).is_dir() else world / f"{name}.parquet"
        pl.read_parquet(source).sample(fraction=1, shuffle=True, seed=3).write_parquet(
            tmp_path / "shuffled" / f"{name}.parquet"
        )
    report = build(tmp_path / "shuffled", tmp_path / "out", settings=SMALL, progress=quiet)
    before, _ = read_manifest(built)
    assert report.manifest.files == before.files
    assert report.manifest.space_id != before.space_id


def test_another_seed_is_another_embedding_space(world: Path, built: Path, tmp_path: Path) -> None:
    """The space_id is 16 hex digits and names the seed too."""
    other = BuildSettings(factors=SMALL.factors, iterations=SMALL.iterations, seed=8)
    report = build(world, tmp_path / "other", settings=other, progress=quiet)
    assert int(report.manifest.space_id, 16) != int(read_manifest(built)[0].space_id, 16)
    assert len(report.manifest.space_id) == 16


@pytest.mark.parametrize("version", ["features.listeners.VERSION", "features.offline.records.CONTENT"])
def test_records_of_another_format_are_another_embedding_space(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So publishing never takes the old ones for the new."""
    data = write_tables(tmp_path / "data", items=[{"item_id": "a"}], listens=everyone_plays("uv", "a"))
    before = built_from(data, tmp_path / "out").manifest.space_id
    monkeypatch.setattr(version, 9)
    assert built_from(data, tmp_path / "out").manifest.space_id != before


# --- what it says of the listeners


def test_a_few_rows_make_a_snapshot(tmp_path: Path) -> None:
    """Three items and four listens pass the gate: a vector that training left tiny keeps its direction."""
    listens = everyone_plays("u", "ab") + everyone_plays("v", "bc")
    data = write_tables(tmp_path / "data", items=[{"item_id": name} for name in "abc"], listens=listens)
    report = build(data, tmp_path / "out", settings=BuildSettings(), progress=quiet)
    assert report.figures["coverage"] == 1
    frames = pl.read_parquet(tmp_path / "out" / "listeners" / "*.parquet")["record"].to_list()
    snapshot = load(tmp_path / "out")
    vectors = decode(frames, space_id=snapshot.space_id, dimension=64, genres=0).vectors
    assert np.abs(vectors).max(axis=1).tolist() == [1, 1]
    best = np.argmax(vectors @ snapshot.columns["vector"].T, axis=1)
    assert best.tolist() == snapshot.rows_of(item_keys(["b", "b"])).tolist()


def test_only_a_vector_that_float16_would_spoil_is_scaled() -> None:
    """Its largest number becomes 1; zero stays zero, and any other is as it was."""
    vectors = np.array([[1e-9, -2e-9], [0, 0], [0.002, 3], [2**-10, 0]], np.float32)
    expected = np.array([[0.5, -1], [0, 0], [0.002, 3], [2**-10, 0]], np.float16)
    np.testing.assert_array_equal(halves(vectors), expected)


def test_records_are_for_their_owner_alone(built: Path) -> None:
    """They are of people; the snapshot beside them is not."""
    modes = {path.relative_to(built).as_posix(): path.stat().st_mode & 0o777 for path in built.rglob("*")}
    assert {mode for name, mode in modes.items() if name.startswith("listeners/")} == {0o400}
    assert modes.pop("listeners") == 0o700
    assert {mode for name, mode in modes.items() if "/" not in name} == {0o444}


def test_records_decode_to_what_the_tables_say(world: Path, built: Path, snapshot: Snapshot) -> None:
    """Plays, recents with the latest first, genres, market, consent and day, for every listener with listens."""
    records = pl.read_parquet(built / "listeners" / "*.parquet")
    users = records["user_id"].to_list()
    assert users == sorted(users, key=lambda user: (partition(user), user))
    got = decode(
        records["record"].to_list(), space_id=snapshot.space_id, dimension=16, genres=len(snapshot.manifest.genres)
    )
    listens = pl.read_parquet(world / "listens")
    facts = {row["user_id"]: row for row in pl.read_parquet(world / "listeners.parquet").iter_rows(named=True)}
    assert set(users) == set(listens["user_id"])
    assert (got.known == Known.RECORD).all()
    assert (got.vectors != 0).any(axis=1).all()
    assert ((got.segment >= 0) & (got.segment < snapshot_format.SEGMENTS)).all()
    own = {user: rows for (user,), rows in listens.group_by("user_id")}
    for row, user in enumerate(users):
        latest = own[user].sort("last_played_at", "plays", descending=True)
        recent = slice(got.recent_start[row], got.recent_start[row + 1])
        days = (latest["last_played_at"].dt.epoch("s") // 86_400).head(512)
        assert got.recent_days[recent].tolist() == days.to_list()
        assert set(got.recent_keys[recent].tolist()) <= set(item_keys(own[user]["item_id"]).tolist())
        assert got.total_plays[row] == own[user]["plays"].sum()
        assert got.market[row] == facts[user]["market"]
        assert got.allow_explicit[row] == facts[user]["allow_explicit"]
    assert (got.genre_weights.sum(axis=1) <= 1).all()
    assert ((got.genre_weights > 0).sum(axis=1) <= 16).all()
    assert PARTITIONS == 64


def test_a_taste_hidden_in_the_world_is_found(world: Path, built: Path, snapshot: Snapshot) -> None:
    """Of the best 20 for a listener most are of the genres the world gave them; of items at random few are."""
    records = pl.read_parquet(built / "listeners" / "*.parquet")
    tastes = dict(pl.read_parquet(world / "hidden" / "tastes.parquet").select("user_id", "genres").iter_rows())
    vectors = decode(records["record"].to_list(), space_id=snapshot.space_id, dimension=16, genres=1).vectors
    scores = vectors @ snapshot.columns["vector"].T
    best = np.argsort(-scores, axis=1)[:, :20]
    genre, names = snapshot.columns["genre"], np.array([*snapshot.manifest.genres, ""])
    mine = [np.asarray(np.isin(names[genre], tastes[user]).any(axis=1)) for user in records["user_id"]]
    found = float(np.mean([own[rows].mean() for own, rows in zip(mine, best, strict=True)]))
    chance = float(np.mean(mine))
    assert (found > 0.6, found > 4 * chance) == (True, True), (found, chance)


# --- bad rows


def test_bad_rows_are_counted_and_the_rest_stands(tmp_path: Path) -> None:
    """A repeated item keeps its first row, a listen of an unknown item goes, repeated listens are added up."""
    items = [{"item_id": "a", "title": "first"}, {"item_id": "b"}, {"item_id": "a", "title": "second"}]
    listens = (
        everyone_plays(["u", "v"], ["a", "b"], 2) + everyone_plays(["u"], ["a"], 5) + everyone_plays(["w"], ["zz"])
    )
    listeners = [{"user_id": "u", "market": "GB"}, {"user_id": "u", "market": "DE"}, {"user_id": "x", "market": "SE"}]
    data = write_tables(tmp_path / "data", items=items, listens=listens, listeners=listeners)
    report = built_from(data, tmp_path / "out")
    assert report.rejections == [
        ("items", "item_id is repeated; the first row stands", 1, ("a",)),
        ("listeners", "user_id is repeated; the first row stands", 1, ("u",)),
        ("listens", "item_id is not in items", 1, ("zz",)),
    ]
    snapshot = load(tmp_path / "out")
    row_a, row_b = snapshot.rows_of(item_keys(["a", "b"]))
    assert snapshot.columns["plays"][[row_a, row_b]].tolist() == [9, 4]
    start, stop = snapshot.columns["card_offset"][[row_a, row_a + 1]].tolist()
    assert Item.FromString(snapshot.cards[start:stop]).title == "first"
    assert snapshot.manifest.markets == ("DE", "GB", "SE")
    assert sorted(pl.read_parquet(tmp_path / "out" / "listeners" / "*.parquet")["user_id"]) == ["u", "v"]


def test_listens_without_a_time_are_recent_by_plays(tmp_path: Path) -> None:
    """Where no time is known, the most played come first and plays are capped at 65,535."""
    items = [{"item_id": name} for name in "abc"]
    listens = [
        {"user_id": "u", "item_id": name, "plays": plays} for name, plays in zip("abc", (3, 70_000, 5), strict=True)
    ]
    built_from(write_tables(tmp_path / "data", items=items, listens=listens), tmp_path / "out")
    snapshot = load(tmp_path / "out")
    frames = pl.read_parquet(tmp_path / "out" / "listeners" / "*.parquet")["record"].to_list()
    got = decode(frames, space_id=snapshot.space_id, dimension=4, genres=0)
    assert got.recent_keys.tolist() == item_keys("bca").tolist()
    assert got.recent_plays.tolist() == [65_535, 5, 3]
    assert got.recent_days.tolist() == [0, 0, 0]
    assert snapshot.manifest.as_of == ""
    assert (got.market, got.allow_explicit.tolist()) == (("",), [True])


@pytest.mark.parametrize(
    ("items", "listens", "says"),
    [([], [], "items has no usable row"), ([{"item_id": "a"}], [], "listens has no usable row")],
)
def test_empty_tables_are_refused(items: list[Any], listens: list[Any], says: str, tmp_path: Path) -> None:
    """There is nothing to build from, and nothing is left behind."""
    data = write_tables(tmp_path / "data", items=items, listens=listens)
    with pytest.raises(ListeningError, match=says):
        built_from(data, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# --- whole or not at all


def test_a_snapshot_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """An error leaves the old one and no trace; success leaves the new one, read-only."""
    out = tmp_path / "out"

    def write(text: str) -> None:
        with aside(out) as folder:
            (folder / MANIFEST).write_text(text)
            if text == "bad":
                raise ValueError(text)

    write("old")
    with pytest.raises(ValueError, match="bad"):
        write("bad")
    assert (out / MANIFEST).read_text() == "old"
    write("new")
    assert (out / MANIFEST).read_text() == "new"
    assert (out / MANIFEST).stat().st_mode & 0o777 == 0o444
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_something_else_than_a_snapshot_is_not_replaced(tmp_path: Path) -> None:
    """A folder with other files stays as it is."""
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(WrongState, match="is no snapshot"), aside(tmp_path):
        pass
    assert (tmp_path / "letters.txt").read_text() == "dear"
