"""Erasure: of a forgotten listener nothing from before stays in any artefact, and what they do later counts."""

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.events import Event
from features.forgetting import forgotten
from features.keys import Keys
from features.offline import drain as drain_
from features.offline import erase as erase_
from features.offline import listens
from features.offline.build import BuildReport, BuildSettings, build
from features.offline.drain import DrainReport, drain
from features.offline.forgotten import FILE, all_forgotten, read_forgotten
from features.offline.publish import connect
from features.offline.rejections import FORGOTTEN
from features.preference_store import PreferenceStore
from features.recent_state import Did
from tests.conftest import Store, quiet
from tests.operation import mantel, soon
from tests.tables import write_tables
from tests.test_drain import KilledError, after, assert_listens, before, take
from tests.test_forgetting import loaded

HOUR_S = 3600.0
USERS = [f"u{n}" for n in range(40)]
GONE = USERS[::4]
STAY = sorted(set(USERS) - set(GONE))


def plays(name: str, users: list[str] = USERS, *, ago_s: float = 0.0) -> list[Event]:
    """A play by each listener, so long ago."""
    at = int((time.time() - ago_s) * 1000)
    return [
        Event(event_id=f"{name}-{user}", user_id=user, did=Did.PLAY, item_id=f"i{n % 7}", occurred_ms=at)
        for n, user in enumerate(users)
    ]


async def forget(store: Store, users: list[str] = GONE) -> None:
    """Forgets listeners as the service does; what comes next comes later by the clock's milliseconds."""
    preferences = PreferenceStore(store.url, store.keys)
    for user in users:
        await preferences.forget(user)
    await preferences.close()
    await asyncio.sleep(0.002)


def drained(store: Store, out: Path) -> DrainReport:
    """Drains, to the end."""
    return drain(store.client, store.keys, out, progress=quiet)


def events_of(out: Path, users: list[str]) -> set[str]:
    """The names of the events that lie in a drain's directory, of some listeners."""
    rows = pl.read_parquet(out / "day=*" / "part-*.parquet", hive_partitioning=True)
    assert rows["event_id"].is_unique().all()
    return {event.partition("-")[0] for event, user in rows.select("event_id", "user_id").rows() if user in users}


def listens_of(out: Path) -> set[str]:
    """Who has listens in a drain's directory."""
    return set(pl.read_parquet(out / "listens" / "*.parquet")["user_id"])


async def test_a_drain_leaves_out_and_erases_who_was_forgotten(store: Store, tmp_path: Path) -> None:
    """What waits in the streams is left out, what lies in Parquet is erased, of all days; what comes later counts."""
    out = tmp_path / "out"
    await take(store, plays("old", ago_s=40 * HOUR_S))
    await take(store, plays("new"))
    assert drained(store, out).forgotten == 0
    await take(store, plays("waiting"))
    await forget(store)
    await take(store, plays("late", ago_s=HOUR_S))  # recorded after the tombstone, of before it
    erased = drained(store, out)
    assert (erased.read, erased.forgotten, erased.erased, erased.repeated) == (80, 20, 20, 0)
    assert (events_of(out, GONE), listens_of(out)) == (set(), set(STAY))
    await take(store, plays("later"))
    assert (drained(store, out).forgotten, listens_of(out)) == (0, set(USERS))
    assert (events_of(out, GONE), events_of(out, STAY)) == ({"later"}, {"old", "new", "waiting", "late", "later"})
    assert_listens(out)
    again = drained(store, out)
    assert (again.read, again.erased, again.listens) == (0, 0, 0)


async def test_served_pages_are_erased_with_the_events(store: Store, tmp_path: Path) -> None:
    """Pages and the items that they showed, of before; those of others, and of later, stay."""
    out, now = tmp_path / "out", datetime.now(UTC)
    for name in ("pages", "served"):
        (out / name / "day=2026-01-01").mkdir(parents=True)
        served = pl.DataFrame(
            {"user_id": ["u1", "u1", "u2"], "served_at": [now - timedelta(hours=1), now + timedelta(hours=1), now]},
            schema_overrides={"served_at": pl.Datetime("ms", "UTC")},
        )
        served.write_parquet(out / name / "day=2026-01-01" / "part-1.parquet")
    await forget(store, ["u1"])
    assert drained(store, out).erased == 2
    for name in ("pages", "served"):
        assert pl.read_parquet(out / name / "day=*" / "*.parquet")["user_id"].to_list() == ["u1", "u2"]


async def test_days_of_nobody_else_are_left_without_a_row(store: Store, tmp_path: Path) -> None:
    """Where all that was drained is of one who was forgotten, no event and no listen stays; nor on a second look."""
    out = tmp_path / "out"
    await take(store, plays("only", ["u1"], ago_s=HOUR_S))
    drained(store, out)
    await forget(store, ["u1"])
    assert drained(store, out).erased == 1
    assert (events_of(out, USERS), listens_of(out)) == (set(), set())
    held = [path for path in out.rglob("*") if path.is_file() and b"u1" in path.read_bytes()]
    assert not held


STEPS: list[tuple[Any, str, int]] = [
    (erase_, "_erase_from", 1),
    (erase_, "sync_entry", 1),
    (erase_, "sync_entry", 2),
    (erase_, "_erase_from", 2),
    (drain_, "write_forgotten", 1),
    (drain_, "_write_progress", 1),
    (listens, "_write_day", 1),
]


@pytest.mark.parametrize("when", [before, after])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[1]}-{step[2]}")
async def test_an_erasure_that_ends_anywhere_is_ended_by_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str, int], when: Any
) -> None:
    """Ended before or after any step: the next drain has erased all, and every event of the others stays once."""
    out = tmp_path / "out"
    for ago_s in (0.0, 30 * HOUR_S):
        await take(store, plays(f"{ago_s:.0f}", ago_s=ago_s))
    drained(store, out)
    await forget(store)
    with monkeypatch.context() as patch:
        module, name, number = step
        patch.setattr(module, name, when(getattr(module, name), number))
        with pytest.raises(KilledError):
            drained(store, out)
    drained(store, out)
    assert (events_of(out, GONE), events_of(out, STAY), listens_of(out)) == (set(), {"0", "108000"}, set(STAY))
    assert_listens(out)
    assert not list(out.rglob(".*"))


def _newest(out: Path) -> int:
    return max(part.stat().st_mtime_ns for part in out.rglob("part-*"))


def _erase_slowly(url: str, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, connect(url) as client:
        patch.setattr(erase_, "sync_entry", lambda _: time.sleep(0.03))
        drain(client, Keys(), out, progress=quiet)


async def test_an_erasure_that_is_killed_at_any_time(store: Store, tmp_path: Path) -> None:
    """Kill -9 of runs on their way through 30 parts: nothing of the others is lost, nothing of the forgotten stays."""
    out, rng, names = tmp_path / "out", random.Random(7), {f"e{n}" for n in range(30)}
    for name in sorted(names):
        await take(store, plays(name, ago_s=rng.random() * 40 * HOUR_S))
        drained(store, out)
    await forget(store)
    for _ in range(4):
        process = get_context("spawn").Process(target=_erase_slowly, args=(store.url, out))
        process.start()
        newest = _newest(out)
        await soon(lambda: not process.is_alive() or newest < _newest(out))  # noqa: B023
        await asyncio.sleep(rng.random() * 0.3)
        process.kill()
        process.join()
    drained(store, out)
    assert (events_of(out, GONE), events_of(out, STAY), listens_of(out)) == (set(), names, set(STAY))
    assert_listens(out)


ITEMS = [{"item_id": f"i{n}"} for n in range(7)]


def built(data: Path, out: Path, **how: Any) -> BuildReport:
    """A small snapshot, whatever its gate says."""
    return build(data, out, settings=BuildSettings(factors=4, refuse=False), progress=quiet, **how)


def records_of(folder: Path) -> set[str]:
    """Who has a record in a snapshot's folder."""
    return set(pl.read_parquet(folder / "listeners" / "*.parquet")["user_id"])


async def test_a_build_on_drained_events_knows_who_was_forgotten(store: Store, tmp_path: Path) -> None:
    """From the drain's own tombstones, before the events are erased from a copy; who comes back has a record again."""
    out = tmp_path / "out"
    await take(store, plays("old", ago_s=HOUR_S))
    drained(store, out)
    copy = pl.read_parquet(out / "listens" / "*.parquet")  # as a warehouse may keep it
    await forget(store)
    back = GONE[:3]
    await take(store, plays("later", back))
    drained(store, out)
    copy.write_parquet(out / "listens" / "copy.parquet")
    pl.DataFrame(ITEMS).write_parquet(out / "items.parquet")
    people = pl.DataFrame({"user_id": USERS, "market": "GB", "created_at": "2020-01-01"})
    people.write_parquet(out / "listeners.parquet")
    report = built(out, tmp_path / "snapshot")
    assert records_of(tmp_path / "snapshot") == {*STAY, *back}
    assert {(table, count, examples) for table, why, count, examples in report.rejections if why == FORGOTTEN} == {
        ("listens", len(GONE), ()),
        ("listeners", len(GONE), ()),
    }
    assert report.figures["rejected"] == 0
    store.publish(tmp_path / "snapshot")
    assert loaded(store, tmp_path / "snapshot") == {*STAY, *back}
    await forget(store, back[:1])
    store.client.delete(store.keys.spaces)  # so that all is loaded anew
    store.publish(tmp_path / "snapshot")
    assert loaded(store, tmp_path / "snapshot") == {*STAY, *back[1:]}


async def test_a_file_of_tombstones_serves_builds_and_imports_elsewhere(store: Store, tmp_path: Path) -> None:
    """`mantel listeners forgotten` writes it, it names nobody; rows of unknown or earlier time are left out."""
    await forget(store, ["1", "u2"])
    file = tmp_path / "tombstones" / "f.parquet"
    done = mantel("listeners", "forgotten", "--out", str(file), "--state", str(store.state.path))
    assert (done.returncode, "2 tombstones" in done.stdout) == (0, True), done.stderr
    assert read_forgotten(file) == all_forgotten(store.client, store.keys)
    assert b"u2" not in file.read_bytes()
    at = datetime.fromtimestamp(forgotten(store.client, store.keys, ["u2"])["u2"], UTC)
    rows: list[dict[str, Any]] = [
        {"user_id": "u1", "item_id": "i1", "plays": 1},
        {"user_id": "u2", "item_id": "i1", "plays": 1},
        {"user_id": "u2", "item_id": "i2", "plays": 1, "last_played_at": at},
        {"user_id": "u2", "item_id": "i3", "plays": 1, "last_played_at": at + timedelta(seconds=1)},
    ]
    data = write_tables(tmp_path / "data", items=ITEMS, listens=rows)
    one, other = built(data, tmp_path / "a"), built(data, tmp_path / "b", forgotten=file)
    assert (one.manifest.built["counts"]["listens"], other.manifest.built["counts"]["listens"]) == (4, 2)
    assert one.manifest.space_id != other.manifest.space_id
    assert (records_of(tmp_path / "b"), [row[2] for row in other.rejections]) == ({"u1", "u2"}, [2])


def test_what_is_no_file_of_tombstones_is_refused_by_name(tmp_path: Path) -> None:
    """As bad input of the build, not as a traceback."""
    write_tables(tmp_path / "data", items=ITEMS, listens=[])
    (tmp_path / "data" / FILE).write_text("nonsense")
    done = mantel("build", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "S"))
    assert done.returncode == 1
    assert f"{FILE} cannot be read as tombstones" in done.stderr.replace("\n", " ")
